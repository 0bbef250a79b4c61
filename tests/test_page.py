"""report.html as a user meets it, in a browser without a network; and the maps in MVTec's evaluation layout."""

import dataclasses
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import tifffile
from PIL import Image

from sfrjax import page, runs
from sfrjax.datasets import Category
from sfrjax.datasets.layouts import Sample
from sfrjax.evaluation import Evaluation, measure_curves
from sfrjax.page import evaluation_section, plots
from sfrjax.page.gallery import Thumbnail, Tile, prediction_tile, worst_first
from sfrjax.pipeline import Prediction, fit
from sfrjax.settings import Settings
from tests.reference import brute_force_aupro

SETTINGS = Settings(levels=(3,), s_ref=4, s=2)
DEFECT = "<img src=x onerror=alert(1)>"  # folders and files may be called anything
HOSTILE = "\"'&lt;b>&amp;{{ 7 * 7 }}.png"
BROWSER = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync")  # fmt: skip


def draw_category(root, rng, *, names):
    """MVTec's layout: 8 nominal images, and test images of 24 x 20 pixels, the defective ones with a red spot."""
    for folder, count in (("train/good", 8), ("test/good", 3), (f"test/{DEFECT}", 4)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            coarse = Image.fromarray(rng.integers(90, 160, (5, 5, 3), dtype=np.uint8))
            image = coarse.resize((24, 20), Image.Resampling.BICUBIC)
            name = names[i] if folder.startswith("test/<") else f"{i}.png"
            if folder.startswith("test/<"):
                mask = Image.new("L", image.size)
                mask.paste(255, (4 * i, 5, 4 * i + 5, 11))
                mask.paste(255, (19, 1, 21, 3))
                image.paste((160 + 25 * i, 60, 60), (0, 0), mask)
                truth = root / "ground_truth" / DEFECT / f"{Path(name).stem}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                mask.save(truth)
            image.save(root / folder / name)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The data set and the folder with its results."""
    root, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("results")
    rng = np.random.default_rng(0)
    draw_category(root / "bolts & <nuts>", rng, names=("0.png", HOSTILE, "10.png", "9.png"))
    draw_category(root / "washers", rng, names=("0.png", "1.png", "2.png", "3.png"))
    command = "sfrjax evaluate --root '</script><script>alert(1)</script>'"
    runs.evaluate_dataset("mvtec", root, out, settings=SETTINGS, save_maps=True, command=command)
    return root, out


@pytest.fixture(scope="module")
def predicted(evaluated, tmp_path_factory):
    """The folder with the results of predicting 6 images and a broken one, room for 4 in the gallery."""
    root, out = evaluated[0] / "washers", tmp_path_factory.mktemp("predicted")
    images = shutil.copytree(root / "test", tmp_path_factory.mktemp("images") / "test")
    (images / "good" / "1.png").write_text("no image")
    (images / "good" / "2.png").rename(images / "good" / os.fsdecode(b"\xff.png"))
    bank = fit(root / "train", SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "MAX_TILES", 4)
        patch.setattr(runs, "MAX_TILES", 4)
        runs.predict_images(bank, images, out)
    return out


@pytest.fixture(scope="module")
def chromium():
    """A headless browser that Playwright drives."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium: the page is not looked at (on Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(BROWSER), timeout=300_000)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a report; at the end nothing was asked of a network, nothing was complained of, nothing popped up."""
    contexts, trouble = [], []

    def visit(folder, **options):
        context = chromium.new_context(offline=True, **options)
        context.set_default_timeout(300_000)  # a busy machine is no fault of the page
        contexts.append(context)
        shown = context.new_page()
        address = (folder / "report.html").as_uri()
        shown.on("request", lambda r: r.url.startswith("data:") or r.url == address or trouble.append(r.url))
        shown.on("console", lambda message: trouble.append(message.text))
        shown.on("pageerror", lambda error: trouble.append(str(error)))
        shown.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        shown.goto(address)
        return shown

    yield visit
    for context in contexts:
        context.close()
    assert trouble == []


def column(shown, key):
    return shown.eval_on_selector_all("#gallery li", f"tiles => tiles.map(tile => tile.dataset.{key})")


def test_maps_are_what_mvtec_evaluates(evaluated):
    """Read back from disk and evaluated literally: every distinct value a threshold, every region by itself."""
    root, out = evaluated
    results = json.loads((out / "results.json").read_text())
    for name, metrics in results["categories"].items():
        masks, maps = [], []
        for image in sorted((root / name / "test").glob("*/*.png")):
            defect = image.parent.name
            truth = root / name / "ground_truth" / defect / f"{image.stem}_mask.png"
            masks.append(np.zeros((20, 24), bool) if defect == "good" else np.asarray(Image.open(truth)) > 0)
            maps.append(tifffile.imread(out / "anomaly_maps" / name / "test" / defect / f"{image.stem}.tiff"))
            assert maps[-1].dtype == np.float32
            assert maps[-1].shape == (20, 24)
        assert len(list((out / "anomaly_maps" / name).rglob("*.tiff"))) == len(maps) == 7
        assert brute_force_aupro(masks, maps, 0.3) == pytest.approx(metrics["aupro"], abs=1e-9)


def test_the_page_holds_everything(visit, evaluated):
    _, out = evaluated
    shown = visit(out)
    results = json.loads((out / "results.json").read_text())
    rows = shown.eval_on_selector_all(
        "section:first-of-type tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    )
    assert [row[0] for row in rows] == ["bolts & <nuts>", "washers", "mean"]
    for row, metrics in zip(rows, [*results["categories"].values(), results["mean"]], strict=True):
        assert row[1:4] == [f"{100 * value:.2f}" for value in metrics.values()]
    for row, detection in zip(rows, results["detections"].values(), strict=False):
        assert row[4:6] == [f"{detection['found']} of 4", f"{detection['false_alarms']} of 3"]
    assert shown.locator("svg").count() == 6
    assert shown.locator("#gallery li").count() == 14
    assert Counter(column(shown, "label")) == {"good": 6, DEFECT: 8}
    assert f"{DEFECT}/{HOSTILE}" in column(shown, "name")
    text = shown.inner_text("body")
    assert results["weights_sha256"] in text
    assert "</script><script>alert(1)</script>" in text
    assert "All 14 images" in text
    for link in column(shown, "link"):
        assert (out / os.fsdecode(unquote_to_bytes(link))).is_file()
    images = shown.locator("#gallery img")
    assert images.count() == 4 * 14
    images.evaluate_all("all => all.forEach(image => { image.loading = 'eager' })")
    shown.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert all(images.evaluate_all("all => all.map(image => image.alt)"))


def test_the_gallery_sorts_and_filters(visit, evaluated):
    shown = visit(evaluated[1])

    def order(key):
        shown.select_option("select[name=sort]", key)
        return column(shown, "score"), column(shown, "name"), column(shown, "overlap"), column(shown, "label")

    wrong = [outcome in ("missed", "false alarm") for outcome in column(shown, "outcome")]
    assert wrong == sorted(wrong, reverse=True)
    worst = column(shown, "name")
    scores = [float(score) for score in order("high")[0]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 14
    assert [float(score) for score in order("low")[0]] == scores[::-1]
    overlaps = [float(overlap) for overlap in order("overlap")[2]]
    assert overlaps == sorted(overlaps)
    assert overlaps[-6:] == [2] * 6  # images without a region come last
    names = order("name")[1]
    assert names.index(f"{DEFECT}/9.png") < names.index(f"{DEFECT}/10.png")
    assert order("label")[3] == [DEFECT] * 8 + ["good"] * 6
    assert order("worst")[1] == worst
    shown.select_option("select[name=category]", "washers")
    shown.select_option("select[name=label]", "good")
    assert column(shown, "name") == [name for name in column(shown, "name") if name.startswith("good/")]
    assert shown.locator("#gallery li").count() == 3
    assert "3 of 14" in shown.inner_text("output")
    shown.select_option("select[name=category]", "")
    assert shown.locator("#gallery li").count() == 6


def test_images_enlarge_by_mouse_and_by_keyboard(visit, evaluated):
    shown = visit(evaluated[1])
    names = column(shown, "name")
    heading, dialog = shown.locator("dialog h2"), shown.locator("dialog")
    before = shown.locator("#gallery li:nth-child(3) img").first.bounding_box()["width"]
    shown.click("#gallery li:nth-child(3) button")
    assert names[2] in heading.inner_text()
    pictures = shown.locator("dialog .pictures img")
    assert pictures.count() == 4
    every = pictures.first.bounding_box()["width"]
    assert every > 1.2 * before
    pictures.first.click()
    assert [pictures.nth(i).is_visible() for i in range(4)] == [True, False, False, False]
    assert pictures.first.bounding_box()["width"] > 1.5 * every
    pictures.first.click()
    assert pictures.nth(3).is_visible()
    shown.keyboard.press("ArrowRight")
    assert names[3] in heading.inner_text()
    shown.click("dialog .previous")
    shown.click("dialog .previous")
    assert names[1] in heading.inner_text()
    shown.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    # The image last seen has the focus, as soon as the page hears of the closing; Enter opens it again.
    shown.wait_for_function("document.activeElement.matches('#gallery li:nth-child(2) button')")
    shown.keyboard.press("Enter")
    dialog.wait_for()
    assert names[1] in heading.inner_text()
    shown.click("dialog .close")
    assert not dialog.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_it_in_either_scheme(visit, evaluated, predicted, scheme):
    for folder in (evaluated[1], predicted):
        shown = visit(folder, viewport={"width": 390, "height": 844}, color_scheme=scheme)
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390
        for selector in ("body", ".note", "figcaption", "output", ".badge", "#gallery .name", "pre", "a.link"):
            for ratio in shown.eval_on_selector_all(selector, CONTRAST):
                assert ratio > 4.5, selector
        back = shown.eval_on_selector("body", "body => getComputedStyle(body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back))) > 380) == (scheme == "light")
        shown.click("#gallery li:nth-child(1) button")
        box = shown.locator("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert shown.evaluate(
            "document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth"
        )


# WCAG 2.1's contrast of text with the first background behind it.
CONTRAST = """elements => elements.map(element => {
  const light = colour => colour.match(/[0-9.]+/g).slice(0, 3).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let back = element;
  while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
  const pair = [light(getComputedStyle(element).color), light(getComputedStyle(back).backgroundColor)];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
})"""


def test_without_javascript_the_gallery_is_there(visit, evaluated):
    shown = visit(evaluated[1], java_script_enabled=False)
    assert shown.locator("#gallery li").count() == 14
    assert not shown.locator(".controls").is_visible()


def test_the_page_of_a_prediction(visit, predicted):
    shown = visit(predicted)
    scores = json.loads((predicted / "scores.json").read_text())
    rows = sorted(scores["images"], key=lambda row: -row["score"])
    assert len(rows) == 6
    assert [Path(row["image"]).name for row in rows[:4]] == [Path(name).name for name in column(shown, "name")]
    assert "4 of 6 images" in shown.inner_text("body")
    assert "good/1.png" in shown.inner_text("body")  # was left out
    assert shown.locator("svg").count() == 1
    assert shown.locator("#gallery img").count() == 3 * 4
    for link in column(shown, "link"):
        assert (predicted / os.fsdecode(unquote_to_bytes(link))).is_file()
    shown.select_option("select[name=sort]", "low")
    assert column(shown, "name")[0].endswith(Path(rows[3]["image"]).name)


def test_a_name_that_is_no_text_is_shown_and_linked(evaluated, tmp_path):
    name = os.fsdecode(b"\xff.png")
    row = {"image": f"/in/{name}", "score": 2.0, "anomalous": True, "overlay": f"overlays/a/{name}"}
    scores = {"images": [row], "skipped": [], "threshold": 1.0, "settings": SETTINGS.to_dict(), "version": "1",
              "weights_name": "w", "weights_sha256": "0"}  # fmt: skip
    tile = prediction_tile(row, 1.0, ())
    page.write_prediction_page(tmp_path / "report.html", scores, [tile], np.array([0.5, 0.7]), command=name)
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'data-link="overlays/a/%FF.png"' in written
    assert r"a/\udcff.png" in written


def test_the_page_stays_small(monkeypatch):
    picture = Thumbnail("image", 1, 1, "data:" + "x" * 95)
    tile = Tile("n", "", "", (0.0,), 1.0, None, "", False, "", "", (picture,))
    monkeypatch.setattr(page, "MAX_BYTES", 300)
    kept, words = page._within_limits([tile] * 9, 9)
    assert len(kept) == 3
    assert words.startswith("3 of 9 images")
    assert page._within_limits([tile] * 3, 3) == ([tile] * 3, "All 3 images")


def evaluation(threshold):
    """Six images: good ones that score 1, 5 (above two defects) and 2, defects that score 3, 9 and 4."""
    path = Path("x.png")
    scores, truth = [1.0, 5.0, 2.0, 3.0, 9.0, 4.0], [False] * 3 + [True] * 3
    samples = tuple(Sample(path, t, path if t else None, "cut" if t else "good") for t in truth)
    category = Category("c", (path,), samples, mask_threshold=0, has_masks=True)
    masks, maps = [], []
    for i, (score, anomalous) in enumerate(zip(scores, truth, strict=True)):
        mask = np.zeros((6, 6), bool)
        mask[2:4, 2:4] = anomalous
        anomaly_map = np.full((6, 6), 0.1 * i, np.float32)
        anomaly_map[2, 2] = score
        masks.append(mask)
        maps.append(anomaly_map)
    predictions = tuple(Prediction(path, score, m) for score, m in zip(scores, maps, strict=True))
    curves = measure_curves(category, predictions, masks)
    return Evaluation(category, curves.metrics, predictions, tuple(masks), threshold, curves)


def test_worst_first():
    """By the threshold's errors, then by rank, then by overlap, then by how near the other side they are."""
    assert worst_first(evaluation(3.5)) == [1, 3, 5, 4, 2, 0]
    # All are wrong but the last two.
    assert worst_first(evaluation(9.5)) == [3, 5, 4, 1, 2, 0]
    assert worst_first(evaluation(None)) == [1, 3, 5, 4, 2, 0]


def test_ranks_and_outcomes_are_told():
    shown = worst_first(evaluation(3.5))
    section = evaluation_section(evaluation(3.5), shown, [()] * 6, [Path("a")] * 6)
    by_index = dict(zip(shown, section.tiles, strict=True))
    assert [by_index[i].outcome for i in range(6)] == ["passed", "false alarm", "passed", "missed", "found", "found"]
    assert "higher than 2 of 3 anomalous images" in by_index[1].facts
    assert "lower than 1 of 3 good images" in by_index[3].facts
    assert section.row[4:6] == ("2 of 3", "1 of 3")
    # Means of what the images' own say are the metrics.
    overlaps = [tile.overlap for tile in section.tiles if tile.overlap is not None]
    assert np.mean(overlaps) == pytest.approx(evaluation(3.5).metrics.aupro)
    ranked = [-by_index[i].worst[1] for i in range(3)]
    assert 1 - np.mean(ranked) == pytest.approx(evaluation(3.5).metrics.image_auroc)


def test_a_method_without_a_threshold_has_its_page(tmp_path):
    without = evaluation(None)
    section = evaluation_section(without, worst_first(without), [()] * 6, [Path("a")] * 6)
    assert section.row[4:7] == ("-", "-", "-")
    assert {tile.outcome for tile in section.tiles} == {""}
    metrics = {name: value for name, value in without.metrics._asdict().items()}
    results = {"settings": {"dataset": "d", **SETTINGS.to_dict()}, "version": "1", "weights_name": "w",
               "weights_sha256": "0", "mean": metrics}  # fmt: skip
    page.write_evaluation_page(tmp_path / "report.html", [section], results)
    assert "the largest value" in (tmp_path / "report.html").read_text()
    no_masks = dataclasses.replace(
        without, masks=None, curves=measure_curves(without.category, without.predictions, None)
    )
    section = evaluation_section(no_masks, worst_first(no_masks), [()] * 6, [Path("a")] * 6)
    assert [plot.title for plot in section.plots] == ["ROC", "Image scores"]
    page.write_evaluation_page(tmp_path / "report.html", [section], results)


@pytest.mark.parametrize("scores", [[3.0], [2.0, 2.0], [0.0], [-1.0, 1e30], [1e-30, 2e-30]])
def test_histograms_of_few_equal_and_extreme_scores(scores):
    plot = plots.histogram("t", [("good", "good", np.array(scores)), ("bad", "bad", np.array([]))], 0.0)
    assert sum(int(re.search(r"(\d+) of", bar.text).group(1)) for bar in plot.bars) == len(scores)
    for bar in plot.bars:
        assert plots.LEFT <= bar.x < bar.x + bar.width <= plots.RIGHT
        assert plots.TOP <= bar.y < plots.BOTTOM
    assert plots.LEFT <= plot.marker.at <= plots.RIGHT
    assert len(plot.legend) == 1
