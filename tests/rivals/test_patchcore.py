"""PatchCore against torch's pooling and an explicit greedy algorithm and nearest neighbours in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors

from sfrjax.rivals import coreset, patchcore
from sfrjax.settings import Settings
from tests import reference

SETTINGS = Settings(method="patchcore", levels=(2, 3), image_size=32)
SHAPES = {2: (8, 8, 16), 3: (4, 4, 32)}


def random_features(rng, n, shapes=SHAPES):
    return {level: rng.gamma(1.0, size=(n, *shape)).astype(np.float32) for level, shape in shapes.items()}


def batches(features, size):
    n = len(next(iter(features.values())))
    for start in range(0, n, size):
        yield {level: jnp.asarray(maps[start : start + size]) for level, maps in features.items()}


def fitted(features, settings=SETTINGS, size=3):
    shapes = {level: maps.shape[1:] for level, maps in features.items()}
    return patchcore.fit(batches(features, size), len(features[2]), shapes, settings)


def embedded(features):
    """Patch features float64 [N, h, w, 1024]: average over 3 x 3, channels to 1024 per level, then to 1024 together."""
    grid, levels = features[2].shape[1:3], []
    for maps in features.values():
        x = F.avg_pool2d(torch.tensor(maps, dtype=torch.float64).permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=True)
        x = F.interpolate(x, grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        levels.append(F.adaptive_avg_pool1d(x.flatten(0, 2).unsqueeze(1), 1024))
    x = F.adaptive_avg_pool1d(torch.cat(levels, -1), 1024)
    return x.reshape(len(features[2]), *grid, 1024).numpy()


def greedy(points, first, n_picks):
    points, picks = np.asarray(points, np.float64), [int(first)]
    nearest = np.linalg.norm(points - points[first], axis=1)
    while len(picks) < n_picks:
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[picks[-1]], axis=1))
    return picks


@pytest.mark.parametrize("n", [300, 5000])  # fewer and more than the candidates of a round
def test_coreset_equals_the_explicit_greedy_algorithm(n):
    rng = np.random.default_rng(n)
    points = rng.standard_normal((n, 16)) * np.linspace(0.1, 2, 16) + rng.integers(0, 4, (n, 1)) + 5
    points = points.astype(np.float32)
    assert coreset.CANDIDATES > 300
    np.testing.assert_array_equal(coreset.greedy_coreset(points, 7, n_picks=n // 10), greedy(points, 7, n // 10))


def test_coreset_of_duplicates_takes_each_point_once():
    points = np.repeat(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32), 4, axis=0)
    picks = np.asarray(coreset.greedy_coreset(points, 0, n_picks=20))
    assert sorted(picks) == list(range(20))
    assert len(np.unique(points[picks[:5]], axis=0)) == 5


@pytest.mark.parametrize("channels", [(16, 32), (512, 1024)])  # fewer than the share; pooled as a ResNet50's
def test_patch_features_have_the_distances_of_the_definition(channels):
    shapes = {2: (4, 4, channels[0]), 3: (2, 2, channels[1])}
    features = random_features(np.random.default_rng(1), 2, shapes)
    ours = np.asarray(patchcore._embed(tuple(features.values()))).reshape(32, -1)
    theirs = embedded(features).reshape(32, -1)
    assert ours.shape[1] == min(1024, sum(channels))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            np.linalg.norm(ours - a, axis=1), np.linalg.norm(theirs - b, axis=1), rtol=1e-5, atol=1e-5
        )


def test_fit_and_score_equal_the_definition():
    rng = np.random.default_rng(2)
    nominal, test = random_features(rng, 7), random_features(rng, 3)
    model = fitted(nominal)
    maps, scores = patchcore.score(model, test, SETTINGS)

    ours = np.asarray(patchcore._embed(tuple(nominal.values()))).reshape(7 * 64, -1)
    for_projection, for_first = jax.random.split(jax.random.key(SETTINGS.seed))
    projected = ours.astype(np.float64) @ np.asarray(jax.random.normal(for_projection, (48, 128)), np.float64)
    picks = greedy(projected, jax.random.randint(for_first, (), 0, 448), 45)
    np.testing.assert_array_equal(model.bank, ours[picks])

    bank, queries = embedded(nominal).reshape(448, -1)[picks], embedded(test).reshape(3, 64, -1)
    found = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank)
    around = NearestNeighbors(n_neighbors=9, algorithm="brute").fit(bank)
    for row in range(3):
        distance, nearest = (x[:, 0] for x in found.kneighbors(queries[row]))
        expected = reference.anomaly_map([distance.reshape(8, 8)], size=32)
        np.testing.assert_allclose(maps[row], expected, rtol=1e-5)
        worst = distance.argmax()
        neighbours = around.kneighbors(bank[nearest[worst]][None], return_distance=False)[0]
        assert neighbours[0] == nearest[worst]
        weight = 1 - softmax(np.linalg.norm(bank[neighbours] - queries[row, worst], axis=1))[0]
        np.testing.assert_allclose(scores[row], weight * distance[worst], rtol=1e-5)


def test_a_large_bank_keeps_one_in_a_hundred():
    sizes = {4: 1, 209 * 1024: 21_402, 761 * 1024: 77_926, 10**6: 100_000, 1100 * 1024: 11_264}
    assert {n: patchcore.coreset_size(n) for n in sizes} == sizes


def test_the_bank_does_not_depend_on_batches():
    features = random_features(np.random.default_rng(3), 7)
    np.testing.assert_array_equal(fitted(features, size=7).bank, fitted(features, size=3).bank)


def test_identical_images_have_no_anomaly():
    """Ten times the same image: a coreset of one in ten patches is every patch of it, once."""
    features = random_features(np.random.default_rng(4), 1)
    maps, scores = patchcore.score(fitted({k: v.repeat(10, 0) for k, v in features.items()}), features, SETTINGS)
    assert np.abs(maps).max() < 1e-5
    assert np.abs(scores).max() < 1e-5


def test_fewer_patches_than_neighbours():
    """A coreset of one patch, then of three: nothing to weigh, then fewer than b to weigh with."""
    shapes = {2: (2, 2, 16), 3: (1, 1, 32)}
    for n, size in ((2, 1), (8, 3)):
        features = random_features(np.random.default_rng(n), n, shapes)
        model = fitted(features)
        assert len(model.bank) == size
        maps, scores = patchcore.score(model, features, SETTINGS)
        assert np.isfinite(maps).all()
        patches = np.asarray(patchcore._embed(tuple(features.values()))).reshape(n, 4, -1)
        distance = np.linalg.norm(patches[:, :, None] - np.asarray(model.bank), axis=-1).min(axis=2).max(axis=1)
        low = 1 if size == 1 else 1 - 1 / size
        assert (scores >= low * distance * (1 - 1e-5)).all()
        assert (scores <= distance * (1 + 1e-5)).all()
