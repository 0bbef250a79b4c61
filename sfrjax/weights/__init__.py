"""Weights: named, fetched, verified and read without torch."""

import os
from pathlib import Path

from sfrjax.errors import SfrjaxError
from sfrjax.weights.safetensors_file import open_safetensors
from sfrjax.weights.tensors import StoredTensor, WeightsFile
from sfrjax.weights.torch_file import open_torch

__all__ = ["StoredTensor", "WeightsFile", "open_safetensors", "open_torch", "open_weights"]


def open_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Opens a weights file by its contents: torch's two formats, or safetensors.

    Raises:
        SfrjaxError: no such file, or not one that can be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as e:
        raise SfrjaxError(f"weights file {path} cannot be read: {e.strerror or e}") from e
    # A safetensors file begins with the length of its JSON header, then the header's brace.
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return open_safetensors(path)
    return open_torch(path)
