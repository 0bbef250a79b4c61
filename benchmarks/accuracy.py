"""How well SFR localises on real parts: pixel AUROC, AUPRO and image AUROC, sampling on and off, in one run.

    python benchmarks/accuracy.py --json FILE

Data and ResNet50 weights come from ../shared/data (or $SFRJAX_DATA): MVTec AD "bottle" and MTD in its published split,
with the paper's settings. Each test image's features are computed once and reconstructed under every sampling, so the
samplings meet identical features. `--only bottle` leaves MTD out.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from overhead import device_name
from rich.console import Console
from rich.table import Table

from sfrjax.backbones import load_backbone
from sfrjax.datasets import Category, load_dataset
from sfrjax.features import extract, image_batches
from sfrjax.pipeline import Prediction, fit, measure, read_masks
from sfrjax.reconstruction import residual_norms
from sfrjax.scoring import anomaly_maps, resize_map
from sfrjax.settings import PRESETS, SAMPLINGS, Settings

DATA = Path(os.environ.get("SFRJAX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RUNS = (
    ("mvtec", "bottle", "efficientnet_lite0", "full"),
    ("mvtec", "bottle", "resnet50", "full"),
    ("mtd", "mtd", "resnet50", "full"),
)


def main() -> None:
    """Measure every run, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--only", choices=sorted({run[1] for run in RUNS}), help="run one category only")
    arguments = parser.parse_args()

    if not DATA.is_dir():
        raise SystemExit(f"{DATA} not found: put the data there, or name its folder in SFRJAX_DATA")
    rows = []
    for dataset, name, backbone, mode in RUNS:
        if arguments.only in (None, name):
            category = load_dataset(dataset, DATA / dataset, [name])[0]
            settings = Settings(**{**PRESETS[dataset], "backbone": backbone, "mode": mode})
            rows += _rows(category, settings)
    result = {
        "device": device_name(),
        "command": "python benchmarks/accuracy.py --json FILE",
        "jax": jax.__version__,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"percent; {result['device']}")
    for header in ("category", "backbone", "sampling", "pixel AUROC", "AUPRO", "image AUROC"):
        table.add_column(header)
    for row in rows:
        figures = [f"{100 * row[metric]:.2f}" for metric in ("pixel_auroc", "aupro", "image_auroc")]
        table.add_row(row["category"], row["backbone"], row["sampling"], *figures)
    Console().print(table)


def _rows(category: Category, settings: Settings) -> list[dict]:
    weights = DATA / "weights" / "resnet50_v1_caffe.safetensors" if settings.backbone == "resnet50" else None
    backbone = load_backbone(settings.backbone, levels=settings.feature_levels, weights=weights)
    start = time.perf_counter()
    bank = fit(category.train, settings, backbone=backbone)
    variants = {sampling: replace(settings, sampling=sampling) for sampling in SAMPLINGS}
    predictions: dict[str, list[Prediction]] = {sampling: [] for sampling in variants}
    for batch in image_batches([sample.image for sample in category.test], size=settings.image_size, batch_size=8):
        features = extract(backbone, batch.images)
        scored = tuple(features[level] for level in settings.levels)
        for sampling, variant in variants.items():
            reference = (bank.reference, features[settings.reference]) if sampling == "subspace" else (None, None)
            norms = residual_norms(bank.scoring, reference[0], scored, reference[1], settings=variant)
            maps, scores = anomaly_maps(norms, size=settings.image_size, sigma=settings.sigma)
            for path, shape, m, score in zip(batch.paths, batch.shapes, np.asarray(maps), scores, strict=False):
                predictions[sampling].append(Prediction(path, float(score), resize_map(m, shape)))
    seconds = time.perf_counter() - start
    masks = read_masks(category)
    return [
        {
            "category": category.name,
            "backbone": settings.backbone,
            "weights_sha256": backbone.weights_sha256,
            "mode": settings.mode,
            "sampling": sampling,
            "settings": variants[sampling].to_dict(),
            **measure(category, found, masks)._asdict(),
            "fit_and_predict_all_samplings_s": seconds,
        }
        for sampling, found in predictions.items()
    ]


if __name__ == "__main__":
    main()
