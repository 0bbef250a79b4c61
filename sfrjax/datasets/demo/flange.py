"""A turned steel flange on a dark conveyor: bore, raised collar, six countersunk holes."""

import math

import numpy as np

from sfrjax.datasets.demo import drawing as dr
from sfrjax.datasets.demo.drawing import X, Y, cover, disc, paint

DEFECTS = ("chip", "dent", "scratch", "stain", "undrilled")

_RIM, _COLLAR, _BORE, _CIRCLE, _HOLE = 102.0, 56.0, 27.0, 79.0, 9.0
# The lathe's marks: one tool turns every part, so the coarse profile is the product's own.
_MARKS = np.random.default_rng(101).standard_normal(256)


def render(rng: np.random.Generator, fault: np.random.Generator, defect: str | None) -> dr.Array:
    """Reflected light [SIZE, SIZE, 3], 0..1; ``rng`` draws what varies between good parts, ``fault`` the defect."""
    pose = (rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(-0.16, 0.16))
    light = math.radians(235) + rng.normal(0, 0.12)
    x, y = dr.frame(*pose)
    radius = disc(x, y, 0)
    at, where = fault.uniform(0, 2 * np.pi), fault.uniform(36, 96)  # the defect's place on the part
    px, py = where * math.cos(at), where * math.sin(at)

    body = np.maximum(radius - _RIM, _BORE - radius)
    if defect == "chip":
        bite = fault.uniform(3, 8)
        rim = _RIM + bite * fault.uniform(0.1, 0.5)
        notch = disc(x - rim * math.cos(at), y - rim * math.sin(at), bite) + 0.7 * dr.smooth_noise(fault, 4)
        body = np.maximum(body, -notch)
    angles = [k * math.pi / 3 for k in range(6)]
    if defect == "undrilled":
        angles.pop(fault.integers(6))
    holes = np.min([disc(x - _CIRCLE * math.cos(a), y - _CIRCLE * math.sin(a), _HOLE) for a in angles], axis=0)

    marks = np.interp(radius, np.arange(0, 128, 0.5), _MARKS + rng.normal(0, 0.5, 256)).astype(np.float32)
    height = 7 * cover(body, 5) + 5 * cover(radius - _COLLAR, 4) - 4 * cover(holes - 2, 5) + 0.10 * marks
    albedo = 0.50 + 0.010 * dr.grain(rng) + 0.022 * dr.smooth_noise(rng, 24)
    tint = np.ones((dr.SIZE, dr.SIZE, 3), np.float32)
    if defect == "dent":
        depth, width = fault.uniform(0.8, 2.6), fault.uniform(2.5, 7)
        height -= depth * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * width**2))
    elif defect == "scratch":
        path = dr.wander(fault, px, py, fault.uniform(18, 75), bend=0.08)
        line = cover(dr.polyline(x, y, path) - fault.uniform(0.1, 0.7), 1.2)
        albedo += line * float(fault.choice([-1, 1])) * fault.uniform(0.12, 0.34)
    elif defect == "stain":
        spot = dr.blot(fault, *dr.place(px, py, pose), fault.uniform(5, 15))
        rust, oil = (0.62, 0.42, 0.25), (0.5, 0.5, 0.52)
        paint(tint, spot * fault.uniform(0.25, 0.8), rust if fault.random() < 0.5 else oil)

    # A turned face reflects as two opposite fans, for its grooves run around the centre.
    fan = np.abs(np.sin(np.arctan2(y, x) + (pose[2] - light))) ** 5
    metal = albedo * dr.shade(height, light, math.radians(52)) + 0.20 * (1 + 0.25 * marks) * fan
    belt = 0.115 + 0.012 * dr.grain(rng) + 0.014 * dr.smooth_noise(rng, 30)
    far = disc(X - pose[0] - 6, Y - pose[1] - 7, 0)
    belt *= 1 - 0.65 * cover(np.maximum(far - _RIM, _BORE - far), 9)

    image = dr.tinted(belt, 1.0, 1.02, 1.08)
    paint(image, cover(body), dr.tinted(metal, 0.98, 1.0, 1.03) * tint)
    paint(image, cover(holes), (0.05, 0.05, 0.05))
    return image
