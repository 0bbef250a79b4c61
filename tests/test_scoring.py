"""Anomaly maps against upsampling pixel by pixel and scipy's own filter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfrjax.scoring import anomaly_maps, resize_map, smoothing_operator, threshold_from_nominal
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


def test_threshold_is_the_largest_nominal_score():
    assert threshold_from_nominal(np.array([1.0, 3.0, 2.0], np.float32)) == 3.0
