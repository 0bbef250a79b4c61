"""What SFR costs on top of its backbone: time per image from file to anomaly map, over the forward pass alone.

    python benchmarks/overhead.py --json FILE

Each round times, in turn, the forward pass alone (images already in memory) and the whole of `sfrjax.predict` (decode,
network, reconstruction, map at the original size) on the same images, so that a slow spell of the machine meets both.
The figures are medians over the rounds; `ratio` is the median of the rounds' own ratios. The split times each stage by
itself, waited for, one after the other: in `total_s` decoding overlaps with the rest.

Images and ResNet50 weights: the MVTec AD category "bottle" and the Caffe ResNet50 of ../shared/data (or $SFRJAX_DATA).
Where they are absent the demo set is used, and ResNet50 is left out.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from common import DATA, device_name
from rich.console import Console
from rich.table import Table

from sfrjax.backbones import Backbone, load_backbone
from sfrjax.bank import Bank
from sfrjax.datasets import load_dataset
from sfrjax.datasets.images import read_image
from sfrjax.features import extract
from sfrjax.pipeline import fit, predict
from sfrjax.reconstruction import residual_norms
from sfrjax.scoring import anomaly_maps, resize_map
from sfrjax.settings import PRESETS, Settings

IMAGES = 32
ROUNDS = 7


def main() -> None:
    """Time every backbone and batch size, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved rounds per row")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        train, test, source = _images(Path(scratch))
        rows = []
        for name, weights in _backbones():
            settings = Settings(**{**PRESETS["mvtec"], "backbone": name})
            backbone = load_backbone(name, levels=settings.feature_levels, weights=weights)
            bank = fit(train, settings, backbone=backbone)
            rows += [_row(bank, backbone, test, batch, arguments.rounds) for batch in (1, 8)]
    result = {
        "device": device_name(),
        "command": f"python benchmarks/overhead.py --rounds {arguments.rounds} --json FILE",
        "jax": jax.__version__,
        "images": source,
        "nominal_images": len(train),
        "rounds": arguments.rounds,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    _print(result)


def _row(bank: Bank, backbone: Backbone, paths: list[Path], batch: int, rounds: int) -> dict:
    images = np.stack([read_image(path, bank.settings.image_size)[0] for path in paths])
    batches = [images[i : i + batch] for i in range(0, len(images), batch)]

    def forward() -> None:
        # As in the pipeline: the next batch is dispatched before the last one is waited for.
        waiting = None
        for part in batches:
            features = extract(backbone, part)
            if waiting is not None:
                jax.block_until_ready(waiting)
            waiting = features
        jax.block_until_ready(waiting)

    def total() -> None:
        for _ in predict(bank, paths, backbone=backbone, batch_size=batch):
            pass

    forward(), total()
    times = np.array([[_seconds(forward), _seconds(total)] for _ in range(rounds)]) / len(paths)
    return {
        "backbone": backbone.name,
        "batch": batch,
        "backbone_s": float(np.median(times[:, 0])),
        "total_s": float(np.median(times[:, 1])),
        "ratio": float(np.median(times[:, 1] / times[:, 0])),
        "ratio_min": float((times[:, 1] / times[:, 0]).min()),
        "ratio_max": float((times[:, 1] / times[:, 0]).max()),
        "split": _split(bank, backbone, paths, batches, rounds),
    }


def _split(bank: Bank, backbone: Backbone, paths: list[Path], batches: list[np.ndarray], rounds: int) -> dict:
    """Seconds per image of each stage by itself."""
    settings, part = bank.settings, batches[0]
    features = extract(backbone, part)
    scored = tuple(features[level] for level in settings.levels)
    reference = features[settings.reference]

    def solve() -> tuple:
        return jax.block_until_ready(residual_norms(bank.scoring, bank.reference, scored, reference, settings=settings))

    def score() -> tuple:
        return jax.block_until_ready(anomaly_maps(norms, size=settings.image_size, sigma=settings.sigma))

    norms = solve()
    maps = np.asarray(score()[0])
    _, shape = read_image(paths[0], settings.image_size)
    stages = {
        "decode_s": lambda: [read_image(path, settings.image_size) for path in paths[: len(part)]],
        "backbone_s": lambda: jax.block_until_ready(extract(backbone, part)),
        "solve_s": solve,
        "map_s": score,
        "resize_s": lambda: [resize_map(m, shape) for m in maps],
    }
    return {
        name: float(np.median([_seconds(stage) for _ in range(2 * rounds)])) / len(part)
        for name, stage in stages.items()
    }


def _seconds(run: object) -> float:
    start = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - start


def _images(scratch: Path) -> tuple[list[Path], list[Path], str]:
    if (DATA / "mvtec" / "bottle").is_dir():
        category = load_dataset("mvtec", DATA / "mvtec", ["bottle"])[0]
        source = "MVTec AD bottle, 450x450"
    else:
        from sfrjax.datasets.demo import write_demo_set

        category = load_dataset("mvtec", write_demo_set(scratch / "demo"))[0]
        source = f"demo set, {category.name}"
    return list(category.train), [sample.image for sample in category.test][:IMAGES], source


def _backbones() -> list[tuple[str, Path | None]]:
    found: list[tuple[str, Path | None]] = [("efficientnet_lite0", None)]
    resnet = DATA / "weights" / "resnet50_v1_caffe.safetensors"
    if resnet.is_file():
        found.append(("resnet50", resnet))
    else:
        print(f"{resnet} not found: ResNet50 is left out")
    return found


def _print(result: dict) -> None:
    table = Table(title=f"{result['device']}; {result['images']}; ms per image")
    stages = list(result["rows"][0]["split"])
    for header in ("backbone", "batch", "forward", "file to map", "ratio", *(s.removesuffix("_s") for s in stages)):
        table.add_column(header, justify="right")
    for row in result["rows"]:
        split = [f"{1000 * row['split'][stage]:.1f}" for stage in stages]
        cells = [f"{1000 * row['backbone_s']:.1f}", f"{1000 * row['total_s']:.1f}", f"{row['ratio']:.3f}"]
        table.add_row(row["backbone"], str(row["batch"]), *cells, *split)
    Console().print(table)


if __name__ == "__main__":
    main()
