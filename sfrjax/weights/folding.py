"""From a checkpoint's tensors to folded parameters: a bijection or an error that lists everything wrong."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from sfrjax.errors import SfrjaxError
from sfrjax.weights.tensors import StoredTensor, WeightsFile

Names = Callable[[str], list[tuple[str, str]]]

_STATISTICS = ("weight", "bias", "running_mean", "running_var")


@dataclass
class _Problems:
    """Everything found wrong with one file, by kind."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        self.found.setdefault(kind, []).append(what)

    def raise_if_any(self, file: WeightsFile, network: str) -> None:
        if self.found:
            listed = "; ".join(f"{kind}: {', '.join(items)}" for kind, items in self.found.items())
            raise SfrjaxError(f"{file.path} does not hold the weights of {network}. {listed}")


def fold_checkpoint(
    file: WeightsFile,
    network: str,
    kernels: Mapping[str, tuple[int, ...]],
    names: Names,
    ignored: Iterable[str],
    eps: float,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Folds each convolution's BatchNorm into it: kernel * g / sqrt(var + eps), and beta - mean * g / sqrt(var + eps).

    Args:
        file: a checkpoint with torchvision-like names.
        network: its name, for messages.
        kernels: path of every convolution -> folded kernel shape, [k, k, C_in, C_out] or (depthwise) [k, k, C].
        names: path -> the (convolution, BatchNorm) names it may have, one per naming scheme, in the same order always.
        ignored: names that may be present and are not used (classifier); BatchNorm's counters always may.
        eps: BatchNorm's epsilon.

    Returns:
        An iterator of (path, kernel, bias), float32, largest kernels first. The file is checked for names and shapes
        before this returns, for values as they are read, with the error raised when all have been.

    Raises:
        SfrjaxError: missing, mis-shaped or unknown tensors (all of them in one message); NaN or infinite values.
    """
    schemes = range(max(len(names(path)) for path in kernels))
    scheme = max(schemes, key=lambda i: sum(f"{names(path)[i][0]}.weight" in file.tensors for path in kernels))
    # Largest first, so that the temporaries of a large one meet an empty memory.
    order = sorted(kernels, key=lambda path: math.prod(kernels[path]), reverse=True)
    pairs = {path: names(path)[scheme] for path in order}

    expected: dict[str, tuple[int, ...]] = {}
    for path, shape in kernels.items():
        conv, norm = pairs[path]
        # torch: [C_out, C_in, k, k], depthwise [C, 1, k, k].
        expected[f"{conv}.weight"] = (shape[-1], shape[2] if len(shape) == 4 else 1, shape[0], shape[1])
        expected.update({f"{norm}.{part}": (shape[-1],) for part in _STATISTICS})
    allowed = set(ignored) | {name for name in file.tensors if name.endswith(".num_batches_tracked")}
    _check_names(file, network, expected, allowed)
    return _folded(file, network, pairs, eps)


def read_folded(
    file: WeightsFile, network: str, kernels: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Like `fold_checkpoint`, for a file that `sfrjax weights convert` wrote: PATH.kernel and PATH.bias, folded."""
    expected = {f"{path}.kernel": tuple(shape) for path, shape in kernels.items()}
    expected |= {f"{path}.bias": (shape[-1],) for path, shape in kernels.items()}
    _check_names(file, network, expected, set())

    def read() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        problems = _Problems()
        for path in kernels:
            yield path, _finite(file, f"{path}.kernel", problems), _finite(file, f"{path}.bias", problems)
        problems.raise_if_any(file, network)

    return read()


def _folded(
    file: WeightsFile, network: str, pairs: Mapping[str, tuple[str, str]], eps: float
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    problems = _Problems()
    for path, (conv, norm) in pairs.items():
        gamma, beta, mean, variance = (
            _finite(file, f"{norm}.{part}", problems).astype(np.float64) for part in _STATISTICS
        )
        if (variance < 0).any():
            problems.add("negative variance", f"{norm}.running_var")
            variance = np.abs(variance)
        gain = gamma / np.sqrt(variance + eps)
        weight = _finite(file, f"{conv}.weight", problems)
        weight = weight[:, 0].transpose(1, 2, 0) if _is_depthwise(weight) else weight.transpose(2, 3, 1, 0)
        kernel = np.empty(weight.shape, np.float32)
        np.multiply(weight, gain.astype(np.float32), out=kernel)
        yield path, kernel, (beta - mean * gain).astype(np.float32)
    problems.raise_if_any(file, network)


def _is_depthwise(weight: np.ndarray) -> bool:
    return weight.shape[1] == 1


def _check_names(file: WeightsFile, network: str, expected: Mapping[str, tuple[int, ...]], allowed: set[str]) -> None:
    problems = _Problems()
    for name, shape in expected.items():
        tensor: StoredTensor | None = file.tensors.get(name)
        if tensor is None:
            problems.add("missing", name)
        elif tensor.shape != shape:
            problems.add("of another shape", f"{name} {list(tensor.shape)} instead of {list(shape)}")
        elif tensor.dtype.kind in "biu":
            problems.add("not of floating-point type", f"{name} ({tensor.dtype})")
    for name in file.tensors.keys() - expected.keys() - allowed:
        problems.add("unknown", name)
    problems.found = {kind: sorted(items) for kind, items in problems.found.items()}
    problems.raise_if_any(file, network)


def _finite(file: WeightsFile, name: str, problems: _Problems) -> np.ndarray:
    values = file.tensors[name].read()
    if values.dtype != np.float16:  # NumPy multiplies float16 by float32 in blocks, without a copy
        values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        problems.add("with NaN or infinite values", name)
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return values
