"""The command line: reads options, calls the pipeline, writes what it returns. Heavy imports wait for a command."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sfrjax.errors import SfrjaxError
from sfrjax.settings import PRESETS, SAMPLINGS, Settings, parse_level
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
METHODS = ("sfr",)

Backbone = Annotated[str, typer.Option(help="Feature network; `sfrjax weights list` names them.")]
Weights = Annotated[Path | None, typer.Option(help="File of network weights; the network's own, by name, otherwise.")]
Levels = Annotated[str | None, typer.Option(help="Scoring levels, separated by commas: of 1,2,3,4,last.")]
Reference = Annotated[str | None, typer.Option(help="Level of subspace-based sampling: 1, 2, 3, 4 or last.")]
Sampling = Annotated[str, typer.Option(help=f"Which nominal images reconstruct: {', '.join(SAMPLINGS)}.")]
Mode = Annotated[str, typer.Option(help="full: a level is one vector (the paper's); pixel: each position by itself.")]
SRef = Annotated[int | None, typer.Option(help="Number of nominal images that sampling keeps.")]
S = Annotated[int | None, typer.Option(help="Number of atoms in a reconstruction.")]
Eps = Annotated[float, typer.Option(help="Stop when the residual's L2 norm is at most this.")]
Seed = Annotated[int, typer.Option(help="Seed of random sampling.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per step.")]


@app.command()
def fit(
    images: Annotated[list[Path], typer.Argument(help="Nominal images: files, or folders searched recursively.")],
    out: Annotated[Path, typer.Option(help="The bank file to write.")],
    backbone: Backbone = DEFAULTS.backbone,
    weights: Weights = None,
    levels: Levels = None,
    reference: Reference = None,
    sampling: Sampling = DEFAULTS.sampling,
    mode: Mode = DEFAULTS.mode,
    s_ref: SRef = None,
    s: S = None,
    eps: Eps = DEFAULTS.eps,
    seed: Seed = DEFAULTS.seed,
    batch_size: BatchSize = 8,
) -> None:
    """Build a memory bank from nominal images."""
    settings = _settings({}, backbone, levels, reference, sampling, mode, s_ref, s, eps, seed)
    from sfrjax.bank import save_bank
    from sfrjax.files import output_folder
    from sfrjax.pipeline import fit as fit_bank

    output_folder(out.parent)
    if out.is_dir():
        raise SfrjaxError(f"--out {out}: is a folder; give the name of a file")
    bank = fit_bank(images, settings, weights=weights, batch_size=batch_size, progress=True)
    save_bank(bank, out)
    typer.echo(f"{out}: {bank.n_images} nominal images, {out.stat().st_size / 1e6:.0f} MB")
    typer.echo(f"Threshold from leave-one-out nominal scores: {bank.threshold:.4g}")
    typer.echo(f"Next: sfrjax predict {out} YOUR_IMAGES --out results")


@app.command()
def predict(
    bank: Annotated[Path, typer.Argument(help="Bank file from `sfrjax fit`.")],
    images: Annotated[list[Path], typer.Argument(help="Images: files, or folders searched recursively.")],
    out: Annotated[Path, typer.Option(help="Folder for scores.json, scores.csv, maps/ and overlays/.")],
    weights: Weights = None,
    batch_size: BatchSize = 8,
) -> None:
    """Localise anomalies: float32 maps at the original image size, overlays, scores."""
    from sfrjax.bank import load_bank
    from sfrjax.datasets.images import list_images
    from sfrjax.features import Skipped
    from sfrjax.files import output_folder
    from sfrjax.pipeline import predict as predict_images
    from sfrjax.report import output_stems, overlay, write_map, write_picture, write_scores

    loaded = load_bank(bank)
    paths = list_images(images)
    output_folder(out)
    stems = dict(zip(paths, output_stems(paths), strict=True))
    skipped: list[Skipped] = []
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {"weights": weights, "batch_size": batch_size, "skipped": skipped, "progress": True}
    for prediction in predict_images(loaded, paths, **options):
        stem = stems[prediction.path]
        map_path, picture_path = (out / "maps" / f"{stem}.tiff", out / "overlays" / f"{stem}.png")
        write_map(map_path, prediction.anomaly_map)
        write_picture(picture_path, overlay(prediction, loaded.threshold))
        rows.append(
            {
                "image": str(prediction.path),
                "score": prediction.score,
                "anomalous": prediction.score > loaded.threshold,
                "map": str(map_path.relative_to(out)),
                "overlay": str(picture_path.relative_to(out)),
            }
        )
    write_scores(out, rows, skipped, loaded)
    n_anomalous = sum(row["anomalous"] for row in rows)
    typer.echo(f"{len(rows)} images, {n_anomalous} above the threshold {loaded.threshold:.4g}")
    typer.echo(
        f"Scores: {out / 'scores.json'}, {out / 'scores.csv'}; maps: {out / 'maps'}; overlays: {out / 'overlays'}"
    )
    if skipped:
        listing = "\n".join(f"  {reason}" for _, reason in skipped)
        raise SfrjaxError(f"{len(skipped)} of {len(paths)} images could not be read and were skipped:\n{listing}")


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Option(help=f"Layout of the data set: {', '.join(PRESETS)}.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json and overlays/.")],
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
    seed: Seed = DEFAULTS.seed,
    batch_size: BatchSize = 8,
) -> None:
    """Fit and measure on a data set: pixel AUROC, AUPRO, image AUROC. Settings are the paper's for the data set."""
    if method not in METHODS:
        raise SfrjaxError(f"--method {method}: give one of {', '.join(METHODS)}")
    if dataset not in PRESETS:
        raise SfrjaxError(f"--dataset {dataset}: give one of {', '.join(PRESETS)}")
    settings = _settings(PRESETS[dataset], backbone, levels, reference, sampling, mode, s_ref, s, eps, seed)
    _evaluate(dataset, root, out, category, settings, weights, batch_size)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images, the results and the pictures.")] = Path(
        "sfrjax-demo"
    ),
) -> None:
    """Make an inspection data set, fit, localise the defects, and show how well it went."""
    from sfrjax.datasets.demo import write_demo_set
    from sfrjax.files import output_folder

    output_folder(out)
    typer.echo("Making a set of inspection images ...")
    root = write_demo_set(out / "data")
    pictures = _evaluate("mvtec", root, out, None, DEFAULTS, None, 8)
    overview = _overview(pictures, out / "overview.png")
    product = next(iter(pictures))
    typer.echo(f"\nPictures: {overview} (a few of each product), {out / 'overlays'} (all)")
    typer.echo("Left: the image, ground truth in green. Right: the anomaly map, a white line around what is anomalous.")
    typer.echo(f"\nTry it: sfrjax fit {root / product / 'train'} --out {out / product}.bank")
    typer.echo(f"        sfrjax predict {out / product}.bank {root / product / 'test'} --out {out / 'predicted'}")
    typer.echo("Your own parts: sfrjax fit FOLDER_OF_GOOD_IMAGES --out my.bank, then sfrjax predict my.bank NEW_IMAGES")


def _evaluate(
    dataset: str,
    root: Path,
    out: Path,
    categories: list[str] | None,
    settings: Settings,
    weights: Path | None,
    batch_size: int,
) -> dict[str, list[Path]]:
    """Evaluate, print the table, write results.json and overlays; the overlays' paths by category."""
    from sfrjax.backbones import load_backbone
    from sfrjax.datasets import load_dataset
    from sfrjax.files import output_folder
    from sfrjax.pipeline import evaluate as evaluate_category
    from sfrjax.report import evaluation_results, print_metrics, write_evaluation_pictures, write_json

    loaded = load_dataset(dataset, root, categories)
    output_folder(out)
    network = load_backbone(settings.backbone, levels=settings.feature_levels, weights=weights)
    metrics, pictures = {}, {}
    for category in loaded:
        typer.echo(f"{category.name}: {len(category.train)} nominal images, {len(category.test)} test images", err=True)
        evaluation = evaluate_category(category, settings, backbone=network, batch_size=batch_size, progress=True)
        metrics[category.name] = evaluation.metrics
        pictures[category.name] = write_evaluation_pictures(evaluation, out / "overlays" / category.name)
    print_metrics(metrics)
    identity = {"weights_name": network.weights_name, "weights_sha256": network.weights_sha256}
    write_json(out / "results.json", evaluation_results(metrics, settings=settings, dataset=dataset, **identity))
    typer.echo(f"Results: {out / 'results.json'}; overlays: {out / 'overlays'}")
    return pictures


def _overview(pictures: dict[str, list[Path]], path: Path) -> Path:
    """A contact sheet with one picture per kind of defect and product."""
    from sfrjax.report import contact_sheet, write_picture

    chosen: dict[tuple[str, str], Path] = {}
    for product, paths in pictures.items():
        for picture in paths:
            chosen.setdefault((product, picture.stem.rsplit("_", 1)[0]), picture)
    captions = [(f"{product}: {defect}", picture) for (product, defect), picture in chosen.items()]
    write_picture(path, contact_sheet(captions, columns=3))
    return path


def _settings(
    preset: dict[str, Any],
    backbone: str,
    levels: str | None,
    reference: str | None,
    sampling: str,
    mode: str,
    s_ref: int | None,
    s: int | None,
    eps: float,
    seed: int,
) -> Settings:
    """The preset, with what was given on the command line over it."""
    given = {
        "levels": tuple(parse_level(level) for level in levels.split(",")) if levels is not None else None,
        "reference": parse_level(reference) if reference is not None else None,
        "s_ref": s_ref,
        "s": s,
    }
    over = {name: value for name, value in given.items() if value is not None}
    return Settings(
        **{**preset, **over, "backbone": backbone, "sampling": sampling, "mode": mode, "eps": eps, "seed": seed}
    )


def _repeat_option(arguments: list[str], option: str) -> list[str]:
    """Let one option take several values: `--category a b` becomes `--category a --category b`."""
    repeated: list[str] = []
    open_option = False
    for argument in arguments:
        if argument.startswith("-"):
            open_option = argument == option
        elif open_option and repeated[-1] != option:
            repeated.append(option)
        repeated.append(argument)
    return repeated


def main() -> None:
    """Entry point: every problem that the user can mend is one sentence on standard error and exit status 1."""
    try:
        app(_repeat_option(sys.argv[1:], "--category"))
    except SfrjaxError as error:
        sys.exit(f"sfrjax: {error}")
    except KeyboardInterrupt:
        sys.exit("sfrjax: interrupted")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit("sfrjax: out of memory; give a smaller --batch-size, fewer --levels, or fewer nominal images")
