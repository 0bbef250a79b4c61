"""evaluate: how well a method finds what test images are known to have; what its threshold does to them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfrjax.backbones import Backbone
from sfrjax.datasets import Category
from sfrjax.datasets.images import image_shape, read_mask
from sfrjax.metrics import Pro, Roc, pro, roc
from sfrjax.pipeline import Prediction, fit_method, network_for, predict
from sfrjax.progress import tracked
from sfrjax.settings import BATCH_SIZE, Settings


class Metrics(NamedTuple):
    """Fractions 0..1; None where a metric is not defined (no masks, or one class only)."""

    pixel_auroc: float | None
    aupro: float | None
    image_auroc: float | None


class Curves(NamedTuple):
    """What the metrics are the areas of; None where there are no masks."""

    image_roc: Roc
    pixel_roc: Roc | None
    pro: Pro | None

    @property
    def metrics(self) -> Metrics:
        """The areas."""
        pixels, regions, images = self.pixel_roc, self.pro, self.image_roc
        return Metrics(pixels and _defined(pixels.area), regions and _defined(regions.area), _defined(images.area))


class Detection(NamedTuple):
    """What the threshold, set from nominal training images alone, does to the test images.

    threshold: image score above which an image counts as anomalous.
    found, n_anomalous: anomalous images above it, of how many.
    false_alarms, n_good: nominal images above it, of how many.
    """

    threshold: float
    found: int
    n_anomalous: int
    false_alarms: int
    n_good: int


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one category, with the predictions and masks they come from, in the order of category.test.

    threshold: image score above which an image is anomalous; None where the method has none.
    """

    category: Category
    metrics: Metrics
    predictions: tuple[Prediction, ...]
    masks: tuple[np.ndarray, ...] | None
    threshold: float | None
    curves: Curves

    @property
    def detection(self) -> Detection | None:
        """Counts of images above the threshold."""
        if self.threshold is None:
            return None
        truth = np.array([sample.anomalous for sample in self.category.test], bool)
        above = np.array([prediction.score > self.threshold for prediction in self.predictions], bool)
        found, false_alarms = int((above & truth).sum()), int((above & ~truth).sum())
        return Detection(self.threshold, found, int(truth.sum()), false_alarms, int((~truth).sum()))


def evaluate(
    category: Category,
    settings: Settings | None = None,
    *,
    weights: str | Path | None = None,
    backbone: Backbone | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Evaluation:
    """Fit on a category's nominal images, predict its test images, and measure.

    Args:
        category: one of `load_dataset`'s.
        settings, weights, backbone, batch_size, progress: as in `fit`.

    Raises:
        SfrjaxError: as in `fit`, or a mask that is missing or of another size than its image.
    """
    settings = settings or Settings()
    check_category(category, settings)
    backbone = network_for(settings, backbone, weights)
    common: dict[str, Any] = {"backbone": backbone, "batch_size": batch_size, "progress": progress}
    bank = fit_method(category.train, settings, **common)
    found = {p.path: p for p in predict(bank, [sample.image for sample in category.test], settings, **common)}
    threshold = bank.threshold
    del bank  # the metrics need its memory
    predictions = tuple(found[sample.image] for sample in category.test)
    masks = read_masks(category)
    curves = measure_curves(category, predictions, masks, progress=progress)
    return Evaluation(category, curves.metrics, predictions, masks, threshold, curves)


def check_category(category: Category, settings: Settings) -> None:
    """What can be wrong with a category, found before any work; reads headers only.

    Raises:
        SfrjaxError: too few nominal images for the settings, or a mask of another size than its image.
    """
    settings.check_bank_size(len(category.train), f"{category.name} ({category.train[0].parent})")
    for sample in category.test:
        if sample.mask is not None and image_shape(sample.mask) != image_shape(sample.image):
            read_mask(sample.mask, threshold=category.mask_threshold, shape=image_shape(sample.image))


def measure(category: Category, predictions: Sequence[Prediction], masks: Sequence[np.ndarray] | None) -> Metrics:
    """Metrics of predictions in the order of category.test.

    Args:
        category: the category.
        predictions: one of each test image.
        masks: one bool [height, width] of each test image, at whose resolution pixels count; None: no pixel metrics.
    """
    return measure_curves(category, predictions, masks).metrics


def measure_curves(
    category: Category,
    predictions: Sequence[Prediction],
    masks: Sequence[np.ndarray] | None,
    *,
    progress: bool = False,
) -> Curves:
    """Curves and areas; arguments as for `measure`, and `progress` as in `fit`."""
    anomalous = np.array([sample.anomalous for sample in category.test], bool)
    scores = np.array([prediction.score for prediction in predictions])
    steps: list[Callable[[], Any]] = [lambda: roc([anomalous], [scores])]
    if masks is not None:
        maps = [prediction.anomaly_map for prediction in predictions]
        steps += [lambda: roc(masks, maps), lambda: pro(masks, maps)]
    images, *pixels = [step() for step in tracked(steps, "Measuring", len(steps), shown=progress)]
    return Curves(images, *(pixels or (None, None)))


def read_masks(category: Category) -> tuple[np.ndarray, ...] | None:
    """The test images' masks, all False for nominal images; None for a set without masks."""
    if not category.has_masks:
        return None
    shapes = [image_shape(sample.image) for sample in category.test]
    return tuple(
        np.zeros(shape, bool)
        if sample.mask is None
        else read_mask(sample.mask, threshold=category.mask_threshold, shape=shape)
        for sample, shape in zip(category.test, shapes, strict=True)
    )


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
