"""The bank: what is saved is what is loaded, and nothing else is ever loaded."""

import json
import resource
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from sfrjax.backbones import load_backbone
from sfrjax.bank import bank_bytes, tensor_specs
from sfrjax.bank_file import load_bank, save_bank, write_tensors
from sfrjax.errors import SfrjaxError
from sfrjax.pipeline import fit, predict
from sfrjax.settings import Settings

SETTINGS = Settings(levels=(3,), s_ref=4, s=2)


@pytest.fixture(scope="module")
def nominal(tmp_path_factory):
    """Six smooth random images."""
    folder = tmp_path_factory.mktemp("nominal")
    rng = np.random.default_rng(0)
    for i in range(6):
        coarse = Image.fromarray(rng.integers(90, 160, (5, 5, 3), dtype=np.uint8))
        coarse.resize((70, 60), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def bank(nominal):
    return fit(nominal, SETTINGS)


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, levels=(3, "last"), reference="last"),
        replace(SETTINGS, mode="pixel", levels=(4,)),
        replace(SETTINGS, mode="pixel", sampling="none"),
        replace(SETTINGS, sampling="random"),
    ],
    ids=str,
)
def test_a_loaded_bank_predicts_the_same(settings, nominal, tmp_path):
    bank = fit(nominal, settings, batch_size=4)
    save_bank(bank, tmp_path / "bank")
    loaded = load_bank(tmp_path / "bank")
    assert loaded.settings == bank.settings
    assert loaded.preprocess == bank.preprocess
    assert loaded.threshold == bank.threshold > 0
    assert len(bank.nominal_scores) == bank.n_images == 6
    for ours, theirs in zip(predict(bank, nominal), predict(loaded, nominal), strict=True):
        assert ours.path == theirs.path
        np.testing.assert_array_equal(ours.anomaly_map, theirs.anomaly_map)


def test_size_announced_is_size_written(nominal, tmp_path):
    for settings in (SETTINGS, replace(SETTINGS, mode="pixel", sampling="none"), replace(SETTINGS, levels=(3, 4))):
        backbone = load_backbone(settings.backbone, levels=settings.feature_levels)
        save_bank(fit(nominal, settings, backbone=backbone), tmp_path / "bank")
        written = (tmp_path / "bank").stat().st_size
        assert 0 <= written - bank_bytes(backbone, settings, 6) < 4096


def test_a_nominal_image_reconstructs_itself_but_not_when_left_out(bank, nominal):
    scores = np.array([prediction.score for prediction in predict(bank, nominal)])
    assert (scores < 1e-3 * bank.nominal_scores.min()).all()


def test_the_bank_does_not_depend_on_the_batch_size(bank, nominal):
    other = fit(nominal, SETTINGS, batch_size=5)
    np.testing.assert_allclose(other.scoring[0].atoms, bank.scoring[0].atoms, atol=1e-4)
    np.testing.assert_allclose(other.nominal_scores, bank.nominal_scores, rtol=1e-3)


def test_positions_keep_gram_matrices_no_larger_than_their_features():
    shapes = {2: (4, 4, 8), 3: (2, 2, 16), 4: (1, 1, 32)}

    def kept(n_images, sampling="subspace", dtype="float32"):
        settings = Settings(mode="pixel", sampling=sampling, levels=(2, 3), reference=4, atoms_dtype=dtype)
        return {name for name in tensor_specs(shapes, settings, n_images) if name.endswith(".gram")}

    assert kept(8) == {"2.gram", "3.gram", "reference.gram"}
    assert kept(9) == {"3.gram", "reference.gram"}
    assert kept(17) == {"reference.gram"}
    assert kept(17, "none") == {"2.gram", "3.gram"}
    assert kept(8, dtype="float16") == {"3.gram", "reference.gram"}


def test_gram_matches_float64(bank):
    atoms = np.asarray(bank.scoring[0].atoms, np.float64)
    np.testing.assert_allclose(bank.scoring[0].gram, atoms @ atoms.T, rtol=1e-6)


def _broken(tmp_path, bank, change):
    path = tmp_path / "bank"
    save_bank(bank, path)
    change(path)
    with pytest.raises(SfrjaxError) as caught:
        load_bank(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
def test_a_bank_cut_short_is_refused(tmp_path, bank, keep):
    message = _broken(tmp_path, bank, lambda path: path.write_bytes(path.read_bytes()[:keep]))
    assert "not a whole bank file" in message


def test_any_altered_byte_is_noticed(tmp_path, bank):
    save_bank(bank, tmp_path / "whole")
    size = (tmp_path / "whole").stat().st_size
    rng = np.random.default_rng(3)
    for position in [*rng.integers(0, size, 20), *rng.integers(0, 1500, 20), size - 1]:

        def flip(path, position=int(position)):
            data = bytearray(path.read_bytes())
            data[position] ^= 4
            path.write_bytes(data)

        _broken(tmp_path, bank, flip)


def test_a_foreign_file_is_refused(tmp_path, bank):
    assert "there is no bank in it" in _broken(tmp_path, bank, lambda path: save_file({"a": np.ones(3)}, path))
    assert "not a whole bank" in _broken(tmp_path, bank, lambda path: path.write_text("hello, this is a text file"))
    with pytest.raises(SfrjaxError, match="no such bank file"):
        load_bank(tmp_path / "absent")


def test_another_format_is_refused_by_name(tmp_path, bank):
    def rewrite(path):
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()["sfrjax_bank"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = json.dumps({**about, "format": 99})
        write_tensors(path, text, tensors)

    assert "format 99" in _broken(tmp_path, bank, rewrite)


def test_other_weights_are_refused(bank, nominal):
    with pytest.raises(SfrjaxError, match="was built with the weights"):
        list(predict(replace(bank, weights_sha256="0" * 64), nominal))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"levels": (2,)}, "levels"),
        ({"mode": "pixel"}, "mode"),
        ({"image_size": 128}, "image_size"),
        ({"reference": 3}, "reference level 4"),
        ({"s_ref": 7}, "--s-ref 7"),
    ],
)
def test_other_settings_are_refused(bank, nominal, change, word):
    with pytest.raises(SfrjaxError, match=word):
        list(predict(bank, nominal, replace(SETTINGS, **change)))


def test_solve_settings_may_change(bank, nominal):
    for change in ({"sampling": "none"}, {"sampling": "random"}, {"s": 1}, {"s_ref": 3, "s": 3}):
        assert len(list(predict(bank, nominal, replace(SETTINGS, **change)))) == 6


def test_a_full_disk_leaves_the_old_bank_whole(tmp_path, bank):
    path = tmp_path / "bank"
    save_bank(bank, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(SfrjaxError, match="cannot be written"):
            save_bank(bank, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_s_ref_larger_than_the_bank_is_refused(nominal):
    with pytest.raises(SfrjaxError, match=r"--s-ref 40 is larger than the 6 nominal images in .*nominal"):
        fit(nominal, Settings())


def test_a_single_nominal_image_is_refused(nominal):
    with pytest.raises(SfrjaxError, match="at least 2"):
        fit(nominal / "0.png", Settings(levels=(3,), sampling="none", s=1))


@pytest.mark.parametrize(("mode", "sampling"), [("full", "subspace"), ("pixel", "none"), ("full", "random")])
def test_nominal_scores_are_those_of_banks_without_the_image(nominal, mode, sampling):
    settings = Settings(levels=(4,), reference=3, s_ref=4, s=2, mode=mode, sampling=sampling)
    paths = sorted(nominal.iterdir())
    scores = fit(paths, settings).nominal_scores
    others = paths[:4] + paths[5:]
    if sampling == "random":
        # Four of the other five, in the seed's order: a bank of those alone, without sampling.
        others = [paths[i] for i in np.random.default_rng(0).permutation(6) if i != 4][:4]
        settings = replace(settings, sampling="none")
    rest = fit(others, settings)
    (prediction,) = predict(rest, paths[4])
    np.testing.assert_allclose(scores[4], prediction.score, rtol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda about, tensors: about.pop("shapes"),
        lambda about, tensors: about.update(shapes=[[2, 2, 2]]),
        lambda about, tensors: about.update(shapes=None),
        lambda about, tensors: about["settings"].update(s="x"),
        lambda about, tensors: about["settings"].update(levels=[2]),
        lambda about, tensors: tensors.pop("nominal_scores"),
        lambda about, tensors: tensors.update(nominal_scores=np.zeros(0, np.float32)),
        lambda about, tensors: tensors.pop("3.gram"),
        lambda about, tensors: tensors.update({"3.gram": tensors["3.gram"][:4]}),
        lambda about, tensors: tensors.update({"3.atoms": tensors["3.atoms"][0]}),
        lambda about, tensors: tensors.update({"3.atoms": tensors["3.atoms"] * np.nan}),
        lambda about, tensors: tensors.update({"reference.atoms": tensors["reference.atoms"][:4]}),
    ],
)
def test_a_file_with_a_valid_checksum_but_wrong_content_is_refused(tmp_path, bank, change):
    """The checksum is the file's own: anybody can write one."""

    def rewrite(path):
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()["sfrjax_bank"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(about, tensors)
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        text = json.dumps(about)
        write_tensors(path, text, tensors)

    assert "fit again" in _broken(tmp_path, bank, rewrite)
