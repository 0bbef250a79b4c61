"""PaDiM: at every position the distance to a Gaussian of nominal features (Defard et al. 2020, arXiv 2011.08785).

The levels, repeated to the shallowest one's grid, are concatenated, and the same d of their channels, drawn at random,
are kept everywhere. Every position has a mean and a covariance of its own, plus 0.01 I, and its anomaly is the
Mahalanobis distance. Maps are upsampled bilinearly and smoothed; the image score is the map's maximum.

Deviations from the paper:

1. Images are squashed to image_size (256), as for every method here; the paper crops 224 x 224 out of 256 x 256.
2. d is the paper's for its networks, 100 for ResNet18 and 550 for WideResNet50-2; for every other network it is 550, or
   all channels where there are fewer (EfficientNet-Lite0's 176, of which nothing is left to chance).
3. No covariance S is kept, nor inverted. Of the centred features X [N, d], S = X^T X / (N - 1) + eps I. With fewer
   images than channels, what is kept is A [N, d], the inverse Cholesky factor of X X^T + (N - 1) eps I times X, for
   which S^-1 = (I - A^T A) / eps (the Woodbury identity): exact, and for 209 images and d = 550 a third of the work and
   2 GB instead of 5. With more, means and S are updated some images at a time (Chan et al. 1983), so that memory no
   longer grows, and W is kept, the transposed inverse of the Cholesky factor of S, for which x S^-1 x^T = |x W|^2.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax.scoring import anomaly_maps
from sfrjax.settings import Level, Settings

DIMENSIONS = {"resnet18": 100}  # d, and of every other network:
OTHER_DIMENSIONS = 550
EPSILON = 0.01  # of the identity, added to every covariance
ROWS = 32  # images added to the covariances at a time: every one of those is then read and written less often

HIGHEST = jax.lax.Precision.HIGHEST


class PaDiM(NamedTuple):
    """For each of the P = H W positions, row by row:

    mean: float32 [P, d].
    factor: float32 [P, N, d], A of deviation 3, or [P, d, d], W: whichever is smaller.
    """

    mean: jax.Array
    factor: jax.Array


def fit_bytes(n_images: int, shapes: Mapping[Level, tuple[int, int, int]], settings: Settings) -> int:
    """Memory in bytes that `fit` takes: a mean and a matrix for every position, and images yet to be added to them."""
    positions, dimensions = _size(shapes, settings)
    waiting = 0 if n_images < dimensions else 2 * ROWS
    return 4 * positions * dimensions * (min(n_images, dimensions) + 1 + waiting)


def fit(
    features: Iterable[Mapping[Level, jax.Array]],
    n_images: int,
    shapes: Mapping[Level, tuple[int, int, int]],
    settings: Settings,
) -> PaDiM:
    """Estimate the Gaussians of nominal images.

    Args:
        features: {level: float32 [b, h, w, c]} of settings.levels, n_images in all.
        n_images: number of nominal images, at least 2.
        shapes: (h, w, c) of each level.
        settings: of which levels, backbone and seed count.
    """
    positions, dimensions = _size(shapes, settings)
    few = n_images < dimensions
    mean = jnp.zeros((positions, dimensions), jnp.float32)
    matrices = jnp.zeros((positions, min(n_images, dimensions), dimensions), jnp.float32)
    count = 0
    embedded = (_embed(tuple(batch[level] for level in settings.levels), settings=settings) for batch in features)
    for rows in _gathered(embedded, 1 if few else ROWS):
        jax.block_until_ready(matrices)  # unbounded, the queue would hold the features of every batch
        if few:
            matrices = _store(matrices, rows, count)
        else:
            mean, matrices = _update(mean, matrices, rows, count)
        count += rows.shape[1]
    return PaDiM(*_projection(matrices)) if few else PaDiM(mean, _whitening(matrices, n_images))


def score(model: PaDiM, features: Mapping[Level, jax.Array], settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Anomaly maps float32 [B, size, size] and image scores float32 [B].

    Args:
        model: from `fit`.
        features: {level: float32 [B, h, w, c]} of settings.levels.
        settings: those of `fit`.
    """
    levels = tuple(features[level] for level in settings.levels)
    distances = _distances(model, _embed(levels, settings=settings))
    grid = max(level.shape[1:3] for level in levels)
    return anomaly_maps((distances.reshape(-1, *grid),), size=settings.image_size, sigma=settings.sigma)


@partial(jax.jit, static_argnames="settings")
def _embed(features: tuple[jax.Array, ...], *, settings: Settings) -> jax.Array:
    """Levels [B, h, w, c] -> the chosen channels of all of them, float32 [P, B, d], on the largest grid."""
    grid = max(level.shape[1:3] for level in features)
    chosen = _chosen([level.shape[-1] for level in features], settings)
    kept = [
        jax.image.resize(level[..., channels], (len(level), *grid, len(channels)), "nearest")
        for level, channels in zip(features, chosen, strict=True)
    ]
    return jnp.concatenate(kept, axis=-1).reshape(len(features[0]), grid[0] * grid[1], -1).swapaxes(0, 1)


def _chosen(channels: list[int], settings: Settings) -> list[np.ndarray]:
    """Of each level, the channels that are kept: d of all levels' together."""
    total = sum(channels)
    kept = min(DIMENSIONS.get(settings.backbone, OTHER_DIMENSIONS), total)
    drawn = np.sort(np.random.default_rng(settings.seed).choice(total, kept, replace=False))
    ends = np.cumsum(channels)
    return [drawn[(drawn >= end - n) & (drawn < end)] - (end - n) for end, n in zip(ends, channels, strict=True)]


def _gathered(batches: Iterable[jax.Array], least: int) -> Iterator[jax.Array]:
    """Batches [P, b, d], joined until they hold at least so many rows; the last ones may be fewer."""
    waiting: list[jax.Array] = []
    for batch in batches:
        waiting.append(batch)
        if sum(rows.shape[1] for rows in waiting) >= least:
            yield jnp.concatenate(waiting, axis=1)
            waiting.clear()
    if waiting:
        yield jnp.concatenate(waiting, axis=1)


@partial(jax.jit, donate_argnums=0)
def _store(kept: jax.Array, batch: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice(kept, batch, (0, start, 0))


@partial(jax.jit, donate_argnums=0)
def _projection(kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features [P, N, d] -> their mean [P, d], and A in their place."""
    n = kept.shape[1]
    mean = kept.mean(axis=1)

    def project(rows: jax.Array, mean: jax.Array) -> jax.Array:
        centred = rows - mean
        gram = jnp.matmul(centred, centred.T, precision=HIGHEST) + (n - 1) * EPSILON * jnp.eye(n)
        factor = jnp.linalg.cholesky(gram)
        return jax.lax.linalg.triangular_solve(factor, centred, left_side=True, lower=True)

    return mean, _in_place(project, kept, mean)


@partial(jax.jit, donate_argnums=(0, 1))
def _update(mean: jax.Array, scatter: jax.Array, batch: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Mean and sum of outer products about it, of `count` images before, with those of batch [P, b, d]."""
    b = batch.shape[1]
    batch_mean = batch.mean(axis=1)
    shift = batch_mean - mean
    # The shift of the mean adds an outer product of its own: one row more.
    rows = jnp.concatenate([batch - batch_mean[:, None], shift[:, None] * jnp.sqrt(count * b / (count + b))], axis=1)

    def add(matrix: jax.Array, rows: jax.Array) -> jax.Array:
        return matrix + jnp.matmul(rows.T, rows, precision=HIGHEST)

    return mean + shift * (b / (count + b)), _in_place(add, scatter, rows)


@partial(jax.jit, donate_argnums=0)
def _whitening(scatter: jax.Array, n_images: int) -> jax.Array:
    """The transposed inverse of every covariance's Cholesky factor."""
    identity = jnp.eye(scatter.shape[-1])

    def invert(matrix: jax.Array, _: jax.Array) -> jax.Array:
        factor = jnp.linalg.cholesky(matrix / (n_images - 1) + EPSILON * identity)
        return jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True).T

    return _in_place(invert, scatter, scatter[:, 0])


def _in_place(change: Callable[[jax.Array, jax.Array], jax.Array], matrices: jax.Array, others: jax.Array) -> jax.Array:
    """change(matrix, other), one position after the other, written over the matrix: there may be no room for two."""

    def at(i: jax.Array, matrices: jax.Array) -> jax.Array:
        return matrices.at[i].set(change(matrices[i], others[i]))

    return jax.lax.fori_loop(0, len(matrices), at, matrices)


@jax.jit
def _distances(model: PaDiM, batch: jax.Array) -> jax.Array:
    """Mahalanobis distances float32 [B, P] of batch [P, B, d]."""

    n, d = model.factor.shape[1:]

    def at(position: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        mean, factor, rows = position
        centred = rows - mean
        if n == d:
            return jnp.linalg.norm(jnp.matmul(centred, factor, precision=HIGHEST), axis=1)
        explained = jnp.sum(jnp.matmul(centred, factor.T, precision=HIGHEST) ** 2, axis=1)
        return jnp.sqrt(jnp.maximum(jnp.sum(centred**2, axis=1) - explained, 0) / EPSILON)

    # One position at a time: on a CPU a batched product of these shapes takes four times as long.
    return jax.lax.map(at, (*model, batch)).T


def _size(shapes: Mapping[Level, tuple[int, int, int]], settings: Settings) -> tuple[int, int]:
    """Number of positions P, and of channels kept, d."""
    height, width = max(shapes[level][:2] for level in settings.levels)
    return height * width, sum(map(len, _chosen([shapes[level][2] for level in settings.levels], settings)))
