"""The benchmark scripts run on tiny data, go on where they were interrupted, and the results page is what they give."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sfrjax.datasets import load_dataset
from sfrjax.datasets.demo import write_demo_set
from sfrjax.errors import SfrjaxError
from sfrjax.evaluation import evaluate
from sfrjax.settings import Settings

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """The scripts as modules; they import one another by name."""
    sys.path.insert(0, str(FOLDER))
    import common
    import latency_sref
    import methods
    import paper
    import paper_figures
    import representation
    import results_page

    yield {m.__name__: m for m in (common, latency_sref, methods, paper, paper_figures, representation, results_page)}
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A product of the demo set, cut to 12 nominal and 8 test images."""
    category = load_dataset("mvtec", write_demo_set(tmp_path_factory.mktemp("demo")))[0]
    anomalous = [sample for sample in category.test if sample.anomalous][:5]
    good = [sample for sample in category.test if not sample.anomalous][:3]
    return replace(category, train=category.train[:12], test=(*good, *anomalous))


SETTINGS = Settings(levels=(3,), s_ref=6, s=3, image_size=128)


def test_variants_that_share_a_pass_score_as_evaluate_does(scripts, tiny, tmp_path):
    paper = scripts["paper"]
    result, path = paper.open_result(tmp_path / "r.json"), tmp_path / "r.json"
    wanted = [SETTINGS, replace(SETTINGS, sampling="none"), replace(SETTINGS, levels=(4,)), replace(SETTINGS, s_ref=99)]
    paper.measure_category("mvtec", tiny, wanted, result, path)
    assert len(result["accuracy"]) == 3  # 99 images cannot be had of 12
    for row, settings in zip(result["accuracy"], wanted, strict=False):
        assert paper.row_key(row) == ("mvtec", tiny.name, settings)
    expected = evaluate(tiny, SETTINGS).metrics
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(result["accuracy"][0][name], value, atol=1e-3)


def test_an_interrupted_run_goes_on(scripts, tiny, tmp_path, monkeypatch, capsys):
    paper, path = scripts["paper"], tmp_path / "r.json"
    kept = {"dataset": "mvtec", "category": tiny.name, "settings": SETTINGS.to_dict(), "pixel_auroc": 0.5}
    device = scripts["common"].device_name()
    path.write_text(json.dumps({"command": "python benchmarks/paper.py", "device": device, "accuracy": [kept]}))
    result = paper.open_result(path)
    assert "holds 1 rows already" in capsys.readouterr().out
    measured = []

    def interrupted(category, group, masks):
        measured.extend(group)
        yield group[0], evaluate_metrics, {}
        raise KeyboardInterrupt

    from sfrjax.evaluation import Metrics

    evaluate_metrics = Metrics(0.25, None, 1.0)
    monkeypatch.setattr(paper, "evaluate_all", interrupted)
    other = replace(SETTINGS, sampling="none")
    with pytest.raises(KeyboardInterrupt):
        paper.measure_category("mvtec", tiny, [SETTINGS, other], result, path)
    assert measured == [other]
    assert [row["pixel_auroc"] for row in json.loads(path.read_text())["accuracy"]] == [0.5, 0.25]


def test_rows_of_something_else_are_refused_and_kept(scripts, tiny, tmp_path):
    """Another script's file, another machine's, damaged ones; rows of other images under the same name."""
    paper, path = scripts["paper"], tmp_path / "r.json"
    about = {"command": "python benchmarks/paper.py", "device": scripts["common"].device_name()}
    for content, problem in (
        (json.dumps({**about, "command": "python benchmarks/omp.py"}), "was not written by"),
        (json.dumps({**about, "device": "another"}), "was measured on another"),
        ("[1, 2]", "was not written by"),
        ('{"accuracy": [', "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(SfrjaxError, match=problem):
            paper.open_result(path)
        assert path.read_text() == content
    (tmp_path / "file").touch()
    with pytest.raises(SfrjaxError, match="cannot be written"):
        paper.open_result(tmp_path / "file" / "r.json")
    row = {"dataset": "mvtec", "category": tiny.name, "settings": SETTINGS.to_dict(), "nominal_images": 200}
    with pytest.raises(SfrjaxError, match="200 nominal images, and here are 12"):
        paper.measure_category("mvtec", tiny, [SETTINGS], {"accuracy": [row]}, path)


def test_settings_that_want_more_images_are_named(scripts, tiny, capsys):
    """Of SFR only: a rival's s_ref means nothing."""
    many, rival = replace(SETTINGS, s_ref=99), Settings(method="padim", s_ref=99)
    assert scripts["paper"].possible([SETTINGS, many, rival, SETTINGS], tiny) == [SETTINGS, rival]
    assert "1 settings left out" in capsys.readouterr().err


def test_costs_of_settings_that_share_a_bank(scripts, tiny, monkeypatch):
    methods = scripts["methods"]
    monkeypatch.setattr(methods, "categories", lambda dataset: ([tiny], []))
    group = [SETTINGS, replace(SETTINGS, sampling="none")]
    rows = methods._cost("mvtec", tiny.name, [settings.to_dict() for settings in group])
    assert [methods.row_key(row) for row in rows] == [("mvtec", tiny.name, settings) for settings in group]
    assert rows[0]["bank_bytes"] > rows[1]["bank_bytes"] > 12 * 8 * 8 * 112 * 4  # the reference level's features
    for row in rows:
        assert row["nominal_images"] == 12
        assert min(row["fit_s"], row["image_s_batch_1"], row["image_s_batch_8"]) > 0


def test_nearest_neighbour_error(scripts):
    """Against numpy: each position takes its own nearest of the candidates; -1 is no candidate."""
    representation = scripts["representation"]
    rng = np.random.default_rng(0)
    atoms, y = rng.normal(size=(4, 7, 5)).astype("f4"), rng.normal(size=(2, 4, 5)).astype("f4")
    support = np.array([[0, 3, 6], [2, -1, 5]], np.int32)
    found = representation._nearest(representation.Dictionary(jnp.asarray(atoms), None), y, support)
    distances = ((y[:, :, None] - atoms[None]) ** 2).sum(-1)
    expected = [np.sqrt(distances[b][:, [j for j in support[b] if j >= 0]].min(1).sum()) for b in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_toy_separates_what_matching_cannot(scripts, tmp_path):
    toy = scripts["representation"].toy()
    assert toy["pursuit_auroc"] > 0.98 > 0.9 > toy["match_auroc"]


def test_latency_rows(scripts, monkeypatch):
    """Every stage is timed, and the stages are those that the reconstruction consists of."""
    latency = scripts["latency_sref"]
    rng = np.random.default_rng(0)
    nominal = tuple(jnp.asarray(rng.random((8, 2, 2, 6), np.float32)) for _ in range(2))
    y = tuple(f[:2] for f in nominal)
    for mode, stages in (("full", {"solve_s", "residual_s"}), ("pixel", {"solve_s"})):
        settings = [
            Settings(mode=mode, sampling=sampling, levels=(3,), s_ref=4, s=2) for sampling in ("subspace", "none")
        ]
        monkeypatch.setattr(latency, "FIRST", 4 if mode == "full" else 5)
        rows = latency._measure(nominal, y, settings, rounds=2)
        for row, more in zip(rows, ({"sampling_s"}, set()), strict=True):
            first = {"first_call_s"} if mode == "full" else set()
            assert {k for k in row if k.endswith("_s")} == stages | more | {"total_s", "total_p95_s"} | first
            assert all(row[k] > 0 for k in row if k.endswith("_s"))
            assert row["nominal_images"] == 8
            assert row["batch"] == 2


def test_one_mode_of_the_latencies_joins_only_its_own(scripts, tmp_path):
    latency, path = scripts["latency_sref"], tmp_path / "r.json"
    assert latency._before(path, "resnet50", "bottle") is None
    about = {"device": scripts["common"].device_name(), "command": latency.COMMAND, "backbone": "resnet50"}
    rows = [{"mode": "full", "at": 1}, {"mode": "pixel", "at": 1}]
    before = {**about, "images": "bottle", "rounds": {"full": 3, "pixel": 3}, "s_ref": rows, "nominal": rows}
    scripts["common"].write_result(path, before)
    assert latency._before(path, "resnet50", "bottle") == before
    for backbone, images in (("resnet18", "bottle"), ("resnet50", "flange")):
        with pytest.raises(SfrjaxError, match="resnet50, bottle; give --json another file"):
            latency._before(path, backbone, images)
    new = [{"mode": "pixel", "at": 2}]
    merged = latency._merged(before, {**before, "rounds": {"pixel": 9}, "s_ref": new, "nominal": new})
    assert merged["s_ref"] == merged["nominal"] == [rows[0], *new]
    assert merged["rounds"] == {"full": 3, "pixel": 9}


def test_results_page_is_what_the_json_gives(scripts):
    page = scripts["results_page"]
    assert page.PAGE.read_text() == page.page(page.RESULTS), "run python benchmarks/results_page.py and commit the page"


def test_tables_of_other_pages_are_what_the_json_gives(scripts):
    results = scripts["results_page"].RESULTS
    tables = scripts["results_page"].page_tables
    names = []
    for path in tables.PAGES:
        text = path.read_text()
        assert text == tables.filled(text, results), f"{path.name}: run python benchmarks/results_page.py and commit it"
        assert text.count("<!-- table: ") == text.count("<!-- end -->")
        names += [found[1] for found in tables.MARKED.finditer(text)]
    assert sorted(names) == sorted(tables.TABLES)
