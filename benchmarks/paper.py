"""The paper's tables and figures (arXiv 2309.13904) on the data and weights that are here.

    python benchmarks/paper.py [EXPERIMENT ...] [--backbone NAME] [--category NAME ...] [--json FILE]

tables     Tables I-IV: pixel AUROC and AUPRO by category of MVTec AD, BTAD and MTD, beside the paper's figures
backbones  Table V: the same for every network whose weights are here
sampling   Fig. 5a: subspace-based and random (three draws) sampling over s_ref, with s = s_ref / 2, and no sampling
error      Fig. 6: representation error of held-out nominal features, pursuit against nearest neighbour, over s_ref
levels     Fig. 7: single levels and their combinations
toy        Fig. 3: why features outside the bank can be rebuilt but not matched, in two dimensions

All of them where none is named, in full-vector and per-pixel mode. Data is looked for in ../shared/data (or
$SFRJAX_DATA): mvtec/ (where parts of your own may lie, in the same layout), btad/, mtd/; what is missing is said. A
category's images pass through the network once for all settings that share a memory bank. Rows are kept in the JSON as
they are measured, and an interrupted run goes on after the last one. Figures are written beside it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import paper_figures
import representation
from common import OWN, available, data_here, device_name, run, start_result, weights_of, write_result
from rich.console import Console
from rich.table import Table

from sfrjax.backbones import Backbone, load_backbone
from sfrjax.bank import Bank
from sfrjax.datasets import Category
from sfrjax.errors import SfrjaxError
from sfrjax.evaluation import Metrics, evaluate, measure, read_masks
from sfrjax.features import extract, image_batches
from sfrjax.pipeline import Prediction, check_memory, fit
from sfrjax.reconstruction import Dictionary, residual_norms
from sfrjax.scoring import anomaly_maps, resize_map
from sfrjax.settings import MODES, PRESETS, SAMPLINGS, Level, Settings

EXPERIMENTS = ("tables", "backbones", "sampling", "error", "levels", "toy")
# Table V's networks, and the one that comes with sfrjax.
BACKBONES = ("resnet50", "resnet101", "wide_resnet50_2", "wide_resnet101_2", "efficientnet_lite0")
# The paper's figures (WideResNet50-2; pixel AUROC, PRO) that could be verified.
PAPER = {("mvtec", "bottle"): (98.6, 96.1), ("mtd", "mtd"): (85.7, 73.1)}
DRAWS = (0, 1, 2)
BATCH = 16


def main() -> None:
    """Measure what is asked for and not yet in the JSON, print the tables, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument(
        "--backbone", choices=BACKBONES, help="network of all but Table V (default: the paper's if here)"
    )
    parser.add_argument("--category", nargs="+", help="these categories only")
    parser.add_argument("--mode", choices=MODES, help="one mode only")
    parser.add_argument("--s-ref", type=int, nargs="+", default=representation.S_REFS, help="points of Fig. 5a")
    parser.add_argument("--json", type=Path, default=OWN / "paper.json", help="rows, kept between runs")
    arguments = parser.parse_args()
    experiments = arguments.experiments or EXPERIMENTS
    if unknown := set(experiments) - set(EXPERIMENTS):
        parser.error(f"no experiment {', '.join(sorted(unknown))}: choose from {', '.join(EXPERIMENTS)}")

    here = available(BACKBONES if arguments.backbone is None else (arguments.backbone,))
    if not here:
        sys.exit(1)
    backbone = next(name for name in ("wide_resnet50_2", "resnet50", "efficientnet_lite0", *here) if name in here)
    modes = (arguments.mode,) if arguments.mode else MODES
    result = open_result(arguments.json)
    for dataset, category in data_here(arguments.category):
        wanted = [
            settings
            for name in (here if "backbones" in experiments else [backbone])
            for mode in modes
            for settings in experiment_settings(
                experiments if name == backbone else ["tables"], dataset, name, mode, arguments.s_ref
            )
        ]
        measure_category(dataset, category, wanted, result, arguments.json)
        if "error" in experiments:
            for mode in modes:
                representation.measure(dataset, category, backbone, mode, result, arguments.json)
    if "toy" in experiments and not result["toy"]:
        result["toy"] = [representation.toy()]
        write_result(arguments.json, result)
    _print(result, experiments, backbone)
    for path in paper_figures.draw(result, experiments, backbone, arguments.json):
        print(f"wrote {path}")


def open_result(path: Path) -> dict[str, Any]:
    """The rows so far."""
    return start_result(path, {"command": "python benchmarks/paper.py"}, ("accuracy", "representation", "toy"))


def preset(dataset: str, backbone: str, mode: str, **changes: Any) -> Settings:
    """The paper's settings of a data set. Per-pixel mode scores levels 2 and 3 everywhere."""
    settings = {**PRESETS[dataset], "backbone": backbone, "mode": mode}
    if mode == "pixel":
        settings["levels"] = (2, 3)
    return Settings(**{**settings, **changes})


def table_settings(dataset: str, backbone: str, mode: str) -> list[Settings]:
    """The paper's settings under each sampling; in per-pixel mode also with features averaged over 3 x 3 positions."""
    found = [preset(dataset, backbone, mode, sampling=sampling) for sampling in SAMPLINGS]
    if mode == "pixel":
        found += [preset(dataset, backbone, mode, sampling=s, neighbourhood=3) for s in ("subspace", "none")]
    return found


def experiment_settings(
    experiments: Sequence[str], dataset: str, backbone: str, mode: str, s_refs: Sequence[int]
) -> Iterator[Settings]:
    """What the accuracy experiments measure of a category in one mode."""
    if {"tables", "backbones"} & set(experiments):
        yield from table_settings(dataset, backbone, mode)
    if "sampling" in experiments:
        for s_ref in s_refs:
            at = {"s_ref": s_ref, "s": max(1, s_ref // 2)}
            yield preset(dataset, backbone, mode, **at)
            yield from (preset(dataset, backbone, mode, sampling="random", seed=seed, **at) for seed in DRAWS)
        yield preset(dataset, backbone, mode, sampling="none")
    if "levels" in experiments:
        for count in (1, 2, 3):
            yield from (preset(dataset, backbone, mode, levels=some) for some in combinations((2, 3, 4), count))


def measure_category(dataset: str, category: Category, wanted: list[Settings], result: dict, path: Path) -> None:
    """Add the rows that the result lacks for one category, saving it after each."""
    check_images(category, result["accuracy"], path)
    done = {row_key(row) for row in result["accuracy"]}
    groups: dict[tuple, list[Settings]] = {}
    for settings in possible(wanted, category):
        if (dataset, category.name, settings) not in done:
            groups.setdefault(bank_key(settings), []).append(settings)
    if not groups:
        return
    masks = read_masks(category)
    for group in groups.values():
        _check_weights(group[0].backbone, result["accuracy"], path)
        if group[0].method == "sfr":
            measured = evaluate_all(category, group, masks)
        else:
            measured = (_evaluate(category, settings) for settings in group)
        for settings, metrics, about in measured:
            row = {"dataset": dataset, "category": category.name, **metrics._asdict(), **about}
            result["accuracy"].append({**row, "settings": settings.to_dict()})
            write_result(path, result)


def possible(wanted: list[Settings], category: Category) -> list[Settings]:
    """Without repetitions, and without those that choose more nominal images than there are, whose number is said."""
    n = len(category.train)
    settings = list(dict.fromkeys(wanted))
    few = [s for s in settings if s.method == "sfr" and s.sampling != "none" and s.s_ref > n]
    if few:
        what = f"{len(few)} settings left out, whose s_ref exceeds its {n} nominal images"
        print(f"{category.name}: {what}", file=sys.stderr)
    return [s for s in settings if s not in few]


def check_images(category: Category, rows: list[dict], path: Path) -> None:
    """Raise SfrjaxError where rows of a category of this name are of other images."""
    known = {row["nominal_images"] for row in rows if row["category"] == category.name and "nominal_images" in row}
    if known - {len(category.train)}:
        raise SfrjaxError(
            f"{path}: its rows of {category.name} are of {known.pop()} nominal images, and here are "
            f"{len(category.train)}; give --json another file"
        )


def _check_weights(backbone: str, rows: list[dict], path: Path) -> None:
    """Raise SfrjaxError where a network's rows were measured with other weights."""
    ours = load_backbone(backbone, levels=(1,), weights=weights_of(backbone)).weights_sha256
    theirs = {
        row["weights_sha256"] for row in rows if row["settings"]["backbone"] == backbone and "weights_sha256" in row
    }
    if theirs - {ours}:
        raise SfrjaxError(f"{path}: its rows of {backbone} are of other weights; give --json another file")


def row_key(row: dict) -> tuple[str, str, Settings]:
    """What a row is a measurement of. Settings that came after the row was written had their defaults."""
    known = {name: row["settings"][name] for name in Settings.__dataclass_fields__ if name in row["settings"]}
    return row["dataset"], row["category"], Settings(**known)


def bank_key(settings: Settings) -> tuple:
    """Equal for settings that one pass over the images serves."""
    return settings.method, settings.backbone, settings.mode, settings.neighbourhood


def _evaluate(category: Category, settings: Settings) -> tuple[Settings, Metrics, dict]:
    """A rival, through the pipeline."""
    weights = weights_of(settings.backbone)
    network = load_backbone(settings.backbone, levels=settings.feature_levels, weights=weights)
    metrics = evaluate(category, settings, backbone=network, progress=True).metrics
    return settings, metrics, _about(network, category)


def _about(network: Backbone, category: Category) -> dict:
    n_images = len(category.train)
    return {"device": device_name(), "weights_sha256": network.weights_sha256, "nominal_images": n_images}


def evaluate_all(
    category: Category, group: list[Settings], masks: Sequence[np.ndarray] | None
) -> Iterator[tuple[Settings, Metrics, dict]]:
    """Metrics of every settings of a group that shares a memory bank; each image passes through the network once.

    Of a test image only residual norms are kept, a few kilobytes each; maps exist while their metrics are taken.
    """
    levels = tuple(level for level in (1, 2, 3, 4) if any(level in settings.levels for settings in group))
    sampled = next((settings for settings in group if settings.sampling == "subspace"), group[0])
    whole = replace(sampled, levels=levels)
    network = load_backbone(whole.backbone, levels=whole.feature_levels, weights=weights_of(whole.backbone))
    bank = fit(category.train, whole, backbone=network, progress=True)
    norms = _residuals(category, network, bank, group)
    del bank
    for settings, found in zip(group, norms, strict=True):
        maps, scores = (np.asarray(x) for x in anomaly_maps(found, size=settings.image_size, sigma=settings.sigma))
        shapes = [mask.shape for mask in masks] if masks is not None else [m.shape for m in maps]
        predictions = [
            Prediction(sample.image, float(score), resize_map(m, shape))
            for sample, score, m, shape in zip(category.test, scores, maps, shapes, strict=True)
        ]
        yield settings, measure(category, predictions, masks), _about(network, category)


def _residuals(
    category: Category, network: Backbone, bank: Bank, group: list[Settings]
) -> list[tuple[np.ndarray, ...]]:
    """Residual norms of the test images for each settings of the group, per scoring level float32 [n, h, w]."""
    sampled = dict(zip(bank.settings.levels, bank.scoring, strict=True))
    without = {level for settings in group if settings.sampling == "none" for level in settings.levels}
    unsampled = {level: _with_gram(sampled[level]) for level in without} if bank.settings.mode == "pixel" else sampled
    # Settings that differ in their levels only are solved once, at all levels that any of them scores.
    keys = [replace(settings, levels=bank.settings.levels) for settings in group]
    needed: dict[Settings, list[Level]] = {key: [] for key in keys}
    for key, settings in zip(keys, group, strict=True):
        needed[key] += [level for level in settings.levels if level not in needed[key]]
    norms: dict[tuple[Settings, Level], list[np.ndarray]] = {
        (key, level): [] for key in needed for level in needed[key]
    }
    paths = [sample.image for sample in category.test]
    for batch in image_batches(paths, size=bank.settings.image_size, batch_size=min(BATCH, len(paths))):
        features = extract(network, batch.images, neighbourhood=bank.settings.neighbourhood)
        for key, levels in needed.items():
            dictionaries = unsampled if key.sampling == "none" else sampled
            reference = (bank.reference, features[key.reference]) if key.sampling == "subspace" else (None, None)
            scoring, scored = (tuple(by[level] for level in levels) for by in (dictionaries, features))
            solved = residual_norms(scoring, reference[0], scored, reference[1], settings=key)
            for level, norm in zip(levels, solved, strict=True):
                norms[key, level].append(np.asarray(norm)[: len(batch.paths)])
    return [
        tuple(np.concatenate(norms[key, level]) for level in settings.levels)
        for key, settings in zip(keys, group, strict=True)
    ]


def _with_gram(dictionary: Dictionary) -> Dictionary:
    """A per-pixel dictionary of a bank with sampling, as one without sampling has it."""
    if dictionary.gram is not None:
        return dictionary
    p, n, _ = dictionary.atoms.shape
    print(f"Gram matrices of {p} positions: {4e-6 * p * n * n:.0f} MB", file=sys.stderr)
    check_memory(4 * p * n * n)
    atoms = dictionary.atoms
    return Dictionary(atoms, jnp.matmul(atoms, atoms.swapaxes(1, 2), precision=jax.lax.Precision.HIGHEST))


def _print(result: dict, experiments: Sequence[str], backbone: str) -> None:
    """Tables I-V (and the rows of the figures) as text."""
    console = Console(width=160)
    if {"tables", "backbones"} & set(experiments):
        names = [name for name in BACKBONES if "backbones" in experiments or name == backbone]
        console.print(_accuracy_table(result, names))
    if "sampling" in experiments:
        table = Table(
            "category", "mode", "s_ref", "s", "sampling", "AUROC", "AUPRO", title=f"Fig. 5a: percent; {backbone}"
        )
        for row in sorted(paper_figures.sampling_rows(result, backbone), key=_sweep_order):
            settings = row["settings"]
            s_ref = "all" if settings["sampling"] == "none" else str(settings["s_ref"])
            what = (row["category"], settings["mode"], s_ref, str(settings["s"]), settings["sampling"])
            table.add_row(*what, *_percent(row))
        console.print(table)
    if "levels" in experiments:
        table = Table("category", "mode", "levels", "AUROC", "AUPRO", title=f"Fig. 7: percent; {backbone}")
        for row in paper_figures.level_rows(result, backbone):
            levels = "+".join(map(str, row["settings"]["levels"]))
            table.add_row(row["category"], row["settings"]["mode"], levels, *_percent(row))
        console.print(table)
    if "error" in experiments:
        table = Table("category", "mode", "s_ref", "OMP", "nearest", title=f"Fig. 6: relative error; {backbone}")
        for row in result["representation"]:
            if row["backbone"] == backbone:
                figures = (f"{row['pursuit']:.3f}", f"{row['match']:.3f}")
                table.add_row(row["category"], row["mode"], str(row["s_ref"]), *figures)
        console.print(table)


def _sweep_order(row: dict) -> tuple:
    settings = row["settings"]
    keys = ("mode", "sampling", "s_ref", "seed")
    return row["category"], *(settings[key] for key in keys)


def table_rows(result: dict, backbone: str) -> list[dict]:
    """Rows with the paper's settings: all samplings, full and per-pixel, with and without averaging."""
    return [
        row
        for row in result["accuracy"]
        if row["settings"]["backbone"] == backbone
        and row_key(row)[2]
        in {
            preset(row["dataset"], backbone, mode, sampling=sampling, neighbourhood=side)
            for mode in MODES
            for sampling in SAMPLINGS
            for side in (1, 3)
        }
    ]


def _accuracy_table(result: dict, backbones: list[str]) -> Table:
    """Ours beside the paper's, by category, with the average over a data set where it has several categories."""
    headers = ("data", "category", "backbone", "mode", "sampling", "AUROC", "AUPRO", "paper", "difference")
    table = Table(*headers, title=f"Tables I-V: percent; {result['device']}")
    for name in backbones:
        groups: dict[tuple, list[dict]] = {}
        for row in table_rows(result, name):
            settings = row["settings"]
            mode = settings["mode"] + (" 3x3" if settings["neighbourhood"] == 3 else "")
            groups.setdefault((row["dataset"], mode, settings["sampling"]), []).append(row)
        for (dataset, mode, sampling), rows in groups.items():
            for row in rows:
                published = PAPER.get((dataset, row["category"])) if (mode, sampling) == ("full", "subspace") else None
                beside = ("-", "-")
                if published:
                    ours = (100 * row["pixel_auroc"], 100 * row["aupro"])
                    beside = (
                        "{:.1f} / {:.1f}".format(*published),
                        "{:+.1f} / {:+.1f}".format(*(a - b for a, b in zip(ours, published, strict=True))),
                    )
                table.add_row(dataset, row["category"], name, mode, sampling, *_percent(row), *beside)
            if len(rows) > 1:
                mean = {key: float(np.mean([row[key] for row in rows])) for key in ("pixel_auroc", "aupro")}
                table.add_row(dataset, f"mean of {len(rows)}", name, mode, sampling, *_percent(mean), "-", "-")
    return table


def _percent(row: dict) -> tuple[str, str]:
    auroc, aupro = (row[key] for key in ("pixel_auroc", "aupro"))
    return tuple("-" if value is None else f"{100 * value:.2f}" for value in (auroc, aupro))  # type: ignore[return-value]


if __name__ == "__main__":
    run(main)
