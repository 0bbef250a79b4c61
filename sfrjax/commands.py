"""The commands: each reads its options, calls the pipeline, says what came of it. Heavy imports wait for a command."""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sfrjax.errors import SfrjaxError
from sfrjax.settings import ATOM_DTYPES, BATCH_SIZE, DTYPES, METHODS, PRESETS, SAMPLINGS, Settings, parse_level, preset
from sfrjax.version import __version__
from sfrjax.weights.cli import app as weights_app

app = typer.Typer(
    name="sfrjax",
    help="Anomaly localisation by subspace-guided feature reconstruction.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(weights_app, name="weights")

DEFAULTS = Settings()

Backbone = Annotated[str, typer.Option(help="Feature network; `sfrjax weights list` names them.")]
Weights = Annotated[Path | None, typer.Option(help="File of network weights; the network's own, by name, otherwise.")]
Levels = Annotated[str | None, typer.Option(help="Scoring levels, separated by commas: of 1,2,3,4,last.")]
Reference = Annotated[str | None, typer.Option(help="Level of subspace-based sampling: 1, 2, 3, 4 or last.")]
Sampling = Annotated[str, typer.Option(help=f"Which nominal images reconstruct: {', '.join(SAMPLINGS)}.")]
Mode = Annotated[str, typer.Option(help="full: a level is one vector (the paper's); pixel: each position by itself.")]
SRef = Annotated[int | None, typer.Option(help="Number of nominal images that sampling keeps.")]
S = Annotated[int | None, typer.Option(help="Number of atoms in a reconstruction.")]
Eps = Annotated[float, typer.Option(help="Stop when the residual's L2 norm is at most this.")]
Neighbourhood = Annotated[int, typer.Option(help="Average features over this many positions squared first; 1: no.")]
Dtype = Annotated[str, typer.Option(help=f"Arithmetic of the network: {', '.join(DTYPES)} (for GPU and TPU).")]
AtomsDtype = Annotated[str, typer.Option(help=f"In which the bank keeps features: {', '.join(ATOM_DTYPES)}.")]
Seed = Annotated[int, typer.Option(help="Seed of random sampling.")]
Quantile = Annotated[
    float, typer.Option(help="Share of good images that the threshold should pass, of those left out of the bank.")
]
SaveMaps = Annotated[
    bool, typer.Option("--save-maps", help="Also write anomaly_maps/, as MVTec's evaluation reads it.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per step.")]


Stream = Annotated[bool, typer.Option("--stream", help="Keep the bank on disk: for one larger than memory; slower.")]


@app.command()
def fit(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Nominal images: files, or folders searched recursively.")],
    out: Annotated[Path | None, typer.Option(help="The bank file to write.", show_default=False)] = None,
    extend: Annotated[
        Path | None, typer.Option(help="Add the images to this bank, which --out replaces if it is not given.")
    ] = None,
    stream: Stream = False,
    backbone: Backbone = DEFAULTS.backbone,
    weights: Weights = None,
    levels: Levels = None,
    reference: Reference = None,
    sampling: Sampling = DEFAULTS.sampling,
    mode: Mode = DEFAULTS.mode,
    s_ref: SRef = None,
    s: S = None,
    eps: Eps = DEFAULTS.eps,
    neighbourhood: Neighbourhood = DEFAULTS.neighbourhood,
    dtype: Dtype = DEFAULTS.dtype,
    atoms_dtype: AtomsDtype = DEFAULTS.atoms_dtype,
    quantile: Quantile = DEFAULTS.quantile,
    seed: Seed = DEFAULTS.seed,
    batch_size: BatchSize = BATCH_SIZE,
) -> None:
    """Build a memory bank from nominal images, or add images to one."""
    settings = _settings(
        {},
        backbone=backbone,
        levels=levels,
        reference=reference,
        sampling=sampling,
        mode=mode,
        s_ref=s_ref,
        s=s,
        eps=eps,
        neighbourhood=neighbourhood,
        dtype=dtype,
        atoms_dtype=atoms_dtype,
        quantile=quantile,
        seed=seed,
    )
    out = out or extend
    if out is None:
        raise SfrjaxError("--out is missing: give the name of the bank file to write")
    from sfrjax import pipeline
    from sfrjax.bank_file import load_bank, save_bank
    from sfrjax.files import output_folder

    output_folder(out.parent)
    if out.is_dir():
        raise SfrjaxError(f"--out {out}: is a folder; give the name of a file")
    options: dict[str, Any] = {"weights": weights, "batch_size": batch_size, "progress": True}
    options["stream"] = out if stream else None
    if extend is None:
        bank = pipeline.fit(images, settings, **options)
    else:
        old = load_bank(extend, stream=True)  # copied from disk, so that memory holds the new bank alone
        _check_unchanged(extend, old.settings, settings, context)
        bank = pipeline.extend(old, images, **options)
    if not stream:
        save_bank(bank, out)
    typer.echo(f"{out}: {bank.n_images} nominal images, {out.stat().st_size / 1e6:.0f} MB")
    typer.echo(
        f"Threshold: {bank.threshold:.4g}, which {bank.settings.quantile:.1%} of good images should pass (from the "
        f"scores of {len(bank.nominal_scores)} nominal images, each left out of the bank)"
    )
    typer.echo(f"Next: sfrjax predict {out} YOUR_IMAGES --out results{' --stream' if stream else ''}")


@app.command()
def predict(
    bank: Annotated[Path, typer.Argument(help="Bank file from `sfrjax fit`.")],
    images: Annotated[list[Path], typer.Argument(help="Images: files, or folders searched recursively.")],
    out: Annotated[Path, typer.Option(help="Folder for scores, report.html, maps/, calibrated/ and overlays/.")],
    quantile: Annotated[
        float | None, typer.Option(help="As for fit; the bank's own otherwise.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Score above which an image is anomalous, instead of --quantile.")
    ] = None,
    stream: Stream = False,
    weights: Weights = None,
    batch_size: BatchSize = BATCH_SIZE,
) -> None:
    """Localise anomalies: float32 maps at the original image size, overlays, scores."""
    from sfrjax.bank_file import load_bank
    from sfrjax.runs import predict_images

    if threshold is not None and (quantile is not None or not math.isfinite(threshold) or threshold < 0):
        raise SfrjaxError(f"--threshold {threshold}: give a number >= 0, and not --quantile besides")
    loaded = load_bank(bank, stream=stream)
    options: dict[str, Any] = {"weights": weights, "batch_size": batch_size, "progress": True}
    options |= {"quantile": quantile, "threshold": threshold, "command": _given()}
    run = predict_images(loaded, images, out, **options)
    n_anomalous = sum(row["anomalous"] for row in run.rows)
    typer.echo(f"{len(run.rows)} images, {n_anomalous} above the threshold {run.threshold:.4g}")
    typer.echo(f"Scores: {out / 'scores.json'}, {out / 'scores.csv'}")
    if run.rows:
        typer.echo(
            f"Maps: {out / 'maps'}; in units of the threshold: {out / 'calibrated'}; overlays: {out / 'overlays'}"
        )
    typer.echo(f"All on one page: {out / 'report.html'}")
    if run.skipped:
        listing = "\n".join(f"  {reason}" for _, reason in run.skipped)
        total = len(run.rows) + len(run.skipped)
        raise SfrjaxError(f"{len(run.skipped)} of {total} images could not be read and were skipped:\n{listing}")


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Option(help=f"Layout of the data set: {', '.join(PRESETS)}.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and overlays/.")],
    category: Annotated[list[str] | None, typer.Option(help="Categories; all of them otherwise.")] = None,
    method: Annotated[str, typer.Option(help=f"Method: {', '.join(METHODS)}.")] = METHODS[0],
    backbone: Backbone = DEFAULTS.backbone,
    weights: Weights = None,
    levels: Levels = None,
    reference: Reference = None,
    sampling: Sampling = DEFAULTS.sampling,
    mode: Mode = DEFAULTS.mode,
    s_ref: SRef = None,
    s: S = None,
    eps: Eps = DEFAULTS.eps,
    neighbourhood: Neighbourhood = DEFAULTS.neighbourhood,
    dtype: Dtype = DEFAULTS.dtype,
    atoms_dtype: AtomsDtype = DEFAULTS.atoms_dtype,
    quantile: Quantile = DEFAULTS.quantile,
    seed: Seed = DEFAULTS.seed,
    batch_size: BatchSize = BATCH_SIZE,
    save_maps: SaveMaps = False,
) -> None:
    """Fit and measure on a data set: pixel AUROC, AUPRO, image AUROC. Settings are the paper's for the data set."""
    if dataset not in PRESETS:
        raise SfrjaxError(f"--dataset {dataset}: give one of {', '.join(PRESETS)}")
    settings = _settings(
        preset(dataset, method),
        method=method,
        backbone=backbone,
        levels=levels,
        reference=reference,
        sampling=sampling,
        mode=mode,
        s_ref=s_ref,
        s=s,
        eps=eps,
        neighbourhood=neighbourhood,
        dtype=dtype,
        atoms_dtype=atoms_dtype,
        quantile=quantile,
        seed=seed,
    )
    from sfrjax.report import print_metrics
    from sfrjax.runs import evaluate_dataset

    options: dict[str, Any] = {"weights": weights, "batch_size": batch_size, "save_maps": save_maps, "progress": True}
    run = evaluate_dataset(dataset, root, out, categories=category, settings=settings, command=_given(), **options)
    print_metrics(run.metrics, run.detections)
    typer.echo(f"Results: {out / 'results.json'}; overlays: {out / 'overlays'}")
    typer.echo(f"All on one page: {out / 'report.html'}")


@app.command()
def check(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Nominal images for fit: files, or folders searched recursively.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help=f"Or a data set's layout: {', '.join(PRESETS)}.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Categories; all of them otherwise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every file named.")] = False,
    backbone: Backbone = DEFAULTS.backbone,
    weights: Weights = None,
    levels: Levels = None,
    reference: Reference = None,
    sampling: Sampling = DEFAULTS.sampling,
    mode: Mode = DEFAULTS.mode,
    s_ref: SRef = None,
    s: S = None,
    atoms_dtype: AtomsDtype = DEFAULTS.atoms_dtype,
) -> None:
    """Name everything that is wrong with a folder of images; exit status 0 if fit (or evaluate) would work."""
    if (dataset is None) != (root is None) or (dataset is None) == (not images):
        raise SfrjaxError("give either nominal IMAGES, or --dataset LAYOUT and --root FOLDER")
    if dataset is not None and dataset not in PRESETS:
        raise SfrjaxError(f"--dataset {dataset}: give one of {', '.join(PRESETS)}")
    if category and dataset is None:
        raise SfrjaxError("--category names a category of a --dataset; plain IMAGES have none")
    settings = _settings(
        PRESETS[dataset] if dataset else {},
        backbone=backbone,
        levels=levels,
        reference=reference,
        sampling=sampling,
        mode=mode,
        s_ref=s_ref,
        s=s,
        atoms_dtype=atoms_dtype,
    )
    from sfrjax.check import check_dataset, check_images, print_report

    options: dict[str, Any] = {"weights": weights, "progress": True}
    if dataset is not None and root is not None:
        reports = check_dataset(dataset, root, category, settings, **options)
    else:
        reports = [check_images(images or [], settings, **options)]
    ok = all(report.ok for report in reports)
    if as_json:
        content = {"ok": ok, "categories": [report.to_dict() for report in reports]}
        typer.echo(json.dumps({**content, "settings": settings.to_dict(), "version": __version__}, indent=2))
    else:
        for report in reports:
            print_report(report)
    if not ok:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images, the results and the pictures.")] = Path(
        "sfrjax-demo"
    ),
) -> None:
    """Draw an inspection data set, fit, localise the defects, and show how well it went."""
    from sfrjax import runs
    from sfrjax.report import print_metrics

    typer.echo("Drawing a set of inspection images, then fitting and predicting each product ...")
    run = runs.demo(out, progress=True)
    print_metrics(run.metrics, run.detections)
    product, data = next(iter(run.metrics)), out / "data"
    typer.echo(f"Pictures: {out / 'overview.png'} (one of each kind), {out / 'overlays'} (all)")
    typer.echo(
        "  left: the image, ground truth in green; right: the anomaly map, a white line around what is anomalous"
    )
    typer.echo(f"Metrics: {out / 'results.json'}; all on one page: {out / 'report.html'}")
    typer.echo("\nNext, by hand:")
    typer.echo(f"  sfrjax fit {data / product / 'train'} --out {out / product}.bank")
    typer.echo(f"  sfrjax predict {out / product}.bank {data / product / 'test'} --out {out / 'predicted'}")
    typer.echo("With your own images:")
    typer.echo("  sfrjax fit FOLDER_OF_GOOD_IMAGES --out my.bank")
    typer.echo("  sfrjax predict my.bank FOLDER_OF_NEW_IMAGES --out results")


def _settings(preset: dict[str, Any], *, levels: str | None, reference: str | None, **given: Any) -> Settings:
    """The preset, with what was given on the command line (not None) over it."""
    given["levels"] = tuple(parse_level(level) for level in levels.split(",")) if levels is not None else None
    given["reference"] = parse_level(reference) if reference is not None else None
    return Settings(**{**preset, **{name: value for name, value in given.items() if value is not None}})


def _given() -> str:
    """The command line as it was typed."""
    return shlex.join(["sfrjax", *sys.argv[1:]])


def _check_unchanged(bank: Path, built_with: Settings, given: Settings, context: typer.Context) -> None:
    """Raise SfrjaxError for an option on the command line that contradicts the bank to extend."""
    for name in Settings.__dataclass_fields__:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and getattr(given, name) != getattr(built_with, name):
            raise SfrjaxError(
                f"--{name.replace('_', '-')}: the bank {bank} was built with {getattr(built_with, name)}, which cannot "
                "be changed by adding images; leave the option out, or fit anew"
            )
