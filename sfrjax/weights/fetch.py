"""From a name to a verified local file."""

import hashlib
import importlib.util
import os
from pathlib import Path

from sfrjax.errors import SfrjaxError
from sfrjax.weights.catalogue import CATALOGUE, Entry


def weights_path(name: str, weights: str | os.PathLike[str] | None = None) -> tuple[Path, str]:
    """The file to read, and what to call the weights.

    Args:
        name: a backbone, whose default weights are meant, or a catalogue name.
        weights: a file given by the user, which is then used as it is.

    Raises:
        SfrjaxError: no such named weights, or they cannot be had.
    """
    if weights is not None:
        path = Path(weights)
        return path, path.name
    entry = find(name)
    return installed_path(entry), entry.name


def find(name: str) -> Entry:
    """The catalogue's entry of that name, or the default of that backbone."""
    for entry in CATALOGUE.values():
        if name in (entry.name, entry.backbone):
            return entry
    raise SfrjaxError(f"no weights are known by the name {name}; known are {', '.join(CATALOGUE)}. Or give a file")


def installed_path(entry: Entry) -> Path:
    """The file inside the installed package that brings it."""
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None:
        raise SfrjaxError(f"the weights {entry.name} are missing: install the Python package {entry.package}")
    return Path(spec.origin).parent / entry.filename


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
