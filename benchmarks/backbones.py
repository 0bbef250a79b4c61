"""Backbones against torch on this machine's CPU: `python benchmarks/backbones.py [--json FILE]`; some four minutes.

Speed: the forward pass (uint8 pixels in, levels 1-4 out, preprocessing included), sfrjax and torch alternating. Between
them is a pause, in which the threads of the one that ran go to sleep, and calls that are not timed, after which those
of the other are awake: a first call after a pause would measure the pause, too. torch runs with BatchNorm folded and in
whichever memory layout is faster, sfrjax as it is. Random parameters, so that no download is needed; the largest
relative difference between the two is printed beside the times.
Loading: peak memory above the interpreter's own, over the size of the file.
Start: seconds from a new process to the first features, without and with JAX's persistent compilation cache; the rows
of the speed table have the same for the compilation alone.

`--metrics` instead measures what bfloat16 does to the final metrics, on the real bottle images in ../shared/data (or
$SFRJAX_DATA), with the paper's settings: each network in float32 and in bfloat16. A CPU takes minutes for it.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from sfrjax.backbones import forward, load_backbone

LEVELS = (1, 2, 3, 4)
WARM = 0.1  # seconds: a virtual machine's idle cores, and threads asleep, take some calls to get up to speed
PAUSE = 0.25  # seconds: a library's threads wait actively for a while after its call, which takes a core from the other
RUNS = [("wide_resnet50_2", 1, 9), ("wide_resnet50_2", 8, 5), ("resnet50", 1, 15), ("resnet50", 8, 7)]
RUNS += [("efficientnet_lite0", 1, 31), ("efficientnet_lite0", 8, 15)]

LOADING = """
import os, sys, re, time
import jax, jax.numpy as jnp
from sfrjax.backbones import load_backbone
jax.block_until_ready(jnp.ones(8) + 1)
memory = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before, start = memory("VmRSS"), time.perf_counter()
jax.block_until_ready(load_backbone(sys.argv[1], levels=(4,), weights=sys.argv[2]).state)
print(time.perf_counter() - start, (memory("VmHWM") - before) / os.path.getsize(sys.argv[2]))
"""

START = """
import sys, time
start = time.perf_counter()
import jax, numpy as np
if len(sys.argv) > 3:
    jax.config.update("jax_compilation_cache_dir", sys.argv[3])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
from sfrjax.backbones import forward, load_backbone
backbone = load_backbone(sys.argv[1], levels=(2, 3, 4), weights=sys.argv[2])
run = jax.jit(forward, static_argnums=(0, 2, 3))
images = np.zeros((8, 256, 256, 3), np.uint8)
jax.block_until_ready(run(backbone.graphdef, backbone.state, backbone.preprocess, backbone.levels, images))
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--metrics", action="store_true", help="bfloat16's effect on the metrics, instead of speed")
    arguments = parser.parse_args()
    if arguments.metrics:
        machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "jax": jax.__version__}
        report({"machine": machine, "rows": measure_metrics()}, arguments.json)
        return
    if importlib.util.find_spec("torch") is None:
        sys.exit("torch is not installed, and this benchmark compares with it: pip install 'sfrjax[benchmark]'")

    with tempfile.TemporaryDirectory() as folder:
        files = {name: save_random(name, Path(folder)) for name in dict.fromkeys(name for name, *_ in RUNS)}
        speed = [measure(name, batch, repeats, files[name]) for name, batch, repeats in RUNS]
        loading = [measure_loading(name, kind, file) for name in files for kind, file in formats(files[name])]
        start = [measure_start(name, files[name], Path(folder)) for name in ("efficientnet_lite0", "resnet50")]
    for row in speed:
        row["load_peak_over_file"] = max(r["peak_over_file"] for r in loading if r["backbone"] == row["backbone"])
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "jax": jax.__version__, "torch": torch_version()}
    report({"machine": machine, "rows": speed, "loading": loading, "start": start}, arguments.json)


def report(result: dict[str, object], file: Path | None) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
    for part in result.values():
        print(json.dumps(part)) if isinstance(part, dict) else print_table(part)


def measure_metrics() -> list[dict[str, object]]:
    """Rows of metrics in percent: each network in both dtypes."""
    from sfrjax import PRESETS, Settings, evaluate, load_dataset

    data = Path(os.environ.get("SFRJAX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not data.is_dir():
        sys.exit(f"{data} not found: put the data there, or name its folder in SFRJAX_DATA")
    category = load_dataset("mvtec", data / "mvtec", ["bottle"])[0]
    rows = []
    for name, weights in (("efficientnet_lite0", None), ("resnet50", data / "weights/resnet50_v1_caffe.safetensors")):
        for dtype in ("float32", "bfloat16"):
            settings = Settings(**{**PRESETS["mvtec"], "backbone": name, "dtype": dtype})
            metrics = evaluate(category, settings, weights=weights).metrics
            percent = {key: 100 * value for key, value in metrics._asdict().items() if value is not None}
            rows.append({"category": "bottle", "backbone": name, "dtype": dtype, **percent})
            print(rows[-1], file=sys.stderr)
    return rows


def save_random(name: str, folder: Path) -> Path:
    """A checkpoint of random parameters in safetensors form."""
    path = folder / f"{name}.safetensors"
    save_file({key: value.numpy() for key, value in reference().build(name).state_dict().items()}, path)
    return path


def formats(safetensors: Path) -> list[tuple[str, Path]]:
    """The same checkpoint as safetensors, both torch formats, and torch's zip format in float16."""
    import torch
    from safetensors.torch import load_file

    state = load_file(safetensors)
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    files = [("safetensors", safetensors)]
    for kind, tensors, is_zip in (("pth-zip", state, True), ("pth-legacy", state, False), ("pth-zip-f16", half, True)):
        path = safetensors.with_name(f"{safetensors.stem}-{kind}.pth")
        torch.save(tensors, path, _use_new_zipfile_serialization=is_zip)
        files.append((kind, path))
    return files


def measure(name: str, batch: int, repeats: int, weights: Path) -> dict[str, object]:
    """One row: medians over alternating runs."""
    import torch

    images = np.random.default_rng(batch).integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8)
    backbone = load_backbone(name, levels=LEVELS, weights=weights)
    static = (backbone.graphdef, backbone.preprocess, backbone.levels)
    run = jax.jit(lambda state, x: forward(static[0], state, static[1], static[2], x))
    compile_s, compile_cached_s = compile_seconds(lambda: jax.block_until_ready(run(backbone.state, images)))
    features = run(backbone.state, images)

    model = reference().folded(reference().build(name))
    layouts = (torch.contiguous_format, torch.channels_last)

    def torch_run(layout: torch.memory_format) -> dict[int, torch.Tensor]:
        return model(reference().preprocess(name, images).contiguous(memory_format=layout))

    with torch.inference_mode():
        trial = {}
        for layout in layouts:
            model.to(memory_format=layout)
            expected = torch_run(layout)
            trial[layout] = min(seconds(torch_run, layout) for _ in range(3))
        layout = min(trial, key=trial.get)
        model.to(memory_format=layout)
        torch_run(layout)
        ours, theirs = [], []
        others = CpuOfOthers()
        for _ in range(repeats):
            ours.append(rested(lambda: jax.block_until_ready(run(backbone.state, images))))
            theirs.append(rested(lambda: torch_run(layout)))
        cores_taken = others.cores()

    errors = []
    for level in LEVELS:
        truth = expected[level].permute(0, 2, 3, 1).numpy()
        errors.append(float(np.abs(np.asarray(features[level]) - truth).max() / np.abs(truth).max()))
    row = {"backbone": name, "batch": batch, "sfrjax_s": statistics.median(ours), "torch_s": statistics.median(theirs)}
    row |= {"ratio": row["sfrjax_s"] / row["torch_s"], "max_relative_error": max(errors)}
    row |= {"compile_s": compile_s, "compile_cached_s": compile_cached_s}
    return row | {"torch_layout": str(layout).removeprefix("torch."), "repeats": repeats, "cores_taken": cores_taken}


def compile_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first call (tracing and one run included), and of a first call that finds a persistent cache."""
    from jax.experimental.compilation_cache import compilation_cache

    folder = tempfile.mkdtemp()
    options = {"compilation_cache_dir": folder, "persistent_cache_min_compile_time_secs": 0.5}
    before = {option: getattr(jax.config, f"jax_{option}") for option in options}
    for option, value in options.items():
        jax.config.update(f"jax_{option}", value)
    compilation_cache.reset_cache()
    first = seconds(run)
    jax.clear_caches()
    second = seconds(run)
    for option, value in before.items():
        jax.config.update(f"jax_{option}", value)
    compilation_cache.reset_cache()
    shutil.rmtree(folder, ignore_errors=True)
    return first, second


class CpuOfOthers:
    """How many cores other processes kept busy since it was made: above 0.1, times say little."""

    def __init__(self):
        self.start = time.perf_counter(), self.busy()

    def busy(self) -> float:
        try:
            user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
        except OSError:
            return float("nan")
        own = os.times()
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - own.user - own.system

    def cores(self) -> float:
        return (self.busy() - self.start[1]) / (time.perf_counter() - self.start[0])


def measure_loading(name: str, kind: str, file: Path) -> dict[str, object]:
    load_s, ratio = script(LOADING, name, file)
    return {"backbone": name, "file": kind, "MB": file.stat().st_size / 1e6, "load_s": load_s, "peak_over_file": ratio}


def measure_start(name: str, file: Path, folder: Path) -> dict[str, object]:
    cache = folder / f"cache-{name}"
    without, _filling, cached = (
        script(START, name, file),
        script(START, name, file, cache),
        script(START, name, file, cache),
    )
    return {"backbone": name, "batch": 8, "start_s": without[0], "start_with_compilation_cache_s": cached[0]}


def script(source: str, *arguments: object) -> list[float]:
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return [float(x) for x in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def rested(call: Callable[[], object]) -> float:
    """Seconds of a call after a pause and WARM seconds of untimed calls."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    while time.perf_counter() - start < WARM:
        call()
    return seconds(call)


@functools.cache
def reference():
    """The torch networks that the tests compare with."""
    path = Path(__file__).parents[1] / "tests" / "backbones" / "torch_reference.py"
    spec = importlib.util.spec_from_file_location("torch_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_version() -> str:
    import torch

    return torch.__version__


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def print_table(rows: list[dict[str, object]]) -> None:
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    table = [list(rows[0]), *cells]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    print()
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
