"""What the benchmark scripts share: where data and weights are, names and figures of the machine, rows kept in JSON."""

import contextlib
import json
import os
import platform
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from sfrjax.datasets import Category, load_dataset
from sfrjax.errors import SfrjaxError
from sfrjax.files import replacing
from sfrjax.weights.fetch import find, local_path

DATA = Path(os.environ.get("SFRJAX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESULTS = Path(__file__).resolve().parent / "results"  # what the project's own machines measured
OWN = Path("sfrjax-benchmarks")  # where scripts that go on after an interruption keep what they measure here

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


def data_here(wanted: Sequence[str] | None) -> list[tuple[str, Category]]:
    """(data set, category) of all that is here, or of those named; says which published ones are not.

    Raises:
        SfrjaxError: a category named is not here.
    """
    found = []
    for dataset in CATEGORIES:
        here, missing = categories(dataset)
        found += [(dataset, category) for category in here]
        if missing:
            print(f"{dataset}: not here: {', '.join(missing)}", file=sys.stderr)
    names = [category.name for _, category in found]
    if unknown := [name for name in wanted or () if name not in names]:
        raise SfrjaxError(f"--category {', '.join(unknown)}: not in {DATA}; there are {', '.join(names) or 'none'}")
    return [(dataset, category) for dataset, category in found if wanted is None or category.name in wanted]


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
    """A result with what an interrupted or earlier run of the script left in `path`; says how much that is.

    Written at once, so that a place that cannot be written is known before anything is measured.

    Raises:
        SfrjaxError: the file is of another script or another machine, or damaged, or cannot be written.
    """
    result = {"device": device_name(), "jax": jax.__version__, **about, **{name: [] for name in lists}}
    if path.is_file():
        before = read_result(path, about["command"])
        if before.get("device") != result["device"]:
            raise SfrjaxError(
                f"{path}: was measured on {before.get('device')}, not on {result['device']}; give --json another file"
            )
        result |= {name: before.get(name, []) for name in lists}
        count = sum(len(result[name]) for name in lists)
        print(f"{path} holds {count} rows already; they are not measured again (delete the file to start anew)")
    write_result(path, result)
    return result


def read_result(path: Path, command: str) -> dict[str, Any]:
    """What a script wrote. Raises SfrjaxError where that is not what the file holds."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SfrjaxError(f"{path} cannot be read ({error}); give --json another file, or delete it") from error
    if not isinstance(content, dict) or content.get("command") != command:
        raise SfrjaxError(f"{path} was not written by `{command}`; give --json another file")
    return content


def check_writable(path: Path | None) -> None:
    """Raise SfrjaxError where a script's --json could not be written at its end."""
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise SfrjaxError(f"--json {path}: cannot be written ({error.strerror or error})") from error


def run(main: Callable[[], None]) -> None:
    """A script's work: a problem that its user can mend is one sentence and exit status 1."""
    try:
        main()
    except SfrjaxError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the rows that were written stay, and the same command goes on after them")


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write the JSON, a line for each row, whole or not at all: called after every row."""

    def lines(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return json.dumps(value)
        return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"

    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {lines(v)}" for k, v in result.items()) + "\n}\n")
