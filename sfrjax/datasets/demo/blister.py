"""A blister pack: twelve two-coloured capsules under clear domes on knurled aluminium foil."""

import math

import numpy as np

from sfrjax.datasets.demo import drawing as dr
from sfrjax.datasets.demo.drawing import SIZE, X, Y, box, cover, disc, paint

DEFECTS = ("broken", "discoloured", "fibre", "missing", "punctured")

_CENTRES = [(62.0 * (column - 1), 56.0 * (row - 1.5)) for row in range(4) for column in range(3)]
_RED, _CREAM = np.array([0.66, 0.16, 0.12], np.float32), np.array([0.80, 0.74, 0.62], np.float32)


def render(rng: np.random.Generator, fault: np.random.Generator, defect: str | None) -> dr.Array:
    """Reflected light [SIZE, SIZE, 3], 0..1; ``rng`` draws what varies between good packs, ``fault`` the defect."""
    pose = (rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(-0.02, 0.02))
    light = math.radians(225) + rng.normal(0, 0.15)
    u, v = dr.frame(*pose)

    table = 0.30 + 0.006 * dr.grain(rng) + 0.010 * dr.smooth_noise(rng, 40)
    table *= 1 - 0.5 * cover(box(u - 4, v - 5, 104, 118, 12), 8)
    knurl = np.sin((u + v) * 0.9) * np.sin((u - v) * 0.9)
    wrinkles = 1.6 * dr.smooth_noise(rng, 34)
    foil = 0.56 * dr.shade(0.16 * knurl + wrinkles, light, math.radians(50)) + 0.012 * dr.grain(rng)
    image = dr.tinted(table, 0.80, 0.95, 1.10)
    paint(image, cover(box(u, v, 104, 118, 12)), dr.tinted(foil, 0.98, 1.0, 1.04))

    victim = int(fault.integers(len(_CENTRES)))
    for index, centre in enumerate(_CENTRES):
        _cavity(image, rng, fault, (*dr.place(*centre, pose), pose[2]), light, defect if index == victim else None)

    if defect == "fibre":
        path = dr.wander(fault, fault.uniform(-75, 75), fault.uniform(-75, 75), fault.uniform(25, 80), bend=0.25)
        hair = cover(dr.polyline(X, Y, path) - fault.uniform(0.1, 0.5), 1.3) * fault.uniform(0.35, 0.85)
        paint(image, hair, (0.10, 0.08, 0.07) if fault.random() < 0.6 else (0.75, 0.75, 0.78))
    elif defect == "punctured":  # in the foil between two cavities, where pressing a capsule out tears it
        aside = (31, 0) if victim % 3 < 2 else (0, 28)
        px, py = (c + a + fault.uniform(-3, 3) for c, a in zip(_CENTRES[victim], aside, strict=True))
        radius = fault.uniform(2.0, 5.5)
        tear = disc(u - px, v - py, radius)
        tear = tear + 0.8 * dr.smooth_noise(fault, 4) + 99 * (tear > 2 * radius)
        paint(image, cover(tear - 1.5) * 0.5, (0.80, 0.81, 0.84))
        paint(image, cover(tear) * fault.uniform(0.5, 0.9), (0.12, 0.13, 0.15))
    return image


def _cavity(
    canvas: dr.Array,
    rng: np.random.Generator,
    fault: np.random.Generator,
    pose: tuple[float, float, float],
    light: float,
    defect: str | None,
) -> None:
    """One cavity with its capsule, drawn in place. Capsules roll and slide a little in good packs too."""
    cx, cy, turn = pose
    dx, dy, roll, seam = (
        rng.uniform(-1.5, 1.5),
        rng.uniform(-1.5, 1.5),
        rng.uniform(-0.07, 0.07),
        rng.uniform(-1.2, 1.2),
    )
    red, cream, glint = _RED * (1 + rng.normal(0, 0.015)), _CREAM * (1 + rng.normal(0, 0.015)), rng.normal(0, 0.9)
    area = dr.window(cx, cy, SIZE / 8)
    image, x, y = canvas[area], X[area], Y[area]
    u, v = dr.frame(*pose, x, y)
    well = box(u, v, 26, 17, 16)
    paint(image, cover(well, 3) * 0.55, (0.30, 0.31, 0.34))
    paint(image, cover(np.abs(well) - 0.6, 1.5) * 0.5, (0.82, 0.84, 0.88))

    if defect != "missing":
        s, t = dr.frame(cx + dx, cy + dy, turn + roll, x, y)
        capsule, shadow = box(s, t, 21, 9.5, 9.4), box(s - 2.5, t - 3, 21, 9.5, 9.4)
        if defect == "broken":
            end, lost = int(fault.choice([-1, 1])), fault.uniform(3, 14)
            jag = 1.2 * np.sin(t * fault.uniform(0.7, 1.3) + fault.uniform(0, 6))
            cut = end * s - (21 - lost) + jag
            capsule, shadow = np.maximum(capsule, cut), np.maximum(shadow, cut - 2.5)
        elif defect == "discoloured" and fault.random() < 0.5:
            red = red * np.array([fault.uniform(0.80, 0.93), fault.uniform(1.1, 1.9), 1.2], np.float32)
        elif defect == "discoloured":
            cream = cream * np.array([1.0, fault.uniform(0.86, 0.96), fault.uniform(0.70, 0.9)], np.float32)
        paint(image, cover(shadow, 5) * 0.5, (0.10, 0.10, 0.12))
        colour = np.where((s < seam)[..., None], red, cream)
        paint(colour, cover(np.abs(s - seam) - 0.4) * 0.35, (0.2, 0.1, 0.1))
        roundness = np.sqrt(np.clip(1 - (t / 9.5) ** 2, 0, 1)) * 0.45 + math.sin(light - turn - roll) * t * 0.02
        paint(image, cover(capsule), colour * (0.55 + roundness)[..., None])
        paint(image, cover(box(s + 1, t + 4.2, 14, 1.1, 1.0), 2) * 0.45, (1.0, 1.0, 1.0))

    # The dome is clear plastic over whatever lies beneath it: two reflections of the lamp.
    paint(image, cover(box(u + 4, v + 12.5, 14 + glint, 1.2, 1.1), 2.5) * 0.5, (0.95, 0.97, 1.0))
    paint(image, cover(disc(u - 20, v - 9, 2.2), 2) * 0.35, (0.95, 0.97, 1.0))
