"""The page's gallery: small copies of the pictures, what is said of each image, and which come first."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from sfrjax.datasets.images import reduced
from sfrjax.evaluation import Evaluation

TILE_SIDE = 320  # pixels


class Thumbnail(NamedTuple):
    """source: the picture itself, as a data URI."""

    caption: str
    width: int
    height: int
    source: str


class Tile(NamedTuple):
    """One image in the gallery.

    worst: sort key, the worst image has the smallest.
    relative: score in units of the threshold, or the score itself where there is none.
    overlap: AUPRO of the image's own regions; None without any.
    outcome: what the threshold made of it, "" without one; wrong: whether that is to be looked at.
    link: the overlay's address relative to the page.
    """

    name: str
    category: str
    label: str
    worst: tuple[float, ...]
    relative: float
    overlap: float | None
    outcome: str
    wrong: bool
    facts: str
    link: str
    pictures: tuple[Thumbnail, ...]


def thumbnails(
    image: Image.Image, heat: Image.Image, overlay: Image.Image, mask: np.ndarray | None = None
) -> tuple[Thumbnail, ...]:
    """What the gallery shows of an image: itself, its anomaly map in colours and its overlay, at most TILE_SIDE pixels
    wide and high, and its ground truth (bool, at the original size)."""
    shown = [("image", image, "JPEG"), ("anomaly map", heat, "JPEG"), ("overlay", overlay, "JPEG")]
    if mask is not None:
        # Grey where a pixel of the thumbnail is partly defective, so that no small region is lost.
        shown.insert(1, ("ground truth", reduced(Image.fromarray(mask).convert("L"), TILE_SIDE), "PNG"))
    return tuple(_thumbnail(*picture) for picture in shown)


def worst_first(evaluation: Evaluation) -> list[int]:
    """Indices of the test images: first those on the wrong side of the threshold, then those with most images of the
    other kind on the wrong side of them, then those whose regions are found least, then the least clear scores."""
    keys = _worst_keys(evaluation)
    return sorted(range(len(keys)), key=keys.__getitem__)


def evaluation_tiles(
    evaluation: Evaluation, shown: Sequence[int], pictures: Sequence[tuple[Thumbnail, ...]], links: Sequence[Path]
) -> tuple[Tile, ...]:
    """Test images in the gallery; arguments as for `evaluation_section`."""
    threshold, pro, keys = evaluation.threshold, evaluation.curves.pro, _worst_keys(evaluation)
    truth, scores = truth_and_scores(evaluation)
    tiles = []
    for i, thumbs, link in zip(shown, pictures, links, strict=True):
        sample, score, others = evaluation.category.test[i], scores[i], scores[truth != truth[i]]
        beaten = int((others > score).sum() if truth[i] else (others < score).sum())
        overlap = None if pro is None or math.isnan(pro.by_image[i]) else float(pro.by_image[i])
        facts = [_score_text(score, threshold)]
        if overlap is not None:
            facts.append(f"PRO {overlap:.3f}")
        if beaten:
            side = "lower than {} of {} good images" if truth[i] else "higher than {} of {} anomalous images"
            facts.append(side.format(beaten, others.size))
        outcomes = {(True, True): "found", (True, False): "missed", (False, True): "false alarm"}
        outcome = "" if threshold is None else outcomes.get((bool(truth[i]), bool(score > threshold)), "passed")
        tiles.append(
            Tile(
                name=f"{sample.defect}/{sample.image.name}",
                category=evaluation.category.name,
                label=sample.defect,
                worst=keys[i],
                relative=_relative(score, threshold),
                overlap=overlap,
                outcome=outcome,
                wrong=outcome in ("missed", "false alarm"),
                facts=", ".join(facts),
                link=_address(link),
                pictures=thumbs,
            )
        )
    return tuple(tiles)


def prediction_tile(row: dict[str, Any], threshold: float, pictures: tuple[Thumbnail, ...]) -> Tile:
    """One image in the gallery of a prediction; row: as in scores.json."""
    folder = Path(row["overlay"]).relative_to("overlays").parent
    facts = [_score_text(row["score"], threshold)]
    if regions := row.get("regions"):
        area = sum(region["area"] for region in regions)
        facts.append(f"{len(regions)} region{'s' if len(regions) > 1 else ''} of {area} pixels")
    return Tile(
        name=str(folder / Path(row["image"]).name),
        category="",
        label="",
        worst=(-row["score"],),
        relative=_relative(row["score"], threshold),
        overlap=None,
        outcome="anomalous" if row["anomalous"] else "below the threshold",
        wrong=row["anomalous"],
        facts=", ".join(facts),
        link=_address(Path(row["overlay"])),
        pictures=pictures,
    )


def truth_and_scores(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Whether each test image is anomalous, and its score."""
    truth = np.array([sample.anomalous for sample in evaluation.category.test], bool)
    return truth, np.array([prediction.score for prediction in evaluation.predictions])


def _worst_keys(evaluation: Evaluation) -> list[tuple[float, ...]]:
    truth, scores = truth_and_scores(evaluation)
    threshold, pro = evaluation.threshold, evaluation.curves.pro
    keys: list[tuple[float, ...]] = []
    for i, (anomalous, score) in enumerate(zip(truth, scores, strict=True)):
        side = -1 if anomalous else 1  # of lower scores, and of higher ones, is the trouble
        others = scores[truth != anomalous]
        wrong = threshold is not None and anomalous != (score > threshold)
        # Its share of what image AUROC lacks: the mean over either kind is 1 - AUROC.
        ranked = np.mean(np.sign(side * (score - others)) + 1) / 2 if others.size else 0.0
        overlap = 1.0 if pro is None or math.isnan(pro.by_image[i]) else pro.by_image[i]
        keys.append((-float(wrong), -float(ranked), float(overlap), -side * _relative(score, threshold)))
    return keys


def _relative(score: float, threshold: float | None) -> float:
    return float(score / threshold) if threshold else float(score)


def _score_text(score: float, threshold: float | None) -> str:
    return f"score {score:.4g}" + (f" ({100 * score / threshold:.3g} % of the threshold)" if threshold else "")


def _address(path: Path) -> str:
    return quote(path.as_posix().encode("utf-8", "surrogateescape"))


def _thumbnail(caption: str, picture: Image.Image, kind: str) -> Thumbnail:
    written = io.BytesIO()
    picture.save(written, kind, quality=80)
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"
    return Thumbnail(caption, *picture.size, source)
