"""Results -> JSON, CSV, TIFF maps, pictures and the table on the screen."""

import csv
import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfrjax.backbones import Backbone
from sfrjax.background import THREADS, ahead
from sfrjax.bank import Bank
from sfrjax.datasets.images import open_rgb, reduced
from sfrjax.evaluation import Detection, Evaluation, Metrics
from sfrjax.features import Skipped
from sfrjax.files import replacing
from sfrjax.page.gallery import TILE_SIDE, Thumbnail, thumbnails
from sfrjax.progress import tracked
from sfrjax.scoring import calibrated, resize_map
from sfrjax.settings import Settings
from sfrjax.version import __version__

MAX_PICTURE_SIDE = 1024
MASK_COLOUR = (0, 255, 0)
THRESHOLD_COLOUR = (255, 255, 255)
# By level: 0 where nothing is wrong, 128 at the threshold, 255 at twice the threshold and beyond.
HEAT = matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3].tobytes()
# Transparent up to half the threshold, so that the part stays visible.
OPACITY = [round(255 * 0.7 * min(max(level / 128 - 0.5, 0.0), 1.0)) for level in range(256)]


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def evaluation_results(
    metrics: dict[str, Metrics], detections: dict[str, Detection], settings: Settings, dataset: str, backbone: Backbone
) -> dict[str, Any]:
    """The content of results.json: metrics by category and their means, what the thresholds did, and the settings."""
    return {
        "categories": {name: m._asdict() for name, m in metrics.items()},
        "mean": mean_metrics(list(metrics.values()))._asdict(),
        "detections": {name: d._asdict() for name, d in detections.items()},
        "settings": {"dataset": dataset, **settings.to_dict()},
        "weights_name": backbone.weights_name,
        "weights_sha256": backbone.weights_sha256,
        "version": __version__,
    }


def mean_metrics(metrics: Sequence[Metrics]) -> Metrics:
    """Each metric's mean over the categories that have it; None where none has."""
    known = [[v for v in column if v is not None] for column in zip(*metrics, strict=True)]
    return Metrics(*(float(np.mean(values)) if values else None for values in known))


def print_metrics(metrics: dict[str, Metrics], detections: dict[str, Detection]) -> None:
    """A table in percent, a row per category and, for several, their mean; counts of images beside it."""
    table = Table()
    for i, header in enumerate(("category", "pixel AUROC", "AUPRO", "image AUROC", "found", "false alarms")):
        table.add_column(header, justify="right" if i else "left")
    for name, row in metrics.items():
        counts = ("-", "-")
        if name in detections:  # not of a method without a threshold
            d = detections[name]
            counts = (f"{d.found} of {d.n_anomalous}", f"{d.false_alarms} of {d.n_good}")
        table.add_row(escape(name), *_percent(row), *counts, end_section=name == list(metrics)[-1])
    if len(metrics) > 1:
        table.add_row("mean", *_percent(mean_metrics(list(metrics.values()))))
    Console().print(table)


def _percent(metrics: Metrics) -> list[str]:
    return ["-" if value is None else f"{100 * value:.2f}" for value in metrics]


def output_stems(paths: Sequence[Path]) -> list[Path]:
    """Relative names, without extension, under which the outputs of these images are kept apart.

    Folders below the images' common one are kept; where two images differ in extension only, it stays in the name.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]  # not resolved: an image is known by its own name
    common = os.path.commonpath([path.parent for path in whole])
    whole = [path.relative_to(common) for path in whole]
    stems = [path.with_suffix("") for path in whole]
    # A name kept whole may be another one's stem (x.png beside x.png.png), so until no two are alike.
    while len(count := Counter(stems)) < len(stems):
        stems = [stem if count[stem] == 1 else path for stem, path in zip(stems, whole, strict=True)]
    return stems


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """A float32 [height, width] map as a TIFF, whole or not at all. Not compressed: zlib takes 100 times as long as
    writing, more than prediction does, to save an eighth."""
    with replacing(path) as temporary:
        tifffile.imwrite(temporary, anomaly_map, metadata=None)  # beyond the tags that every reader needs


class Pictures(NamedTuple):
    """RGB pictures of one image, all of its shape.

    image: the image itself; heat: its anomaly map in colours, from nothing to twice the threshold; overlay: the
    map over the image, with a white line around what lies above the threshold.
    """

    image: Image.Image
    heat: Image.Image
    overlay: Image.Image


def draw(image: Image.Image, anomaly_map: np.ndarray, threshold: float | None, *, largest: float = 0.0) -> Pictures:
    """The pictures of one image and its map (float32, any size). Without a threshold there is no white line, and
    colours run to `largest`."""
    unit = largest / 2 if threshold is None else threshold
    relative = calibrated(resize_map(anomaly_map, (image.height, image.width)), unit)
    above = relative > 1
    np.clip(relative, 0, 255 / 128, out=relative)
    relative *= 128
    level = Image.fromarray(relative.astype(np.uint8))
    opacity = level.point(OPACITY)
    level.putpalette(HEAT)
    heat = level.convert("RGB")
    overlay = Image.composite(heat, image, opacity)
    if threshold is not None:
        _draw_outline(overlay, above, THRESHOLD_COLOUR)
    return Pictures(image, heat, overlay)


def side_by_side(pictures: Pictures, mask: np.ndarray | None = None) -> Image.Image:
    """The image beside its overlay; a green line bounds the ground truth, `mask` (bool [height, width])."""
    left, right = pictures.image, pictures.overlay
    if mask is not None:
        left = left.copy()
        _draw_outline(left, mask, MASK_COLOUR)
    sheet = Image.new("RGB", (2 * left.width + 4, left.height))
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 4, 0))
    return sheet


def write_picture(path: Path, picture: Image.Image) -> None:
    """An RGB picture, JPEG or PNG as its name says, whole or not at all.

    JPEG takes a sixth of the time of the cheapest PNG; the maps as measured are in the TIFF files.
    """
    kind = Image.registered_extensions()[path.suffix]
    with replacing(path) as temporary:
        picture.save(temporary, kind, quality=90)


def write_evaluation_pictures(
    evaluation: Evaluation, folder: Path, shown: Collection[int] = (), *, progress: bool = False
) -> tuple[list[Path], dict[int, tuple[Thumbnail, ...]]]:
    """An image beside its overlay for every test image, in folder/<defect>/<name>.jpg.

    Args:
        evaluation: of a category.
        folder: to write to.
        shown: indices of the test images of which thumbnails are wanted.
        progress: show a progress bar on standard error.

    Returns:
        the files, and the thumbnails.
    """
    category = evaluation.category
    stems = output_stems([Path(sample.defect, sample.image.name) for sample in category.test])
    paths = [folder / s.defect / f"{stem.name}.jpg" for s, stem in zip(category.test, stems, strict=True)]
    masks = evaluation.masks or [None] * len(paths)
    largest = max(float(prediction.anomaly_map.max()) for prediction in evaluation.predictions)

    def write(i: int) -> tuple[Thumbnail, ...]:
        prediction = evaluation.predictions[i]
        image = reduced(open_rgb(prediction.path), MAX_PICTURE_SIDE)
        options = (prediction.anomaly_map, evaluation.threshold)
        write_picture(paths[i], side_by_side(draw(image, *options, largest=largest), masks[i]))
        if i not in shown:
            return ()
        return thumbnails(*draw(reduced(image, TILE_SIDE), *options, largest=largest), masks[i])

    written = ahead(write, range(len(paths)), threads=THREADS, most=2 * THREADS)
    drawn = {i: done.result() for i, done in tracked(written, "Drawing", len(paths), shown=progress)}
    return paths, {i: small for i, small in drawn.items() if small}


def write_evaluation_maps(evaluation: Evaluation, folder: Path) -> None:
    """Anomaly maps where MVTec's evaluation code looks for them: folder/<category>/test/<defect>/<name>.tiff."""
    for sample, prediction in zip(evaluation.category.test, evaluation.predictions, strict=True):
        path = folder / evaluation.category.name / "test" / sample.defect / f"{sample.image.stem}.tiff"
        write_map(path, prediction.anomaly_map)


def contact_sheet(pictures: Sequence[tuple[str, Path]], columns: int) -> Image.Image:
    """Overlays in a grid, each under its caption."""
    opened = [(caption, open_rgb(path)) for caption, path in pictures]
    width = max(picture.width for _, picture in opened)
    height = max(picture.height for _, picture in opened) + 20
    rows = -(-len(opened) // columns)
    sheet = Image.new("RGB", (columns * (width + 8), rows * (height + 8)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (caption, picture) in enumerate(opened):
        x, y = i % columns * (width + 8) + 4, i // columns * (height + 8) + 4
        draw.text((x, y), caption, fill="black", font=font)
        sheet.paste(picture, (x, y + 20))
    return sheet


def prediction_scores(
    rows: list[dict[str, Any]], skipped: Sequence[Skipped], bank: Bank, settings: Settings, threshold: float
) -> dict[str, Any]:
    """The content of scores.json: a row per image, those left out, and what they were scored with."""
    return {
        "images": rows,
        "skipped": [{"image": str(path), "reason": reason} for path, reason in skipped],
        "threshold": threshold,
        "settings": settings.to_dict(),
        "weights_name": bank.weights_name,
        "weights_sha256": bank.weights_sha256,
        "version": __version__,
    }


def write_scores(folder: Path, content: dict[str, Any]) -> None:
    """scores.json, and its rows as scores.csv: there the number of regions, in the JSON each of them."""
    write_json(folder / "scores.json", content)
    with (
        replacing(folder / "scores.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        columns = ["image", "score", "calibrated_score", "anomalous", "regions", "map", "calibrated_map", "overlay"]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({**row, "regions": len(row["regions"])} for row in content["images"])


def _draw_outline(picture: Image.Image, region: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Colour the pixels of `region` (bool, any size) that touch its border."""
    resized = np.asarray(Image.fromarray(region).resize(picture.size, Image.Resampling.NEAREST))
    rows, columns = (np.flatnonzero(resized.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return
    inside = eroded = resized[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for _ in range(max(1, picture.width // 256)):
        framed = np.pad(eroded, 1)
        eroded = framed[1:-1, 1:-1] & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    edge = inside & ~eroded
    picture.paste(colour, (int(columns[0]), int(rows[0])), Image.fromarray(edge))
