"""How well an anomaly score separates what is defective from what is not: AUROC and AUPRO, both exact.

Both are one sum over defective pixels (or images). Let ``a`` be the share of nominal scores strictly above a defective
score ``d`` and ``b`` the share at or above it. Lowering the threshold past ``d`` adds that pixel's weight to the true
positives somewhere between the false-positive rates ``a`` and ``b`` (they differ only where nominal scores equal ``d``,
and there the curve is a straight line). Its contribution to the area up to a limit ``L`` therefore has a closed form,
and neither a list of thresholds nor a curve is needed for it: one sort of the nominal scores and one binary search.
Curves are for the eye, and drawn with some hundred of their vertices.
Labels and scores enter only through comparisons, so every increasing transform of the scores gives the same result.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

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
    return roc(masks, maps).area


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
    return pro(masks, maps, fpr_limit=fpr_limit).area


class Curve(NamedTuple):
    """Vertices of a curve over the false-positive rate, from (0, 0) on; neither coordinate ever falls. Empty (no vertex
    at all) where the curve is not defined. Straight lines join the vertices.

    fpr: float64 [n], share of nominal scores at or above a threshold.
    rate: float64 [n], at the same threshold: share of defective scores (ROC), or mean overlap of the regions (PRO).
    """

    fpr: NDArray[np.float64]
    rate: NDArray[np.float64]


class Roc(NamedTuple):
    """area: :func:`pixel_auroc`; curve: the curve that it is the area of."""

    area: float
    curve: Curve


class Pro(NamedTuple):
    """area: :func:`aupro`; curve: the curve up to the limit; by_image: float64 [images], the area of each image's own
    regions against the nominal pixels of all images, ``nan`` for an image without a region."""

    area: float
    curve: Curve
    by_image: NDArray[np.float64]


def roc(labels: Sequence[ArrayLike], scores: Sequence[ArrayLike], *, points: int | None = 256) -> Roc:
    """:func:`pixel_auroc` with its curve. Arguments and errors as there; image scores go in as one array in a list.

    Args:
      points: give only some vertices of the exact curve, chosen such that from one to the next neither coordinate
        grows by more than 1 / points and a single score's worth: the line strays no further than that from the curve.
        None: every vertex. The area is that of the whole curve in either case.
    """
    pairs = _checked(labels, scores)
    nominal, defective = _gather(pairs, False), _gather(pairs, True)
    area = _mann_whitney(defective, nominal)  # sorts both
    if math.isnan(area):
        return Roc(area, _NO_CURVE)
    weights = np.full(defective.size, 1 / defective.size)
    return Roc(area, _curve(defective, weights, nominal, nominal.size, 1.0, points))


def pro(
    masks: Sequence[ArrayLike], maps: Sequence[ArrayLike], *, fpr_limit: float = 0.3, points: int | None = 256
) -> Pro:
    """:func:`aupro` with its curve and the area of each image. Arguments and errors as there; `points` as in
    :func:`roc`, the steps being ``fpr_limit`` / points and 1 / points."""
    if not 0 < fpr_limit <= 1:
        raise SfrjaxError(f"fpr_limit is {fpr_limit}: it must be above 0 and at most 1")
    pairs = _checked(masks, maps)
    nominal, defective = _gather(pairs, False), _gather(pairs, True)
    if not nominal.size or not defective.size:
        return Pro(float("nan"), _NO_CURVE, np.full(len(pairs), np.nan))

    # Beyond the limit nothing counts, so only the highest nominal scores are sorted: down to the one with which the
    # rate passes the limit, and those equal to it (the curve is interpolated across that tie).
    n_nominal = nominal.size
    kept = min(int(fpr_limit * n_nominal) + 1, n_nominal)
    nominal.partition(n_nominal - kept)
    lowest_kept = nominal[n_nominal - kept]
    ties = nominal[: n_nominal - kept]
    highest = np.concatenate([ties[ties == lowest_kept], nominal[n_nominal - kept :]])
    highest.sort()

    weights, image = _region_weights([mask for mask, _ in pairs])
    n_regions = np.bincount(image, weights, len(pairs)).round()  # a region's weights sum to 1
    counted = defective >= lowest_kept
    order = np.argsort(defective[counted])  # searching in order walks through memory instead of jumping: 8x faster
    defective, weights, image = (values[counted][order] for values in (defective, weights, image))
    above = (highest.size - np.searchsorted(highest, defective, side="right")) / n_nominal
    at_or_above = (highest.size - np.searchsorted(highest, defective, side="left")) / n_nominal

    # Integral over [0, fpr_limit] of a ramp that rises from 0 at `above` to 1 at `at_or_above`.
    area = fpr_limit - (above + at_or_above) / 2
    cut = at_or_above > fpr_limit
    reached = np.maximum(fpr_limit - above[cut], 0)
    area[cut] = np.divide(reached**2, 2 * (at_or_above - above)[cut], out=np.zeros_like(reached), where=reached > 0)
    by_image = np.bincount(image, weights * area, len(pairs)) / fpr_limit
    total = float(np.dot(weights, area) / n_regions.sum() / fpr_limit)
    curve = _curve(defective, weights / n_regions.sum(), highest, n_nominal, fpr_limit, points)
    by_image = np.divide(by_image, n_regions, out=np.full(len(pairs), np.nan), where=n_regions > 0)
    return Pro(total, curve, by_image)


_NO_CURVE = Curve(np.zeros(0), np.zeros(0))


def _curve(
    defective: NDArray, weights: NDArray, nominal: NDArray, n_nominal: int, limit: float, points: int | None
) -> Curve:
    """The curve up to `limit` from scores sorted upwards: `nominal` those of the n_nominal that reach the limit."""
    found = np.append(0, np.cumsum(weights[::-1]))  # by the k highest defective scores
    if points is None:
        thresholds = np.concatenate([nominal, defective])
    else:
        steps = np.arange(1, points + 1) / points
        ranks = np.minimum(np.ceil(steps * limit * n_nominal).astype(int), nominal.size)
        passed = np.minimum(np.searchsorted(found, steps * found[-1]), defective.size)
        chosen = [nominal[nominal.size - ranks]]
        if defective.size:
            chosen.append(defective[defective.size - np.maximum(passed, 1)])
        # The vertices on either side of the limit, between which it is interpolated.
        after = chosen[0][-1]
        for scores in (nominal, defective):
            chosen.append(scores[np.searchsorted(scores, after, side="right") :][:1])
        thresholds = np.concatenate(chosen)
    thresholds = np.unique(thresholds)[::-1]
    fpr = np.append(0, (nominal.size - np.searchsorted(nominal, thresholds, side="left")) / n_nominal)
    rate = np.append(0, found[defective.size - np.searchsorted(defective, thresholds, side="left")])
    inside = fpr <= limit
    end = [] if fpr[inside][-1] == limit else [limit]
    return Curve(np.append(fpr[inside], end), np.append(rate[inside], np.interp(end, fpr, rate)))


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


def _region_weights(masks: Sequence[NDArray]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """1 / (pixels in its region), and the image, of every defective pixel, in :func:`_gather`'s order."""
    weights, counts = [], []
    for mask in masks:
        counts.append(int(np.count_nonzero(mask)))
        if counts[-1]:
            regions = ndimage.label(mask, structure=_EIGHT_CONNECTED)[0][mask]
            weights.append(1 / np.bincount(regions)[regions])
    return np.concatenate(weights), np.repeat(np.arange(len(masks)), counts)
