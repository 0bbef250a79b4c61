"""docs/results.md, and the tables of other pages, from the JSON files: `python benchmarks/results_page.py`.

Nothing on the page is typed by hand but the words around the figures; a test compares it with what this script makes.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import latency_page
import numpy as np
import page_tables
from common import CATEGORIES, RESULTS
from methods import BACKBONES as COMPARED_NETWORKS
from methods import COMPARED, describe, wanted
from page_tables import table
from paper import BACKBONES, PAPER, experiment_settings, row_key, table_rows
from paper_figures import level_rows, sampling_rows
from representation import S_REFS

from sfrjax.settings import METHODS, MODES, Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
OURS = ("paper-cpu.json", "methods-cpu.json", "latency-sref-cpu.json")
METRICS = ("pixel_auroc", "aupro", "image_auroc")
KEPT = " --json benchmarks/results/paper-cpu.json"

INTRODUCTION = """# Results

Made by `python benchmarks/results_page.py` from the files in [benchmarks/results](../benchmarks/results). Every figure
was measured by the command above its table, on the device named there. Accuracy is in percent.

Protocol: images squashed to 256 x 256; maps at 256 x 256, smoothed with sigma = 4, brought to each image's own size;
pixel AUROC over all pixels of all test images and AUPRO up to a false-positive rate of 0.3, both exact, at the masks'
own resolution. Settings are the paper's (arXiv 2309.13904): MVTec AD levels 2 and 3, reference 4, s_ref = 40, s = 17;
MTD levels 2, 3 and 4, reference "last", s_ref = 10, s = 7, in per-pixel mode levels 2 and 3. "3x3": features averaged
over 3 x 3 positions. MVTec AD's bottle is a copy reduced to 450 x 450; MTD is in its published split (DifferNet's).
"""


def main() -> None:
    """Write the page, and fill the tables of the others."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(RESULTS))
    for path in page_tables.PAGES:
        path.write_text(page_tables.filled(path.read_text(), RESULTS))
    print("wrote", *(path.name for path in (PAGE, *page_tables.PAGES)))


def page(results: Path) -> str:
    """The page as Markdown, from the JSON files in a folder."""
    paper, methods, latency = (_read(results / name) for name in OURS)
    sections: list[Callable[[], Iterator[str]]] = []
    if paper:
        sections += [lambda: _absent(paper, methods, latency), lambda: _accuracy(paper)]
    if paper and methods:
        sections.append(lambda: _methods(methods, paper))
    if paper:
        sections += [lambda: _sampling(paper), lambda: _error(paper), lambda: _levels(paper), lambda: _toy(paper)]
    if latency:
        sections.append(lambda: latency_page.section(latency))
    sections.append(lambda: _others(results))
    parts = [INTRODUCTION, *(line for section in sections for line in section())]
    return "\n".join(parts) + "\n"


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _absent(paper: dict, methods: dict | None, latency: dict | None) -> Iterator[str]:
    yield "## What was not measured, and why\n"
    there = {(row["dataset"], row["category"]) for row in paper["accuracy"]}
    for dataset, names in CATEGORIES.items():
        if missing := [name for name in names if (dataset, name) not in there]:
            yield f"* {dataset}: {', '.join(missing)}. The data was not at hand."
    networks = {row["settings"]["backbone"] for row in paper["accuracy"]}
    if missing := [name for name in BACKBONES if name not in networks]:
        yield f"* {', '.join(missing)}: their weights were not at hand. The paper's figures are with WideResNet50-2."
    accuracy, costs = (
        {row_key(row) for row in rows} for rows in (paper["accuracy"], (methods or {"rows": []})["rows"])
    )
    for what, there in (("accuracy", accuracy), ("cost", costs)):
        for (category, network), names in _missing(there).items():
            yield f"* {category}, {network}, {what} of {', '.join(names)}: not run, for lack of time."
    yield from _incomplete(paper, accuracy)
    modes = {row["mode"] for row in latency["s_ref"]} if latency else set()
    for mode in MODES:
        if mode not in modes:
            yield f"* Time per image over s_ref, mode {mode}: not run, for lack of time."
    yield "* The paper's figures stand beside ours only where they could be verified.\n"
    digests = sorted({(r["settings"]["backbone"], r["weights_sha256"][:12]) for r in paper["accuracy"]})
    yield "Weights (SHA-256): " + "; ".join(f"{name} {digest}..." for name, digest in digests) + "."
    yield "resnet50 is the Caffe original (v1 strides), not torchvision's.\n"


def _incomplete(paper: dict, accuracy: set) -> Iterator[str]:
    """Of the figures, what `paper.py` would measure of the compared categories and did not."""
    settings = (("sampling", "Fig. 5a"), ("levels", "Fig. 7"))
    errors = {(r["category"], r["backbone"], r["mode"], r["s_ref"]) for r in paper["representation"]}
    for category in COMPARED:
        dataset = next(dataset for dataset, names in CATEGORIES.items() if category in names)
        for network in COMPARED_NETWORKS:
            for mode in MODES:
                where = f"{category}, {network}, {mode}"
                for experiment, figure in settings:
                    wanted = list(dict.fromkeys(experiment_settings([experiment], dataset, network, mode, S_REFS)))
                    missing = sum((dataset, category, each) not in accuracy for each in wanted)
                    if missing:
                        yield f"* {figure}, {where}: {missing} of {len(wanted)} settings not run, for lack of time."
                missing = sum((category, network, mode, s_ref) not in errors for s_ref in S_REFS)
                if missing:
                    yield f"* Fig. 6, {where}: {missing} of {len(S_REFS)} s_ref not run, for lack of time."


def _compared() -> Iterator[tuple[str, str, Settings]]:
    """What `methods.py` measures without arguments."""
    for category in COMPARED:
        dataset = next(dataset for dataset, names in CATEGORIES.items() if category in names)
        for network in COMPARED_NETWORKS:
            yield from ((dataset, category, settings) for settings in wanted(dataset, network, METHODS, MODES))


def _missing(measured: set) -> dict[tuple[str, str], list[str]]:
    """Names of the methods whose rows are not there, by category and network."""
    missing: dict[tuple[str, str], list[str]] = {}
    for key in _compared():
        if key not in measured:
            missing.setdefault((key[1], key[2].backbone), []).append(_name(key[2]))
    return missing


def _name(settings: Settings) -> str:
    return " ".join(describe(settings.to_dict())).strip()


def _accuracy(paper: dict) -> Iterator[str]:
    yield "## Accuracy with the paper's settings (Tables I-V)\n"
    yield f"`python benchmarks/paper.py tables backbones{KEPT}`; {paper['device']}\n"
    rows = []
    for row in (row for name in BACKBONES for row in table_rows(paper, name)):
        published = PAPER.get((row["dataset"], row["category"]))
        beside = ["-", "-"]
        if published and (row["settings"]["mode"], row["settings"]["sampling"]) == ("full", "subspace"):
            gaps = [100 * row[m] - p for m, p in zip(METRICS, published, strict=False)]
            beside = [" / ".join(f"{p:.1f}" for p in published), " / ".join(f"{gap:+.1f}" for gap in gaps)]
        rows.append(
            [row["category"], row["settings"]["backbone"], *describe(row["settings"])[1:], *_percent(row), *beside]
        )
    yield table("category|network|mode|sampling|AUROC|AUPRO|image AUROC|paper (WideResNet50-2)|difference", rows)


def _methods(methods: dict, paper: dict) -> Iterator[str]:
    yield "## SFR and its rivals\n"
    yield (
        "`python benchmarks/methods.py --accuracy benchmarks/results/paper-cpu.json --json "
        f"benchmarks/results/methods-cpu.json`; {methods['device']}. Same network, split, metrics; the levels are "
        "those of each method's own paper. fit: files to bank, compilation and leave-one-out threshold included, in s "
        "(one fit for the samplings that share a bank); ms: decoded image to map, at batch 1 and 8; peak: of the "
        "process, which holds network, bank and JAX. PatchCore keeps 10 % of the nominal patches.\n"
    )
    measured = {row_key(row): row for row in paper["accuracy"]}
    costs = {row_key(row): row for row in methods["rows"]}
    rows = []
    for key in _compared():
        found, row = measured.get(key), costs.get(key)
        if found or row:
            name = [key[1], key[2].backbone, _name(key[2])]
            rows.append([*name, *(_percent(found) if found else ["-"] * 3), *(_cost(row) if row else ["-"] * 5)])
    yield table("category|network|method|AUROC|AUPRO|image AUROC|fit, s|ms, B=1|ms, B=8|bank, MB|peak, MB", rows)
    yield "Which is best, and SFR's best beside it (of all its variants in the table):\n"
    yield "\n".join(_best(measured)) + "\n"


def _best(measured: dict) -> Iterator[str]:
    for category, network in dict.fromkeys((key[1], key[2].backbone) for key in _compared()):
        here = [key for key in _compared() if key in measured and (key[1], key[2].backbone) == (category, network)]
        said = []
        for metric, name in zip(METRICS, ("AUROC", "AUPRO", "image AUROC"), strict=True):
            best = max(here, key=lambda key: measured[key][metric])
            ours = max((key for key in here if key[2].method == "sfr"), key=lambda key: measured[key][metric])
            figures = [f"{_name(key[2])} {100 * measured[key][metric]:.2f}" for key in dict.fromkeys((best, ours))]
            said.append(f"{name} {', '.join(figures)}")
        yield f"* {category}, {network}: {'; '.join(said)}."


def _cost(row: dict) -> list[str]:
    times = [f"{1000 * row[f'image_s_batch_{b}']:.1f}" for b in (1, 8)]
    return [f"{row['fit_s']:.0f}", *times, *(f"{row[name] / 1e6:.0f}" for name in ("bank_bytes", "peak_bytes"))]


def _sampling(paper: dict) -> Iterator[str]:
    yield "## Sampling (Fig. 5a)\n"
    yield f"`python benchmarks/paper.py sampling --backbone NAME{KEPT}`; {paper['device']}; s = s_ref / 2\n"
    rows, claims = [], []
    for backbone in _networks(paper):
        swept = sampling_rows(paper, backbone)
        for category, mode in dict.fromkeys((r["category"], r["settings"]["mode"]) for r in swept):
            ours = [r for r in swept if (r["category"], r["settings"]["mode"]) == (category, mode)]
            without = [r for r in ours if r["settings"]["sampling"] == "none"]
            for s_ref in sorted({r["settings"]["s_ref"] for r in ours if r not in without}):
                at = [r for r in ours if r not in without and r["settings"]["s_ref"] == s_ref]
                chosen = [r for r in at if r["settings"]["sampling"] == "subspace"]
                drawn = [100 * r["aupro"] for r in at if r["settings"]["sampling"] == "random"]
                name = [category, backbone, mode, str(s_ref)]
                spread = f"{np.mean(drawn):.2f} ({min(drawn):.2f} - {max(drawn):.2f})" if drawn else "-"
                if chosen:
                    rows.append([*name, *_percent(chosen[0])[:2], spread])
                if chosen and drawn and s_ref < 20:
                    gap = 100 * chosen[0]["aupro"] - float(np.mean(drawn))
                    claims.append(f"* {', '.join(name[:3])}, s_ref = {s_ref}: {_below(gap)}")
            rows += [[category, backbone, mode, "all", *_percent(r)[:2], "no sampling"] for r in without[:1]]
    yield table(
        "category|network|mode|s_ref|AUROC, subspace|AUPRO, subspace|AUPRO, random: mean (least - greatest)", rows
    )
    yield "Does the AUPRO of random sampling fall below subspace-based sampling's with s_ref < 20?\n"
    yield "\n".join(claims) + "\n"
    yield from _figures("sampling", paper)


def _below(gap: float) -> str:
    return f"random is {abs(gap):.2f} points {'below' if gap > 0 else 'above'}"


def _error(paper: dict) -> Iterator[str]:
    if not paper["representation"]:
        return
    yield "## Representation error of nominal features outside the bank (Fig. 6)\n"
    yield (
        f"`python benchmarks/paper.py error --backbone NAME{KEPT}`; {paper['device']}; relative L2 error "
        "of held-out nominal images, mean "
        "over levels 2 and 3; OMP with s = s_ref / 2 atoms and nearest neighbour, among the same s_ref candidates\n"
    )
    keys = ("category", "kind", "backbone", "mode", "s_ref", "held_out")
    rows = [
        [*(str(r[key]) for key in keys), f"{r['pursuit']:.3f}", f"{r['match']:.3f}"] for r in paper["representation"]
    ]
    yield table("category|kind|network|mode|s_ref|held out|OMP|nearest neighbour", rows)
    yield from _figures("error", paper)


def _levels(paper: dict) -> Iterator[str]:
    rows = []
    for backbone in _networks(paper):
        for row in level_rows(paper, backbone):
            levels = "+".join(map(str, row["settings"]["levels"]))
            rows.append([row["category"], backbone, row["settings"]["mode"], levels, *_percent(row)])
    if rows:
        yield "## Levels (Fig. 7)\n"
        yield f"`python benchmarks/paper.py levels --backbone NAME{KEPT}`; {paper['device']}; subspace-based sampling\n"
        yield table("category|network|mode|levels|AUROC|AUPRO|image AUROC", rows)
        yield from _figures("levels", paper)


def _toy(paper: dict) -> Iterator[str]:
    for toy in paper["toy"]:
        match, pursuit = (f"{100 * toy[f'{method}_auroc']:.1f} %" for method in ("match", "pursuit"))
        yield "## Why rebuild, not match (Fig. 3)\n"
        yield (
            f"`python benchmarks/paper.py toy{KEPT}`: nominal points on two lines through the origin. AUROC of new "
            f"nominal points against defects: nearest neighbour {match}, OMP {pursuit}.\n"
        )
        yield from _figures("toy", paper)


def _others(results: Path) -> Iterator[str]:
    yield "## Other measurements\n"
    about = {
        "overhead-cpu.json": "file to map against the network alone: `python benchmarks/overhead.py`",
        "omp-cpu.json": "the solver against scikit-learn and SPAMS ([omp.md](omp.md)): `python benchmarks/omp.py`",
        "backbones-cpu.json": "networks against torch: `python benchmarks/backbones.py`",
    }
    for name, text in about.items():
        if (results / name).is_file():
            yield f"* [{name}](../benchmarks/results/{name}): {text}"


def _networks(paper: dict) -> list[str]:
    return list(dict.fromkeys(row["settings"]["backbone"] for row in paper["accuracy"]))


def _percent(row: dict) -> list[str]:
    return ["-" if row[name] is None else f"{100 * row[name]:.2f}" for name in METRICS]


def _figures(name: str, paper: dict) -> Iterator[str]:
    """Links to the pictures that paper.py wrote beside its JSON."""
    files = ["toy"] if name == "toy" else [f"{name}-{backbone}" for backbone in _networks(paper)]
    for file in files:
        if (RESULTS / f"paper-cpu-{file}.png").is_file():
            yield f"![{file}](../benchmarks/results/paper-cpu-{file}.png)\n"


if __name__ == "__main__":
    main()
