"""What a memory bank takes: peak memory of fit and predict, half-precision features and what they do to the metrics.

    python benchmarks/memory.py growth large dtypes --json FILE

Each row is a process of its own, so that its peak resident memory is its own. `growth` fits 100 and 400 images with
either network: the peak grows by the bank and nothing else. `large` fits 2000 images with ResNet50 (levels 2 and 3,
reference 4; 7.4 GB), saves the bank, and predicts from it in memory and from disk. `dtypes` fits MVTec AD bottle in
each precision and measures on its test images. Parts that are run replace theirs in FILE, the others stay.

Images of `growth` and `large` are bottle images (the demo set's where they are absent) at 256x256 with noise of their
own. ResNet50's weights are those of ../shared/data (or $SFRJAX_DATA); where they are absent its rows are left out.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import DATA, device_name
from PIL import Image
from rich.console import Console
from rich.table import Table

from sfrjax.backbones import load_backbone
from sfrjax.bank import bank_bytes
from sfrjax.bank_file import load_bank, save_bank
from sfrjax.datasets import Category, load_dataset
from sfrjax.datasets.demo import write_demo_set
from sfrjax.evaluation import evaluate
from sfrjax.pipeline import fit, predict
from sfrjax.settings import ATOM_DTYPES, PRESETS, Settings

RESNET = DATA / "weights" / "resnet50_v1_caffe.safetensors"
PARTS = ("growth", "large", "dtypes")


def main() -> None:
    """Run the parts asked for, write the JSON, print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"what to run, of {', '.join(PARTS)}; all otherwise")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--images", type=int, default=2000, help="nominal images of `large`")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # a row in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        step, *values = json.loads(arguments.row)
        print(json.dumps({**ROWS[step](*values, arguments.folder), "peak_bytes": _peak()}))
        return

    result: dict[str, Any] = {}
    if arguments.json and arguments.json.is_file():
        result = json.loads(arguments.json.read_text())
    with tempfile.TemporaryDirectory(dir=arguments.json.parent if arguments.json else None) as scratch:
        folder = Path(scratch)
        for part in arguments.parts:
            rows = _plan(part, arguments.images)
            result[part] = [_in_a_process(row, folder) for row in rows]
            result |= {"device": device_name(), "jax": jax.__version__}
            result["command"] = "python benchmarks/memory.py growth large dtypes --json FILE"
            if arguments.json:
                arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    for part in arguments.parts:
        _print(part, result[part])


def _plan(part: str, images: int) -> list[tuple]:
    names = ["efficientnet_lite0", *(["resnet50"] if RESNET.is_file() else [])]
    if part == "growth":
        return [("fit", name, count, "float32", False) for name in names for count in (100, 400)]
    if part == "large":
        row = (names[-1], images, "float32")
        return [("fit", *row, True), ("predict", *row, False), ("predict", *row, True)]
    return [("measure", name, dtype) for name in names for dtype in ATOM_DTYPES]


def _in_a_process(row: tuple, folder: Path) -> dict[str, Any]:
    if row[0] == "fit":
        _draw_images(folder / "images", row[2])
    command = [sys.executable, __file__, "--row", json.dumps(row), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    print(done.stdout, end="", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def _fit(name: str, count: int, dtype: str, keep: bool, folder: Path) -> dict[str, Any]:
    """Fit the first images drawn; the bank is saved where it is to be kept."""
    settings, backbone = _setting(name, dtype)
    paths = sorted((folder / "images").iterdir())[:count]
    fit(paths[:41], settings, backbone=backbone)  # compiles what does not depend on the number of images
    before = _peak()
    seconds, bank = _timed(lambda: fit(paths, settings, backbone=backbone))
    row = {"step": "fit", "backbone": name, "images": count, "atoms_dtype": dtype, "fit_s": seconds}
    if keep:
        row["save_s"], _ = _timed(lambda: save_bank(bank, folder / "large.bank"))
    size = bank_bytes(backbone, settings, count)
    return {**row, "bank_bytes": size, "before_bytes": before, "beside_bank_bytes": _peak() - size}


def _predict(name: str, count: int, dtype: str, stream: bool, folder: Path) -> dict[str, Any]:
    """Load the bank that `_fit` kept and predict 16 images, once the same have warmed it up."""
    _, backbone = _setting(name, dtype)
    load_s, bank = _timed(lambda: load_bank(folder / "large.bank", stream=stream))
    paths = sorted((folder / "images").iterdir())[:16]
    for _ in predict(bank, paths[:8], backbone=backbone):
        pass
    seconds, _ = _timed(lambda: list(predict(bank, paths, backbone=backbone)))
    row = {"step": "predict streamed" if stream else "predict", "backbone": name, "images": count, "atoms_dtype": dtype}
    return {**row, "load_s": load_s, "predict_s_per_image": seconds / len(paths), "held_bytes": _anonymous()}


def _measure(name: str, dtype: str, _: Path) -> dict[str, Any]:
    """Fit and evaluate MVTec AD bottle."""
    settings, backbone = _setting(name, dtype)
    category = _category()
    size = bank_bytes(backbone, settings, len(category.train))
    metrics = evaluate(category, settings, backbone=backbone).metrics._asdict()
    return {"backbone": name, "atoms_dtype": dtype, "bank_bytes": size, **metrics}


ROWS: dict[str, Callable[..., dict[str, Any]]] = {"fit": _fit, "predict": _predict, "measure": _measure}


def _setting(name: str, dtype: str) -> tuple[Settings, Any]:
    settings = replace(Settings(**{**PRESETS["mvtec"], "backbone": name}), atoms_dtype=dtype)
    weights = RESNET if name == "resnet50" else None
    return settings, load_backbone(name, levels=settings.feature_levels, weights=weights)


def _category() -> Category:
    if (DATA / "mvtec" / "bottle").is_dir():
        return load_dataset("mvtec", DATA / "mvtec", ["bottle"])[0]
    return load_dataset("mvtec", write_demo_set(Path(tempfile.mkdtemp())))[0]


def _draw_images(folder: Path, count: int) -> None:
    """Images of a real part, 256x256, each with its own shift of brightness and noise."""
    folder.mkdir(exist_ok=True)
    parts = [np.asarray(Image.open(path).convert("RGB").resize((256, 256)), np.int16) for path in _category().train]
    for i in range(len(list(folder.iterdir())), count):
        rng = np.random.default_rng(i)
        noise = rng.integers(-12, 13, parts[0].shape, dtype=np.int16) + rng.integers(-8, 9, dtype=np.int16)
        image = Image.fromarray(np.clip(parts[i % len(parts)] + noise, 0, 255).astype(np.uint8))
        image.save(folder / f"{i:05}.png", compress_level=1)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def _peak() -> int:
    """Peak resident memory of this process in bytes (Linux; mapped pages of files included)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _anonymous() -> int | None:
    """Resident memory that no file backs, in bytes: what cannot be given back."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), None)


def _print(part: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=part)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column.replace("_bytes", " MB").replace("_s", " s"), justify="right")
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            if value is not None and column.endswith("_bytes"):
                value = f"{value / 1e6:.0f}"
            cells.append("" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value))
        table.add_row(*cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
