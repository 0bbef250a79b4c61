"""Banks that grow, that stay on disk, and that keep half precision: each against the bank of one plain fit."""

import shutil
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from sfrjax import gram
from sfrjax.backbones import load_backbone
from sfrjax.bank_file import load_bank, save_bank
from sfrjax.errors import SfrjaxError
from sfrjax.gram import fill_gram
from sfrjax.pipeline import extend, fit, predict
from sfrjax.settings import Settings
from tests.test_cli import run

SETTINGS = Settings(levels=(3,), s_ref=4, s=2)
EVERY_KIND = [
    SETTINGS,
    replace(SETTINGS, levels=(3, 4), sampling="none"),
    replace(SETTINGS, levels=(3, 4), reference=3),
    replace(SETTINGS, sampling="random", seed=3),
    replace(SETTINGS, mode="pixel", levels=(4,)),
    replace(SETTINGS, mode="pixel", levels=(4,), sampling="none", atoms_dtype="bfloat16"),
]


def _name(settings):
    return f"{settings.mode}-{settings.sampling}-{settings.reference}-{settings.atoms_dtype}"


@pytest.fixture(scope="module")
def nominal(tmp_path_factory):
    """Nine smooth random images: 0.png, ..., 8.png."""
    folder = tmp_path_factory.mktemp("nominal")
    rng = np.random.default_rng(0)
    for i in range(9):
        coarse = Image.fromarray(rng.integers(90, 160, (5, 5, 3), dtype=np.uint8))
        coarse.resize((70, 60), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(9)]


@pytest.fixture(scope="module")
def network():
    return load_backbone("efficientnet_lite0", levels=(3, 4))


@pytest.mark.parametrize("settings", EVERY_KIND, ids=_name)
def test_a_bank_that_grew_is_the_bank_of_one_fit(settings, nominal, network, tmp_path, monkeypatch):
    monkeypatch.setattr(gram, "ROWS", 2)  # so that images 0 to 4 end within a tile
    jax.clear_caches()  # ROWS is compiled in
    small = fit(nominal[:5], settings, backbone=network, batch_size=4)
    grown = extend(small, nominal[5:], backbone=network, batch_size=4)
    save_bank(grown, tmp_path / "grown")
    save_bank(fit(nominal, settings, backbone=network, batch_size=4), tmp_path / "once")
    assert (tmp_path / "grown").read_bytes() == (tmp_path / "once").read_bytes()
    assert small.n_images == 5


@pytest.mark.parametrize("settings", EVERY_KIND, ids=_name)
def test_a_bank_on_disk_is_the_bank_in_memory(settings, nominal, network, tmp_path):
    """Fitted and extended straight to disk, and used from there."""
    bank = fit(nominal, settings, backbone=network)
    save_bank(bank, tmp_path / "plain")
    fit(nominal[:5], settings, backbone=network, stream=tmp_path / "bank")
    half = load_bank(tmp_path / "bank", stream=True)
    streamed = extend(half, nominal[5:], backbone=network, stream=tmp_path / "bank")
    assert isinstance(streamed.scoring[0].atoms, np.memmap)
    for name, tensor in bank.tensors().items():
        if name != "nominal_scores":
            np.testing.assert_array_equal(np.asarray(tensor), np.asarray(streamed.tensors()[name]), name)
    np.testing.assert_allclose(streamed.nominal_scores, bank.nominal_scores, rtol=1e-4)
    for ours, theirs in zip(
        predict(streamed, nominal[:3], backbone=network), predict(bank, nominal[:3], backbone=network), strict=True
    ):
        scale = bank.threshold
        np.testing.assert_allclose(ours.anomaly_map, theirs.anomaly_map, atol=1e-3 * scale)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("plain", "bank")] == []


def test_an_image_that_is_in_the_bank_is_refused_by_name(nominal, network, tmp_path):
    bank = fit(nominal[:5], SETTINGS, backbone=network)
    shutil.copy(nominal[3], tmp_path / "renamed.png")
    with pytest.raises(SfrjaxError, match=r"renamed\.png: the bank holds this image already"):
        extend(bank, [nominal[7], tmp_path / "renamed.png"], backbone=network)


def test_other_weights_do_not_extend(nominal, network):
    bank = fit(nominal[:5], SETTINGS, backbone=network)
    with pytest.raises(SfrjaxError, match="was built with the weights"):
        extend(replace(bank, weights_sha256="0" * 64), nominal[5:], backbone=network)


def test_a_fit_to_disk_that_fails_leaves_the_old_bank(nominal, network, tmp_path):
    fit(nominal[:5], SETTINGS, backbone=network, stream=tmp_path / "bank")
    before = (tmp_path / "bank").read_bytes()
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(SfrjaxError, match=r"broken\.png"):
        fit([*nominal, tmp_path / "broken.png"], SETTINGS, backbone=network, stream=tmp_path / "bank")
    assert (tmp_path / "bank").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"bank", "broken.png"}


@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_half_precision_is_kept_rounded_and_computed_with_in_float32(name, dtype, nominal, network, tmp_path):
    plain = fit(nominal, SETTINGS, backbone=network)
    bank = fit(nominal, replace(SETTINGS, atoms_dtype=name), backbone=network)
    save_bank(bank, tmp_path / "bank")
    loaded = load_bank(tmp_path / "bank")
    for ours, theirs in zip((bank.scoring[0], bank.reference), (loaded.scoring[0], loaded.reference), strict=True):
        assert ours.atoms.dtype == theirs.atoms.dtype == dtype
        np.testing.assert_array_equal(np.asarray(ours.atoms), np.asarray(theirs.atoms))
        rounded = np.asarray(ours.atoms).astype(np.float64)
        assert ours.gram.dtype == np.float32
        np.testing.assert_allclose(ours.gram, rounded @ rounded.T, rtol=4e-6)
    np.testing.assert_array_equal(np.asarray(plain.scoring[0].atoms).astype(dtype), np.asarray(bank.scoring[0].atoms))
    np.testing.assert_allclose(bank.nominal_scores, plain.nominal_scores, rtol=0.03)
    for ours, theirs in zip(
        predict(loaded, nominal[:2], backbone=network), predict(plain, nominal[:2], backbone=network), strict=True
    ):
        assert abs(ours.score - theirs.score) < 0.03 * plain.threshold


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5, 20000), np.float32), ((70, 5, 30), np.float16), ((3, 64), np.float32)]
)
def test_gram_tiles_match_float64(shape, dtype, monkeypatch):
    monkeypatch.setattr(gram, "ROWS", 4)
    jax.clear_caches()
    atoms = np.random.default_rng(0).random(shape).astype(dtype)
    out = np.full((*shape[:-1], shape[-2]), np.nan, np.float32)
    fill_gram(out, jax.device_put(atoms))
    exact = atoms.astype(np.float64)
    np.testing.assert_allclose(out, exact @ exact.swapaxes(-1, -2), rtol=2e-6)
    from_host = np.empty_like(out)
    fill_gram(from_host, atoms)
    np.testing.assert_array_equal(from_host, out)


def test_the_command_line_extends_in_place_and_streams(capsys, nominal, tmp_path):
    path, images = tmp_path / "bank", [str(image) for image in nominal]
    small = ["--levels", "3", "--s-ref", "4", "--s", "2"]
    assert run(capsys, "fit", *images[:5], "--out", path, *small)[0] == 0
    assert run(capsys, "fit", *images[5:], "--extend", path)[0] == 0
    assert run(capsys, "fit", *images, "--out", tmp_path / "once", *small)[0] == 0
    assert path.read_bytes() == (tmp_path / "once").read_bytes()
    status, _, err = run(capsys, "fit", images[2], "--extend", path)
    assert status == 1
    assert "2.png: the bank holds this image already" in err
    status, _, err = run(capsys, "fit", images[2], "--extend", path, "--s", "3")
    assert status == 1
    assert "--s: the bank" in err
    assert path.read_bytes() == (tmp_path / "once").read_bytes()
    assert run(capsys, "fit", *images, "--out", tmp_path / "disk", "--stream", *small)[0] == 0
    for bank, more in ((path, ()), (tmp_path / "disk", ("--stream",))):
        assert run(capsys, "predict", bank, images[0], "--out", tmp_path / f"{bank.name}-out", *more)[0] == 0
    status, _, err = run(capsys, "fit", *images)
    assert status == 1
    assert "--out is missing" in err
