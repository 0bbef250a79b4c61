"""How well an anomaly score separates what is defective from what is not: AUROC and AUPRO, both exact.

Both are one sum over defective pixels (or images). Let ``a`` be the share of nominal scores strictly above a defective
score ``d`` and ``b`` the share at or above it. Lowering the threshold past ``d`` adds that pixel's weight to the true
positives somewhere between the false-positive rates ``a`` and ``b`` (they differ only where nominal scores equal ``d``,
and there the curve is a straight line). Its contribution to the area up to a limit ``L`` therefore has a closed form,
and neither a list of thresholds nor a curve is ever needed: one sort of the nominal scores and one binary search.
Labels and scores enter only through comparisons, so every increasing transform of the scores gives the same result.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from sfrjax.errors import SfrjaxError

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the receiver operating characteristic: P(defective > nominal) + P(equal) / 2.

    Args:
      labels: bool, any shape; True where defective.
      scores: real numbers of the same shape; larger is more anomalous. Infinities are ordinary values.

    Returns:
      The area in [0, 1], exact in float64 (Mann-Whitney U with ties counted half); ``nan`` where one class is absent,
      because the area is then undefined.

    Raises:
      SfrjaxError: shapes differ, labels are not boolean, or a score is NaN.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    _check_pair(labels, scores, "labels and scores")
    return _mann_whitney(scores[labels], scores[~labels])


def pixel_auroc(masks: Sequence[ArrayLike], maps: Sequence[ArrayLike]) -> float:
    """:func:`auroc` over all pixels of all images, without one array of everything: images may differ in size.

    Args:
      masks: one bool [H, W] per image; True where defective.
      maps: one real [H, W] anomaly map per image.

    Returns:
      The area in [0, 1]; ``nan`` where no pixel is defective or none is nominal.

    Raises:
      SfrjaxError: as :func:`auroc`, and where the numbers of masks and maps differ.
    """
    pairs = _checked(masks, maps)
    return _mann_whitney(_gather(pairs, True), _gather(pairs, False))


def aupro(masks: Sequence[ArrayLike], maps: Sequence[ArrayLike], *, fpr_limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    The definition is MVTec's (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021): regions
    are the 8-connected components of each mask at mask resolution; every distinct score of all images is a threshold;
    the overlap is the mean over regions of the share of the region at or above the threshold, each region with the same
    weight; the false-positive rate is taken over all nominal pixels of all images; the curve starts at (0, 0), is
    linear between its points and is cut by linear interpolation at ``fpr_limit``.

    Args:
      masks: one bool [H, W] per test image, images without any defect included; True where defective.
      maps: one real [H, W] anomaly map per image. Images may differ in size.
      fpr_limit: in (0, 1].

    Returns:
      The normalised area in [0, 1]; ``nan`` where no pixel is defective or none is nominal.

    Raises:
      SfrjaxError: a mask is not boolean or has another shape than its map, a map holds NaN, the numbers of masks and
        maps differ, or ``fpr_limit`` is outside (0, 1].
    """
    if not 0 < fpr_limit <= 1:
        raise SfrjaxError(f"fpr_limit is {fpr_limit}: it must be above 0 and at most 1")
    pairs = _checked(masks, maps)
    nominal, defective = _gather(pairs, False), _gather(pairs, True)
    if not nominal.size or not defective.size:
        return float("nan")

    # Beyond the limit nothing counts, so only the highest nominal scores are sorted: down to the one with which the
    # rate passes the limit, plus the number of further scores equal to it (the curve is interpolated across that tie).
    kept = min(int(fpr_limit * nominal.size) + 1, nominal.size)
    nominal.partition(nominal.size - kept)
    highest = nominal[nominal.size - kept :]
    highest.sort()
    lowest_kept = highest[0]
    ties_left_out = np.count_nonzero(nominal[: nominal.size - kept] == lowest_kept)

    weights, n_regions = _region_weights([mask for mask, _ in pairs])
    counted = defective >= lowest_kept
    order = np.argsort(defective[counted])  # searching in order walks through memory instead of jumping: 8x faster
    defective, weights = defective[counted][order], weights[counted][order]
    above = (kept - np.searchsorted(highest, defective, side="right")) / nominal.size
    at_or_above = kept - np.searchsorted(highest, defective, side="left")
    at_or_above[defective == lowest_kept] += ties_left_out
    at_or_above = at_or_above / nominal.size

    # Integral over [0, fpr_limit] of a ramp that rises from 0 at `above` to 1 at `at_or_above`.
    area = fpr_limit - (above + at_or_above) / 2
    cut = at_or_above > fpr_limit
    reached = np.maximum(fpr_limit - above[cut], 0)
    area[cut] = np.divide(reached**2, 2 * (at_or_above - above)[cut], out=np.zeros_like(reached), where=reached > 0)
    return float(np.dot(weights, area) / n_regions / fpr_limit)


def _check_pair(labels: NDArray, scores: NDArray, what: str) -> None:
    if labels.shape != scores.shape:
        raise SfrjaxError(f"{what} differ in shape: {labels.shape} and {scores.shape}")
    if labels.dtype != np.bool_:
        raise SfrjaxError(f"{what}: the first must be boolean, not {labels.dtype} (compare with a threshold first)")
    if scores.dtype.kind not in "iuf":
        raise SfrjaxError(f"{what}: the second must hold real numbers, not {scores.dtype}")
    if np.isnan(scores).any():
        raise SfrjaxError(f"{what}: a score is NaN, so nothing can be ranked; find the image that produced it")


def _checked(masks: Sequence[ArrayLike], maps: Sequence[ArrayLike]) -> list[tuple[NDArray, NDArray]]:
    if len(masks) != len(maps):
        raise SfrjaxError(f"{len(masks)} masks but {len(maps)} maps: one of each is needed per image")
    pairs = [(np.asarray(mask), np.asarray(scores)) for mask, scores in zip(masks, maps, strict=True)]
    for i, (mask, scores) in enumerate(pairs):
        _check_pair(mask, scores, f"mask and map of image {i}")
    return pairs


def _gather(pairs: list[tuple[NDArray, NDArray]], defective: bool) -> NDArray:
    """All scores whose mask equals ``defective``, image after image, in row-major order; a fresh array, filled in
    place so that a large test set is never held twice."""
    counts = [int(np.count_nonzero(mask == defective)) for mask, _ in pairs]
    gathered = np.empty(sum(counts), np.result_type(*(scores for _, scores in pairs)) if pairs else np.float64)
    stop = 0
    for (mask, scores), count in zip(pairs, counts, strict=True):
        start, stop = stop, stop + count
        gathered[start:stop] = scores[mask == defective]
    return gathered


def _mann_whitney(defective: NDArray, nominal: NDArray) -> float:
    """Exact: pairs are counted in integers. Sorts both arrays in place."""
    if not defective.size or not nominal.size:
        return float("nan")
    defective.sort()
    nominal.sort()
    twice = 0
    for side in ("left", "right"):
        twice += int(np.searchsorted(nominal, defective, side=side).sum(dtype=np.int64))
    return twice / (2 * defective.size * nominal.size)


def _region_weights(masks: Sequence[NDArray]) -> tuple[NDArray[np.float64], int]:
    """1 / (pixels in its region) for every defective pixel, in :func:`_gather`'s order, and the number of regions."""
    weights, n_regions = [], 0
    for mask in masks:
        if mask.any():
            labels, n = ndimage.label(mask, structure=_EIGHT_CONNECTED)
            regions = labels[mask]
            weights.append(1 / np.bincount(regions)[regions])
            n_regions += n
    return np.concatenate(weights), n_regions
