"""What is wrong or odd with masks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sfrjax.check.report import Finding, Item
from sfrjax.datasets.images import mask_values
from sfrjax.errors import SfrjaxError


class Mask(NamedTuple):
    """What there is to know of a mask; if it cannot be used, only why.

    path: the file.
    error: why it cannot be used, "" if it can.
    values: number of distinct values.
    area: fraction of the pixels that are defective.
    cropped: the customary centre crop would leave nothing of the defect.
    """

    path: Path
    error: str = ""
    values: int = 0
    area: float = 0.5
    cropped: bool = False


def inspect_mask(path: Path, *, threshold: int, shape: tuple[int, int]) -> Mask:
    """Read a mask; arguments as for `read_mask`."""
    try:
        values = mask_values(path, shape=shape)
    except SfrjaxError as error:
        return Mask(path, str(error))
    defective = values > threshold
    cropped = bool(defective.any() and not _centre(defective).any())
    return Mask(path, "", len(np.unique(values)), float(defective.mean()), cropped)


def _centre(mask: np.ndarray) -> np.ndarray:
    """What most programs for ImageNet networks see: the shorter side scaled to 256 pixels, the centre 224 x 224."""
    width, height = (round(256 * side / min(mask.shape)) for side in mask.shape[::-1])
    top, left = (height - 224) // 2, (width - 224) // 2
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))[top:, left:][:224, :224]


def mask_findings(masks: Sequence[Mask], threshold: int) -> Iterator[Finding]:
    """Unusable, blank, full and grey masks, and the defects that a centre crop would lose."""
    if unusable := [Item(mask.path, mask.error) for mask in masks if mask.error]:
        yield Finding("error", "unusable mask", "evaluate stops at the first of them", tuple(unusable))
    if blank := [Item(mask.path) for mask in masks if mask.area == 0]:
        message = (
            "no defective pixel: such an image counts as defective for the image score and has no region for AUPRO"
        )
        yield Finding("warning", "blank mask", message, tuple(blank))
    if full := [Item(mask.path) for mask in masks if mask.area == 1]:
        yield Finding("warning", "mask that covers its image", "every pixel is defective: inverted?", tuple(full))
    if grey := [Item(mask.path, f"{mask.values} values") for mask in masks if mask.values > 2]:
        # A threshold above 0 is the layout's own answer to grey edges.
        severity = "note" if threshold else "warning"
        message = (
            f"values above {threshold} count as defective, as this data set means them"
            if threshold
            else "all values but 0 count as defective: right for labels 1, 2, 3; where the greys are soft edges, they "
            "enlarge the defects: save masks as black and white"
        )
        yield Finding(severity, "mask that is not binary", message, tuple(grey))
    if cropped := [Item(mask.path) for mask in masks if mask.cropped]:
        message = (
            "the customary preprocessing (shorter side to 256 pixels, centre 224 x 224) would delete the whole defect "
            f"from {len(cropped)} of {len(masks)} images; sfrjax squashes images and deletes nothing"
        )
        yield Finding("note", "defect that a crop would delete", message, tuple(cropped))
