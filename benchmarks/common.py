"""What the benchmark scripts share: where data and weights are, names and figures of the machine, rows kept in JSON."""

import contextlib
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from sfrjax.datasets import Category, load_dataset
from sfrjax.errors import SfrjaxError
from sfrjax.files import replacing
from sfrjax.weights.fetch import find, local_path

DATA = Path(os.environ.get("SFRJAX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESULTS = Path(__file__).resolve().parent / "results"

TEXTURES = ("carpet", "grid", "leather", "tile", "wood", "mtd")
CATEGORIES = {
    "mvtec": (
        "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
        "toothbrush", "transistor", "wood", "zipper",
    ),
    "btad": ("01", "02", "03"),
    "mtd": ("mtd",),
}  # fmt: skip


def categories(dataset: str) -> tuple[list[Category], list[str]]:
    """The categories of a data set that are here, and the names of the published ones that are not."""
    try:
        found = load_dataset(dataset, DATA / dataset)
    except SfrjaxError as error:
        print(f"{dataset}: {error}", file=sys.stderr)
        found = []
    names = {category.name for category in found}
    return found, [name for name in CATEGORIES[dataset] if name not in names]


def weights_of(backbone: str) -> Path | None:
    """The weights file that a benchmark gives to a network; None for its named weights.

    Raises:
        SfrjaxError: neither is on this machine. A benchmark starts no download.
    """
    caffe = DATA / "weights" / "resnet50_v1_caffe.safetensors"
    if backbone == "resnet50" and caffe.is_file():
        return caffe
    if not local_path(find(backbone)).is_file():
        raise SfrjaxError(f"{backbone}: its weights are not here; get them with `sfrjax weights fetch {backbone}`")
    return None


def available(backbones: tuple[str, ...]) -> list[str]:
    """Those of the networks whose weights are here; says which are not."""
    found = []
    for name in backbones:
        try:
            weights_of(name)
            found.append(name)
        except SfrjaxError as error:
            print(error, file=sys.stderr)
    return found


def device_name() -> str:
    """The accelerator, or the processor and its number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"CPU, {os.cpu_count()} cores, {model}"


def peak_bytes() -> int:
    """Peak memory of this process since `reset_peak` (where the system can tell), or of the accelerator."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    """Let `peak_bytes` count from here; does nothing where the system cannot."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call whose result, JAX arrays included, is waited for."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def start_result(path: Path, about: dict[str, Any], lists: tuple[str, ...] = ("rows",)) -> dict[str, Any]:
    """A result with what an interrupted or earlier run of the script left in `path`; says how much that is."""
    result = {"device": device_name(), "jax": jax.__version__, **about, **{name: [] for name in lists}}
    if path.is_file():
        before = json.loads(path.read_text())
        result |= {name: before.get(name, []) for name in lists}
        count = sum(len(result[name]) for name in lists)
        print(f"{path} holds {count} rows already; they are not measured again (delete the file to start anew)")
    return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write the JSON, a line for each row, whole or not at all: called after every row."""

    def lines(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return json.dumps(value)
        return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"

    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {lines(v)}" for k, v in result.items()) + "\n}\n")
