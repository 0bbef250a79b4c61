"""Residual norms against the paper's algorithm in float64, on made-up features and on those of real images."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from sfrjax.backbones import load_backbone
from sfrjax.bank import bank_bytes
from sfrjax.datasets import load_dataset
from sfrjax.datasets.images import read_image
from sfrjax.features import extract
from sfrjax.pipeline import fit, localise
from sfrjax.reconstruction import Dictionary, residual_norms
from sfrjax.sampling import random_support
from sfrjax.settings import PRESETS, Settings
from tests import reference

N, SHAPES, REFERENCE_SHAPE = 20, ((6, 6, 40), (3, 3, 64)), (2, 2, 50)
SETTINGS = Settings(levels=(2, 3), reference=4, s_ref=6, s=4)


def _features(rng, n, shape):
    # Rectified and correlated, as features of similar images are.
    common = rng.normal(size=(1, *shape))
    return np.maximum(common + 0.6 * rng.normal(size=(n, *shape)), 0).astype(np.float32)


# (mode, sampling, whether the scoring levels keep their Gram matrices)
WAYS = [(mode, sampling, True) for mode in ("full", "pixel") for sampling in ("subspace", "random", "none")]
WAYS += [("pixel", sampling, False) for sampling in ("subspace", "random")]


@pytest.fixture(scope="module")
def made_up():
    rng = np.random.default_rng(0)
    levels = [_features(rng, N, shape) for shape in SHAPES]
    deeper = _features(rng, N, REFERENCE_SHAPE)
    test = [_features(rng, 3, shape) for shape in SHAPES]
    return levels, deeper, test, _features(rng, 3, REFERENCE_SHAPE)


def _dictionary(atoms, *, pixel=False, gram=True):
    n, h, w, c = atoms.shape
    rows = jnp.asarray(atoms.reshape(n, h * w, c).swapaxes(0, 1) if pixel else atoms.reshape(n, -1))
    return Dictionary(rows, rows @ rows.swapaxes(-1, -2) if gram else None)


@pytest.mark.parametrize(("mode", "sampling", "gram"), WAYS)
def test_residual_norms_equal_the_papers_algorithm(made_up, mode, sampling, gram):
    levels, deeper, test, test_deeper = made_up
    settings = replace(SETTINGS, mode=mode, sampling=sampling)
    pixel = mode == "pixel"
    scoring = tuple(_dictionary(a, pixel=pixel, gram=gram) for a in levels)
    subspace = sampling == "subspace"
    norms = residual_norms(
        scoring,
        _dictionary(deeper) if subspace else None,
        tuple(test),
        test_deeper if subspace else None,
        settings=settings,
    )
    if sampling == "random":
        drawn = np.asarray(random_support(N, s_ref=6, seed=0))[0]
        levels = [a[drawn] for a in levels]
    for image in range(3):
        expected = reference.residual_norms(
            levels,
            deeper,
            [t[image] for t in test],
            test_deeper[image],
            s_ref=6,
            s=4,
            pixel=pixel,
            sampling=sampling,
        )
        for ours, theirs in zip(norms, expected, strict=True):
            np.testing.assert_allclose(ours[image], theirs, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("mode", "sampling", "gram"), WAYS)
def test_images_that_are_not_allowed_are_not_used(made_up, mode, sampling, gram):
    """A nominal image comes back exactly where it is allowed, and not at all where it is left out."""
    levels, deeper, _, _ = made_up
    settings = replace(SETTINGS, mode=mode, sampling=sampling, s_ref=N, s=4)
    pixel, subspace = mode == "pixel", sampling == "subspace"
    scoring = tuple(_dictionary(a, pixel=pixel, gram=gram) for a in levels)
    rows = np.array([2, 7])
    arguments = (
        scoring,
        _dictionary(deeper) if subspace else None,
        tuple(jnp.asarray(a[rows]) for a in levels),
        jnp.asarray(deeper[rows]) if subspace else None,
    )
    everyone = np.tile(np.arange(N, dtype=np.int32), (2, 1))
    others = np.where(everyone == rows[:, None], -1, everyone)
    with_self = residual_norms(*arguments, everyone, settings=replace(settings, s=N))
    without = residual_norms(*arguments, others, settings=settings)
    for kept, left_out, atoms in zip(with_self, without, levels, strict=True):
        scale = np.linalg.norm(atoms)
        assert np.linalg.norm(kept) < 1e-3 * scale
        assert np.linalg.norm(left_out) > 1e-2 * scale


def test_random_support_is_a_draw_without_replacement_that_the_seed_decides():
    first = np.asarray(random_support(50, s_ref=20, seed=1))[0]
    assert len(set(first.tolist())) == 20
    assert first.min() >= 0
    assert first.max() < 50
    np.testing.assert_array_equal(first, random_support(50, s_ref=20, seed=1)[0])
    assert (first != np.asarray(random_support(50, s_ref=20, seed=2))[0]).any()
    # Without image first[3] the draw closes up: one more image takes the place at the end.
    allowed = np.where(np.arange(50) == first[3], -1, np.arange(50)).astype(np.int32)
    without = np.asarray(random_support(50, s_ref=20, seed=1, candidates=jnp.asarray(allowed[None])))[0]
    np.testing.assert_array_equal(without[:19], np.delete(first, 3))
    assert without[19] not in first


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet50"])
def test_maps_of_real_images_equal_float64(shared_data, backbone):
    """The paper's settings on MVTec bottle: float32 in Gram space against float64 least squares, map by map."""
    weights = shared_data / "weights" / "resnet50_v1_caffe.safetensors" if backbone == "resnet50" else None
    settings = Settings(**{**PRESETS["mvtec"], "backbone": backbone})
    network = load_backbone(backbone, levels=settings.feature_levels, weights=weights)
    category = load_dataset("mvtec", shared_data / "mvtec", ["bottle"])[0]
    bank = fit(category.train[::5], settings, backbone=network)
    assert bank_bytes(network, settings, bank.n_images) < 500e6
    paths = [category.test[i].image for i in (0, 70)]
    images = np.stack([read_image(path, 256)[0] for path in paths])
    maps, _ = localise(bank, network, images)
    features = extract(network, images)

    def unflatten(dictionary, shape):
        return np.asarray(dictionary.atoms).reshape(-1, *shape)

    levels = [unflatten(d, shape) for d, shape in zip(bank.scoring, bank.shapes, strict=True)]
    deeper = unflatten(bank.reference, features[4].shape[1:])
    for row in range(len(images)):
        expected = reference.anomaly_map(
            reference.residual_norms(
                levels,
                deeper,
                [np.asarray(features[level][row]) for level in settings.levels],
                np.asarray(features[4][row]),
                s_ref=40,
                s=17,
            )
        )
        np.testing.assert_allclose(maps[row], expected, rtol=1e-3)
