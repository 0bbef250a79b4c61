"""Opening .safetensors files."""

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from sfrjax.errors import SfrjaxError
from sfrjax.weights.tensors import StoredTensor, WeightsFile

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


def open_safetensors(path: str | os.PathLike[str]) -> WeightsFile:
    """Opens a .safetensors file without reading its values.

    Raises:
        SfrjaxError: the file is missing, cut short, malformed, or holds a type that weights do not have.
    """
    path = Path(path)
    tensors = {}
    try:
        with safe_open(path, "np") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind not in _FLOATS | _INTEGERS:
                    raise SfrjaxError(f"{path}: tensor {name} has type {kind}, which network weights do not have")
                dtype = _dtype((_FLOATS | _INTEGERS)[kind])
                tensors[name] = StoredTensor(tuple(part.get_shape()), dtype, _reader(path, name))
    except (SafetensorError, OSError) as e:
        raise SfrjaxError(f"{path} is not a readable safetensors file: {e}") from e
    return WeightsFile(path, tensors, metadata)


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _reader(path: Path, name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        # Opened anew for each tensor: the library maps the file, and pages of a long-lived map add to peak memory.
        try:
            with safe_open(path, "np") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise SfrjaxError(f"{path} is not a readable safetensors file: {e}") from e

    return read
