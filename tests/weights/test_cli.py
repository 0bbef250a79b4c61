"""`sfrjax weights` from the outside."""

import jax
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from sfrjax.backbones import forward, load_backbone
from sfrjax.errors import SfrjaxError
from sfrjax.weights.catalogue import CATALOGUE
from sfrjax.weights.cli import app
from sfrjax.weights.fetch import find, local_path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_list_shows_every_entry_in_full(tmp_path, monkeypatch):
    monkeypatch.setenv("SFRJAX_CACHE", str(tmp_path))
    result = run("list")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    for name, entry in CATALOGUE.items():
        assert entry.licence in lines[name]
        assert entry.sha256[:8] in lines[name]
        assert (entry.url or entry.package.replace("_", "-")) in lines[name]
    assert " yes " in lines["efficientnet_lite0.pypi"]
    assert " no: fetch " in lines["wide_resnet50_2.tv_in1k"]
    assert str(tmp_path) in result.output


def test_fetch_of_what_is_installed_only_verifies():
    result = run("fetch", "efficientnet_lite0")
    assert result.exit_code == 0
    assert CATALOGUE["efficientnet_lite0.pypi"].sha256 in result.output


def test_convert_then_verify_then_use(tmp_path):
    output = tmp_path / "lite0.safetensors"
    assert run("convert", "efficientnet_lite0", "--output", output).exit_code == 0
    result = run("verify", "efficientnet_lite0", "--weights", output)
    assert result.exit_code == 0
    assert "not in the catalogue" in result.output
    with safe_open(output, "np") as file:
        assert '"licence": "Apache-2.0"' in file.metadata()["sfrjax"]
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    run_network = jax.jit(forward, static_argnums=(0, 2, 3))
    features = [
        run_network(b.graphdef, b.state, b.preprocess, b.levels, images)[4]
        for b in (load_backbone("efficientnet_lite0", levels=(4,), weights=file) for file in (None, output))
    ]
    np.testing.assert_array_equal(*features)


def test_verify_names_the_catalogue_entry_and_what_is_wrong(tmp_path):
    original = local_path(find("efficientnet_lite0"))
    result = run("verify", "efficientnet_lite0", "--weights", original)
    assert result.exit_code == 0
    assert "efficientnet_lite0.pypi" in result.output
    output = tmp_path / "x.safetensors"
    run("convert", "efficientnet_lite0", "-o", output)
    with safe_open(output, "np") as file:
        metadata = file.metadata()
    tensors = load_file(output)
    tensors["stem.bias"] = np.full_like(tensors["stem.bias"], np.nan)
    del tensors["blocks.3.project.bias"]
    save_file(tensors, output, metadata)
    with pytest.raises(SfrjaxError, match=r"missing: blocks\.3\.project\.bias"):
        run("verify", "efficientnet_lite0", "--weights", output)


def test_convert_wants_a_safetensors_name(tmp_path):
    with pytest.raises(SfrjaxError, match=r"end in \.safetensors"):
        run("convert", "efficientnet_lite0", "--output", tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sfrjax.weights.convert.save_file", full)
    output = tmp_path / "x.safetensors"
    output.write_bytes(b"old")
    with pytest.raises(SfrjaxError, match=r"x\.safetensors: cannot be written \(.*No space left"):
        run("convert", "efficientnet_lite0", "--output", output)
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]
