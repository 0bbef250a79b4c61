"""Settings: the presets are the paper's, and every bad value is named."""

import json

import pytest

from sfrjax.errors import SfrjaxError
from sfrjax.settings import PRESETS, Settings, parse_level, preset


@pytest.mark.parametrize(
    ("name", "levels", "reference", "s_ref", "s"),
    [("mvtec", (2, 3), 4, 40, 17), ("btad", (2, 3), 4, 36, 11), ("mtd", (2, 3, 4), "last", 10, 7)],
)
def test_presets_are_the_papers(name, levels, reference, s_ref, s):
    settings = Settings(**PRESETS[name])
    assert (settings.levels, settings.reference, settings.s_ref, settings.s) == (levels, reference, s_ref, s)
    assert (settings.eps, settings.image_size, settings.sigma) == (1e-6, 256, 4.0)
    assert (settings.sampling, settings.mode) == ("subspace", "full")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"s": 41}, ["--s 41", "--s-ref 40"]),
        ({"s": 0}, ["--s 0"]),
        ({"levels": ()}, ["--levels"]),
        ({"levels": (2, 2)}, ["--levels 2, 2"]),
        ({"levels": (5,)}, ["--levels 5", "last"]),
        ({"reference": 0}, ["--reference 0"]),
        ({"sampling": "most"}, ["--sampling most", "subspace"]),
        ({"mode": "patch"}, ["--mode patch", "pixel"]),
        ({"eps": -1.0}, ["--eps"]),
        ({"eps": float("nan")}, ["--eps"]),
        ({"image_size": 16}, ["image_size 16"]),
        ({"sigma": 0.0}, ["sigma"]),
        ({"sigma": float("inf")}, ["sigma"]),
        ({"eps": float("inf")}, ["--eps"]),
        ({"seed": -1}, ["--seed -1"]),
        ({"quantile": 0.0}, ["--quantile 0.0"]),
        ({"quantile": float("nan")}, ["--quantile nan"]),
        ({"method": "magic"}, ["--method magic", "padim"]),
        ({"neighbourhood": 2}, ["--neighbourhood 2", "odd"]),
        ({"dtype": "float16"}, ["--dtype float16", "bfloat16"]),
        ({"atoms_dtype": "int8"}, ["--atoms-dtype int8", "float16"]),
    ],
)
def test_a_bad_value_is_named(values, words):
    with pytest.raises(SfrjaxError) as caught:
        Settings(**values)
    for word in words:
        assert word in str(caught.value)


def test_s_may_exceed_s_ref_without_sampling():
    assert Settings(sampling="none", s=60).s == 60


def test_bank_size_is_checked_only_where_sampling_needs_it():
    with pytest.raises(SfrjaxError, match=r"--s-ref 40 is larger than the 39 nominal images in parts"):
        Settings().check_bank_size(39, "parts")
    Settings().check_bank_size(40, "parts")
    Settings(sampling="none").check_bank_size(2, "parts")
    with pytest.raises(SfrjaxError, match="at least 2"):
        Settings(sampling="none").check_bank_size(1, "parts")


def test_feature_levels_add_the_reference_once():
    assert Settings().feature_levels == (2, 3, 4)
    assert Settings(levels=(2, 4)).feature_levels == (2, 4)
    assert Settings(sampling="none").feature_levels == (2, 3)
    assert Settings(reference="last").feature_levels == (2, 3, "last")


def test_json_round_trip():
    settings = Settings(**PRESETS["mtd"])
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(SfrjaxError, match="colour"):
        Settings.from_dict({**settings.to_dict(), "colour": 1})


def test_levels_are_parsed():
    assert [parse_level(text) for text in ("1", " 4", "last")] == [1, 4, "last"]
    assert Settings(levels=[2, 3]) == Settings()
    with pytest.raises(SfrjaxError, match="two"):
        parse_level("two")


def test_rivals_extract_what_they_need():
    assert Settings(method="spade", levels=(1, 2, 3)).feature_levels == (1, 2, 3, "last")
    assert Settings(method="padim", levels=(1, 2, 3)).feature_levels == (1, 2, 3)
    assert Settings(method="patchcore").feature_levels == (2, 3)
    Settings(method="patchcore").check_bank_size(2, "parts")  # s_ref is SFR's


def test_a_preset_has_the_levels_of_the_methods_paper():
    assert preset("mtd") == PRESETS["mtd"]
    assert preset("mtd", "padim") == {**PRESETS["mtd"], "levels": (1, 2, 3)}
