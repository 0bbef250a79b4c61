"""A small circuit board: traces and vias under green solder mask, a packaged circuit, resistors and capacitors."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from sfrjax.datasets.demo import drawing as dr
from sfrjax.datasets.demo.drawing import SIZE, X, Y, box, cover, disc, paint

DEFECTS = ("bridge", "misplaced", "missing", "residue", "scratch")


class _Kind(NamedTuple):
    """A chip component: half its length and height in pixels, its body's colour and share of the length."""

    length: float
    height: float
    colour: tuple[float, float, float]
    share: float


_RESISTOR, _SMALL_RESISTOR = _Kind(10, 5.5, (0.07, 0.07, 0.08), 0.62), _Kind(7, 4, (0.07, 0.07, 0.08), 0.62)
_CAPACITOR, _SMALL_CAPACITOR = _Kind(10, 5.5, (0.50, 0.40, 0.28), 0.62), _Kind(7, 4, (0.50, 0.40, 0.28), 0.62)
_TANTALUM = _Kind(16, 10.5, (0.62, 0.46, 0.10), 0.80)
_PARTS: tuple[tuple[_Kind, float, float, bool], ...] = (  # kind, centre, whether turned by a quarter
    (_RESISTOR, -84, -78, False),
    (_RESISTOR, -84, -58, False),
    (_CAPACITOR, -84, -38, False),
    (_CAPACITOR, -50, -78, False),
    (_SMALL_CAPACITOR, -20, -82, True),
    (_SMALL_RESISTOR, -4, -82, True),
    (_SMALL_RESISTOR, 12, -82, True),
    (_SMALL_CAPACITOR, 28, -82, True),
    (_TANTALUM, 66, -76, False),
    (_SMALL_RESISTOR, -86, 30, True),
    (_SMALL_RESISTOR, -70, 30, True),
    (_TANTALUM, -86, 72, False),
    (_RESISTOR, -44, 78, False),
    (_RESISTOR, -14, 78, False),
    (_CAPACITOR, 16, 78, False),
    (_SMALL_CAPACITOR, 84, -30, False),
    (_SMALL_RESISTOR, 84, -14, False),
    (_SMALL_RESISTOR, 84, 2, False),
    (_RESISTOR, 62, 76, True),
    (_CAPACITOR, 84, 76, True),
)
_SOLDER_MASK = (0.030, 0.235, 0.125)
_TIN = np.array([0.66, 0.67, 0.70], np.float32)
_CHIP = (4.0, -6.0)  # centre of the packaged circuit
_LABEL = ("111101111", "010010010", "111010111", "101111101", "110011111")  # five glyphs of 3 x 3 cells


@cache
def _bare() -> list[Image.Image]:
    """Three channels of the unpopulated board in its own frame: traces, vias, silk screen. Always the same."""
    trace, pad, hole, silk = (np.zeros((SIZE, SIZE), np.float32) for _ in range(4))
    for side in range(4):
        for pin in range(8):
            along, bend = 8.0 * pin - 28, 54 + 5.0 * (pin % 3)
            end = _around_chip(side, 1.35 * along, bend + 0.35 * abs(along) + 3)
            chain = [_around_chip(side, along, 40), _around_chip(side, along, bend), end]
            trace = np.maximum(trace, cover(dr.polyline(X, Y, chain) - 1.0))
            pad = np.maximum(pad, cover(disc(X - end[0], Y - end[1], 3.3)))
            hole = np.maximum(hole, cover(disc(X - end[0], Y - end[1], 1.5)))
    for k in range(5):  # a bus along the left edge and the bottom
        e = 4.5 * k
        chain = [(e - 112, -20), (e - 112, 92 - e), (-100, 104 - e), (112, 104 - e)]
        trace = np.maximum(trace, cover(dr.polyline(X, Y, chain) - 1.0))
    for x, y in ((-113.0, -113.0), (113.0, -113.0), (113.0, 60.0)):  # mounting holes
        pad, hole = np.maximum(pad, cover(disc(X - x, Y - y, 10))), np.maximum(hole, cover(disc(X - x, Y - y, 6)))
    for kind, x, y, upright in _PARTS:
        u, v = dr.frame(x, y, math.pi / 2 * upright)
        silk = np.maximum(silk, cover(np.abs(box(u, v, kind.length + 5, kind.height + 3, 1)) - 0.5))
        for side in (-1, 1):
            pad = np.maximum(pad, cover(box(u - side * kind.length, v, 4, kind.height + 0.5, 1)))
    silk = np.maximum(silk, cover(np.abs(box(X - _CHIP[0], Y - _CHIP[1], 34, 34, 1)) - 0.6))
    for k, glyph in enumerate(_LABEL):
        for cell in (i for i, bit in enumerate(glyph) if bit == "1"):
            silk = np.maximum(
                silk, cover(box(X - 36 - 9 * k - 2.2 * (cell % 3), Y + 106 - 2.2 * (cell // 3), 1.1, 1.1))
            )
    colour = np.empty((SIZE, SIZE, 3), np.float32)
    colour[:] = _SOLDER_MASK
    paint(colour, trace, (0.055, 0.335, 0.175))
    paint(colour, silk * (1 - pad) * 0.8, (0.72, 0.74, 0.70))
    paint(colour, pad, (0.62, 0.60, 0.52))
    paint(colour, hole, (0.03, 0.04, 0.03))
    return [Image.fromarray(np.ascontiguousarray(colour[..., k])) for k in range(3)]


def _around_chip(side: int, along: float, out: float) -> tuple[float, float]:
    x, y = ((along, -out), (out, along), (-along, out), (-out, -along))[side]
    return x + _CHIP[0], y + _CHIP[1]


def render(rng: np.random.Generator, fault: np.random.Generator, defect: str | None) -> dr.Array:
    """Reflected light [SIZE, SIZE, 3], 0..1; ``rng`` draws what varies between good boards, ``fault`` the defect."""
    pose = cx, cy, turn = (rng.uniform(-2.5, 2.5), rng.uniform(-2.5, 2.5), rng.uniform(-0.015, 0.015))
    light = math.radians(230) + rng.normal(0, 0.15)
    c, s, middle = math.cos(turn), math.sin(turn), SIZE / 2
    to_bare = (
        c,
        s,
        middle - c * (cx + middle) - s * (cy + middle),
        -s,
        c,
        middle + s * (cx + middle) - c * (cy + middle),
    )
    channels = [
        np.asarray(
            plane.transform((SIZE, SIZE), Image.Transform.AFFINE, to_bare, Image.Resampling.BILINEAR, fillcolor=mask)
        )
        for plane, mask in zip(_bare(), _SOLDER_MASK, strict=True)
    ]
    image = np.stack(channels, axis=-1)
    image *= (1 + 0.025 * dr.grain(rng) + 0.04 * dr.smooth_noise(rng, 36))[..., None]

    if defect == "residue":
        spot = dr.blot(fault, fault.uniform(-95, 95), fault.uniform(-95, 95), fault.uniform(7, 18))
        dull, white = (0.42, 0.40, 0.30), (0.45, 0.47, 0.48)
        paint(image, spot * fault.uniform(0.12, 0.45), dull if fault.random() < 0.6 else white)
    elif defect == "scratch":
        path = dr.wander(fault, fault.uniform(-90, 90), fault.uniform(-90, 90), fault.uniform(20, 80), bend=0.06)
        line = cover(dr.polyline(X, Y, path) - fault.uniform(0.0, 0.6), 1.2) * fault.uniform(0.25, 0.8)
        copper, dulled = (0.50, 0.40, 0.20), (0.22, 0.42, 0.30)
        paint(image, line, copper if fault.random() < 0.5 else dulled)

    _chip(image, rng, fault, pose, light, defect)
    victim = int(fault.integers(len(_PARTS)))
    for index, (kind, x, y, upright) in enumerate(_PARTS):
        stands = (*dr.place(x, y, pose), turn + math.pi / 2 * upright)
        _component(image, rng, fault, kind, stands, light, defect if index == victim else None)
    return image


def _chip(
    canvas: dr.Array,
    rng: np.random.Generator,
    fault: np.random.Generator,
    pose: tuple[float, float, float],
    light: float,
    defect: str | None,
) -> None:
    """The packaged circuit with its 32 pins, drawn in place."""
    x, y = dr.place(*_CHIP, pose)
    x, y, turn = x + rng.uniform(-0.7, 0.7), y + rng.uniform(-0.7, 0.7), pose[2] + rng.normal(0, 0.006)
    grain = 0.085 + 0.006 * dr.grain(rng)
    area = dr.window(x, y, 52)
    image = canvas[area]
    u, v = dr.frame(x, y, turn, X[area], Y[area])
    package = box(u, v, 30, 30, 2)
    paint(image, cover(box(u - 3, v - 3, 32, 32, 2), 6) * 0.45, (0.01, 0.03, 0.02))
    reach = np.maximum(np.abs(u), np.abs(v))
    along = np.where(np.abs(u) > np.abs(v), v, u)
    comb = np.abs(np.mod(along, 8.0) - 4.0) - 1.9  # a pin every 8 pixels
    pins = np.maximum(np.maximum(comb, np.abs(along) - 31), np.maximum(reach - 41, 29 - reach))
    paint(image, cover(pins), _TIN * (1 - 0.35 * cover(np.abs(reach - 34) - 1.5, 2))[..., None])
    if defect == "bridge":  # solder between two neighbouring pins
        side, thick = int(fault.integers(4)), fault.uniform(1.2, 3.2)
        bx, by = _around_chip(side, 8.0 * int(fault.integers(7)) - 24, fault.uniform(36, 40))
        width, height = (5.0, thick) if side % 2 == 0 else (thick, 5.0)
        drop = box(u - bx + _CHIP[0], v - by + _CHIP[1], width, height, 1)
        paint(image, cover(drop, 1.5) * fault.uniform(0.5, 1.0), (0.60, 0.61, 0.64))
    paint(image, cover(package), grain[area] * dr.shade(3 * cover(package, 4), light, math.radians(50)))
    paint(image, cover(disc(u + 23, v + 23, 2.6)), (0.05, 0.05, 0.05))
    for row, columns in enumerate(((-16, -9, -2, 5, 12), (-12, -5, 2, 9), (-16, -9, 5, 12))):  # laser marking
        for column in columns:
            spot = dr.window(*dr.place(column, 9 * row - 9, (x + 0.5, y + 0.5, turn)), 6)
            p, q = dr.frame(x, y, turn, X[spot], Y[spot])
            mark = np.abs(box(p - column, q + 9 - 9 * row, 2.0, 2.6)) - 0.5
            paint(canvas[spot], cover(mark) * 0.55, (0.33, 0.33, 0.33))


def _component(
    canvas: dr.Array,
    rng: np.random.Generator,
    fault: np.random.Generator,
    kind: _Kind,
    pose: tuple[float, float, float],
    light: float,
    defect: str | None,
) -> None:
    """One chip component, drawn in place. The machine sets good ones down within half a pixel."""
    x, y, turn = pose[0] + rng.uniform(-0.6, 0.6), pose[1] + rng.uniform(-0.6, 0.6), pose[2] + rng.normal(0, 0.015)
    tone = 1 + rng.normal(0, 0.03)
    if defect == "missing":
        return
    if defect == "misplaced":
        shift, direction = fault.uniform(2.0, 6.0), fault.uniform(0, 2 * np.pi)
        x, y = x + shift * math.cos(direction), y + shift * math.sin(direction)
        turn += int(fault.choice([-1, 1])) * fault.uniform(0.1, 0.6)
    area = dr.window(x, y, kind.length + 9)
    image = canvas[area]
    u, v = dr.frame(x, y, turn, X[area], Y[area])
    outline = box(u, v, kind.length, kind.height, 1)
    p, q = dr.frame(x + 2, y + 2, turn, X[area], Y[area])
    paint(image, cover(box(p, q, kind.length, kind.height, 1), 4) * 0.5, (0.01, 0.03, 0.02))
    relief = dr.shade(2.5 * cover(outline, 4), light, math.radians(50))[..., None]
    paint(image, cover(outline), _TIN * relief)
    body = np.abs(u) - kind.length * kind.share
    paint(image, cover(np.maximum(outline, body)), np.array(kind.colour, np.float32) * tone * relief)
    if kind is _TANTALUM:  # a stripe marks its anode
        paint(image, cover(np.maximum(outline, np.abs(u + 0.55 * kind.length) - 1.5)), (0.30, 0.10, 0.05))
