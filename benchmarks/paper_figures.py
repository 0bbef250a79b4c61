"""Pictures of what `paper.py` measured, drawn from its JSON alone."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from common import TEXTURES
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfrjax.settings import PRESETS

METRICS = {"pixel_auroc": "pixel AUROC (%)", "aupro": "AUPRO (%)"}
COLOURS = {"subspace": "C0", "random": "C1", "none": "C2"}
STYLES = {"full": "-", "pixel": "--"}
MODES = {"full": "full vector", "pixel": "per pixel"}


def draw(result: dict, experiments: Sequence[str], backbone: str, path: Path) -> Iterator[Path]:
    """Draw the figures of the experiments beside the JSON `path`; yields the files written."""
    figures: dict[str, Callable[[dict, str], Figure | None]] = {
        "sampling": _sampling,
        "error": _error,
        "levels": _levels,
        "toy": lambda result, _: _toy(result["toy"][0]),
    }
    for name, figure in figures.items():
        if name in experiments and (drawn := figure(result, backbone)) is not None:
            suffix = name if name == "toy" else f"{name}-{backbone}"
            target = path.with_name(f"{path.stem}-{suffix}.png")
            drawn.savefig(target, dpi=110)
            yield target


def sampling_rows(result: dict, backbone: str) -> list[dict]:
    """Rows of the sweep over s_ref (s = s_ref / 2), and those without sampling, of SFR on features as they are."""

    def belongs(settings: dict) -> bool:
        swept = settings["sampling"] == "none" or settings["s"] == max(1, settings["s_ref"] // 2)
        return swept and settings["neighbourhood"] == 1 and settings["method"] == "sfr"

    ours = [row for row in result["accuracy"] if row["settings"]["backbone"] == backbone]
    return [row for row in ours if belongs(row["settings"])]


def _sampling(result: dict, backbone: str) -> Figure | None:
    rows = sampling_rows(result, backbone)
    names = _categories([row for row in rows if row["settings"]["sampling"] != "none"])
    if not names:
        return None
    figure = Figure(figsize=(9, 3.4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False)
    for line, category in zip(axes, names, strict=True):
        for ax, (metric, label) in zip(line, METRICS.items(), strict=True):
            for mode, style in STYLES.items():
                for sampling, colour in COLOURS.items():
                    chosen = [
                        (row["settings"]["s_ref"], 100 * row[metric])
                        for row in rows
                        if row["category"] == category
                        and (row["settings"]["mode"], row["settings"]["sampling"]) == (mode, sampling)
                    ]
                    name = f"{sampling}, {MODES[mode]}"
                    if sampling == "none":
                        for _, value in chosen[:1]:
                            ax.axhline(value, ls=style, color=colour, label=name)
                    else:
                        _line_with_range(ax, chosen, style, colour, name)
            ax.set(title=f"{category}, {backbone}", xlabel="s_ref (s = s_ref / 2)", ylabel=label)
            ax.grid(alpha=0.3)
    labelled = {line.get_label(): line for ax in axes.flat for line in ax.lines}  # a category may lack a mode
    figure.legend(labelled.values(), labelled.keys(), fontsize=8, loc="outside lower center", ncols=6)
    return figure


def _line_with_range(ax: Axes, points: list[tuple[int, float]], style: str, colour: str, label: str) -> None:
    """Means over repeated x, and a band from the least to the greatest."""
    if not points:
        return
    xs = sorted({x for x, _ in points})
    groups = [[y for at, y in points if at == x] for x in xs]
    ax.plot(xs, [np.mean(g) for g in groups], style, color=colour, label=label, marker="o", markersize=3)
    if max(map(len, groups)) > 1:
        ax.fill_between(xs, [min(g) for g in groups], [max(g) for g in groups], color=colour, alpha=0.15, lw=0)


def _error(result: dict, backbone: str) -> Figure | None:
    rows = [row for row in result["representation"] if row["backbone"] == backbone]
    if not rows:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for ax, mode in zip(figure.subplots(1, 2, sharey=True), MODES, strict=True):
        for i, category in enumerate(_categories(rows)):
            kind = "texture" if category in TEXTURES else "object"
            for method, style in (("pursuit", "-"), ("match", ":")):
                points = sorted(
                    (row["s_ref"], row[method]) for row in rows if (row["category"], row["mode"]) == (category, mode)
                )
                if points:
                    label = f"{category} ({kind}), {'OMP' if method == 'pursuit' else 'nearest neighbour'}"
                    ax.plot(*zip(*points, strict=True), style, color=f"C{i}", label=label, marker="o", markersize=3)
        ax.set(title=f"{MODES[mode]}, {backbone}", xlabel="s_ref", ylabel="relative error of held-out features")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend(fontsize=8)
    return figure


def level_rows(result: dict, backbone: str) -> list[dict]:
    """Rows that differ in their levels alone: subspace-based sampling at the data set's own s_ref, s and reference. A
    category's mode that was measured at one combination only is left out."""

    def belongs(row: dict) -> bool:
        settings, preset = row["settings"], PRESETS[row["dataset"]]
        same = all(settings[name] == preset.get(name, settings[name]) for name in ("s_ref", "s", "reference"))
        ours = (settings["backbone"], settings["method"], settings["sampling"], settings["neighbourhood"])
        return same and ours == (backbone, "sfr", "subspace", 1)

    rows = [row for row in result["accuracy"] if belongs(row)]
    combinations = Counter((row["category"], row["settings"]["mode"]) for row in rows)
    return [row for row in rows if combinations[row["category"], row["settings"]["mode"]] > 1]


def _levels(result: dict, backbone: str) -> Figure | None:
    rows = level_rows(result, backbone)
    names = _categories(rows)
    if not names:
        return None
    figure = Figure(figsize=(9, 3.2 * len(names)), layout="constrained")
    for line, category in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
        ours = [row for row in rows if row["category"] == category]
        combos = sorted({tuple(row["settings"]["levels"]) for row in ours}, key=lambda c: (len(c), c))
        for ax, (metric, label) in zip(line, METRICS.items(), strict=True):
            for mode, style in STYLES.items():
                found = {tuple(r["settings"]["levels"]): 100 * r[metric] for r in ours if r["settings"]["mode"] == mode}
                at = [j for j, combo in enumerate(combos) if combo in found]
                if at:
                    ax.plot(at, [found[combos[j]] for j in at], style, marker="o", label=MODES[mode])
            ax.set_xticks(range(len(combos)), ["+".join(map(str, combo)) for combo in combos])
            ax.set(title=f"{category}, {backbone}", xlabel="levels", ylabel=label)
            ax.grid(alpha=0.3)
        line[0].legend(fontsize=8)
    return figure


def _toy(toy: dict) -> Figure:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = {"match": "nearest neighbour", "pursuit": "OMP with one atom"}
    top = np.max(toy["match_grid"])
    for ax, (method, name) in zip(axes, names.items(), strict=True):
        shown = ax.imshow(
            toy[f"{method}_grid"], origin="lower", extent=(0, toy["extent"]) * 2, cmap="Greys", vmin=0, vmax=top
        )
        for key, marker, colour in (("bank", "s", "C0"), ("nominal", "o", "C2"), ("defects", "x", "C3")):
            x, y = np.array(toy[key]).T
            ax.scatter(x, y, 18, colour, marker, label={"nominal": "new nominal"}.get(key, key))
        ax.set(title=f"{name}: AUROC {100 * toy[f'{method}_auroc']:.1f} %", xlim=(0, 1.5), ylim=(0, 1.5))
    figure.colorbar(shown, ax=axes, label="error")
    axes[0].legend(loc="upper right", fontsize=8)
    return figure


def _categories(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["category"] for row in rows))
