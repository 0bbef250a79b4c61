"""Opening a weights file of either kind."""

import os
from pathlib import Path

from sfrjax.errors import SfrjaxError
from sfrjax.weights.safetensors_file import open_safetensors
from sfrjax.weights.tensors import WeightsFile
from sfrjax.weights.torch_file import open_torch


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
