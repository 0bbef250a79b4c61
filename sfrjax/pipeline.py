"""fit, extend, predict, localise: where the rooms of the method meet."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from sfrjax.backbones import Backbone, load_backbone
from sfrjax.bank import Bank, bank_bytes, bank_specs, new_about
from sfrjax.bank_file import load_bank, new_bank_file
from sfrjax.build import build_bank
from sfrjax.datasets.images import list_images
from sfrjax.errors import SfrjaxError
from sfrjax.features import Batch, Skipped, extract, image_batches
from sfrjax.memory import free_bytes
from sfrjax.progress import tracked
from sfrjax.reconstruction import residual_norms
from sfrjax.rivals import Rival, fit_bytes, fit_rival, score_rival
from sfrjax.scoring import Region, anomaly_maps, find_regions, resize_map, threshold_from_nominal
from sfrjax.settings import BATCH_SIZE, Settings


class Prediction(NamedTuple):
    """The result for one image.

    path: the image file.
    score: image score: of SFR the maximum of the anomaly map before resizing, in the unit of feature residuals; of a
        rival what its paper says.
    anomaly_map: float32 [height, width], at the original image size.
    anomalous: whether the score is above the threshold; None without one.
    regions: what of the map is above it, highest score first; none exactly if the image is not anomalous.
    picture: the image itself, RGB and upright, where `predict` was asked for it.
    """

    path: Path
    score: float
    anomaly_map: np.ndarray
    anomalous: bool | None = None
    regions: tuple[Region, ...] = ()
    picture: Image.Image | None = None


def fit(
    images: str | Path | Sequence[str | Path],
    settings: Settings | None = None,
    *,
    weights: str | Path | None = None,
    backbone: Backbone | None = None,
    batch_size: int = BATCH_SIZE,
    stream: str | Path | None = None,
    progress: bool = False,
) -> Bank:
    """Build a memory bank from nominal images, in natural order of the paths (`im2` before `im10`).

    Images stream through in batches; memory holds the bank and a few batches.

    Args:
        images: a folder (searched recursively), or files and folders.
        settings: the method's settings; the defaults where None.
        weights: file of network weights; the network's own, by name, where None.
        backbone: a network loaded for settings.feature_levels, instead of loading one here.
        batch_size: images per step.
        stream: for a bank larger than memory: the bank file, which is written straight to disk and stays there, the
            result being `load_bank(stream, stream=True)`.
        progress: say how large the bank will be and show progress bars, on standard error.

    Raises:
        SfrjaxError: no images, an unreadable image (named), s_ref > N, a level that the backbone lacks, a bank larger
            than the free memory, a problem with the weights, or settings of another method than SFR.
    """
    settings = settings or Settings()
    if settings.method != "sfr":
        raise SfrjaxError(f"only SFR has a memory bank to keep, not {settings.method}; it can be evaluated")
    paths = list_images(images)
    settings.check_bank_size(len(paths), os.path.commonpath([path.absolute().parent for path in paths]))
    backbone = network_for(settings, backbone, weights)
    return _build(backbone, settings, paths, None, batch_size, stream, progress)


def fit_method(
    images: str | Path | Sequence[str | Path],
    settings: Settings | None = None,
    *,
    weights: str | Path | None = None,
    backbone: Backbone | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Bank | Rival:
    """Fit whatever settings.method says, SFR or one of its rivals; `predict` and `localise` take either.

    Args:
        images, settings, weights, backbone, batch_size, progress: as in `fit`.

    Raises:
        SfrjaxError: as in `fit`.
    """
    settings = settings or Settings()
    if settings.method == "sfr":
        return fit(images, settings, weights=weights, backbone=backbone, batch_size=batch_size, progress=progress)
    paths = list_images(images)
    settings.check_bank_size(len(paths), os.path.commonpath([path.absolute().parent for path in paths]))
    backbone = network_for(settings, backbone, weights)
    size = fit_bytes(backbone, settings, len(paths))
    if progress:
        print(f"Fitting {settings.method}: {len(paths)} nominal images, {size / 1e6:.0f} MB", file=sys.stderr)
    check_memory(size)
    return fit_rival(backbone, settings, _nominal(paths, settings, min(batch_size, len(paths)), progress), len(paths))


def extend(
    bank: Bank,
    images: str | Path | Sequence[str | Path],
    *,
    weights: str | Path | None = None,
    backbone: Backbone | None = None,
    batch_size: int = BATCH_SIZE,
    stream: str | Path | None = None,
    progress: bool = False,
) -> Bank:
    """Add nominal images to a bank: the bank that `fit` gives for the old images followed by the new ones, bit for bit.

    Only the new images go through the network, and only their rows of the Gram matrices are computed; the leave-one-out
    scores, and with them the threshold, are computed anew. Memory holds both banks, unless the old one is streamed.

    Args:
        bank: from `fit` or `load_bank`; left as it is.
        images: the new ones, a folder or files and folders, in natural order of the paths.
        weights, backbone, batch_size, stream, progress: as in `fit`.

    Raises:
        SfrjaxError: as `fit`; other weights than the bank's; an image that is in the bank already.
    """
    backbone = network_for(bank.settings, backbone, weights)
    bank.check(backbone, bank.settings)
    return _build(backbone, bank.settings, list_images(images), bank, batch_size, stream, progress)


def _build(
    backbone: Backbone,
    settings: Settings,
    paths: Sequence[Path],
    base: Bank | None,
    batch_size: int,
    stream: str | Path | None,
    progress: bool,
) -> Bank:
    names = (*(() if base is None else base.images), *(path.name for path in paths))
    size = bank_bytes(backbone, settings, len(names))
    if progress:
        print(f"Memory bank: {len(names)} nominal images, {size / 1e6:.0f} MB", file=sys.stderr)
    batches = _nominal(paths, settings, batch_size, progress)
    build = partial(build_bank, backbone, settings, batches, paths, batch_size, base=base, progress=progress)
    if stream is None:
        check_memory(size)
        return build()
    specs = bank_specs(backbone, settings, len(names))
    with new_bank_file(stream, new_about(backbone, settings, names), specs) as allocate:
        build(allocate=allocate)
    return load_bank(stream, stream=True)


def _nominal(paths: Sequence[Path], settings: Settings, batch_size: int, progress: bool) -> Iterator[Batch]:
    batches = image_batches(paths, size=settings.image_size, batch_size=batch_size)
    return tracked(batches, "Fitting", len(paths), lambda batch: len(batch.paths), shown=progress)


def predict(
    bank: Bank | Rival,
    images: str | Path | Sequence[str | Path],
    settings: Settings | None = None,
    *,
    threshold: float | None = None,
    weights: str | Path | None = None,
    backbone: Backbone | None = None,
    batch_size: int = BATCH_SIZE,
    skipped: list[Skipped] | None = None,
    picture_side: int | None = None,
    progress: bool = False,
) -> Iterator[Prediction]:
    """Localise anomalies, image by image, in natural order of the paths (`im2` before `im10`), each once.

    Args:
        bank: from `fit`, `load_bank` or `fit_method`.
        images: a folder (searched recursively), or files and folders.
        settings: the bank's own where None; sampling, s_ref, s, eps, sigma, quantile and seed may differ from them,
            but thresholds hold for the bank's own sampling, s_ref, s, eps and sigma only.
        threshold: score above which an image is anomalous; from the bank's nominal scores and settings.quantile
            where None (a rival has none).
        weights: file of network weights, where `fit` was given one.
        backbone: a network loaded for settings.feature_levels, instead of loading one here.
        batch_size: images per step.
        skipped: where given, unreadable images are appended to it and left out.
        picture_side: where given, predictions hold the image too, reduced to at most so many pixels wide and high; who
            draws it need not decode it again.
        progress: show a progress bar on standard error.

    Raises:
        SfrjaxError: when the first prediction is asked for: no images, other weights or settings than the bank's;
            later: an unreadable image while `skipped` is not given.
    """
    settings = settings or bank.settings
    paths = list_images(images)
    backbone = network_for(settings, backbone, weights)
    bank.check(backbone, settings)
    batch_size = min(batch_size, len(paths))
    batches = image_batches(
        paths, size=settings.image_size, batch_size=batch_size, skipped=skipped, picture_side=picture_side
    )
    if threshold is None and isinstance(bank, Bank):
        threshold = threshold_from_nominal(bank.nominal_scores, settings.quantile)
    predictions = _predictions(bank, backbone, settings, batches, threshold)
    yield from tracked(predictions, "Predicting", len(paths), lambda _: 1, shown=progress)


def localise(
    bank: Bank | Rival, backbone: Backbone, images: np.ndarray | jax.Array, settings: Settings | None = None
) -> tuple[jax.Array, jax.Array]:
    """Anomaly maps of images in memory: features, reconstruction (or what a rival does), map.

    Args:
        bank: the memory bank, or a fitted rival.
        backbone: the network it was built with, loaded for settings.feature_levels.
        images: uint8 [B, size, size, 3], RGB, size = settings.image_size.
        settings: the bank's own where None.

    Returns:
        maps float32 [B, size, size] and image scores float32 [B], on the device, not yet waited for.

    Raises:
        SfrjaxError: images of another type or shape, or a network or settings other than the bank's.
    """
    settings = settings or bank.settings
    bank.check(backbone, settings)
    side = settings.image_size
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
        raise SfrjaxError(f"images must be uint8 [B, {side}, {side}, 3]; got {images.dtype} {list(images.shape)}")
    if isinstance(bank, Rival):
        return score_rival(bank, extract(backbone, images))
    features = extract(backbone, images, neighbourhood=settings.neighbourhood)
    reference = bank.reference if settings.sampling == "subspace" else None
    norms = residual_norms(
        bank.scoring,
        reference,
        tuple(features[level] for level in settings.levels),
        None if reference is None else features[settings.reference],
        settings=settings,
    )
    return anomaly_maps(norms, size=settings.image_size, sigma=settings.sigma)


def network_for(settings: Settings, backbone: Backbone | None, weights: str | Path | None) -> Backbone:
    """The network given, if it is the one that the settings mean; otherwise loaded."""
    if backbone is None:
        return load_backbone(settings.backbone, levels=settings.feature_levels, weights=weights, dtype=settings.dtype)
    if backbone.name != settings.backbone or not set(settings.feature_levels) <= set(backbone.levels):
        raise SfrjaxError(
            f"the backbone given is {backbone.name} with levels {backbone.levels}, but the settings need "
            f"{settings.backbone} with levels {settings.feature_levels}"
        )
    return backbone


def check_memory(size: int) -> None:
    """Raise SfrjaxError where `size` bytes are more than the memory that is free now."""
    free = free_bytes()
    if free is not None and size > free:
        raise SfrjaxError(
            f"the fit would need {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB of memory are free; give "
            "--atoms-dtype float16, --stream, fewer nominal images, fewer or deeper --levels, or a smaller --backbone"
        )


def _predictions(
    bank: Bank | Rival, backbone: Backbone, settings: Settings, batches: Iterable[Batch], threshold: float | None
) -> Iterator[Prediction]:
    """Dispatch a batch, then hand out the one before it, so that the host's work overlaps with the device's."""
    previous: tuple[Batch, jax.Array, jax.Array] | None = None
    for batch in batches:
        current = (batch, *localise(bank, backbone, batch.images, settings))
        if previous is not None:
            yield from _collect(*previous, threshold)
        previous = current
    if previous is not None:
        yield from _collect(*previous, threshold)


def _collect(batch: Batch, maps: jax.Array, scores: jax.Array, threshold: float | None) -> Iterator[Prediction]:
    host_maps, host_scores = np.asarray(maps), np.asarray(scores)
    pictures = batch.pictures or (None,) * len(batch.paths)
    rows = zip(batch.paths, batch.shapes, pictures, host_maps, host_scores, strict=False)
    for path, shape, picture, anomaly_map, score in rows:
        prediction = Prediction(path, float(score), resize_map(anomaly_map, shape), picture=picture)
        if threshold is not None:
            regions = find_regions(anomaly_map, threshold, shape)
            prediction = prediction._replace(anomalous=bool(regions), regions=regions)
        yield prediction
