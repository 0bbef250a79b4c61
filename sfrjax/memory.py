"""How much memory a bank may take, and arrays that JAX takes over without a copy."""

from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
from numpy.typing import DTypeLike

ALIGNMENT = 64  # bytes; from here on XLA's CPU uses a host array as it is


def free_bytes() -> int | None:
    """Bytes that an array on the default device may still take; None where the system does not say.

    On a CPU what Linux counts as available, less where a control group (a container) sets a limit.
    """
    stats = None if jax.default_backend() == "cpu" else jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return host_free_bytes() if jax.default_backend() == "cpu" else None


def host_free_bytes() -> int | None:
    """Bytes that the host has available; None where the system does not say."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        limits.append(1024 * sum(int(fields.get(name, "0").split()[0]) for name in ("MemAvailable", "SwapFree")))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(limits, default=None)


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of unset values that `jax.device_put` need not copy on a CPU."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
