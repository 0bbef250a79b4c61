"""A weights file, opened but not read: named tensors whose values are fetched one at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file. `read()` returns its values as a NumPy array of this shape and dtype.

    Values are read on demand so that loading never holds more than the parameters and one tensor, and so that a
    hostile file is never asked for tensors that the network does not have.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class WeightsFile:
    """Named tensors, in file order, and the file's own metadata (empty for .pth)."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
