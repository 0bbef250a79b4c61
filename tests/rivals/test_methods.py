"""Every rival through the pipeline and the command line: it finds defects, and a broken one does not."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from sfrjax.backbones import load_backbone
from sfrjax.datasets import load_dataset
from sfrjax.errors import SfrjaxError
from sfrjax.evaluation import measure, read_masks
from sfrjax.pipeline import fit, fit_method, localise, predict
from sfrjax.rivals import _MODULES, Rival, fit_rival
from sfrjax.settings import RIVAL_LEVELS, Settings, preset
from tests.test_cli import run

RIVALS = ("padim", "patchcore", "spade")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A plain folder set: 8 nominal images, 3 good and 3 whose grain is missing in a square of their own colours."""
    root = tmp_path_factory.mktemp("rivals") / "parts"
    rng = np.random.default_rng(0)
    for folder, count in (("masks/bare", 0), ("nominal", 8), ("test/good", 3), ("test/bare", 3)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(40, 200, (32, 32, 3), dtype=np.uint8)).resize((64, 64))
            if folder == "test/bare":
                mask = Image.new("L", image.size)
                mask.paste(255, (20, 20, 44, 44))
                image.paste((120, 120, 120), (0, 0), mask)
                mask.save(root / "masks" / "bare" / f"{i}.png")
            image.save(root / folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def category(parts):
    return load_dataset("folder", parts)[0]


@pytest.fixture(scope="module")
def network():
    return load_backbone("efficientnet_lite0", levels=(1, 2, 3, "last"))


def rival_settings(method):
    return Settings(**preset("folder", method), method=method)


def test_a_fit_is_over_when_it_returns(network, monkeypatch):
    """Else the time of its last programs, and what goes wrong in them, would be the first image's."""

    class Pending:
        waited_for = False

        def block_until_ready(self):
            self.waited_for = True
            return self

    monkeypatch.setitem(_MODULES, "padim", SimpleNamespace(fit=lambda *_: (Pending(),)))
    assert fit_rival(network, rival_settings("padim"), iter(()), 1).model[0].waited_for


def _metrics(category, fitted, network):
    predictions = predict(fitted, [sample.image for sample in category.test], backbone=network)
    found = {prediction.path: prediction for prediction in predictions}
    return measure(category, [found[sample.image] for sample in category.test], read_masks(category))


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_finds_defects_and_a_broken_one_does_not(category, network, method):
    settings = rival_settings(method)
    fitted = fit_method(category.train, settings, backbone=network)
    assert isinstance(fitted, Rival)
    assert fitted.threshold is None
    healthy = _metrics(category, fitted, network)
    assert healthy.aupro > 0.95
    assert healthy.image_auroc == 1.0
    rng = np.random.default_rng(0)
    broken = replace(fitted, model=jax.tree.map(lambda leaf: rng.permuted(np.asarray(leaf), axis=-1), fitted.model))
    assert _metrics(category, broken, network).aupro < healthy.aupro - 0.05


@pytest.mark.parametrize("method", RIVALS)
def test_the_command_line_evaluates_a_rival(capsys, parts, tmp_path, method):
    options = ["--dataset", "folder", "--root", parts, "--out", tmp_path / "out"]
    status, _, err = run(capsys, "evaluate", *options, "--method", method)
    assert status == 0, err
    assert f"Fitting {method}: 8 nominal images" in err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["method"] == method
    assert tuple(results["settings"]["levels"]) == RIVAL_LEVELS[method]
    assert results["categories"]["parts"]["image_auroc"] == 1.0
    assert results["detections"] == {}
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(list((tmp_path / "out" / "overlays").rglob("*.jpg"))) == 6


def test_levels_given_win_over_the_papers(capsys, parts, tmp_path):
    options = ["--dataset", "folder", "--root", parts, "--out", tmp_path / "out", "--levels", "3"]
    assert run(capsys, "evaluate", *options, "--method", "patchcore")[0] == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["levels"] == [3]


def test_what_does_not_belong_together_is_refused(category, network):
    settings = rival_settings("patchcore")
    with pytest.raises(SfrjaxError, match="only SFR"):
        fit(category.train, settings, backbone=network)
    fitted = fit_method(category.train[:2], settings, backbone=network)
    image = np.zeros((1, 256, 256, 3), np.uint8)
    with pytest.raises(SfrjaxError, match="other settings"):
        localise(fitted, network, image, replace(settings, sigma=2.0))
    with pytest.raises(SfrjaxError, match="fit again"):
        localise(fitted, replace(network, weights_sha256="0" * 64), image)
    with pytest.raises(SfrjaxError, match="would need"):
        fit_method(category.train, replace(settings, image_size=2**18), backbone=network)


def test_features_that_are_not_finite_are_refused(category, network):
    state = jax.tree.map(lambda leaf: leaf * np.nan, network.state)
    with pytest.raises(SfrjaxError, match="not finite"):
        fit_method(category.train, rival_settings("patchcore"), backbone=replace(network, state=state))
