"""AUROC against scikit-learn, AUPRO against a brute force that walks every threshold and every region."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure
from sklearn.metrics import roc_auc_score

from sfrjax.errors import SfrjaxError
from sfrjax.metrics import aupro, auroc, pixel_auroc, pro, roc
from tests.reference import brute_force_aupro

seeds = st.integers(0, 2**32 - 1)


@st.composite
def cases(draw):
    """A few small images with different sizes; few distinct scores, so that ties are everywhere."""
    rng = np.random.default_rng(draw(seeds))
    levels = draw(st.sampled_from([1, 2, 3, 6, 1000]))
    density = draw(st.sampled_from([0.05, 0.3, 0.6]))
    masks, maps = [], []
    for _ in range(draw(st.integers(1, 4))):
        shape = tuple(rng.integers(1, 9, size=2))
        masks.append(rng.random(shape) < density * draw(st.sampled_from([0, 1])))
        maps.append((rng.integers(0, levels, shape) + draw(st.sampled_from([0, 1])) * masks[-1]).astype(np.float32))
    if not any(mask.any() for mask in masks):
        masks[0][0, 0] = True
    masks.append(np.zeros((2, 3), bool))  # an image without any defect; also the nominal pixels never run out
    maps.append(rng.integers(0, levels, (2, 3)).astype(np.float32))
    return masks, maps


@settings(max_examples=400, deadline=None)
@given(cases(), st.sampled_from([0.3, 0.05, 0.5, 1 / 3, 1.0]))
def test_aupro_equals_brute_force(case, limit):
    masks, maps = case
    assert aupro(masks, maps, fpr_limit=limit) == pytest.approx(brute_force_aupro(masks, maps, limit), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 60))
def test_aupro_with_the_limit_exactly_on_a_point_of_the_curve(case, k):
    masks, maps = case
    n_nominal = sum(int((~mask).sum()) for mask in masks)
    limit = min(k, n_nominal) / n_nominal
    assert aupro(masks, maps, fpr_limit=limit) == pytest.approx(brute_force_aupro(masks, maps, limit), abs=1e-12)


def area_under(curve, limit):
    """By trapezoids, after what makes it a curve: it starts at the origin, ends at the limit, and never falls."""
    assert (curve.fpr[0], curve.rate[0], curve.fpr[-1]) == (0, 0, limit)
    assert (np.diff(curve.fpr) >= 0).all()
    assert (np.diff(curve.rate) >= 0).all()
    return np.trapezoid(curve.rate, curve.fpr) / limit


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([0.3, 0.05, 1 / 3, 1.0]))
def test_curves_have_the_areas(case, limit):
    masks, maps = case
    whole = pro(masks, maps, fpr_limit=limit, points=None)
    assert area_under(whole.curve, limit) == pytest.approx(whole.area, abs=1e-12)
    assert whole.area == aupro(masks, maps, fpr_limit=limit)
    sweep = roc(masks, maps, points=None)
    assert area_under(sweep.curve, 1.0) == pytest.approx(sweep.area, abs=1e-12)
    assert sweep.curve.rate[-1] == pytest.approx(1)
    some = pro(masks, maps, fpr_limit=limit, points=3)
    assert some.area == whole.area
    area_under(some.curve, limit)
    if limit < 1:  # at 1 the curve may rise straight up
        assert some.curve.rate[-1] == pytest.approx(whole.curve.rate[-1], abs=1e-12)
    vertices = set(zip(*whole.curve, strict=True))
    assert vertices >= set(zip(*some.curve, strict=True)) - {(some.curve.fpr[-1], some.curve.rate[-1])}


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_areas_of_images_are_those_of_their_regions(case):
    masks, maps = case
    by_image = pro(masks, maps).by_image
    regions = [measure.label(mask, connectivity=2).max() for mask in masks]
    np.testing.assert_array_equal(np.isnan(by_image), np.array(regions) == 0)
    assert np.average(np.nan_to_num(by_image), weights=regions) == pytest.approx(aupro(masks, maps), abs=1e-12)
    # One image's own: the others keep their nominal pixels and lose their regions.
    alone = int(np.argmax(regions))
    pixels = [
        scores if i == alone else scores[~mask][None] for i, (mask, scores) in enumerate(zip(masks, maps, strict=True))
    ]
    kept = [mask if i == alone else np.zeros((1, (~mask).sum()), bool) for i, mask in enumerate(masks)]
    assert by_image[alone] == pytest.approx(aupro(kept, pixels), abs=1e-12)


def test_a_curve_of_few_points_stays_close():
    rng = np.random.default_rng(5)
    masks = [np.zeros((120, 150), bool) for _ in range(6)]
    for mask in masks:
        mask[10:40, 20:70] = mask[80:90, 100:140] = True
    maps = [rng.normal(size=m.shape).cumsum(axis=1).astype(np.float32) / 9 + 2 * m for m in masks]
    for measured, limit in ((pro, 0.3), (roc, 1.0)):
        exact, few = measured(masks, maps, points=None).curve, measured(masks, maps, points=100).curve
        assert few.fpr.size <= 203
        assert np.diff(few.fpr).max() < 0.0101 * limit
        assert np.diff(few.rate).max() < 0.0101
        assert set(zip(*few, strict=True)) <= set(zip(*exact, strict=True))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_increasing_transforms_change_nothing(case):
    masks, maps = case
    transformed = [np.exp(scores.astype(np.float64) / 500) * 7 - 3 for scores in maps]
    assert aupro(masks, transformed) == pytest.approx(aupro(masks, maps), abs=1e-14)
    assert pixel_auroc(masks, transformed) == pixel_auroc(masks, maps)


@settings(max_examples=100, deadline=None)
@given(cases(), st.permutations(range(2)))
def test_order_and_splitting_of_images_change_nothing(case, order):
    masks, maps = case
    turned = [(m[::-1].T, s[::-1].T) for m, s in zip(masks, maps, strict=True)][:: 1 if order[0] else -1]
    assert aupro(*zip(*turned, strict=True)) == pytest.approx(aupro(masks, maps), abs=1e-12)


def test_regions_are_eight_connected_and_weigh_the_same():
    mask = np.zeros((5, 6), bool)
    mask[0, 0] = mask[1, 1] = True  # one region across a diagonal, in a corner
    mask[4, 2:6] = True  # another one, along the border
    scores = np.where(mask, 0.0, 1.0)
    scores[0, 0] = 2.0  # half of the first region is found before any nominal pixel: a mean overlap of 1/4
    assert aupro([mask], [scores]) == pytest.approx(0.25)


def test_perfect_inverted_and_constant_maps():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:3] = True
    for dtype in (np.float16, np.float32, np.float64, np.int32):
        assert aupro([mask], [mask.astype(dtype)]) == pytest.approx(1, abs=1e-12)
        assert aupro([mask], [-mask.astype(dtype)]) == 0
        assert aupro([mask], [np.ones_like(mask, dtype)]) == pytest.approx(0.15, abs=1e-12)
        assert pixel_auroc([mask], [np.ones_like(mask, dtype)]) == 0.5
    with_infinities = np.where(mask, np.inf, -np.inf)
    assert aupro([mask], [with_infinities]) == pytest.approx(1, abs=1e-12)
    assert auroc(mask, with_infinities) == 1


def test_aupro_on_a_large_set_equals_a_curve_of_cumulated_sums():
    """Enough pixels for the partial sort to matter; the curve itself is built here with one full sort."""
    rng = np.random.default_rng(3)
    masks = [np.zeros((90, 110), bool) for _ in range(20)]
    for mask in masks[:14]:
        for y, x, h, w in rng.integers([0, 0, 3, 3], [60, 80, 30, 30], size=(3, 4)):
            mask[y : y + h, x : x + w] = True
    maps = [np.round(rng.normal(size=m.shape) + 1.5 * m, 2).astype(np.float32) for m in masks]
    weights = []
    for mask in masks:
        labels = measure.label(mask, connectivity=2)
        sizes = np.bincount(labels.ravel())
        weights.append(np.where(mask, 1 / sizes[labels], 0).ravel())
    scores, weight = np.concatenate([m.ravel() for m in maps]), np.concatenate(weights)
    nominal = ~np.concatenate([m.ravel() for m in masks])
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    fpr = np.append(0, np.cumsum(nominal[order])[last] / nominal.sum())
    pro = np.append(0, np.cumsum(weight[order])[last] / weight.sum())
    inside = fpr < 0.3
    x, y = np.append(fpr[inside], 0.3), np.append(pro[inside], np.interp(0.3, fpr, pro))
    assert aupro(masks, maps) == pytest.approx(np.trapezoid(y, x) / 0.3, abs=1e-12)
    assert pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(~nominal, scores), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(seeds, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 5, 10**6]))
def test_auroc_equals_scikit_learn(seed, n_nominal, n_defective, levels):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n_nominal + n_defective) < n_defective)
    scores = rng.integers(0, levels, labels.size) + labels * rng.integers(0, 2)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_one_class_absent_is_nan():
    masks, maps = [np.zeros((2, 2), bool)], [np.ones((2, 2), np.float32)]
    for value in (aupro(masks, maps), aupro([~masks[0]], maps), pixel_auroc(masks, maps), auroc([True], [1.0])):
        assert math.isnan(value)
    assert math.isnan(aupro([], []))
    assert pro(masks, maps).curve.fpr.size == roc(masks, maps).curve.fpr.size == 0
    assert np.isnan(pro(masks, maps).by_image).all()
    assert math.isnan(pixel_auroc([], []))


@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        ([np.zeros((2, 2), bool)], [np.ones((2, 3))], "shape"),
        ([np.zeros((2, 2), bool)], [], "1 masks but 0 maps"),
        ([np.zeros((2, 2), np.uint8)], [np.ones((2, 2))], "boolean"),
        ([np.zeros((2, 2), bool)], [np.full((2, 2), np.nan)], "image 0.*NaN"),
        ([np.zeros((2, 2), bool)], [np.full((2, 2), 1j)], "real"),
    ],
)
def test_wrong_input_is_named(masks, maps, message):
    for metric in (aupro, pixel_auroc):
        with pytest.raises(SfrjaxError, match=message):
            metric(masks, maps)


@pytest.mark.parametrize("limit", [0, -0.1, 1.1, float("nan")])
def test_limit_outside_its_range(limit):
    with pytest.raises(SfrjaxError, match="fpr_limit"):
        aupro([np.eye(2, dtype=bool)], [np.eye(2)], fpr_limit=limit)


def test_inputs_are_left_as_they_were():
    rng = np.random.default_rng(0)
    mask, scores = rng.random((30, 30)) < 0.3, rng.normal(size=(30, 30)).astype(np.float32)
    labels, values = mask.ravel().copy(), scores.ravel().copy()
    aupro([mask], [scores])
    auroc(mask, scores)
    pixel_auroc([mask], [scores])
    np.testing.assert_array_equal(mask.ravel(), labels)
    np.testing.assert_array_equal(scores.ravel(), values)
