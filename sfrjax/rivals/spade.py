"""SPADE: distance to the nearest feature of the most similar nominal images (Cohen & Hoshen 2020, arXiv 2005.02357).

The K = 50 nominal images nearest by their globally pooled last features are taken; the image score is the mean squared
distance to them. Level by level features are concatenated into one pyramid feature per position of the shallowest grid,
and a position's anomaly is the squared distance to the nearest feature (kappa = 1) at any position of those K images.
Maps are upsampled bilinearly and smoothed.

Deviations from the paper:

1. Images are squashed to image_size (256), as for every method here; the paper crops 224 x 224 out of 256 x 256.
2. Deeper levels are repeated to the shallowest grid, which the paper leaves open. A squared distance of concatenated
   features is then the sum of the levels' own, computed once on each level's grid: exact, for the cost of the levels.
3. With fewer than 50 nominal images, all of them are taken.

The cost is in the shallowest level: with ResNet50 at 256 x 256, 4096 positions against 50 x 4096, each of 256 channels,
0.4 TFLOP an image, besides 0.06 for the other levels.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sfrjax.scoring import anomaly_maps
from sfrjax.settings import Level, Settings

NEIGHBOURS = 50  # K


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
    grid = max(level.shape[1:3] for level in features)

    def repeated(level: jax.Array) -> jax.Array:
        """[h, w, h, w] of a level's positions -> [H W, H W] of the grid's."""
        for axis, side in enumerate((*grid, *grid)):
            times, rest = divmod(side, level.shape[axis])
            level = (
                jnp.take(level, jnp.arange(side) * level.shape[axis] // side, axis)
                if rest
                else jnp.repeat(level, times, axis)
            )
        return level.reshape(grid[0] * grid[1], -1)

    def of_image(image: tuple[tuple[jax.Array, ...], jax.Array]) -> jax.Array:
        queries, images = image

        def nearest(i: jax.Array, best: jax.Array) -> jax.Array:
            total = jnp.zeros((), jnp.float32)
            for query, level in zip(queries, nominal, strict=True):
                total = total + repeated(_squared_distances(query, level[images[i]]))
            return jnp.minimum(best, total.min(axis=1))

        start = jnp.full((grid[0] * grid[1],), jnp.inf)
        return jax.lax.fori_loop(0, len(images), nearest, start).reshape(grid)

    return jax.lax.map(of_image, (features, similar))


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of every position of [h, w, c] to every position of another, [h, w, h, w]."""
    products = jnp.einsum("ijc,klc->ijkl", a, b, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(a**2, axis=-1)[:, :, None, None] + jnp.sum(b**2, axis=-1)
    return jnp.maximum(squares - 2 * products, 0)
