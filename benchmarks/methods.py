"""SFR beside SPADE, PaDiM and PatchCore: the same features, split and metrics, with what each costs.

    python benchmarks/methods.py [--category NAME ...] [--backbone NAME ...] [--method NAME ...]

For MVTec AD "bottle" and MTD (or the categories named, or all that are here where neither of the two is) and for
ResNet50 and EfficientNet-Lite0, where they are here: pixel AUROC, AUPRO and image AUROC over the whole test set, into
the JSON of `paper.py` (the same rows: what is there is not measured again); then fit time, time per image, bank size
and peak memory, by a process for each memory bank.

fit: from the image files to the bank, its leave-one-out threshold and compilation included. Time per image: from
decoded images in memory to maps, median over batches of the test images, after a first call; SFR's samplings share a
bank and its fit, and take their batches in turn. Bank: what one fitted with these settings alone would take. Peak: the
process's largest resident memory over fit and first calls.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import (
    OWN,
    available,
    categories,
    data_here,
    device_name,
    peak_bytes,
    reset_peak,
    run,
    seconds,
    start_result,
    weights_of,
    write_result,
)
from paper import BACKBONES as PAPERS_AND_OURS
from paper import bank_key, check_images, measure_category, open_result, possible, row_key, table_settings
from rich.console import Console
from rich.table import Table

from sfrjax.backbones import Backbone, load_backbone
from sfrjax.bank import bank_bytes
from sfrjax.datasets import Category
from sfrjax.errors import SfrjaxError
from sfrjax.features import image_batches
from sfrjax.pipeline import fit_method, localise
from sfrjax.settings import METHODS, MODES, Settings, preset

BACKBONES = ("efficientnet_lite0", "resnet50")
COMPARED = ("bottle", "mtd")
BATCHES = 6
BUDGET, FEWEST = 30.0, 3  # of a batch size's batches, no more are timed after so many seconds, if so many were


def main() -> None:
    """Measure what is missing, row by row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", nargs="+")
    parser.add_argument("--backbone", nargs="+", choices=PAPERS_AND_OURS, default=BACKBONES)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES, help="of SFR")
    parser.add_argument("--json", type=Path, default=OWN / "methods.json", help="cost rows, kept between runs")
    parser.add_argument("--accuracy", type=Path, default=OWN / "paper.json", help="accuracy rows, kept too")
    parser.add_argument("--only", choices=("accuracy", "cost"), help="one half only")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # one process's work, as JSON
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_cost(**json.loads(arguments.child))))
        return

    accuracy = open_result(arguments.accuracy)
    result = start_result(arguments.json, {"command": "python benchmarks/methods.py"})
    data = data_here(arguments.category)
    if arguments.category is None:
        data = [(dataset, category) for dataset, category in data if category.name in COMPARED] or data
    for backbone in available(tuple(arguments.backbone)):
        for dataset, category in data:
            settings = wanted(dataset, backbone, arguments.method, arguments.mode)
            if arguments.only != "cost":
                measure_category(dataset, category, settings, accuracy, arguments.accuracy)
            if arguments.only != "accuracy":
                _measure_costs(dataset, category, settings, result, arguments.json)
    _print(result, accuracy)


def wanted(dataset: str, backbone: str, methods: Sequence[str], modes: Sequence[str]) -> list[Settings]:
    """SFR as in the paper's tables, then the rivals with the levels of their own papers."""
    found = [s for mode in modes for s in table_settings(dataset, backbone, mode)] if "sfr" in methods else []
    rivals = [m for m in methods if m != "sfr"]
    return found + [Settings(**{**preset(dataset, m), "method": m, "backbone": backbone}) for m in rivals]


def _measure_costs(dataset: str, category: Category, variants: list[Settings], result: dict, path: Path) -> None:
    check_images(category, result["rows"], path)
    done = {row_key(row) for row in result["rows"]}
    groups: dict[tuple, list[Settings]] = {}
    for settings in possible(variants, category):
        if (dataset, category.name, settings) not in done:
            # In per-pixel mode only a bank without sampling surely keeps Gram matrices.
            keeps_gram = settings.mode == "pixel" and settings.sampling == "none"
            groups.setdefault((*bank_key(settings), keeps_gram), []).append(settings)
    for group in groups.values():
        task = {"dataset": dataset, "name": category.name, "group": [settings.to_dict() for settings in group]}
        command = [sys.executable, __file__, "--child", json.dumps(task)]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if found.returncode:
            raise SfrjaxError(f"{category.name}: the costs of {group[0].method} were not measured (see above)")
        result["rows"] += json.loads(found.stdout.splitlines()[-1])
        write_result(path, result)


def _cost(dataset: str, name: str, group: list[dict]) -> list[dict]:
    """Rows of settings that share a memory bank; runs in a process of its own."""
    variants = [Settings.from_dict(values) for values in group]
    settings = next((s for s in variants if s.sampling == "subspace"), variants[0])
    category = next(c for c in categories(dataset)[0] if c.name == name)
    network = _network(settings)
    start = time.perf_counter()
    bank = fit_method(category.train, settings, backbone=network)
    fit_s, fit_peak = time.perf_counter() - start, peak_bytes()
    paths = [sample.image for sample in category.test]
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), 8 * BATCHES)).astype(int)]
    calls = {variant: partial(localise, bank, _network(variant), settings=variant) for variant in variants}
    about = {"dataset": dataset, "category": name, "device": device_name()}
    rows = {variant: {**about, "settings": variant.to_dict()} for variant in variants}
    peaks = dict.fromkeys(variants, fit_peak)
    for batch_size in (1, 8):
        batches = list(image_batches(chosen, size=settings.image_size, batch_size=batch_size))[: 2 * BATCHES]
        for variant, call in calls.items():
            reset_peak()
            seconds(partial(call, batches[0].images))
            peaks[variant] = max(peaks[variant], peak_bytes())
        times: dict[Settings, list[float]] = {variant: [] for variant in variants}
        for batch in batches:  # in turn, so that a slow spell of the machine meets them all
            for variant, call in calls.items():
                if len(times[variant]) < FEWEST or sum(times[variant]) < BUDGET:
                    times[variant].append(seconds(partial(call, batch.images)))
        for variant, taken in times.items():
            rows[variant][f"image_s_batch_{batch_size}"] = float(np.median(taken)) / batch_size
    n = len(category.train)
    for variant, row in rows.items():
        size = bank_bytes(network, variant, n) if variant.method == "sfr" else _bytes(bank)
        row |= {"nominal_images": n, "fit_s": fit_s, "bank_bytes": size, "peak_bytes": peaks[variant]}
    return list(rows.values())


def _network(settings: Settings) -> Backbone:
    return load_backbone(settings.backbone, levels=settings.feature_levels, weights=weights_of(settings.backbone))


def _bytes(thing: Any) -> int:
    """Bytes of all arrays in a bank."""
    if isinstance(thing, jax.Array | np.ndarray):
        return thing.nbytes
    if isinstance(thing, tuple | list):
        return sum(map(_bytes, thing))
    if isinstance(thing, dict):
        return sum(map(_bytes, thing.values()))
    if is_dataclass(thing):
        return sum(_bytes(getattr(thing, field.name)) for field in fields(thing))
    return 0


def describe(settings: dict) -> tuple[str, str, str]:
    """(method, mode, sampling) in words; a rival has no mode and no sampling."""
    if settings["method"] != "sfr":
        return {"spade": "SPADE", "padim": "PaDiM", "patchcore": "PatchCore"}[settings["method"]], "", ""
    mode = settings["mode"] + (" 3x3" if settings["neighbourhood"] == 3 else "")
    return "SFR", mode, settings["sampling"]


def _print(result: dict, accuracy: dict) -> None:
    costs = {row_key(row): row for row in result["rows"]}
    measured = {row_key(row): row for row in accuracy["accuracy"]}
    headers = ("category", "backbone", "method", "mode", "sampling", "AUROC", "AUPRO", "image AUROC")
    headers += ("fit, s", "ms B=1", "ms B=8", "bank, MB", "peak, MB")
    table = Table(*headers, title=f"percent; {result['device']}")
    for key in dict.fromkeys([*measured, *costs]):
        dataset, category, settings = key
        if settings not in wanted(dataset, settings.backbone, METHODS, MODES):
            continue  # of one of the paper's other experiments
        metrics = [measured.get(key, {}).get(name) for name in ("pixel_auroc", "aupro", "image_auroc")]
        shown = ["-" if value is None else f"{100 * value:.2f}" for value in metrics]
        figures = ["-"] * 5
        if row := costs.get(key):
            figures = [f"{row['fit_s']:.0f}", *(f"{1000 * row[f'image_s_batch_{b}']:.1f}" for b in (1, 8))]
            figures += [f"{row[name] / 1e6:.0f}" for name in ("bank_bytes", "peak_bytes")]
        table.add_row(category, settings.backbone, *describe(settings.to_dict()), *shown, *figures)
    Console(width=160).print(table)


if __name__ == "__main__":
    run(main)
