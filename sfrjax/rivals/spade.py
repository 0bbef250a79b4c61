"""SPADE: distance to the nearest feature of the most similar nominal images (Cohen & Hoshen 2020, arXiv 2005.02357).

The K = 50 nominal images nearest by their globally pooled last features are taken; the image score is the mean squared
distance to them. Level by level features are concatenated into one pyramid feature per position of the shallowest grid,
and a position's anomaly is the squared distance to the nearest feature (kappa = 1) at any position of those K images.
Maps are upsampled bilinearly and smoothed.

Deviations from the paper:

1. Images are squashed to image_size (256), as for every method here; the paper crops 224 x 224 out of 256 x 256.
2. Deeper levels are repeated to the shallowest grid, which the paper leaves open. A squared distance of concatenated
   features is then the sum of the levels' own, each computed once on its own grid: exact, for the cost of the levels.
3. With fewer than 50 nominal images, all of them are taken.

The cost is in the shallowest level: with ResNet50 at 256 x 256, 4096 positions against 50 x 4096, each of 256 channels,
0.4 TFLOP an image, besides 0.08 for the other levels. The distances of two images at that level alone are 67 MB, so
they are reduced block by block, before they leave the cache: to the minimum over the positions that share a cell of the
next level, for which the deeper levels' distance is the same.
"""

from collections.abc import Iterable, Mapping
from functools import partial, reduce
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sfrjax.scoring import anomaly_maps
from sfrjax.settings import Level, Settings

NEIGHBOURS = 50  # K
ROWS = 256  # positions of a test image compared at a time: their distances should stay in a cache


class Spade(NamedTuple):
    """levels: float32 [N, h, w, c] of every scoring level; last: float32 [N, c], the pooled last features."""

    levels: tuple[jax.Array, ...]
    last: jax.Array


def fit_bytes(n_images: int, shapes: Mapping[Level, tuple[int, int, int]], settings: Settings) -> int:
    """Memory in bytes that `fit` takes: all features of all nominal images."""
    return sum(4 * n_images * h * w * c for h, w, c in (shapes[level] for level in (*settings.levels, "last")))


def fit(
    features: Iterable[Mapping[Level, jax.Array]],
    n_images: int,
    shapes: Mapping[Level, tuple[int, int, int]],
    settings: Settings,
) -> Spade:
    """Keep the features of nominal images.

    Args:
        features: {level: float32 [b, h, w, c]} of settings.levels and "last", n_images in all.
        n_images: number of nominal images.
        shapes: (h, w, c) of each level.
        settings: of which levels count.
    """
    wanted: tuple[Level, ...] = (*settings.levels, "last")
    kept = tuple(jnp.zeros((n_images, *shapes[level]), jnp.float32) for level in wanted)
    start = 0
    for batch in features:
        new = tuple(batch[level] for level in wanted)
        jax.block_until_ready(kept)  # unbounded, the queue would hold the features of every batch
        kept = _store(kept, new, start)
        start += len(new[0])
    return Spade(kept[:-1], kept[-1].reshape(n_images, -1))


def score(model: Spade, features: Mapping[Level, jax.Array], settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Anomaly maps float32 [B, size, size] and image scores float32 [B].

    Args:
        model: from `fit`.
        features: {level: float32 [B, h, w, c]} of settings.levels and "last".
        settings: those of `fit`.
    """
    scores, similar = _similar(model.last, features["last"])
    distances = _correspondences(model.levels, tuple(features[level] for level in settings.levels), similar)
    maps, _ = anomaly_maps((distances,), size=settings.image_size, sigma=settings.sigma)
    return maps, scores


@partial(jax.jit, donate_argnums=0)
def _store(kept: tuple[jax.Array, ...], new: tuple[jax.Array, ...], start: int) -> tuple[jax.Array, ...]:
    return tuple(jax.lax.dynamic_update_slice(a, b, (start, 0, 0, 0)) for a, b in zip(kept, new, strict=True))


@jax.jit
def _similar(nominal: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Image scores float32 [B], and the most similar nominal images, int32 [B, K], for last [B, 1, 1, c]."""

    def of_image(last: jax.Array) -> tuple[jax.Array, jax.Array]:
        negative, similar = jax.lax.top_k(-jnp.sum((nominal - last) ** 2, axis=1), min(NEIGHBOURS, len(nominal)))
        return -negative.mean(), similar

    return jax.lax.map(of_image, last.reshape(len(last), -1))


@jax.jit
def _correspondences(nominal: tuple[jax.Array, ...], features: tuple[jax.Array, ...], similar: jax.Array) -> jax.Array:
    """Squared distance float32 [B, H, W] to the nearest pyramid feature at any position of the similar images."""
    order = sorted(range(len(features)), key=lambda i: features[i].shape[1:3], reverse=True)
    features, nominal = (tuple(levels[i] for i in order) for levels in (features, nominal))
    sides = [(level.shape[1], level.shape[2]) for level in features]
    grid = sides[0]
    nested = all(a % b == 0 for fine, coarse in pairwise(sides) for a, b in zip(fine, coarse, strict=True))
    cells = sides[1] if nested and len(sides) > 1 else grid
    squares = jnp.zeros((len(similar), *grid, 1))
    for level in features:
        squares += _repeated(jnp.sum(level**2, axis=-1, keepdims=True), grid)

    def of_image(image: tuple[tuple[jax.Array, ...], jax.Array]) -> jax.Array:
        (query, *deeper), images = image
        within = _by_cell(query, cells)

        def nearest(i: jax.Array, best: jax.Array) -> jax.Array:
            known, *below = (level[images[i]] for level in nominal)
            common = jnp.zeros((cells[0] * cells[1],) * 2)
            for a, b in zip(deeper, below, strict=True):
                if nested:
                    common += _spread(_less_square(a, b), (a.shape[0], a.shape[1]), cells)
                else:
                    common += _less_square(_repeated(a[None], cells)[0], _repeated(b[None], cells)[0])
            return jnp.minimum(best, _nearest_in(within, _by_cell(known, cells), common))

        best = jax.lax.fori_loop(0, len(images), nearest, jnp.full(within.shape[:2], jnp.inf))
        return _from_cells(best, cells, grid)

    # Less the query's own square, which is the same for all positions of all images, and added at the end.
    return jnp.maximum(jax.lax.map(of_image, (features, similar)) + squares[..., 0], 0)


def _nearest_in(queries: jax.Array, known: jax.Array, common: jax.Array) -> jax.Array:
    """min over (r, g) of |known[r, g]|^2 - 2 queries[m, f] . known[r, g] + common[f, g], as [m, f].

    Args:
        queries, known: float32 [M, F, c], the M positions of each of F cells.
        common: float32 [F, F], what the cells of query and nominal image add.
    """
    side = next(side for side in range(min(ROWS, len(common)), 0, -1) if len(common) % side == 0)
    squares = jnp.sum(known**2, axis=-1)

    def of_block(start: jax.Array) -> jax.Array:
        added = jax.lax.dynamic_slice_in_dim(common, start, side)

        def of_rows(rows: jax.Array) -> jax.Array:
            products = [jnp.matmul(rows, cell.T, precision=jax.lax.Precision.HIGHEST) for cell in known]
            least = reduce(jnp.minimum, (s - 2 * p for s, p in zip(squares, products, strict=True)))
            return (least + added).min(axis=1)

        return jax.lax.map(of_rows, jax.lax.dynamic_slice_in_dim(queries, start, side, axis=1))

    blocks = jax.lax.map(of_block, jnp.arange(0, len(common), side))
    return jnp.moveaxis(blocks, 0, 1).reshape(queries.shape[:2])


def _less_square(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared distances [h w, h w] of positions of a [h, w, c] to those of b, less the square of a's own."""
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    return jnp.sum(b**2, axis=1) - 2 * jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _spread(distances: jax.Array, grid: tuple[int, int], cells: tuple[int, int]) -> jax.Array:
    """[h w, h w] of a grid's positions -> [H W, H W] of a finer one's, whose sides are multiples."""
    distances = distances.reshape(*grid, *grid)
    for axis in range(4):
        distances = jnp.repeat(distances, cells[axis % 2] // grid[axis % 2], axis)
    return distances.reshape(cells[0] * cells[1], -1)


def _repeated(level: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """[n, h, w, c] -> [n, H, W, c]: the feature of the position that a finer grid's falls into."""
    for axis, side in enumerate(grid, 1):
        level = jnp.take(level, jnp.arange(side) * level.shape[axis] // side, axis)
    return level


def _by_cell(level: jax.Array, cells: tuple[int, int]) -> jax.Array:
    """[h, w, c] -> [M, F, c], the M positions that each of the F cells covers; `_from_cells` is the inverse."""
    h, w, c = level.shape
    split = level.reshape(cells[0], h // cells[0], cells[1], w // cells[1], c)
    return split.transpose(1, 3, 0, 2, 4).reshape(-1, cells[0] * cells[1], c)


def _from_cells(values: jax.Array, cells: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """[M, F] -> [h, w]."""
    split = values.reshape(grid[0] // cells[0], grid[1] // cells[1], *cells)
    return split.transpose(2, 0, 3, 1).reshape(grid)
