"""report.html: what a run found, in one file that needs no other and fetches nothing.

The page is the template page.html with page.css and page.js inside it. Names of files are hostile input: the template
escapes whatever it is given, and the page's own policy lets no script run but page.js.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup

from sfrjax.evaluation import Evaluation, Metrics
from sfrjax.files import replacing
from sfrjax.page import plots
from sfrjax.page.gallery import Thumbnail, Tile, evaluation_tiles, truth_and_scores

MAX_TILES = 240  # images in the gallery
MAX_BYTES = 20_000_000  # of all their pictures


class Section(NamedTuple):
    """One category: its row of the summary, its plots and its part of the gallery."""

    name: str
    row: tuple[str, ...]
    plots: tuple[plots.Plot, ...]
    tiles: tuple[Tile, ...]
    n_images: int


def evaluation_section(
    evaluation: Evaluation, shown: Sequence[int], pictures: Sequence[tuple[Thumbnail, ...]], links: Sequence[Path]
) -> Section:
    """What the page says of a category.

    Args:
        evaluation: the category's.
        shown: indices of the test images in the gallery.
        pictures: their thumbnails.
        links: their overlays' paths relative to the page.
    """
    category, threshold = evaluation.category, evaluation.threshold
    truth, scores = truth_and_scores(evaluation)
    good, bad = scores[~truth], scores[truth]
    curves = evaluation.curves
    drawn = [
        plots.curves(
            "ROC",
            "true-positive rate",
            [
                *([("first", "pixels", curves.pixel_roc.curve)] if curves.pixel_roc else []),
                ("second", "images", curves.image_roc.curve),
            ],
        )
    ]
    if curves.pro and curves.pro.curve.fpr.size:
        limit = float(curves.pro.curve.fpr[-1])
        series = [("first", f"regions, up to the limit of {limit:g}", curves.pro.curve)]
        drawn.append(plots.curves("PRO", "mean overlap", series, limit=limit))
    drawn.append(plots.histogram("Image scores", [("good", "good", good), ("bad", "anomalous", bad)], threshold))
    found, alarms = "-", "-"
    if threshold is not None:
        found = f"{(bad > threshold).sum()} of {bad.size}"
        alarms = f"{(good > threshold).sum()} of {good.size}"
    tiles = evaluation_tiles(evaluation, shown, pictures, links)
    about = (found, alarms, "-" if threshold is None else f"{threshold:.4g}", str(len(category.train)))
    row = (category.name, *_percents(evaluation.metrics), *about)
    return Section(category.name, row, tuple(drawn), tiles, len(truth))


def write_evaluation_page(
    path: Path, sections: Sequence[Section], results: dict[str, Any], *, command: str | None = None
) -> None:
    """The page of an evaluation.

    Args:
        path: the file to write, whole or not at all.
        sections: one per category.
        results: the content of results.json.
        command: the command line that was given; None where there was none.
    """
    table = [section.row for section in sections]
    if len(sections) > 1:
        table.append(("mean", *_percents(Metrics(**results["mean"])), "", "", "", ""))
    n_images = sum(section.n_images for section in sections)
    tiles, count = _within_limits(
        sorted((tile for section in sections for tile in section.tiles), key=lambda tile: tile.worst), n_images
    )
    columns = ("category", "pixel AUROC", "AUPRO", "image AUROC", "found", "false alarms", "threshold", "learnt from")
    sorts = [("worst", "worst first"), ("high", "highest score"), ("low", "lowest score")]
    if any(tile.overlap is not None for tile in tiles):
        sorts.append(("overlap", "lowest PRO"))
    settings = results["settings"]
    _write(
        path,
        title=f"sfrjax evaluate: {settings['dataset']}",
        lead=f"{len(sections)} {'category' if len(sections) == 1 else 'categories'}, {n_images} test images; "
        f"{settings['method']} on {settings['backbone']}; sfrjax {results['version']}",
        columns=columns,
        table=table,
        notes=[
            "Metrics in percent. AUPRO counts up to a false-positive rate of 0.3. Found and false alarms: anomalous "
            "and good test images above the threshold, which comes from the images learnt from alone."
        ],
        sections=[(section.name, section.plots) for section in sections],
        gallery_note=f"{count}: first those on the wrong side of the threshold, then those that rank wrongly among "
        "the images of the other kind, then those whose defects are covered least. Choose an image to enlarge it.",
        tiles=tiles,
        sorts=[*sorts, ("name", "name"), ("label", "label")],
        settings=_settings(results),
        command=command,
    )


def write_prediction_page(
    path: Path,
    scores: dict[str, Any],
    tiles: Iterable[Tile],
    nominal_scores: np.ndarray,
    *,
    command: str | None = None,
) -> None:
    """The page of a prediction.

    Args:
        path: the file to write, whole or not at all.
        scores: the content of scores.json.
        tiles: of the images with the highest scores.
        nominal_scores: float [M], of the bank.
        command: the command line that was given; None where there was none.
    """
    rows, threshold, settings = scores["images"], scores["threshold"], scores["settings"]
    values = np.array([row["score"] for row in rows])
    shown, count = _within_limits(sorted(tiles, key=lambda tile: tile.worst), len(rows))
    n_anomalous = sum(row["anomalous"] for row in rows)
    highest = f"{values.max():.4g}" if rows else "-"
    series = [("good", "nominal images, each left out of the bank", nominal_scores), ("bad", "these images", values)]
    _write(
        path,
        title="sfrjax predict",
        lead=f"{len(rows)} images, {n_anomalous} above the threshold; {settings['method']} on "
        f"{settings['backbone']}; sfrjax {scores['version']}",
        columns=("images", "anomalous", "left out", "threshold", "highest score"),
        table=[(str(len(rows)), str(n_anomalous), str(len(scores["skipped"])), f"{threshold:.4g}", highest)],
        notes=[],
        sections=[("", (plots.histogram("Image scores", series, threshold),))] if rows else [],
        gallery_note=f"{count}, highest score first. Choose an image to enlarge it.",
        tiles=shown,
        sorts=[("worst", "highest score"), ("low", "lowest score"), ("name", "name")],
        settings=_settings(scores),
        command=command,
        skipped=[entry["reason"] for entry in scores["skipped"]],
    )


def _write(path: Path, *, tiles: Sequence[Tile], skipped: Sequence[str] = (), **content: Any) -> None:
    here = resources.files("sfrjax.page")
    template, style, script = (
        here.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    stops = (matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps["inferno"](np.linspace(0, 1, 9)))
    filters = [
        (key, text, options)
        for key, text in (("category", "Category"), ("label", "Label"), ("outcome", "Outcome"))
        if len(options := sorted({getattr(tile, key) for tile in tiles})) > 1
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False)
    page = environment.from_string(template).render(
        style=Markup(style.replace("SCALE", ", ".join(stops))),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tiles=tiles,
        skipped=skipped,
        scale="twice the threshold" if any(tile.outcome for tile in tiles) else "the largest value in its category",
        filters=filters,
        width=plots.WIDTH,
        height=plots.HEIGHT,
        left=plots.LEFT,
        right=plots.RIGHT,
        top=plots.TOP,
        bottom=plots.BOTTOM,
        **content,
    )
    with replacing(path) as temporary:
        # A name that is no text (bytes that are not UTF-8) shows its bytes.
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _within_limits(tiles: Sequence[Tile], n_images: int) -> tuple[Sequence[Tile], str]:
    """The first tiles, as many as the page may hold, and a sentence's beginning that says so."""
    total, kept = 0, 0
    for tile in tiles[:MAX_TILES]:
        total += sum(len(picture.source) for picture in tile.pictures)
        if total > MAX_BYTES:
            break
        kept += 1
    if kept == n_images:
        return tiles[:kept], f"All {n_images} images"
    return tiles[:kept], f"{kept} of {n_images} images (more would make this page slow; the folders beside it hold all)"


def _percents(metrics: Metrics) -> list[str]:
    return ["-" if value is None else f"{100 * value:.2f}" for value in metrics]


def _settings(content: dict[str, Any]) -> list[tuple[str, str]]:
    about = {key: content[key] for key in ("version", "weights_name", "weights_sha256")} | content["settings"]
    return [
        (key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in about.items()
    ]
