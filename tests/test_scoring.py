"""Anomaly maps against upsampling pixel by pixel and scipy's own filter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfrjax.scoring import (
    anomaly_maps,
    calibrated,
    find_regions,
    resize_map,
    smoothing_operator,
    threshold_from_nominal,
)
from tests import reference


@pytest.mark.parametrize("sides", [(32,), (32, 16, 8), (64, 1), (300,)])
def test_maps_equal_upsampling_then_summing_then_smoothing(sides):
    rng = np.random.default_rng(0)
    norms = tuple(rng.gamma(2.0, size=(3, side, side)).astype(np.float32) for side in sides)
    maps, scores = anomaly_maps(norms, size=128, sigma=4.0)
    for row in range(3):
        expected = reference.anomaly_map([n[row] for n in norms], size=128)
        np.testing.assert_allclose(maps[row], expected, rtol=2e-6)
        np.testing.assert_allclose(scores[row], expected.max(), rtol=2e-6)


def test_the_maps_of_a_batch_do_not_depend_on_each_other():
    rng = np.random.default_rng(1)
    norms = rng.random((4, 16, 16), np.float32)
    together, _ = anomaly_maps((norms,), size=64, sigma=4.0)
    for row in range(4):
        alone, _ = anomaly_maps((norms[row : row + 1],), size=64, sigma=4.0)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 80), st.integers(1, 100), st.floats(0.3, 8))
def test_smoothing_keeps_constants(side, size, sigma):
    operator = smoothing_operator(side, size, sigma)
    assert operator.shape == (size, side)
    np.testing.assert_allclose(operator.sum(axis=1), 1, rtol=1e-5)
    assert (operator >= 0).all()


def test_resize_to_the_original_size():
    anomaly_map = np.random.default_rng(2).random((64, 64), np.float32)
    assert resize_map(anomaly_map, (64, 64)) is anomaly_map
    larger = resize_map(anomaly_map, (128, 128))
    np.testing.assert_allclose(larger, reference.upsample(anomaly_map, 128), atol=1e-6)
    assert resize_map(anomaly_map, (100, 37)).shape == (100, 37)
    assert resize_map(anomaly_map, (100, 37)).dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.floats(0.01, 1))
def test_a_nominal_image_passes_the_threshold_as_often_as_asked(scores, quantile):
    """Leave each of M + 1 scores out: at most a share 1 - quantile of them exceeds the threshold of the others."""
    exceed = 0
    everything = np.array([*scores, scores[0] + 1])
    for i in range(len(everything)):
        exceed += everything[i] > threshold_from_nominal(np.delete(everything, i), quantile)
    assert exceed <= max((1 - quantile) * len(everything), 1) + 1e-9


def test_threshold_is_the_largest_nominal_score_where_there_are_few():
    scores = np.array([1.0, 3.0, 2.0], np.float32)
    assert threshold_from_nominal(scores, 0.99) == 3.0
    assert threshold_from_nominal(scores, 0.5) == 2.0
    assert threshold_from_nominal(np.arange(1.0, 100.0), 0.9) == 90.0


def test_regions_are_told_in_the_original_images_pixels():
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[8:16, 4:20] = 2.0
    anomaly_map[16, 20] = 5.0  # touches the first by a corner only: 8-connected
    anomaly_map[40:44, 60:64] = 3.0
    first, second = find_regions(anomaly_map, 1.0, (32, 128))
    assert first == (8, 4, 34, 5, 129, 5.0)
    assert second == (120, 20, 8, 2, 16, 3.0)
    assert find_regions(anomaly_map, 5.0, (32, 128)) == ()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.integers(0, 9))
def test_regions_lie_inside_the_image_and_exist_exactly_above_the_threshold(height, width, threshold, seed):
    anomaly_map = np.random.default_rng(seed).random((16, 16), np.float32)
    regions = find_regions(anomaly_map, threshold, (height, width))
    assert bool(regions) == (float(anomaly_map.max()) > threshold)
    for region in regions:
        assert 0 <= region.x < region.x + region.width <= width
        assert 0 <= region.y < region.y + region.height <= height
        assert 1 <= region.area <= max(1, region.width * region.height)
        assert region.score > threshold


def test_calibrated_maps_are_in_units_of_the_threshold():
    values = np.array([0.0, 1.0, 5.0], np.float32)
    np.testing.assert_allclose(calibrated(values, 2.0), [0, 0.5, 2.5])
    without = calibrated(values, 0.0)
    assert without.dtype == np.float32
    assert without[0] == 0
    assert (without[1:] > 1e30).all()
    assert np.isfinite(without).all()
