"""Images on disk -> fixed-size batches -> features. Decoding runs beside the computation, a few images ahead of it."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sfrjax.backbones import Backbone, Preprocess, forward
from sfrjax.background import THREADS, ahead
from sfrjax.datasets.images import read_with_picture
from sfrjax.errors import SfrjaxError
from sfrjax.settings import Level


class Batch(NamedTuple):
    """Images of one step of the host loop.

    images: uint8 [B, size, size, 3]; rows from len(paths) on are padding, so that every batch has one shape
        and nothing is traced twice.
    paths: the files of the real rows.
    shapes: their original (height, width) in pixels.
    pictures: the images themselves, RGB and upright, reduced; none unless asked for.
    """

    images: np.ndarray
    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, int], ...]
    pictures: tuple[Image.Image, ...] = ()


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    path: Path
    reason: str


def image_batches(
    paths: Iterable[Path],
    *,
    size: int,
    batch_size: int,
    skipped: list[Skipped] | None = None,
    picture_side: int | None = None,
) -> Iterator[Batch]:
    """Decode images to [size, size] and yield them in batches, at most two batches ahead of the consumer.

    Args:
        paths: image files.
        size: side in pixels to which images are squashed.
        batch_size: rows of every batch.
        skipped: where given, unreadable images are appended to it and left out.
        picture_side: where given, the images themselves come with the batch, at most so many pixels wide and high.

    Raises:
        SfrjaxError: an image cannot be read and `skipped` is not given, or batch_size is below 1.
    """
    if batch_size < 1:
        raise SfrjaxError(f"--batch-size {batch_size}: give at least 1")
    buffer = np.zeros((batch_size, size, size, 3), np.uint8)
    names: list[Path] = []
    shapes: list[tuple[int, int]] = []
    pictures: list[Image.Image] = []
    for path, image, shape, picture in _decode(paths, size, picture_side, 2 * batch_size, skipped):
        buffer[len(names)] = image
        names.append(path)
        shapes.append(shape)
        if picture is not None:
            pictures.append(picture)
        if len(names) == batch_size:
            yield Batch(buffer, tuple(names), tuple(shapes), tuple(pictures))
            # A new buffer: the last one may still be read by an asynchronous transfer.
            buffer, names, shapes, pictures = np.zeros_like(buffer), [], [], []
    if names:
        yield Batch(buffer, tuple(names), tuple(shapes), tuple(pictures))


def _decode(
    paths: Iterable[Path], size: int, side: int | None, most: int, skipped: list[Skipped] | None
) -> Iterator[tuple[Path, np.ndarray, tuple[int, int], Image.Image | None]]:
    for path, future in ahead(partial(read_with_picture, size=size, side=side), paths, threads=THREADS, most=most):
        try:
            decoded = future.result()
        except SfrjaxError as error:
            if skipped is None:
                raise
            skipped.append(Skipped(path, str(error)))
            continue
        yield path, *decoded


@partial(jax.jit, static_argnames=("graphdef", "preprocess", "levels", "neighbourhood"))
def _extract(
    state: object,
    images: jax.Array,
    *,
    graphdef: object,
    preprocess: Preprocess,
    levels: tuple[Level, ...],
    neighbourhood: int,
) -> tuple[jax.Array, ...]:
    features = forward(graphdef, state, preprocess, levels, images)
    # A tuple, because jit sorts the keys of a dict and 4 < "last" has no answer.
    return tuple(_neighbourhood_mean(features[level], neighbourhood) for level in levels)


def _neighbourhood_mean(features: jax.Array, side: int) -> jax.Array:
    """Features [B, h, w, c] averaged over the side x side positions around each, those outside the map left out."""
    if side == 1:
        return features

    def summed(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, side, side, 1), (1, 1, 1, 1), "SAME")

    return summed(features) / summed(jnp.ones((1, *features.shape[1:3], 1), features.dtype))


def extract(backbone: Backbone, images: np.ndarray | jax.Array, *, neighbourhood: int = 1) -> dict[Level, jax.Array]:
    """Feature maps of a batch.

    Args:
        backbone: a loaded network.
        images: uint8 [B, H, W, 3], RGB.
        neighbourhood: odd side of the square of positions over which features are averaged (settings.neighbourhood).

    Returns:
        {level: float32 [B, h, w, c]} for the levels the backbone was loaded for.
    """
    maps = _extract(
        backbone.state,
        images,
        graphdef=backbone.graphdef,
        preprocess=backbone.preprocess,
        levels=backbone.levels,
        neighbourhood=neighbourhood,
    )
    return dict(zip(backbone.levels, maps, strict=True))
