"""One pass over a data set, or over the nominal images of a fit."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sfrjax.check.cost import fit_cost
from sfrjax.check.images import duplicates, modes, sizes, unreadable
from sfrjax.check.masks import Mask, inspect_mask, mask_findings
from sfrjax.check.report import SEVERITIES, Finding, Item, Report
from sfrjax.datasets.images import Inspection, inspect_image, list_images
from sfrjax.datasets.layouts import Category, Problem, survey_dataset
from sfrjax.errors import SfrjaxError
from sfrjax.pipeline import check_memory
from sfrjax.progress import tracked
from sfrjax.settings import Settings
from sfrjax.weights.fetch import find, local_path

T = TypeVar("T")
R = TypeVar("R")


def check_dataset(
    dataset: str,
    root: str | Path,
    categories: Sequence[str] | None = None,
    settings: Settings | None = None,
    *,
    weights: str | Path | None = None,
    progress: bool = False,
) -> list[Report]:
    """Look at every image and mask of a data set, and name all that is wrong or odd.

    Args:
        dataset, root, categories: as for `load_dataset`.
        settings: with which it is to be evaluated.
        weights: file of network weights; the network's own, by name, where None.
        progress: show a progress bar on standard error.

    Raises:
        SfrjaxError: no such dataset, folder or category. What is wrong inside a category is reported instead.
    """
    found = survey_dataset(dataset, root, categories)
    return [_report(category, settings or Settings(), weights, progress) for category in found]


def check_images(
    images: str | Path | Sequence[str | Path],
    settings: Settings | None = None,
    *,
    weights: str | Path | None = None,
    progress: bool = False,
) -> Report:
    """The same for the nominal images of a `fit`.

    Raises:
        SfrjaxError: a path does not exist, or there is no image at all.
    """
    train = tuple(list_images(images))
    return _report(Category("", train, (), 0, has_masks=False), settings or Settings(), weights, progress)


def _report(category: Category, settings: Settings, weights: str | Path | None, progress: bool) -> Report:
    paths = [*category.train, *(sample.image for sample in category.test)]
    start = time.perf_counter()
    seen = dict(zip(paths, _in_parallel(_inspect, paths, f"Reading {category.name}".strip(), progress), strict=True))
    decoding = (time.perf_counter() - start) * _threads() / max(1, len(paths))
    images = {path: image for path, image in seen.items() if isinstance(image, Inspection)}
    findings = [
        *_layout_findings(category.problems),
        *unreadable({path: reason for path, reason in seen.items() if isinstance(reason, str)}),
        *_counts(category, settings),
        *_weights(settings, weights),
        *modes(images),
        *sizes(category, images, settings.image_size),
        *duplicates(category, images),
        *mask_findings(_masks(category, images, progress), category.mask_threshold),
    ]
    cost = None
    if len(category.train) > 1:
        cost = fit_cost(settings, len(category.train), decoding)
        try:
            check_memory(cost.bank_bytes)
        except SfrjaxError as error:
            findings.append(Finding("error", "memory", str(error)))
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    anomalous = sum(sample.anomalous for sample in category.test)
    good = len(category.test) - anomalous
    return Report(category.name, len(category.train), good, anomalous, tuple(findings), cost)


def _in_parallel(function: Callable[[T], R], items: Sequence[T], description: str, progress: bool) -> Iterator[R]:
    with ThreadPoolExecutor(_threads(), thread_name_prefix="check") as pool:
        yield from tracked(pool.map(function, items), description, len(items), shown=progress)


def _threads() -> int:
    return os.cpu_count() or 1


def _inspect(path: Path) -> Inspection | str:
    """What an image is, or why it cannot be read."""
    try:
        return inspect_image(path)
    except SfrjaxError as error:
        return str(error)


def _masks(category: Category, images: dict[Path, Inspection], progress: bool) -> list[Mask]:
    pairs = [(sample.mask, images[sample.image].shape) for sample in category.test if sample.image in images]
    present = [(path, shape) for path, shape in pairs if path is not None]

    def inspect(pair: tuple[Path, tuple[int, int]]) -> Mask:
        return inspect_mask(pair[0], threshold=category.mask_threshold, shape=pair[1])

    return list(_in_parallel(inspect, present, "Reading masks", progress and bool(present)))


def _layout_findings(problems: Iterable[Problem]) -> Iterator[Finding]:
    by_kind: dict[str, list[Item]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(Item(problem.path, problem.message))
    for kind, items in by_kind.items():
        yield Finding("error", kind, "the folder is not as its layout says, and evaluate refuses it", tuple(items))


def _counts(category: Category, settings: Settings) -> Iterator[Finding]:
    if category.train:
        try:
            settings.check_bank_size(len(category.train), category.name or os.fspath(category.train[0].parent))
        except SfrjaxError as error:
            yield Finding("error", "too few nominal images", str(error))
    kinds = {sample.anomalous for sample in category.test}
    if len(kinds) == 1:
        lacking = "good" if True in kinds else "defective"
        message = f"there are no {lacking} test images, without which the image AUROC is not defined"
        yield Finding("warning", "one class only", message)


def _weights(settings: Settings, weights: str | Path | None) -> Iterator[Finding]:
    """Whether fit will find its weights. They are not read: that would take as long as the images."""
    if weights is not None:
        if not Path(weights).is_file():
            yield Finding("error", "weights", f"weights file {weights} does not exist")
        return
    try:
        entry = find(settings.backbone)
        if not local_path(entry).exists():
            message = f"{entry.name} will be downloaded by fit; without a network, see `sfrjax weights fetch --help`"
            yield Finding("warning", "weights", message)
    except SfrjaxError as error:
        yield Finding("error", "weights", str(error))
