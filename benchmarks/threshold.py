"""What the threshold, set from nominal training images alone, does to test images: false alarms and defects found.

    python benchmarks/threshold.py --json FILE

For every set and quantile: the share of good test images above the threshold (promised: about 1 - quantile, if they
are like the nominal ones), and the share of defective images above it. Sets: the demo's products, and of ../shared/data
(or $SFRJAX_DATA) MVTec AD "bottle" and MTD in its published split, with the paper's settings; those absent are named
and left out. The embedded EfficientNet-Lite0 everywhere.
"""

import argparse
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from common import DATA, device_name
from rich.console import Console
from rich.table import Table

from sfrjax.backbones import load_backbone
from sfrjax.datasets import Category, load_dataset
from sfrjax.datasets.demo import write_demo_set
from sfrjax.pipeline import fit, predict
from sfrjax.scoring import threshold_from_nominal
from sfrjax.settings import PRESETS, Settings

QUANTILES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)


def main() -> None:
    """Fit, predict, count; write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        demo = load_dataset("mvtec", write_demo_set(Path(scratch)))
        sets = [("mvtec", category) for category in demo]
        for dataset, name in (("mvtec", "bottle"), ("mtd", "mtd")):
            if (DATA / dataset).is_dir():
                sets += [(dataset, load_dataset(dataset, DATA / dataset, [name])[0])]
            else:
                print(f"{DATA / dataset} not found: {name} is left out")
        rows = [row for dataset, category in sets for row in _rows(category, Settings(**PRESETS[dataset]))]
    result = {
        "device": device_name(),
        "command": "python benchmarks/threshold.py --json FILE",
        "jax": jax.__version__,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title="share of test images above the threshold, percent")
    for header in ("category", "held out", "quantile", "good images", "false alarms", "defective images", "found"):
        table.add_column(header, justify="right")
    for row in rows:
        rates = [f"{100 * row[key]:.1f}" for key in ("false_alarm_rate", "detection_rate")]
        counts = [str(row[key]) for key in ("held_out", "quantile", "good", "defective")]
        table.add_row(row["category"], *counts[:3], rates[0], counts[3], rates[1])
    Console().print(table)


def _rows(category: Category, settings: Settings) -> list[dict]:
    backbone = load_backbone(settings.backbone, levels=settings.feature_levels)
    bank = fit(category.train, settings, backbone=backbone)
    found = {p.path: p.score for p in predict(bank, [sample.image for sample in category.test], backbone=backbone)}
    scores = np.array([found[sample.image] for sample in category.test])
    anomalous = np.array([sample.anomalous for sample in category.test])
    rows = []
    for quantile in QUANTILES:
        above = scores > threshold_from_nominal(bank.nominal_scores, quantile)
        rows.append(
            {
                "category": category.name,
                "backbone": settings.backbone,
                "settings": settings.to_dict(),
                "nominal": len(category.train),
                "held_out": len(bank.nominal_scores),
                "quantile": quantile,
                "good": int((~anomalous).sum()),
                "false_alarm_rate": float(above[~anomalous].mean()),
                "defective": int(anomalous.sum()),
                "detection_rate": float(above[anomalous].mean()),
            }
        )
    return rows


if __name__ == "__main__":
    main()
