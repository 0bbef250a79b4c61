"""How long a person waits for the command line: to answer at all, and for a folder of images.

    python benchmarks/startup.py --json FILE

`commands`: whole processes, from start to end. `sfrjax --help`, and `sfrjax predict` of one image with
EfficientNet-Lite0 from a bank of the demo's flange, its compiled programs kept from a run before (as they are from the
second run on). Medians and minima over rounds.

`folders`: what `sfrjax predict` does with a folder, all files and the page included, network and bank loaded. Beside it
the same images decoded, and computed from memory to anomaly map, either alone; interleaved rounds, medians per image.
Each predict writes into an empty folder. `cpu` is the time that all threads together spent on the processor. `ratio` is
predict over the slower of the two; `floor` is what it would be if writing took no time and no core was ever idle: the
`cpu` of decoding and computing, shared by the cores, over the slower of the two, and never below 1. `writing` are the
parts of what predict does besides, in one thread.

Folder and weights: all images, nominal and test, of the MVTec AD category "bottle" and the Caffe ResNet50 of
../shared/data (or $SFRJAX_DATA): a long folder, of which the first batch's decoding and the last one's files, which
nothing runs beside, are a small part. Where they are absent the demo set is used, and ResNet50 is left out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from common import DATA, available, device_name, weights_of
from rich.console import Console
from rich.table import Table

from sfrjax import pipeline
from sfrjax.backbones import load_backbone
from sfrjax.datasets import Category, load_dataset
from sfrjax.datasets.demo import write_demo_set
from sfrjax.datasets.images import reduced
from sfrjax.features import image_batches
from sfrjax.page.gallery import TILE_SIDE, thumbnails
from sfrjax.pursuit.blocks import cores
from sfrjax.report import MAX_PICTURE_SIDE, Pictures, draw, side_by_side, write_map, write_picture
from sfrjax.runs import predict_images
from sfrjax.settings import BATCH_SIZE, PRESETS, Settings

ROUNDS = 5
MAIN = "import sys; from sfrjax.cli import main; sys.argv[0] = 'sfrjax'; main()"


def main() -> None:
    """Time commands and folders, write the JSON, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        demo = write_demo_set(scratch / "demo")
        commands = _commands(demo / "flange", scratch)
        bottle = (DATA / "mvtec" / "bottle").is_dir()
        category = load_dataset("mvtec", DATA / "mvtec", ["bottle"])[0] if bottle else load_dataset("mvtec", demo)[0]
        networks = available(("efficientnet_lite0", "resnet50"))
        folders = [_folder(network, category, scratch / "out") for network in networks]
    result = {
        "device": device_name(),
        "command": "python benchmarks/startup.py --json FILE",
        "jax": jax.__version__,
        "rounds": ROUNDS,
        "commands": commands,
        "images": category.name,
        "folders": folders,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"{result['device']}; seconds a process")
    for header in ("sfrjax", "median", "min"):
        table.add_column(header)
    for row in commands:
        table.add_row(row["command"], f"{row['wall_median_s']:.2f}", f"{row['wall_min_s']:.2f}")
    Console().print(table)
    table = Table(title=f"{category.name}; ms per image, on the clock (on all processors)")
    for header in ("network", "decode", "compute", "predict", "ratio", "floor"):
        table.add_column(header)
    for row in folders:
        cells = [f"{1000 * row[key]['wall_s']:.1f} ({1000 * row[key]['cpu_s']:.1f})" for key in STEPS]
        table.add_row(row["backbone"], *cells, f"{row['ratio']:.2f}", f"{row['floor']:.2f}")
    Console().print(table)
    for row in folders:
        parts = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in row["writing"].items())
        print(f"{row['backbone']}, writing, ms of one core per image: {parts}")


def _commands(flange: Path, scratch: Path) -> list[dict]:
    image = next((flange / "test" / "good").iterdir())
    bank, out = scratch / "flange.bank", scratch / "one"
    _process("fit", flange / "train", "--out", bank)
    commands = {"--help": ("--help",), "predict, one image": ("predict", bank, image, "--out", out)}
    for command in commands.values():  # what is compiled here is kept
        _process(*command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(_process(*command))
    return [
        {"command": name, "wall_median_s": statistics.median(values), "wall_min_s": min(values)}
        for name, values in times.items()
    ]


STEPS = ("decode", "compute", "predict")


def _folder(network: str, category: Category, out: Path) -> dict:
    settings = Settings(**{**PRESETS["mvtec"], "backbone": network})
    backbone = load_backbone(network, levels=settings.feature_levels, weights=weights_of(network))
    bank = pipeline.fit(category.train, settings, backbone=backbone)
    paths = [*category.train, *(sample.image for sample in category.test)]

    def decoded() -> list[np.ndarray]:
        batches = image_batches(paths, size=settings.image_size, batch_size=BATCH_SIZE)
        return [batch.images for batch in batches]

    def compute() -> None:
        waiting = None
        for batch in batches:  # as in the pipeline: the next is dispatched before the last is waited for
            maps, _ = pipeline.localise(bank, backbone, batch)
            if waiting is not None:
                np.asarray(waiting)
            waiting = maps
        np.asarray(waiting)

    def predict() -> None:
        predict_images(bank, paths, out, backbone=backbone)

    batches = decoded()
    steps: dict[str, Callable] = {"decode": decoded, "compute": compute, "predict": predict}
    times = np.empty((ROUNDS + 1, len(steps), 2))
    for row in times:
        for i, step in enumerate(steps.values()):
            shutil.rmtree(out, ignore_errors=True)
            row[i] = _seconds(step)
    times = times[1:] / len(paths)  # the first round compiles
    slower = times[:, :2, 0].max(axis=1)
    spread = times[:, :2, 1].sum(axis=1) / cores()
    wall, cpu = np.median(times, axis=0).T
    rows = {step: {"wall_s": w, "cpu_s": c} for step, w, c in zip(STEPS, wall.tolist(), cpu.tolist(), strict=True)}
    predictions = list(pipeline.predict(bank, paths, backbone=backbone, picture_side=MAX_PICTURE_SIDE))
    with ThreadPoolExecutor(1) as pool:  # as predict does: in a thread memory is had more cheaply than in the main one
        writing = pool.submit(_writing, predictions, bank.threshold, out).result()
    return {
        "backbone": network,
        "images": len(paths),
        **rows,
        "ratio": float(np.median(times[:, 2, 0] / slower)),
        "floor": float(np.median(np.maximum(1, spread / slower))),
        "writing": writing,
    }


def _writing(predictions: list[pipeline.Prediction], threshold: float, out: Path) -> dict[str, float]:
    """Seconds of processor time per image of each part of writing; the minimum over rounds."""

    def drawn(prediction: pipeline.Prediction, side: int) -> Pictures:
        return draw(reduced(prediction.picture, side), prediction.anomaly_map, threshold)

    large, small = ([drawn(p, side) for p in predictions] for side in (MAX_PICTURE_SIDE, TILE_SIDE))
    steps: dict[str, Callable] = {
        "draw": lambda prediction, *_: drawn(prediction, MAX_PICTURE_SIDE),
        "overlay": lambda _, pictures, __: write_picture(out / "a.jpg", side_by_side(pictures)),
        "map": lambda prediction, *_: write_map(out / "a.tiff", prediction.anomaly_map),
        "draw small": lambda prediction, *_: drawn(prediction, TILE_SIDE),
        "thumbnails": lambda *tuples: thumbnails(*tuples[2]),
    }
    items = list(zip(predictions, large, small, strict=True))
    return {
        name: min(_seconds(lambda step=step: [step(*item) for item in items])[1] for _ in range(3)) / len(items)
        for name, step in steps.items()
    }


def _seconds(step: Callable) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def _process(*arguments: object) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
