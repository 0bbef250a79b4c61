"""The command line as a user meets it: what it writes, and one clear sentence for everything that is wrong."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from sfrjax import cli
from sfrjax.datasets import images as decoding
from sfrjax.datasets import list_images

SMALL = ["--levels", "3", "--s-ref", "4", "--s", "2"]


def run(capsys, *arguments):
    """Exit status, standard output and standard error of `sfrjax ARGUMENTS`, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sfrjax", *map(str, arguments)])
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # set by main, and not to leak into other tests
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code
    captured = capsys.readouterr()
    return status or 0, captured.out, captured.err


def textured(rng, size=(72, 60)):
    coarse = Image.fromarray(rng.integers(90, 160, (5, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A plain folder set: 8 nominal images, 3 good and 3 defective test images with masks."""
    root = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    for folder, count in (("nominal", 8), ("test/good", 3), ("test/spot", 3)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            image = textured(rng)
            if folder == "test/spot":
                (root / "masks" / "spot").mkdir(parents=True, exist_ok=True)
                mask = Image.new("L", image.size)
                mask.paste(255, (20, 20, 40, 40))
                image.paste((250, 0, 0), (0, 0), mask)
                mask.save(root / "masks" / "spot" / f"{i}.png")
            image.save(root / folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def bank(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "parts.bank"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        patch.setattr(sys, "argv", ["sfrjax", "fit", str(parts / "nominal"), "--out", str(path), *SMALL])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    return path


@pytest.fixture
def copy(parts, tmp_path):
    return shutil.copytree(parts, tmp_path / "parts")


def test_fit_says_how_large_the_bank_will_be(capsys, parts, tmp_path):
    status, out, err = run(capsys, "fit", parts / "nominal", "--out", tmp_path / "new" / "b.bank", *SMALL)
    assert status == 0
    assert re.fullmatch(r"Memory bank: 8 nominal images, \d+ MB\n", err)  # and no progress bar where nobody watches
    assert (tmp_path / "new" / "b.bank").is_file()
    assert "sfrjax predict" in out


def test_predict_writes_scores_maps_and_overlays(capsys, parts, bank, tmp_path):
    status, out, err = run(capsys, "predict", bank, parts / "test", "--out", tmp_path / "out")
    assert (status, err) == (0, "")  # no progress bar where nobody watches
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(scores["images"]) == 6
    assert scores["skipped"] == []
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for row, line in zip(scores["images"], table, strict=True):
        assert line["image"] == row["image"]
        assert float(line["score"]) == row["score"]
        assert row["anomalous"] == (row["score"] > scores["threshold"])
        anomaly_map = tifffile.imread(tmp_path / "out" / row["map"])
        assert anomaly_map.shape == (60, 72)
        assert anomaly_map.dtype == np.float32
        calibrated = tifffile.imread(tmp_path / "out" / row["calibrated_map"])
        np.testing.assert_allclose(calibrated * scores["threshold"], anomaly_map, rtol=1e-5)
        assert line["regions"] == str(len(row["regions"]))
        assert bool(row["regions"]) == row["anomalous"]
        assert Image.open(tmp_path / "out" / row["overlay"]).height == 60
        if "spot" in row["image"]:
            assert row["anomalous"]
            y, x = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
            assert 15 <= y <= 45
            assert 15 <= x <= 45
            box = row["regions"][0]
            assert box["x"] < 40 < box["x"] + box["width"] + 20
            assert box["y"] < 40 < box["y"] + box["height"] + 20
    assert f"{sum(row['anomalous'] for row in scores['images'])} above the threshold" in out


def test_predict_decodes_every_image_once(capsys, parts, bank, tmp_path, monkeypatch):
    opened = []
    decode = decoding._open
    monkeypatch.setattr(decoding, "_open", lambda path: (opened.append(path), decode(path))[1])
    assert run(capsys, "predict", bank, parts / "test", "--out", tmp_path / "out")[0] == 0
    assert sorted(opened) == list_images(parts / "test")


def test_the_threshold_can_be_chosen_when_predicting(capsys, parts, bank, tmp_path):
    chosen = {}
    for name, options in {"q": ("--quantile", 0.5), "t": ("--threshold", 0), "own": ()}.items():
        status, _, _ = run(capsys, "predict", bank, parts / "test" / "good", "--out", tmp_path / name, *options)
        assert status == 0
        chosen[name] = json.loads((tmp_path / name / "scores.json").read_text())
    assert chosen["q"]["threshold"] < chosen["own"]["threshold"]
    assert chosen["q"]["settings"]["quantile"] == 0.5
    assert chosen["t"]["threshold"] == 0
    assert all(row["anomalous"] for row in chosen["t"]["images"])
    status, _, err = run(capsys, "predict", bank, parts / "test", "--out", tmp_path, "--threshold", "nan")
    assert status == 1
    assert "--threshold nan" in err


def test_predict_skips_what_it_cannot_read_and_says_so(capsys, copy, bank, tmp_path):
    (copy / "test" / "good" / "1.png").write_bytes((copy / "test" / "good" / "1.png").read_bytes()[:200])
    (copy / "test" / "spot" / "9.jpg").write_text("no image")
    status, _, err = run(capsys, "predict", bank, copy / "test", "--out", tmp_path / "out")
    assert status == 1
    assert "2 of 7 images" in err
    assert "good/1.png" in err
    assert "spot/9.jpg" in err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(scores["images"]) == 5
    assert len(scores["skipped"]) == 2


def test_predict_goes_on_past_a_broken_link(capsys, copy, bank, tmp_path):
    (copy / "test" / "good" / "7.png").symlink_to(tmp_path / "nowhere.png")
    status, _, err = run(capsys, "predict", bank, copy / "test", "--out", tmp_path / "out")
    assert status == 1
    assert "good/7.png" in err
    assert len(json.loads((tmp_path / "out" / "scores.json").read_text())["images"]) == 6


def test_predict_with_nothing_readable_says_so(capsys, bank, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    status, out, err = run(capsys, "predict", bank, tmp_path / "a.png", "--out", tmp_path / "out")
    assert status == 1
    assert "1 of 1 images" in err
    assert "Maps" not in out
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["images"] == []


def test_names_that_are_not_utf8_are_kept(capsys, bank, tmp_path):
    name = os.fsdecode(b"a\xff.png")
    textured(np.random.default_rng(2)).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / name)
    status, _, _ = run(capsys, "predict", bank, tmp_path / name, "--out", tmp_path / "out")
    assert status == 0
    assert b"a\xff.png" in (tmp_path / "out" / "scores.csv").read_bytes()
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["images"][0]["image"].endswith(name)


def test_images_of_the_same_name_are_kept_apart(capsys, bank, tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/x.png", "a/x.bmp", "b/x.png"):
        textured(rng).save(tmp_path / name)
    status, _, _ = run(capsys, "predict", bank, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert status == 0
    written = sorted(str(p.relative_to(tmp_path / "out" / "maps")) for p in (tmp_path / "out" / "maps").rglob("*.tiff"))
    assert written == ["a/x.bmp.tiff", "a/x.png.tiff", "b/x.tiff"]


def test_evaluate_writes_the_results_others_rely_on(capsys, parts, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run(capsys, "evaluate", "--dataset", "folder", "--root", parts, "--out", out, *SMALL)
    assert status == 0
    results = json.loads((out / "results.json").read_text())
    name = parts.name
    assert set(results["categories"][name]) == {"pixel_auroc", "aupro", "image_auroc"}
    assert all(0.5 < value <= 1 for value in results["categories"][name].values())
    assert results["mean"] == results["categories"][name]
    assert results["settings"]["levels"] == [3]
    assert len(results["weights_sha256"]) == 64
    assert results["version"]
    assert name in printed
    assert len(list((out / "overlays").rglob("*.jpg"))) == 6
    assert f"--root {parts}" in (out / "report.html").read_text()
    assert not (out / "anomaly_maps").exists()


def test_evaluate_without_masks_gives_the_image_score_only(capsys, copy, tmp_path):
    shutil.rmtree(copy / "masks")
    out = tmp_path / "out"
    status, _, _ = run(capsys, "evaluate", "--dataset", "folder", "--root", copy, "--out", out, *SMALL)
    assert status == 0
    metrics = json.loads((out / "results.json").read_text())["mean"]
    assert metrics["pixel_auroc"] is None
    assert metrics["aupro"] is None
    assert metrics["image_auroc"] > 0.5


def test_a_run_that_breaks_off_leaves_no_summary_of_the_one_before(capsys, parts, bank, tmp_path, monkeypatch):
    commands = {
        tmp_path / "predicted": ["predict", bank, parts / "test"],
        tmp_path / "evaluated": ["evaluate", "--dataset", "folder", "--root", parts, *SMALL],
    }
    for out, command in commands.items():
        assert run(capsys, *command, "--out", out)[0] == 0
    wrong = [*commands[tmp_path / "predicted"], "--out", tmp_path / "predicted", "--weights", tmp_path / "nowhere"]
    assert run(capsys, *wrong)[0] == 1
    assert (tmp_path / "predicted" / "scores.json").exists()  # it had not begun

    def interrupted(*_):
        raise cli._Interrupted

    monkeypatch.setattr("sfrjax.runs.write_picture", interrupted)
    monkeypatch.setattr("sfrjax.report.write_picture", interrupted)
    for out, command in commands.items():
        status, _, err = run(capsys, *command, "--out", out)
        assert status == 130
        assert "starts again from the first image" in err
        assert not [path for path in out.iterdir() if path.is_file()]
        assert list(out.rglob("*.jpg"))  # the earlier run's, whole


def test_several_categories_after_one_option():
    split = cli._repeat_option(["evaluate", "--category", "a", "b", "--out", "x", "--category", "c"], "--category")
    assert split == ["evaluate", "--category", "a", "--category", "b", "--out", "x", "--category", "c"]


def fit_arguments(tmp_path, images, *more):
    return ["fit", images, "--out", tmp_path / "b.bank", *SMALL, *more]


def test_bad_input_is_one_clear_sentence(capsys, copy, bank, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = copy / "nominal" / "3.png"
    nowhere = tmp_path / "nowhere"
    evaluate = ["evaluate", "--dataset", "folder", "--root", copy, "--out", tmp_path / "out"]
    whole = cut.read_bytes()
    cases = [
        (fit_arguments(tmp_path, empty), ["empty", "no image"]),
        (fit_arguments(tmp_path, nowhere), ["nowhere"]),
        (fit_arguments(tmp_path, copy / "nominal", "--s", "5"), ["--s 5", "--s-ref 4"]),
        (fit_arguments(tmp_path, copy / "nominal", "--s-ref", "9"), ["--s-ref 9", "8 nominal images"]),
        (fit_arguments(tmp_path, copy / "nominal", "--levels", "7"), ["level '7'"]),
        (fit_arguments(tmp_path, copy / "nominal", "--levels", "deep"), ["deep"]),
        (fit_arguments(tmp_path, copy / "nominal", "--levels", "²"), ["²"]),
        (fit_arguments(tmp_path, copy / "nominal", "--sampling", "random", "--seed", "-1"), ["--seed -1"]),
        (fit_arguments(tmp_path, copy / "nominal", "--eps", "inf"), ["--eps inf"]),
        (fit_arguments(tmp_path, copy / "nominal", "--backbone", "vgg"), ["vgg"]),
        (fit_arguments(tmp_path, copy / "nominal", "--weights", nowhere), ["nowhere"]),
        (["predict", nowhere, copy / "test", "--out", tmp_path / "out"], ["nowhere", "sfrjax fit"]),
        (["predict", bank, empty, "--out", tmp_path / "out"], ["empty"]),
        ([*evaluate[:2], "imagenet", *evaluate[3:]], ["--dataset imagenet", "mvtec"]),
        ([*evaluate, "--method", "magic"], ["--method magic"]),
        ([*evaluate, "--category", "nuts"], ["nuts"]),
        ([*evaluate, "--s-ref", "40"], ["--s-ref 40"]),
    ]
    for arguments, words in cases:
        status, _, err = run(capsys, *arguments)
        assert status == 1, arguments
        assert err.startswith("sfrjax: "), err
        assert "Traceback" not in err
        for word in words:
            assert word in err, (word, err)
    assert not (tmp_path / "b.bank").exists()

    cut.write_bytes(whole[: len(whole) // 2])
    status, _, err = run(capsys, *fit_arguments(tmp_path, copy / "nominal"))
    assert status == 1
    assert "nominal/3.png" in err
    assert not (tmp_path / "b.bank").exists()


def test_a_mask_of_another_size_or_missing_is_named(capsys, copy, tmp_path):
    arguments = ["evaluate", "--dataset", "folder", "--root", copy, "--out", tmp_path / "out", *SMALL]
    Image.new("L", (10, 10)).save(copy / "masks" / "spot" / "1.png")
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert "spot/1.png" in err
    (copy / "masks" / "spot" / "1.png").unlink()
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert "spot/1.png" in err
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_bank_cut_short_is_named(capsys, parts, bank, tmp_path):
    (tmp_path / "cut.bank").write_bytes(bank.read_bytes()[:-10])
    status, _, err = run(capsys, "predict", tmp_path / "cut.bank", parts / "test", "--out", tmp_path / "out")
    assert status == 1
    assert "cut.bank" in err


def test_an_output_that_cannot_be_written_is_named_before_the_work(capsys, parts, bank, tmp_path):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    for arguments in (
        ["fit", parts / "nominal", "--out", out / "b.bank", *SMALL],
        ["predict", bank, parts / "test", "--out", out],
        ["evaluate", "--dataset", "folder", "--root", parts, "--out", out, *SMALL],
    ):
        status, _, err = run(capsys, *arguments)
        assert status == 1
        assert "cannot be written" in err
    status, _, err = run(capsys, "fit", parts / "nominal", "--out", tmp_path, *SMALL)
    assert status == 1
    assert "is a folder" in err
    (tmp_path / "maps").write_text("in the way")
    status, _, err = run(capsys, "predict", bank, parts / "test", "--out", tmp_path)
    assert status == 1
    assert "cannot be written" in err


def test_compiled_programs_are_kept_between_runs(parts, bank, tmp_path):
    command = [shutil.which("sfrjax", path=os.path.dirname(sys.executable)), "predict", str(bank), str(parts / "test")]
    environment = {**os.environ, "SFRJAX_CACHE": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    subprocess.run([*command, "--out", str(tmp_path / "out")], env=environment, check=True, capture_output=True)
    assert any((tmp_path / "cache" / "xla").iterdir())


def test_the_command_is_installed_and_starts_without_loading_jax():
    code = (
        "import sys\n"
        "sys.argv = ['sfrjax', '--help']\n"
        "from sfrjax import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'matplotlib', 'jinja2', 'PIL', 'numpy', 'flax'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("demo", "fit", "predict", "evaluate", "weights"):
        assert command in done.stdout
    assert shutil.which("sfrjax", path=os.path.dirname(sys.executable))
