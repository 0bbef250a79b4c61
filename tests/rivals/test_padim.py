"""PaDiM against np.cov and np.linalg.solve in float64, position by position."""

import jax.numpy as jnp
import numpy as np
import pytest

from sfrjax.rivals import padim
from sfrjax.settings import Settings
from tests import reference

SHAPES = {1: (8, 8, 6), 2: (4, 4, 10), 3: (2, 2, 14)}
SETTINGS = Settings(method="padim", levels=(1, 2, 3), image_size=32)


def random_features(rng, n):
    """Offset and coupled channels: a covariance that is neither about zero nor diagonal."""
    return {
        level: (rng.standard_normal((n, *shape)) @ rng.standard_normal((shape[2], shape[2])) + 20).astype(np.float32)
        for level, shape in SHAPES.items()
    }


def fitted(features, sizes):
    ends = np.cumsum(sizes)
    batches = [
        {level: jnp.asarray(maps[end - size : end]) for level, maps in features.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]
    return padim.fit(batches, int(ends[-1]), SHAPES, SETTINGS)


def concatenated(features):
    """float64 [N, 8, 8, 30]."""
    repeated = [
        maps.repeat(8 // maps.shape[1], axis=1).repeat(8 // maps.shape[2], axis=2) for maps in features.values()
    ]
    return np.concatenate(repeated, axis=-1).astype(np.float64)


# Fewer images than channels: the 0.01 alone makes the covariance definite. More: they are added in three parts.
@pytest.mark.parametrize("sizes", [[3, 2], [3, 30, 40, 7]])
def test_maps_are_mahalanobis_distances(sizes):
    rng = np.random.default_rng(sum(sizes))
    nominal, test = random_features(rng, sum(sizes)), random_features(rng, 2)
    maps, scores = padim.score(fitted(nominal, sizes), test, SETTINGS)
    known, new = concatenated(nominal), concatenated(test)
    for row in range(2):
        distance = np.zeros((8, 8))
        for i, j in np.ndindex(8, 8):
            covariance = np.cov(known[:, i, j], rowvar=False) + 0.01 * np.eye(30)
            x = new[row, i, j] - known[:, i, j].mean(axis=0)
            distance[i, j] = np.sqrt(x @ np.linalg.solve(covariance, x))
        expected = reference.anomaly_map([distance], size=32)
        np.testing.assert_allclose(maps[row], expected, rtol=1e-3)
        np.testing.assert_allclose(scores[row], expected.max(), rtol=1e-3)


def test_the_drawn_channels_are_the_same_everywhere(monkeypatch):
    """With 12 of 30 channels kept, the model is that of those channels of the concatenation."""
    monkeypatch.setitem(padim.DIMENSIONS, "resnet18", 12)
    settings = Settings(method="padim", backbone="resnet18", levels=(1, 2, 3), image_size=32, seed=5)
    channels = np.concatenate(
        [kept + start for kept, start in zip(padim._chosen([6, 10, 14], settings), (0, 6, 16), strict=True)]
    )
    assert len(np.unique(channels)) == 12
    features = random_features(np.random.default_rng(0), 4)
    embedded = padim._embed(tuple(features.values()), settings=settings)
    expected = concatenated(features)[..., channels].reshape(4, 64, 12).swapaxes(0, 1)
    np.testing.assert_array_equal(embedded, expected.astype(np.float32))
    other = padim._chosen([6, 10, 14], Settings(method="padim", backbone="resnet18", seed=6))
    assert not np.array_equal(np.concatenate(other), np.concatenate(padim._chosen([6, 10, 14], settings)))


def test_the_papers_dimensions():
    assert sum(map(len, padim._chosen([64, 128, 256], Settings(backbone="resnet18")))) == 100
    assert sum(map(len, padim._chosen([256, 512, 1024], Settings(backbone="wide_resnet50_2")))) == 550
    assert sum(map(len, padim._chosen([24, 40, 112], Settings()))) == 176


def test_identical_images_have_no_anomaly():
    """No variance at all: the covariance is 0.01 I, and a distance is ten times the Euclidean one."""
    one = random_features(np.random.default_rng(1), 1)
    model = fitted({level: maps.repeat(5, axis=0) for level, maps in one.items()}, [3, 2])
    maps, scores = padim.score(model, one, SETTINGS)
    assert np.abs(maps).max() < 1e-3
    assert np.abs(scores).max() < 1e-3
    shifted = {level: maps + np.float32(1) for level, maps in one.items()}
    maps, _ = padim.score(model, shifted, SETTINGS)
    np.testing.assert_allclose(maps, 10 * np.sqrt(30), rtol=1e-3)
