"""Whole runs: the pipeline's results written into a folder. The command line prints what these return."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image

from sfrjax.backbones import Backbone, load_backbone
from sfrjax.background import THREADS, ahead
from sfrjax.bank import Bank
from sfrjax.datasets import load_dataset
from sfrjax.datasets.demo import write_demo_set
from sfrjax.datasets.images import list_images, reduced
from sfrjax.evaluation import Detection, Metrics, check_category, evaluate
from sfrjax.features import Skipped
from sfrjax.files import output_folder
from sfrjax.page import (
    MAX_TILES,
    Section,
    evaluation_section,
    write_evaluation_page,
    write_prediction_page,
)
from sfrjax.page.gallery import TILE_SIDE, Tile, prediction_tile, thumbnails, worst_first
from sfrjax.pipeline import Prediction, predict
from sfrjax.report import (
    MAX_PICTURE_SIDE,
    contact_sheet,
    draw,
    evaluation_results,
    output_stems,
    prediction_scores,
    side_by_side,
    write_evaluation_maps,
    write_evaluation_pictures,
    write_json,
    write_map,
    write_picture,
    write_scores,
)
from sfrjax.scoring import calibrated, threshold_from_nominal
from sfrjax.settings import BATCH_SIZE, Settings


@dataclass(frozen=True)
class EvaluationRun:
    """By category: metrics, what the threshold did where the method has one, and the overlays written."""

    metrics: dict[str, Metrics]
    detections: dict[str, Detection]
    pictures: dict[str, list[Path]]


@dataclass(frozen=True)
class PredictionRun:
    """What scores.json lists: a row per image, the images left out, and the threshold used."""

    threshold: float
    rows: list[dict[str, Any]]
    skipped: list[Skipped]


def evaluate_dataset(
    dataset: str,
    root: str | Path,
    out: str | Path,
    *,
    categories: Sequence[str] | None = None,
    settings: Settings,
    weights: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    save_maps: bool = False,
    command: str | None = None,
    progress: bool = False,
) -> EvaluationRun:
    """Evaluate categories one after the other; write out/results.json, out/report.html and out/overlays/<category>/.

    Args:
        dataset, root, categories: as in `load_dataset`.
        out: the folder to write to.
        settings, weights, batch_size, progress: as in `evaluate`.
        save_maps: also write out/anomaly_maps, in the layout that MVTec's evaluation code reads.
        command: the command line that was given, for the report.

    Raises:
        SfrjaxError: as `load_dataset` and `evaluate`, or `out` cannot be written.
    """
    out = Path(out)
    loaded = load_dataset(dataset, root, categories)
    output_folder(out)
    backbone = load_backbone(settings.backbone, levels=settings.feature_levels, weights=weights, dtype=settings.dtype)
    run = EvaluationRun({}, {}, {})
    sections: list[Section] = []
    for category in loaded:
        check_category(category, settings)  # all of them first: the last one's mask should not cost the others' hours
    for category in loaded:
        evaluation = evaluate(category, settings, backbone=backbone, batch_size=batch_size, progress=progress)
        run.metrics[category.name] = evaluation.metrics
        if evaluation.detection is not None:
            run.detections[category.name] = evaluation.detection
        shown = worst_first(evaluation)[: max(1, MAX_TILES // len(loaded))]
        _withdraw(out, "results.json", "report.html")
        overlays = out / "overlays" / category.name
        paths, small = write_evaluation_pictures(evaluation, overlays, shown, progress=progress)
        run.pictures[category.name] = paths
        links = [paths[i].relative_to(out) for i in shown]
        sections.append(evaluation_section(evaluation, shown, [small[i] for i in shown], links))
        if save_maps:
            write_evaluation_maps(evaluation, out / "anomaly_maps")
        del evaluation  # its maps, before the next category's come
    results = evaluation_results(run.metrics, run.detections, settings, dataset, backbone)
    write_json(out / "results.json", results)
    write_evaluation_page(out / "report.html", sections, results, command=command)
    return run


def predict_images(
    bank: Bank,
    images: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    quantile: float | None = None,
    threshold: float | None = None,
    weights: str | Path | None = None,
    backbone: Backbone | None = None,
    batch_size: int = BATCH_SIZE,
    command: str | None = None,
    progress: bool = False,
) -> PredictionRun:
    """Predict images; write out/scores.json, scores.csv, report.html and, per image, maps/*.tiff, calibrated/*.tiff
    (the map in units of the threshold) and overlays/*.jpg.

    Args:
        bank, images, out: what to use, look at and write to.
        quantile: the share of nominal images that the threshold should pass; the bank's own where None.
        threshold: the threshold itself, instead of one from the bank's nominal scores.
        weights, backbone, batch_size, progress: as in `predict`.
        command: the command line that was given, for the report.

    Raises:
        SfrjaxError: as `predict`, or `out` cannot be written. Unreadable images are skipped, not raised.
    """
    out = output_folder(Path(out))
    paths = list_images(images)
    stems = dict(zip(paths, output_stems(paths), strict=True))
    settings = bank.settings if quantile is None else replace(bank.settings, quantile=quantile)
    if threshold is None:
        threshold = threshold_from_nominal(bank.nominal_scores, settings.quantile)
    run = PredictionRun(threshold, [], [])
    tiles: list[tuple[float, int, Tile]] = []  # a heap, of the images with the highest scores
    options: dict[str, Any] = {"weights": weights, "backbone": backbone, "batch_size": batch_size, "progress": progress}
    options["picture_side"] = MAX_PICTURE_SIDE  # decoded once, for the map and for the drawing
    predictions = predict(bank, paths, settings, threshold=threshold, skipped=run.skipped, **options)

    def write(prediction: Prediction) -> tuple[dict[str, Any], Tile | None]:
        image = prediction.picture
        assert image is not None  # it was asked for
        row = _write_outputs(out, stems[prediction.path], threshold, prediction, image)
        if len(tiles) == MAX_TILES and prediction.score <= tiles[0][0]:  # and the lowest shown only gets higher
            return row, None
        small = draw(reduced(image, TILE_SIDE), prediction.anomaly_map, threshold)
        return row, prediction_tile(row, threshold, thumbnails(*small))

    first = list(islice(predictions, 1))  # what is wrong with the network or the settings is said now
    _withdraw(out, "scores.json", "scores.csv", "report.html")
    for prediction, written in ahead(write, chain(first, predictions), threads=THREADS, most=2 * THREADS):
        row, tile = written.result()
        run.rows.append(row)
        if tile is not None:
            heapq.heappush(tiles, (prediction.score, -len(run.rows), tile))
            if len(tiles) > MAX_TILES:
                heapq.heappop(tiles)
    scores = prediction_scores(run.rows, run.skipped, bank, settings, threshold)
    write_scores(out, scores)
    shown = [tile for _, _, tile in tiles]
    write_prediction_page(out / "report.html", scores, shown, bank.nominal_scores, command=command)
    return run


def _withdraw(out: Path, *summaries: str) -> None:
    """Remove the summaries of an earlier run before its maps and pictures are replaced: a run that is interrupted must
    not leave them beside its own."""
    for name in summaries:
        (out / name).unlink(missing_ok=True)


def _write_outputs(
    out: Path, stem: Path, threshold: float, prediction: Prediction, image: Image.Image
) -> dict[str, Any]:
    """Write the maps and the overlay of one image; its row of scores.json."""
    files = {
        "map": Path("maps", f"{stem}.tiff"),
        "calibrated_map": Path("calibrated", f"{stem}.tiff"),
        "overlay": Path("overlays", f"{stem}.jpg"),
    }
    write_map(out / files["map"], prediction.anomaly_map)
    write_map(out / files["calibrated_map"], calibrated(prediction.anomaly_map, threshold))
    write_picture(out / files["overlay"], side_by_side(draw(image, prediction.anomaly_map, threshold)))
    return {
        "image": str(prediction.path),
        "score": prediction.score,
        "calibrated_score": float(calibrated(prediction.score, threshold)),
        "anomalous": prediction.anomalous,
        "regions": [region._asdict() for region in prediction.regions],
        **{kind: path.as_posix() for kind, path in files.items()},
    }


def demo(out: str | Path = "sfrjax-demo", *, progress: bool = False) -> EvaluationRun:
    """Draw an inspection set in out/data, evaluate it with the default settings, and write out/overview.png.

    Raises:
        SfrjaxError: `out` cannot be written.
    """
    out = output_folder(Path(out))
    root = write_demo_set(out / "data")
    run = evaluate_dataset("mvtec", root, out, settings=Settings(), progress=progress)
    # The first picture of each kind of defect of each product.
    chosen: dict[str, Path] = {}
    for product, paths in run.pictures.items():
        for path in paths:
            chosen.setdefault(f"{product}: {path.parent.name}", path)
    write_picture(out / "overview.png", contact_sheet(list(chosen.items()), columns=3))
    return run
