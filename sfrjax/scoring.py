"""Residual norms -> anomaly map -> image score, and the threshold that nominal images alone give."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter1d


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
    return gaussian_filter1d(upsample, sigma, axis=0, mode="reflect", truncate=4.0).astype(np.float32)


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


def threshold_from_nominal(scores: np.ndarray) -> float:
    """The image score above which an image is called anomalous: the largest leave-one-out score of a nominal image.

    For exchangeable images the next nominal one exceeds it with probability 1 / (M + 1). An anomaly map is in the
    same unit as the image score, so the threshold also bounds the anomalous region.

    Args:
        scores: float [M], nominal images each scored against all the others.
    """
    return float(scores.max())


def resize_map(anomaly_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An anomaly map at the original image size: float32 [h, w] -> float32 [height, width], bilinear."""
    if anomaly_map.shape == shape:
        return anomaly_map
    height, width = shape
    return np.asarray(Image.fromarray(anomaly_map).resize((width, height), Image.Resampling.BILINEAR))
