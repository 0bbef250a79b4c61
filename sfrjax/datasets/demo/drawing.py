"""Drawing with signed distances: smooth shapes, noise and shading on a square float32 canvas, in NumPy alone.

Coordinates are pixels from the image's centre, x to the right and y downwards. A shape is a signed distance (negative
inside); its coverage falls from 1 to 0 across one pixel of its outline, which gives antialiased edges. Plain Python
floats are used as factors throughout, so that arrays stay float32.
"""

import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIZE = 256
Array = NDArray[Any]

_AXIS = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
X: Array = np.broadcast_to(_AXIS, (SIZE, SIZE))
Y: Array = np.broadcast_to(_AXIS[:, None], (SIZE, SIZE))


def window(cx: float, cy: float, reach: float) -> tuple[slice, slice]:
    """Rows and columns of the square around (cx, cy), cut at the canvas: small parts are drawn in theirs alone."""
    low_row, low_column = (max(int(c + SIZE / 2 - reach), 0) for c in (cy, cx))
    high_row, high_column = (max(int(c + SIZE / 2 + reach) + 1, 0) for c in (cy, cx))
    return slice(low_row, high_row), slice(low_column, high_column)


def frame(cx: float, cy: float, angle: float, x: Array = X, y: Array = Y) -> tuple[Array, Array]:
    """Coordinates of every pixel in a frame with its origin at (cx, cy), turned by ``angle`` radians."""
    c, s = math.cos(angle), math.sin(angle)
    dx, dy = x - cx, y - cy
    return c * dx + s * dy, c * dy - s * dx


def place(x: float, y: float, pose: tuple[float, float, float]) -> tuple[float, float]:
    """Where a point of a frame, whose pose is (cx, cy, angle), lies on the canvas: the inverse of :func:`frame`."""
    cx, cy, angle = pose
    c, s = math.cos(angle), math.sin(angle)
    return c * x - s * y + cx, s * x + c * y + cy


def disc(x: Array, y: Array, radius: float) -> Array:
    """Signed distance of a disc at the origin."""
    return np.sqrt(x * x + y * y) - radius


def box(x: Array, y: Array, half_width: float, half_height: float, corner: float = 0.0) -> Array:
    """Signed distance of a rectangle at the origin with rounded corners."""
    qx, qy = np.abs(x) - (half_width - corner), np.abs(y) - (half_height - corner)
    return disc(np.maximum(qx, 0), np.maximum(qy, 0), corner) + np.minimum(np.maximum(qx, qy), 0)


def polyline(x: Array, y: Array, points: ArrayLike) -> Array:
    """Distance to a chain of straight segments; points [n, 2] as (x, y)."""
    nearest = np.full(x.shape, np.inf, np.float32)
    for (ax, ay), (bx, by) in pairwise(np.asarray(points).tolist()):
        ux, uy = bx - ax, by - ay
        dx, dy = x - ax, y - ay
        t = np.clip((dx * ux + dy * uy) / max(ux * ux + uy * uy, 1e-6), 0, 1)
        nearest = np.minimum(nearest, (dx - t * ux) ** 2 + (dy - t * uy) ** 2)
    return np.sqrt(nearest)


def cover(distance: Array, softness: float = 1.0) -> Array:
    """Coverage 0..1 of a shape, falling across ``softness`` pixels."""
    return np.clip(0.5 - distance / softness, 0, 1)


def paint(image: Array, alpha: Array, colour: ArrayLike) -> None:
    """Lay a colour (three values, or a grey or colour image) over ``image`` [H, W, 3] in place."""
    layer = np.asarray(colour, np.float32)
    image += alpha[..., None] * ((layer[..., None] if layer.ndim == 2 else layer) - image)


def tinted(grey: Array, red: float, green: float, blue: float) -> Array:
    """A grey picture [H, W] in colour [H, W, 3]."""
    return grey[..., None] * np.array([red, green, blue], np.float32)


def grain(rng: np.random.Generator) -> Array:
    """Noise [SIZE, SIZE] two pixels coarse, of unit variance."""
    white = rng.standard_normal((SIZE + 1, SIZE + 1), dtype=np.float32)
    return (white[1:, 1:] + white[1:, :-1] + white[:-1, 1:] + white[:-1, :-1]) / 2


def smooth_noise(rng: np.random.Generator, scale: float) -> Array:
    """Noise [SIZE, SIZE] without direction, about ``scale`` pixels coarse, of about unit variance."""
    spread = _spread(scale)
    # Not a matrix product: the order in which BLAS sums, and with it the last digit, depends on machine and threads.
    rows = np.einsum("il,lk->ik", spread, rng.standard_normal((spread.shape[1],) * 2))
    return np.einsum("ik,jk->ij", rows, spread).astype(np.float32)


@cache
def _spread(scale: float) -> Array:
    """Rows that blend values on a lattice ``scale`` pixels wide into one pixel's, with a Gaussian window."""
    lattice = np.arange(-2, SIZE / scale + 3) * scale
    weights = np.exp(-0.5 * ((np.arange(SIZE)[:, None] - lattice) / (0.7 * scale)) ** 2)
    return weights / np.sqrt(np.sum(weights**2, axis=1, keepdims=True))


def wander(rng: np.random.Generator, x: float, y: float, length: float, *, bend: float) -> Array:
    """Points [13, 2] of a smooth path of a given length in a random direction; ``bend`` in radians per step."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(np.cumsum(rng.normal(0, bend / 3, 12)) + rng.normal(0, bend, 12))
    steps = length / 12 * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return path - path.mean(axis=0) + np.array([x, y])


def blot(rng: np.random.Generator, x: float, y: float, radius: float) -> Array:
    """Coverage [SIZE, SIZE] of an irregular spot with a soft edge."""
    u, v = frame(x, y, rng.uniform(0, np.pi))
    stretch = rng.uniform(0.7, 1.4)
    distance = disc(u * stretch, v / stretch, 0) / radius
    return np.clip((1 - distance + 0.22 * smooth_noise(rng, max(4.0, radius * 0.6))) * 3, 0, 1) * (distance < 1.7)


def shade(height: Array, light: float, elevation: float) -> Array:
    """Lambertian brightness of a height field (pixels), lit from the direction ``light`` (radians); flat gives 1."""
    gy, gx = np.gradient(height)
    slope = (math.cos(light) * gx + math.sin(light) * gy) / math.tan(elevation)
    return np.maximum(1 - slope, 0) / np.sqrt(1 + gx * gx + gy * gy)
