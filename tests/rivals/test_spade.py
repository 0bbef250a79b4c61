"""SPADE against NumPy in float64: concatenated features, every position against every one of the similar images."""

import jax.numpy as jnp
import numpy as np

from sfrjax.rivals import spade
from sfrjax.settings import Settings
from tests import reference

SHAPES = {1: (8, 8, 5), 2: (4, 4, 7), "last": (1, 1, 9)}
SETTINGS = Settings(method="spade", levels=(1, 2), image_size=32)


def random_features(rng, n):
    return {level: rng.gamma(1.0, size=(n, *shape)).astype(np.float32) for level, shape in SHAPES.items()}


def fitted(features, size=25):
    n = len(features[1])
    batches = [{k: jnp.asarray(v[i : i + size]) for k, v in features.items()} for i in range(0, n, size)]
    return spade.fit(batches, n, SHAPES, SETTINGS)


def pyramid(features):
    """float64 [N, 64, 12]."""
    joined = np.concatenate([features[1], features[2].repeat(2, axis=1).repeat(2, axis=2)], axis=-1)
    return joined.reshape(len(joined), 64, 12).astype(np.float64)


def test_score_equals_the_definition_with_more_and_fewer_images_than_neighbours():
    rng = np.random.default_rng(0)
    for n in (60, 3):
        nominal, test = random_features(rng, n), random_features(rng, 2)
        maps, scores = spade.score(fitted(nominal), test, SETTINGS)
        for row in range(2):
            apart = ((nominal["last"] - test["last"][row]).astype(np.float64) ** 2).sum(axis=(1, 2, 3))
            similar = np.argsort(apart)[:50]
            np.testing.assert_allclose(scores[row], apart[similar].mean(), rtol=1e-5)
            gallery = pyramid(nominal)[similar].reshape(-1, 12)
            distance = ((pyramid(test)[row][:, None] - gallery) ** 2).sum(axis=-1).min(axis=1)
            expected = reference.anomaly_map([distance.reshape(8, 8)], size=32)
            np.testing.assert_allclose(maps[row], expected, rtol=1e-4)


def test_identical_images_have_no_anomaly():
    one = random_features(np.random.default_rng(1), 1)
    maps, scores = spade.score(fitted({level: maps.repeat(3, axis=0) for level, maps in one.items()}), one, SETTINGS)
    assert np.abs(maps).max() < 1e-4
    assert np.abs(scores).max() < 1e-4
