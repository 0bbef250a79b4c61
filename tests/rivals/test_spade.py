"""SPADE against NumPy in float64: concatenated features, every position against every one of the similar images."""

import jax.numpy as jnp
import numpy as np
import pytest

from sfrjax.rivals import spade
from sfrjax.settings import Settings
from tests import reference

SHAPES = {1: (8, 8, 5), 2: (4, 4, 7), "last": (1, 1, 9)}
SETTINGS = Settings(method="spade", levels=(1, 2), image_size=32)


def random_features(rng, n, shapes=SHAPES):
    return {level: rng.gamma(1.0, size=(n, *shape)).astype(np.float32) for level, shape in shapes.items()}


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


@pytest.mark.parametrize("sides", [(8, 4, 2), (12, 6, 4), (5, 3, 2), (6,)])  # halved; not in each other; odd; one level
def test_any_grids(sides):
    levels = (1, 2, 3)[: len(sides)]
    shapes = {level: (side, side, 4 + level) for level, side in zip(levels, sides, strict=True)} | {"last": (1, 1, 3)}
    rng = np.random.default_rng(sides[0])
    nominal, test = random_features(rng, 4, shapes), random_features(rng, 2, shapes)
    settings = Settings(method="spade", levels=levels, image_size=32)
    maps, _ = spade.score(spade.fit([nominal], 4, shapes, settings), test, settings)
    where = [np.arange(sides[0]) * side // sides[0] for side in sides]

    def joined(features):
        repeated = [features[level][:, at][:, :, at] for level, at in zip(levels, where, strict=True)]
        return np.concatenate(repeated, axis=-1).reshape(len(features["last"]), sides[0] ** 2, -1).astype(np.float64)

    gallery = joined(nominal).reshape(4 * sides[0] ** 2, -1)
    for row, query in enumerate(joined(test)):
        distance = ((query[:, None] - gallery) ** 2).sum(axis=-1).min(axis=1).reshape(sides[0], sides[0])
        np.testing.assert_allclose(maps[row], reference.anomaly_map([distance], size=32), rtol=1e-4)
