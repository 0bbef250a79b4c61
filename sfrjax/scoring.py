"""Residual norms -> anomaly map -> image score; the threshold that nominal images alone give, and what is above it."""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage


@lru_cache
def smoothing_operator(side: int, size: int, sigma: float) -> np.ndarray:
    """The matrix A for which A @ m @ A.T upsamples m bilinearly to [size, size] and then smooths it.

    Both steps are linear and separable, so a level's map costs two small matrix products, and the sum over levels
    may be taken after smoothing. Upsampling has half-pixel centres (align_corners=False) and clamps at the border;
    smoothing is scipy's gaussian_filter (reflect, truncate 4).

    Args:
        side: rows (or columns) of the residual map.
        size: rows (or columns) of the anomaly map, in pixels.
        sigma: standard deviation of the Gaussian, in pixels of the anomaly map.

    Returns:
        float32 [size, side].
    """
    position = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, side - 1)
    weight = position - low
    upsample = np.zeros((size, side))
    np.add.at(upsample, (np.arange(size), low), 1 - weight)
    np.add.at(upsample, (np.arange(size), high), weight)
    return ndimage.gaussian_filter1d(upsample, sigma, axis=0, mode="reflect", truncate=4.0).astype(np.float32)


@partial(jax.jit, static_argnames=("size", "sigma"))
def anomaly_maps(norms: tuple[jax.Array, ...], *, size: int, sigma: float) -> tuple[jax.Array, jax.Array]:
    """Sum of the levels' residual norms, upsampled and smoothed (section III-C of the paper).

    Args:
        norms: per scoring level, float32 [B, h, w]: L2 norm over channels of the residual at each position.
        size: side of the maps in pixels.
        sigma: standard deviation of the Gaussian in pixels.

    Returns:
        anomaly maps float32 [B, size, size] and image scores float32 [B], the maxima of the maps.
    """
    maps = jnp.zeros((norms[0].shape[0], size, size), jnp.float32)
    for norm in norms:
        rows = smoothing_operator(norm.shape[1], size, sigma)
        columns = smoothing_operator(norm.shape[2], size, sigma)
        maps += jnp.einsum("ih,bhw,jw->bij", rows, norm, columns, precision=jax.lax.Precision.HIGHEST)
    return maps, maps.max(axis=(1, 2))


def threshold_from_nominal(scores: np.ndarray, quantile: float) -> float:
    """The image score above which an image is called anomalous, from nominal images alone.

    It is the ceil(quantile (M + 1))-th smallest of M leave-one-out scores, the largest where there are too few: of
    images exchangeable with these, a nominal one exceeds it with probability at most max(1 - quantile, 1 / (M + 1))
    (split conformal prediction, Vovk et al. 2005). An anomaly map is in the same unit as the image score, so the
    threshold also bounds the anomalous regions.

    Args:
        scores: float [M], M >= 1, nominal images each scored against all the others.
        quantile: in (0, 1].
    """
    rank = min(math.ceil(quantile * (len(scores) + 1)), len(scores))
    return float(np.sort(scores)[rank - 1])


def calibrated(values: ArrayLike, threshold: float) -> NDArray[np.float32]:
    """Scores or maps in units of the threshold, float32: above 1 is anomalous, whatever the product and the network.

    Where the threshold is 0 (nominal images that are all the same) any residual is far beyond it, and stays finite.
    """
    limits = np.finfo(np.float32)
    scaled = np.array(values, np.float32)  # a copy, and the only one
    with np.errstate(over="ignore"):
        scaled /= max(np.float32(threshold), limits.tiny)
    return np.minimum(scaled, limits.max, out=scaled)


class Region(NamedTuple):
    """A connected anomalous region, in pixels of the original image.

    x, y, width, height: the bounding box; x and y count from the left and the top.
    area: number of pixels.
    score: the anomaly map's largest value inside.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    score: float


def find_regions(anomaly_map: np.ndarray, threshold: float, shape: tuple[int, int]) -> tuple[Region, ...]:
    """The 8-connected regions above the threshold, highest score first.

    They are sought on the map that the image score is the maximum of, so that an image has one exactly if its score is
    above the threshold, and then measured in the original image's pixels.

    Args:
        anomaly_map: float32 [size, size].
        threshold: of scores and maps.
        shape: (height, width) of the original image.
    """
    labels, _ = ndimage.label(anomaly_map > np.float64(threshold), structure=np.ones((3, 3)))
    scale_y, scale_x = shape[0] / anomaly_map.shape[0], shape[1] / anomaly_map.shape[1]
    found = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[rows, columns] == index
        x, y = math.floor(columns.start * scale_x), math.floor(rows.start * scale_y)
        width, height = math.ceil(columns.stop * scale_x) - x, math.ceil(rows.stop * scale_y) - y
        area = max(1, round(np.count_nonzero(inside) * scale_x * scale_y))
        found.append(Region(x, y, width, height, area, float(anomaly_map[rows, columns][inside].max())))
    return tuple(sorted(found, key=lambda region: -region.score))


def resize_map(anomaly_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An anomaly map at the original image size: float32 [h, w] -> float32 [height, width], bilinear."""
    if anomaly_map.shape == shape:
        return anomaly_map
    height, width = shape
    return np.asarray(Image.fromarray(anomaly_map).resize((width, height), Image.Resampling.BILINEAR))
