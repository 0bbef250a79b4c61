"""PatchCore: distance to the nearest patch of a coreset of nominal patches (Roth et al. 2021, arXiv 2106.08265).

A patch feature is the average over 3 x 3 positions, zeros around the map, of each level's features, its channels
pooled; deeper levels are brought to the shallowest one's grid bilinearly, and the levels are concatenated. Of the
nominal patches 10 % are kept, or 1 % where 10 % would be more than 100,000 (the paper reports both), chosen by the
greedy k-centre algorithm on a random projection to 128 dimensions (Algorithm 1). A position's anomaly is its distance
to the nearest patch kept, an image's the largest one, re-weighted (Eq. 6, 7); maps are upsampled bilinearly and
smoothed.

Deviations from the paper and its authors' program:

1. Images are squashed to image_size (256), as for every method here; the paper crops 224 x 224 out of 256 x 256.
2. Channels are pooled after averaging over positions. The authors' program pools pairs of channel and position in one
   row, by which the centre of 3 x 3 positions weighs twice as much as the others where a level has 512 channels. They
   are pooled at once to 1024 / (number of levels) per level, not to 1024 each and then to 1024 together.
3. A level with fewer channels than that is not repeated up to it, but scaled so that it weighs as much in a distance.
4. The greedy algorithm starts from one patch drawn from settings.seed, and is exact; the authors' default program
   begins with distances to ten random patches.
5. b = 9 in Eq. 7, which the paper leaves open; the authors' program leaves the re-weighting out. The patch m* counts
   among its own neighbours. With a single patch kept there is nothing to weigh, and the weight is 1.
6. The number of patches decides which of the paper's shares is kept, 10 % or 1 %.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax.rivals.coreset import greedy_coreset
from sfrjax.scoring import anomaly_maps
from sfrjax.settings import Level, Settings

DIMENSIONS = 1024  # of a patch feature, at most
PROJECTED = 128  # dimensions in which the coreset is chosen
SHARE, MOST = 0.1, 100_000  # of the nominal patches that the coreset keeps, unless that is more than MOST,
SMALL_SHARE = 0.01  # then this one
NEIGHBOURS = 9  # b in Eq. 7
BLOCK = 2048  # patches of the bank compared with an image's at a time: their distances should stay in a cache

HIGHEST = jax.lax.Precision.HIGHEST


class PatchCore(NamedTuple):
    """bank: float32 [M, D], the patch features kept."""

    bank: jax.Array


def fit_bytes(n_images: int, shapes: Mapping[Level, tuple[int, int, int]], settings: Settings) -> int:
    """Memory in bytes that `fit` takes: every nominal patch, its projection (twice: centred), and the coreset."""
    n_patches, dimensions = _patches_shape(n_images, shapes, settings)
    return 4 * (n_patches * (dimensions + 2 * PROJECTED) + coreset_size(n_patches) * dimensions)


def coreset_size(n_patches: int) -> int:
    """How many of the nominal patches are kept."""
    share = SHARE if SHARE * n_patches <= MOST else SMALL_SHARE
    return max(1, round(share * n_patches))


def fit(
    features: Iterable[Mapping[Level, jax.Array]],
    n_images: int,
    shapes: Mapping[Level, tuple[int, int, int]],
    settings: Settings,
) -> PatchCore:
    """Collect the patches of nominal images and keep a coreset.

    Args:
        features: {level: float32 [b, h, w, c]} of settings.levels, n_images in all.
        n_images: number of nominal images.
        shapes: (h, w, c) of each level.
        settings: of which levels and seed count.
    """
    patches = jnp.zeros(_patches_shape(n_images, shapes, settings), jnp.float32)
    start = 0
    for batch in features:
        embedded = _embed(tuple(batch[level] for level in settings.levels)).reshape(-1, patches.shape[1])
        jax.block_until_ready(patches)  # unbounded, the queue would hold the features of every batch
        patches = _store(patches, embedded, start)
        start += len(embedded)
    for_projection, for_first = jax.random.split(jax.random.key(settings.seed))
    first = jax.random.randint(for_first, (), 0, len(patches))
    picks = greedy_coreset(_projected(patches, for_projection), first, n_picks=coreset_size(len(patches)))
    return PatchCore(patches[picks])


def score(model: PatchCore, features: Mapping[Level, jax.Array], settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Anomaly maps float32 [B, size, size] and image scores float32 [B].

    Args:
        model: from `fit`.
        features: {level: float32 [B, h, w, c]} of settings.levels.
        settings: those of `fit`.
    """
    patches = _embed(tuple(features[level] for level in settings.levels))
    distances, nearest = _nearest(model.bank, patches)
    maps, _ = anomaly_maps((distances,), size=settings.image_size, sigma=settings.sigma)
    return maps, _image_scores(model.bank, patches, distances, nearest)


@jax.jit
def _embed(features: tuple[jax.Array, ...]) -> jax.Array:
    """Levels [B, h, w, c] -> patch features float32 [B, H, W, D] on the largest grid."""
    grid = max(level.shape[1:3] for level in features)
    share = DIMENSIONS // len(features)
    embedded = []
    for level in features:
        summed = jax.lax.reduce_window(level, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        pooled = jnp.matmul(summed / 9, _pooling(level.shape[-1], share), precision=HIGHEST)
        embedded.append(jax.image.resize(pooled, (len(level), *grid, pooled.shape[-1]), "linear"))
    return jnp.concatenate(embedded, axis=-1)


def _pooling(channels: int, share: int) -> np.ndarray:
    """float32 [channels, min(channels, share)]: adaptive average pooling, or the scale in place of repetition."""
    if channels <= share:
        return np.eye(channels, dtype=np.float32) * np.float32(np.sqrt(share / channels))
    pooling = np.zeros((channels, share), np.float32)
    for i in range(share):
        low, high = i * channels // share, -(-(i + 1) * channels // share)
        pooling[low:high, i] = 1 / (high - low)
    return pooling


@partial(jax.jit, donate_argnums=0)
def _store(patches: jax.Array, embedded: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice(patches, embedded, (start, 0))


@jax.jit
def _projected(patches: jax.Array, key: jax.Array) -> jax.Array:
    """Gaussian projection to PROJECTED dimensions, which about keeps distances (Johnson-Lindenstrauss)."""
    matrix = jax.random.normal(key, (patches.shape[1], PROJECTED)) / np.sqrt(PROJECTED)
    return jnp.matmul(patches, matrix, precision=HIGHEST)


@jax.jit
def _nearest(bank: jax.Array, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distance float32 [B, H, W] to the nearest patch of the bank, and its index int32 [B, H, W]."""
    squares = jnp.sum(bank**2, axis=1)
    side = min(BLOCK, len(bank))

    def of_image(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        queries = image.reshape(-1, image.shape[-1])

        def compare(i: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            at = jnp.minimum(i * side, len(bank) - side)
            block, lengths = (jax.lax.dynamic_slice_in_dim(x, at, side) for x in (bank, squares))
            # Less the query's own square, which is the same for all of the bank.
            distance = lengths - 2 * jnp.matmul(queries, block.T, precision=HIGHEST)
            least, where = distance.min(axis=1), distance.argmin(axis=1)
            return jnp.minimum(least, best[0]), jnp.where(least < best[0], at + where, best[1])

        start = (jnp.full((len(queries),), jnp.inf), jnp.zeros((len(queries),), jnp.int32))
        _, nearest = jax.lax.fori_loop(0, -(-len(bank) // side), compare, start)
        # Anew from the difference: as the difference of two large products a small distance would be lost.
        distance = jnp.linalg.norm(queries - bank[nearest], axis=1)
        return distance.reshape(image.shape[:2]), nearest.reshape(image.shape[:2])

    return jax.lax.map(of_image, patches)


@jax.jit
def _image_scores(bank: jax.Array, patches: jax.Array, distances: jax.Array, nearest: jax.Array) -> jax.Array:
    """Eq. 6, 7: the largest distance, less where the neighbours of the patch it was measured to are about as near."""

    def of_image(image: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        queries, distance, star = (x.reshape(distances[0].size, *x.shape[2:]) for x in image)
        worst = distance.argmax()
        if len(bank) == 1:
            return distance[worst]
        from_star = jnp.sum((bank - bank[star[worst]]) ** 2, axis=1)
        _, neighbours = jax.lax.top_k(-from_star, min(NEIGHBOURS, len(bank)))
        around = jnp.linalg.norm(bank[neighbours] - queries[worst], axis=1)
        return distance[worst] * (1 - jnp.exp(distance[worst] - jax.nn.logsumexp(around)))

    return jax.lax.map(of_image, (patches, distances, nearest))


def _patches_shape(n_images: int, shapes: Mapping[Level, tuple[int, int, int]], settings: Settings) -> tuple[int, int]:
    """Of all nominal patches: their number, and the dimensions of each."""
    height, width = max(shapes[level][:2] for level in settings.levels)
    share = DIMENSIONS // len(settings.levels)
    return n_images * height * width, sum(min(shapes[level][2], share) for level in settings.levels)
