"""Tables in README.md and docs/, filled from the JSON files by `python benchmarks/results_page.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; the words around it are written by hand.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import omp
from methods import describe
from paper import preset, row_key

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(ROOT / name for name in ("README.md", "docs/omp.md", "docs/weights.md", "docs/report.md", "docs/bank.md"))
MARKED = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)

NETWORKS = {
    "wide_resnet50_2": "WideResNet50-2",
    "resnet50": "ResNet50",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
CATEGORIES = {"bottle": "MVTec AD bottle", "mtd": "MTD"}
DATASETS = {"bottle": "mvtec", "mtd": "mtd"}
METRICS = ("pixel_auroc", "aupro", "image_auroc")


def filled(text: str, results: Path) -> str:
    """A page with its marked tables made anew. Raises KeyError for a name without a table."""
    return MARKED.sub(lambda found: found[1] + found[2] + TABLES[found[1]](results) + "\n", text)


def _read(results: Path, name: str) -> dict:
    return json.loads((results / f"{name}-cpu.json").read_text())


def table(headers: str, rows: Iterable[Iterable[str]]) -> str:
    """A table that stands by itself, with an empty line after it."""
    return markdown_table(headers, rows) + "\n"


def markdown_table(headers: str, rows: Iterable[Iterable[str]], words: int | None = None) -> str:
    """Columns named by `headers`, with bars between: the first `words` (all where None) to the left, others right."""
    titles = headers.split("|")
    left = len(titles) if words is None else words
    ruler = ["---"] * left + ["---:"] * (len(titles) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ruler, *map(list, rows)))


def _percent(row: dict, names: tuple[str, ...] = METRICS) -> list[str]:
    return [f"{100 * row[name]:.2f}" for name in names]


def _ms(*seconds: float) -> list[str]:
    return [f"{1000 * value:.1f}" for value in seconds]


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f}"


def _accuracy(results: Path) -> str:
    """SFR with the paper's settings, with and without sampling."""
    measured = {row_key(row): row for row in _read(results, "paper")["accuracy"]}
    rows = []
    for category, title in CATEGORIES.items():
        dataset = DATASETS[category]
        for network in ("efficientnet_lite0", "resnet50"):
            for mode in ("full", "pixel"):
                for sampling in ("subspace", "none"):
                    settings = preset(dataset, network, mode, sampling=sampling)
                    found = measured[dataset, category, settings]
                    rows.append([title, NETWORKS[network], mode, sampling, *_percent(found)])
    return markdown_table("data|network|mode|sampling|pixel AUROC|AUPRO|image AUROC", rows, 4)


def _rivals(results: Path) -> str:
    """Each method's accuracy on both data sets, and what it costs on the larger."""
    accuracy = {_method(row): row for row in _read(results, "paper")["accuracy"] if _of_the_paper(row)}
    costs = {_method(row): row for row in _read(results, "methods")["rows"]}
    rows = []
    for network in ("efficientnet_lite0", "resnet50"):
        for name in ("SFR full subspace", "SFR pixel subspace", "SPADE", "PaDiM", "PatchCore"):
            found = [accuracy.get((category, network, name)) for category in CATEGORIES]
            there = [" / ".join(_percent(row, METRICS[:2])) if row else "-" for row in found]
            cost = costs["mtd", network, name]
            figures = [f"{cost['fit_s']:.0f}", *_ms(cost["image_s_batch_8"]), _mb(cost["bank_bytes"])]
            rows.append([NETWORKS[network], name.removesuffix(" subspace"), *there, *figures])
    headers = "network|method|bottle: AUROC / AUPRO|MTD: AUROC / AUPRO|MTD: fit, s|ms an image|bank, MB"
    return markdown_table(headers, rows, 2)


def _of_the_paper(row: dict) -> bool:
    """Whether a row was measured with the settings of `paper.py`'s tables; a rival's always are its own paper's."""
    dataset, _, settings = row_key(row)
    expected = preset(dataset, settings.backbone, settings.mode, sampling=settings.sampling)
    return settings.method != "sfr" or settings == expected


def _method(row: dict) -> tuple[str, str, str]:
    settings = row["settings"]
    return row["category"], settings["backbone"], " ".join(describe(settings)).strip()


def _threshold(results: Path) -> str:
    """False alarms and defects found at three quantiles; the products of the demo set together."""
    rows = _read(results, "threshold")["rows"]
    demo = [row for row in rows if row["category"] not in CATEGORIES]
    groups = {"demo, three products": demo}
    groups |= {title: [row for row in rows if row["category"] == name] for name, title in CATEGORIES.items()}
    lines = []
    for title, group in groups.items():
        for quantile in (0.9, 0.95, 0.99):
            at = [row for row in group if row["quantile"] == quantile]
            good, defective = (sum(row[kind] for row in at) for kind in ("good", "defective"))
            alarms = sum(row["good"] * row["false_alarm_rate"] for row in at) / good
            found = sum(row["defective"] * row["detection_rate"] for row in at) / defective
            nominal = f"{at[0]['nominal']}{' each' if len(at) > 1 else ''}"
            name = f"{title} ({good} good, {defective} defective)"
            lines.append([name, nominal, str(quantile), f"{100 * alarms:.1f} %", f"{100 * found:.1f} %"])
    return markdown_table("test images|nominal|quantile|false alarms|defects found", lines, 1)


def _overhead(results: Path) -> str:
    rows = [
        [
            NETWORKS[row["backbone"]],
            str(row["batch"]),
            *_ms(row["backbone_s"], row["total_s"]),
            f"{row['ratio']:.2f}",
            *_ms(row["split"]["decode_s"], row["split"]["solve_s"]),
        ]
        for row in _read(results, "overhead")["rows"]
    ]
    return markdown_table("network|batch|forward pass|file to map|ratio|decode|solve", rows, 1)


def _pursuit(results: Path) -> str:
    result = _read(results, "omp")
    limits = f"{result['stream_bytes_per_s'] / 1e9:.1f} GB/s and {result['gemm_flops_per_s'] / 1e9:.0f} GFLOP/s"
    return f"Limits of the machine, on which the floor rests: {limits}.\n\n{omp.table(result)}"


def _networks(results: Path) -> str:
    rows = [
        [
            NETWORKS[row["backbone"]],
            str(row["batch"]),
            *_ms(row["sfrjax_s"], row["torch_s"]),
            f"{row['ratio']:.2f}",
            f"{row['max_relative_error']:.1e}",
        ]
        for row in _read(results, "backbones")["rows"]
    ]
    return markdown_table("network|batch|sfrjax, ms|torch, ms|ratio|largest relative difference", rows, 1)


def _bfloat16(results: Path) -> str:
    rows = [
        [NETWORKS[row["backbone"]], row["dtype"], *(f"{row[name]:.2f}" for name in METRICS)]
        for row in _read(results, "backbones-dtype")["rows"]
    ]
    return markdown_table("network|dtype|pixel AUROC|AUPRO|image AUROC", rows, 2)


def _writing(results: Path) -> str:
    """What writing a folder's results costs beside decoding and computing, and the parts of it."""
    rows, parts = [], []
    folders = _read(results, "startup")["folders"]
    kinds = ("decode", "compute", "predict")
    for row in folders:
        both = [f"{1000 * row[kind]['wall_s']:.1f} ({1000 * row[kind]['cpu_s']:.1f})" for kind in kinds]
        rows.append([NETWORKS[row["backbone"]], *both, f"{row['ratio']:.2f}", f"{row['floor']:.2f}"])
        parts.append([NETWORKS[row["backbone"]], *_ms(*row["writing"].values())])
    wall = markdown_table("network|decode alone|compute alone|`predict`, all files|over the slower|floor", rows, 1)
    titles = "network|" + "|".join(WRITING[name] for name in folders[0]["writing"])
    alone = markdown_table(titles, parts, 1)
    return f"{wall}\n\nOf one core, with nothing else running, writing takes per image:\n\n{alone}"


WRITING = {
    "draw": "draw",
    "overlay": "write the overlay",
    "map": "write a map (of two)",
    "draw small": "draw thumbnails",
    "thumbnails": "compress them",
}


def _growth(results: Path) -> str:
    rows = [
        [
            NETWORKS[row["backbone"]],
            str(row["images"]),
            *map(_mb, (row["bank_bytes"], row["peak_bytes"], row["beside_bank_bytes"])),
        ]
        for row in _read(results, "memory")["growth"]
    ]
    return markdown_table("network|images|bank|peak of fit|beside the bank", rows, 1)


def _dtypes(results: Path) -> str:
    rows = [
        [NETWORKS[row["backbone"]], row["atoms_dtype"], _mb(row["bank_bytes"]), *_percent(row)]
        for row in _read(results, "memory")["dtypes"]
    ]
    return markdown_table("network|features|bank, MB|pixel AUROC|AUPRO|image AUROC", rows, 2)


TABLES = {
    "accuracy": _accuracy,
    "rivals": _rivals,
    "threshold": _threshold,
    "overhead": _overhead,
    "pursuit": _pursuit,
    "networks": _networks,
    "bfloat16": _bfloat16,
    "writing": _writing,
    "growth": _growth,
    "dtypes": _dtypes,
}
