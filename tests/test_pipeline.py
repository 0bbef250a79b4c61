"""The whole method: it finds defects, a broken one does not, and the figures on real parts are the promised ones."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrjax.backbones import load_backbone
from sfrjax.datasets import load_dataset
from sfrjax.datasets.demo import write_demo_set
from sfrjax.datasets.images import read_image
from sfrjax.errors import SfrjaxError
from sfrjax.evaluation import evaluate, measure, read_masks
from sfrjax.pipeline import fit, localise, predict
from sfrjax.settings import PRESETS, Settings


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One product of the demo set, every third test image of each kind left out to save time."""
    category = load_dataset("mvtec", write_demo_set(tmp_path_factory.mktemp("demo")))[0]
    return replace(category, test=tuple(s for i, s in enumerate(category.test) if i % 3))


@pytest.fixture(scope="module")
def network():
    return load_backbone("efficientnet_lite0", levels=Settings().feature_levels)


@pytest.fixture(scope="module")
def healthy(demo, network):
    return evaluate(demo, backbone=network)


def test_the_demo_is_solved_but_not_perfectly(healthy):
    assert 0.80 < healthy.metrics.pixel_auroc < 0.9995
    assert 0.6 < healthy.metrics.aupro < 0.999
    assert healthy.metrics.image_auroc > 0.7


def _metrics(demo, network, bank):
    predictions = list(predict(bank, [sample.image for sample in demo.test], backbone=network))
    found = {prediction.path: prediction for prediction in predictions}
    return measure(demo, [found[sample.image] for sample in demo.test], read_masks(demo))


def test_shuffled_atoms_score_clearly_lower(demo, network, healthy):
    """Each atom keeps its values but loses their order: a pursuit among them explains nothing."""
    bank = fit(demo.train, backbone=network)
    rng = np.random.default_rng(0)
    shuffled = []
    for dictionary in bank.scoring:
        atoms = rng.permuted(np.asarray(dictionary.atoms), axis=1)
        shuffled.append(dictionary._replace(atoms=jnp.asarray(atoms), gram=jnp.asarray(atoms @ atoms.T)))
    broken = _metrics(demo, network, replace(bank, scoring=tuple(shuffled)))
    assert broken.pixel_auroc < healthy.metrics.pixel_auroc - 0.05
    assert broken.aupro < healthy.metrics.aupro - 0.1
    assert broken.image_auroc < healthy.metrics.image_auroc - 0.1


def test_random_weights_score_clearly_lower(demo, network, healthy):
    """The same network with every kernel drawn anew at the same scale."""
    leaves, structure = jax.tree.flatten(network.state)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [jax.random.normal(k, x.shape) * jnp.std(x) for k, x in zip(keys, leaves, strict=True)]
    scrambled = replace(network, state=jax.tree.unflatten(structure, drawn))
    broken = evaluate(demo, backbone=scrambled).metrics
    assert broken.pixel_auroc < healthy.metrics.pixel_auroc - 0.03
    assert broken.aupro < healthy.metrics.aupro - 0.05


def test_the_map_of_an_image_does_not_depend_on_its_batch(demo, network):
    bank = fit(demo.train[:40], backbone=network)
    paths = [sample.image for sample in demo.test[:5]]
    alone = {p.path: p for p in predict(bank, paths, backbone=network, batch_size=1)}
    for prediction in predict(bank, paths, backbone=network, batch_size=4):
        expected = alone[prediction.path].anomaly_map
        np.testing.assert_allclose(prediction.anomaly_map, expected, rtol=2e-3)


def test_predict_and_localise_agree(demo, network):
    bank = fit(demo.train[:40], backbone=network)
    paths = [sample.image for sample in demo.test[:2]]
    images = np.stack([read_image(path, 256)[0] for path in paths])
    maps, scores = localise(bank, network, images)
    for row, prediction in enumerate(sorted(predict(bank, paths, backbone=network), key=lambda p: paths.index(p.path))):
        np.testing.assert_allclose(prediction.score, scores[row], rtol=1e-6)
        np.testing.assert_allclose(prediction.anomaly_map, maps[row], rtol=1e-6)  # demo images are 256 x 256


def test_what_does_not_belong_together_is_refused(demo, network):
    bank = fit(demo.train[:40], backbone=network)
    image = np.zeros((1, 256, 256, 3), np.uint8)
    with pytest.raises(SfrjaxError, match="uint8"):
        localise(bank, network, image / np.float32(255))
    with pytest.raises(SfrjaxError, match="uint8"):
        localise(bank, network, image[:, :128])
    shallow = load_backbone("efficientnet_lite0", levels=(2,))
    with pytest.raises(SfrjaxError, match="the backbone given"):
        fit(demo.train, backbone=shallow)
    with pytest.raises(SfrjaxError, match="the backbone given"):
        list(predict(bank, demo.train[:1], backbone=replace(network, name="resnet50")))


@pytest.mark.parametrize(
    ("backbone", "auroc", "aupro"), [("efficientnet_lite0", 0.983, 0.960), ("resnet50", 0.984, 0.956)]
)
def test_mvtec_bottle(shared_data, backbone, auroc, aupro):
    """The paper's preset on a real category, sampling on and off."""
    weights = shared_data / "weights" / "resnet50_v1_caffe.safetensors" if backbone == "resnet50" else None
    settings = Settings(**{**PRESETS["mvtec"], "backbone": backbone})
    loaded = load_backbone(backbone, levels=settings.feature_levels, weights=weights)
    category = load_dataset("mvtec", shared_data / "mvtec", ["bottle"])[0]
    bank = fit(category.train, settings, backbone=loaded)
    masks = read_masks(category)
    metrics = {}
    for sampling in ("subspace", "none") if backbone == "efficientnet_lite0" else ("subspace",):
        paths = [sample.image for sample in category.test]
        variant = replace(settings, sampling=sampling)
        found = {p.path: p for p in predict(bank, paths, variant, backbone=loaded)}
        metrics[sampling] = measure(category, [found[path] for path in paths], masks)
    assert metrics["subspace"].pixel_auroc >= auroc
    assert metrics["subspace"].aupro >= aupro
    if "none" in metrics:
        assert abs(metrics["subspace"].pixel_auroc - metrics["none"].pixel_auroc) <= 0.004
        assert abs(metrics["subspace"].aupro - metrics["none"].aupro) <= 0.004
