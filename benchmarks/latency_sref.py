"""Time per image over s_ref and over the number of nominal images (Fig. 5b, and Table V's times).

    python benchmarks/latency_sref.py --json FILE

Subspace-based, random and no sampling, s = s_ref / 2, in full-vector and per-pixel mode, for one image and for a
batch. Features of MVTec AD "bottle" (or of the demo set where it is absent) are extracted once; every round then runs
all configurations in turn, so that a slow spell of the machine meets them all. `image` is the sum of the medians of
all stages from file to map, one after the other: `sfrjax.predict` lets decoding overlap with the rest. Only
subspace-based sampling needs the network as far as the reference level: the others end a level earlier. `first` is the
first call, which compiles everything, of one s_ref. Peak memory is the process's over the rounds of all configurations
of one mode and batch, dictionaries included.

The growth with the number of nominal images N is measured on random features of EfficientNet-Lite0's shapes.
A plot is written beside the JSON.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import (
    available,
    categories,
    check_writable,
    device_name,
    peak_bytes,
    read_result,
    reset_peak,
    run,
    seconds,
    weights_of,
    write_result,
)
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from sfrjax.backbones import Backbone, load_backbone
from sfrjax.bank import positions_keep_gram
from sfrjax.datasets import load_dataset
from sfrjax.datasets.demo import write_demo_set
from sfrjax.datasets.images import read_image
from sfrjax.errors import SfrjaxError
from sfrjax.features import extract, image_batches
from sfrjax.pursuit import residual
from sfrjax.reconstruction import Dictionary, _channel_norms, _pursue, _support, residual_norms
from sfrjax.scoring import anomaly_maps, resize_map
from sfrjax.settings import MODES, SAMPLINGS, Settings

COMMAND = "python benchmarks/latency_sref.py --json FILE"
S_REFS = (10, 20, 30, 40, 50)
SIZES = (50, 300, 2000)
ROUNDS = {"full": 10, "pixel": 5}  # short calls need more of them for a steady median
LITE0 = ((32, 32, 40), (16, 16, 112), (8, 8, 320))  # EfficientNet-Lite0's levels 2, 3 and, as reference, 4
GRAM_LIMIT = 2e9  # bytes; a per-pixel bank without sampling beyond this is left out
FIRST = 40  # the s_ref whose first call is timed
Features = tuple[jax.Array, ...]  # of each scoring level [n, h, w, c], the reference level's last


def main() -> None:
    """Measure, write the JSON and the plot, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file, the plot beside it")
    parser.add_argument("--mode", choices=MODES, help="one mode only; the other's rows in the JSON are kept")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS['full']}, {ROUNDS['pixel']} in pixel mode")
    parser.add_argument("--backbone", help="default: resnet50 where its weights are here")
    arguments = parser.parse_args()
    modes = (arguments.mode,) if arguments.mode else MODES
    rounds = {mode: arguments.rounds or ROUNDS[mode] for mode in modes}
    backbone = arguments.backbone or available(("resnet50", "efficientnet_lite0"))[0]
    batches = (1, 8) if jax.default_backend() == "cpu" else (1, 32)

    check_writable(arguments.json)
    with tempfile.TemporaryDirectory() as scratch:
        train, test, source = _images(Path(scratch))
        before = _before(arguments.json, backbone, source) if arguments.mode else None
        settings = Settings()
        weights = weights_of(backbone)
        network, shallower = (
            load_backbone(backbone, levels=levels, weights=weights)
            for levels in (settings.feature_levels, settings.levels)
        )
        nominal = _features(network, train)
        stages = [_fixed_stages(network, shallower, test[:batch], max(rounds.values())) for batch in batches]
        tests = [_features(network, test[:batch]) for batch in batches]
    rows, growth = [], []
    for mode in modes:
        s_refs = [min(s_ref, len(train)) for s_ref in S_REFS]
        sweep = [Settings(mode=mode, sampling=k, s_ref=n, s=max(1, n // 2)) for n in s_refs for k in SAMPLINGS]
        for fixed, y in zip(stages, tests, strict=True):
            rows += _measure(nominal, y, sweep, rounds[mode])
            for row in rows[-len(sweep) :]:
                features = fixed["backbone_s" if row["sampling"] == "subspace" else "shallower_s"]
                row["image_s"] = fixed["decode_s"] + features + row["total_s"] + fixed["map_s"]
    del nominal
    for mode in modes:
        for batch in batches:
            growth += _growth(mode, batch, max(1, rounds[mode] // 2))
    result = _merged(
        before,
        {
            "device": device_name(),
            "command": COMMAND,
            "jax": jax.__version__,
            "backbone": backbone,
            "images": source,
            "nominal_images": len(train),
            "rounds": rounds,
            "stages": stages,
            "s_ref": rows,
            "nominal": growth,
        },
    )
    if arguments.json:
        write_result(arguments.json, result)
        _plot(result).savefig(arguments.json.with_suffix(".png"), dpi=110)
    _print(result)


def _images(scratch: Path) -> tuple[list[Path], list[Path], str]:
    found = [category for category in categories("mvtec")[0] if category.name == "bottle"]
    if not found:
        found = load_dataset("mvtec", write_demo_set(scratch / "demo"))
    return list(found[0].train), [sample.image for sample in found[0].test], found[0].name


def _features(network: Backbone, paths: list[Path]) -> Features:
    size = Settings().image_size
    parts = [
        [np.asarray(f)[: len(batch.paths)] for f in extract(network, batch.images).values()]
        for batch in image_batches(paths, size=size, batch_size=min(8, len(paths)))
    ]
    return tuple(jnp.asarray(np.concatenate(level)) for level in zip(*parts, strict=True))


def _fixed_stages(network: Backbone, shallower: Backbone, paths: list[Path], rounds: int) -> dict[str, Any]:
    """Seconds per image of the stages that neither s_ref nor N changes; a network's includes its preprocessing."""
    settings = Settings()
    images = np.stack([read_image(path, settings.image_size)[0] for path in paths])
    shape = read_image(paths[0], settings.image_size)[1]
    preprocess = jax.jit(network.preprocess)
    norms = tuple(jnp.ones(f.shape[:3]) for f in list(extract(network, images).values())[:-1])

    def maps() -> list[np.ndarray]:
        found, _ = anomaly_maps(norms, size=settings.image_size, sigma=settings.sigma)
        return [resize_map(m, shape) for m in np.asarray(found)]

    runs: dict[str, Callable[[], Any]] = {
        "decode_s": lambda: [read_image(path, settings.image_size) for path in paths],
        "preprocess_s": lambda: preprocess(images),
        "backbone_s": lambda: extract(network, images),
        "shallower_s": lambda: extract(shallower, images),
        "map_s": maps,
    }
    first = {name: seconds(call) for name, call in runs.items()}
    times = [{name: seconds(call) for name, call in runs.items()} for _ in range(rounds)]
    medians = {name: float(np.median([t[name] for t in times])) / len(paths) for name in runs}
    return {"batch": len(paths), **medians, "backbone_first_call_s": first["backbone_s"]}


def _measure(nominal: Features, y: Features, configurations: list[Settings], rounds: int) -> list[dict]:
    """One row per configuration, all of one mode, interleaved on the same features; seconds are per image."""
    reset_peak()
    batch, pixelwise = len(y[0]), configurations[0].mode == "pixel"
    widest = min(configurations, key=lambda settings: settings.sampling)  # "none", where it is among them
    scoring = tuple(_dictionary(f, pixelwise, widest) for f in nominal[:-1])
    reference = _dictionary(nominal[-1], False, widest)
    first = {}
    for settings in configurations:
        if settings.s_ref == FIRST:
            jax.clear_caches()
            first[settings] = seconds(_reconstruction(scoring, reference, y, settings))
    programs = [_programs(scoring, reference, y, settings) for settings in configurations]
    for runs in programs:
        for call in runs.values():
            seconds(call)
    times = [[{name: seconds(call) for name, call in runs.items()} for runs in programs] for _ in range(rounds)]
    peak = peak_bytes()
    rows = []
    for i, settings in enumerate(configurations):
        found = {name: [times[r][i][name] / batch for r in range(rounds)] for name in programs[i]}
        identity = {key: getattr(settings, key) for key in ("mode", "sampling", "s_ref", "s")}
        identity |= {"batch": batch, "nominal_images": len(nominal[0])}
        medians = {name: float(np.median(values)) for name, values in found.items()}
        p95 = float(np.percentile(found["total_s"], 95))
        rows.append({**identity, **medians, "total_p95_s": p95, "peak_bytes": peak})
        if settings in first:
            rows[-1]["first_call_s"] = first[settings]
    return rows


def _dictionary(features: jax.Array, pixelwise: bool, settings: Settings) -> Dictionary:
    n, h, w, c = features.shape
    atoms = features.reshape(n, h * w, c).swapaxes(0, 1) if pixelwise else features.reshape(n, -1)
    gram = None
    if not pixelwise or positions_keep_gram(settings, n, c):
        gram = jnp.matmul(atoms, atoms.swapaxes(-1, -2), precision=jax.lax.Precision.HIGHEST)
    return Dictionary(atoms, gram)


def _reconstruction(
    scoring: tuple[Dictionary, ...], reference: Dictionary, y: Features, settings: Settings
) -> Callable[[], Any]:
    """The whole reconstruction as `sfrjax` runs it, with the Gram matrices that a bank of these settings holds."""
    about = (reference, y[-1]) if settings.sampling == "subspace" else (None, None)
    held = _held(scoring, settings)
    return lambda: residual_norms(held, about[0], y[:-1], about[1], settings=settings)


def _held(scoring: tuple[Dictionary, ...], settings: Settings) -> tuple[Dictionary, ...]:
    if settings.mode == "full":
        return scoring
    kept = [positions_keep_gram(settings, *d.atoms.shape[1:]) for d in scoring]
    return tuple(d if k else d._replace(gram=None) for d, k in zip(scoring, kept, strict=True))


def _programs(
    scoring: tuple[Dictionary, ...], reference: Dictionary, y: Features, settings: Settings
) -> dict[str, Callable[[], Any]]:
    """The whole reconstruction, and its stages: sampling, solve, residual."""
    about = (reference, y[-1]) if settings.sampling == "subspace" else (None, None)
    support = _support(scoring[0].n_images, *about, None, settings)
    solve = partial(_solve, _held(scoring, settings), y[:-1], support, settings)
    runs = {"total_s": _reconstruction(scoring, reference, y, settings), "solve_s": solve}
    if settings.sampling != "none":
        runs["sampling_s"] = lambda: _support(scoring[0].n_images, *about, None, settings)
    if settings.mode == "full":
        codes = solve()
        signals = [f.reshape(len(f), -1) for f in y[:-1]]

        def residuals() -> list[jax.Array]:
            errors = [residual(d.atoms, x, c) for d, x, c in zip(scoring, signals, codes, strict=True)]
            return [_channel_norms(e.reshape(f.shape)) for e, f in zip(errors, y, strict=False)]

        runs["residual_s"] = residuals
    return runs


def _solve(
    scoring: tuple[Dictionary, ...], features: Features, support: jax.Array | None, settings: Settings
) -> list[Any]:
    codes = []
    for dictionary, f in zip(scoring, features, strict=True):
        b, h, w, c = f.shape
        signals = f.reshape(b, h * w, c) if settings.mode == "pixel" else f.reshape(b, -1)
        candidates = support
        if support is not None:
            shared = support[:, None] if settings.mode == "pixel" else support
            candidates = jnp.broadcast_to(shared, (*signals.shape[:-1], support.shape[-1]))
        codes.append(_pursue(*dictionary, signals, candidates, s=settings.s, eps=settings.eps))
    return codes


def _growth(mode: str, batch: int, rounds: int) -> list[dict]:
    """Rows over the number of nominal images, at MVTec AD's s_ref and s."""
    rows = []
    rng = np.random.default_rng(0)

    def features(n: int) -> Features:
        return tuple(jnp.asarray(rng.random((n, *shape), np.float32)) for shape in LITE0)

    y = features(batch)
    positions = sum(h * w for h, w, _ in LITE0[:-1])
    for n in SIZES:
        samplings = list(SAMPLINGS)
        if mode == "pixel" and 4 * positions * n * n > GRAM_LIMIT:
            gigabytes = 4e-9 * positions * n * n
            print(
                f"per-pixel mode without sampling, N = {n}: left out, its Gram matrices would take {gigabytes:.0f} GB"
            )
            samplings.remove("none")
        rows += _measure(features(n), y, [Settings(mode=mode, sampling=k) for k in samplings], rounds)
    return rows


def _before(path: Path | None, backbone: str, images: str) -> dict | None:
    """An earlier run, of which the other mode's rows stay. Raises SfrjaxError where they would not belong together."""
    if path is None or not path.is_file():
        return None
    before = read_result(path, COMMAND)
    ours = tuple(before[name] for name in ("device", "backbone", "images"))
    if ours != (device_name(), backbone, images):
        raise SfrjaxError(f"{path}: is of {', '.join(ours)}; give --json another file, or no --mode")
    return before


def _merged(before: dict | None, result: dict) -> dict:
    """With one mode only, the other mode's rows of an earlier run stay."""
    if before is None:
        return result
    for name in ("s_ref", "nominal"):
        measured = {row["mode"] for row in result[name]}
        result[name] = [row for row in before[name] if row["mode"] not in measured] + result[name]
    result["rounds"] = {**before["rounds"], **result["rounds"]}
    return result


def _plot(result: dict) -> Figure:
    figure = Figure(figsize=(10, 7), layout="constrained")
    batches = [stage["batch"] for stage in result["stages"]]
    axes = figure.subplots(2, len(batches), squeeze=False)
    panels = (("s_ref", "s_ref", "s_ref (s = s_ref / 2)"), ("nominal", "nominal_images", "nominal images N"))
    for line, (section, x, label) in zip(axes, panels, strict=True):
        for ax, batch in zip(line, batches, strict=True):
            for mode, style in (("full", "-"), ("pixel", "--")):
                for colour, sampling in enumerate(SAMPLINGS):
                    key = (mode, sampling, batch)
                    rows = [r for r in result[section] if (r["mode"], r["sampling"], r["batch"]) == key]
                    if not rows:
                        continue
                    at = [row[x] for row in rows]
                    median, p95 = ([1000 * row[name] for row in rows] for name in ("total_s", "total_p95_s"))
                    ax.plot(
                        at, median, style, color=f"C{colour}", marker="o", markersize=3, label=f"{sampling}, {mode}"
                    )
                    ax.fill_between(at, median, p95, color=f"C{colour}", alpha=0.12, lw=0)
            ax.set(xlabel=label, ylabel="reconstruction, ms per image", title=f"batch {batch}", yscale="log")
            if section == "nominal":
                ax.set_xscale("log")
            for axis in (ax.xaxis, ax.yaxis) if section == "nominal" else (ax.yaxis,):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.3, which="both")
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(
        f"{result['device']}; above: {result['backbone']}, {result['images']}; below: Lite0's shapes; to p95"
    )
    return figure


def _print(result: dict) -> None:
    console = Console(width=150)
    for fixed in result["stages"]:
        parts = ", ".join(f"{k.removesuffix('_s')} {1000 * v:.1f}" for k, v in fixed.items() if k != "batch")
        console.print(f"batch {fixed['batch']}, ms per image: {parts}", soft_wrap=True)
    stages = ("sampling_s", "solve_s", "residual_s")
    for section, title in (("s_ref", result["images"]), ("nominal", "random features")):
        headers = ["mode", "batch", "sampling", "N", "s_ref", "s", *(k.removesuffix("_s") for k in stages)]
        headers += ["total", "p95", "image", "images/s", "first, s", "peak, GB"]
        table = Table(*headers, title=f"{result['device']}; {title}; ms per image")
        for row in result[section]:
            split = [f"{1000 * row[k]:.2f}" if k in row else "-" for k in stages]
            whole = row.get("image_s")
            figures = [f"{1000 * row['total_s']:.2f}", f"{1000 * row['total_p95_s']:.2f}"]
            figures += [f"{1000 * whole:.1f}", f"{1 / whole:.1f}"] if whole else ["-", f"{1 / row['total_s']:.0f}"]
            first = f"{row['first_call_s']:.1f}" if "first_call_s" in row else "-"
            figures += [first, f"{row['peak_bytes'] / 1e9:.2f}"]
            keys = ("mode", "batch", "sampling", "nominal_images", "s_ref", "s")
            table.add_row(*(str(row[key]) for key in keys), *split, *figures)
        console.print(table)


if __name__ == "__main__":
    run(main)
