"""A large eager call as one execution per core, each of a share of the signals, all at the same time.

XLA deals the small operations of a pursuit's steps to one pool of threads. Within one program the blocks of two loops
therefore keep changing cores, and little is won by the second one. Executions started by threads of their own stay
apart: on two cores W1 of `benchmarks/omp.py` takes 0.5 to 0.65 of the time of one program with two loops, W2 about
the same.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sfrjax.pursuit.blocks import cores

LEAST_SIGNALS = 250  # of a share: the products with the atoms stay products of large matrices
LEAST_WORK = 1 << 21  # of a share, in atoms times steps (some 5 ms): starting a thread costs 0.1 ms


def count_shares(dictionary: jax.Array, signals: jax.Array, s: int) -> int:
    """How many executions a call with concrete arguments is worth; 1 wherever XLA knows better itself."""
    arrays = (dictionary, signals)
    if jax.default_backend() != "cpu" or dictionary.ndim != 2 or any(len(a.devices()) > 1 for a in arrays):
        return 1
    count = int(np.prod(signals.shape[:-1]))
    return max(1, min(cores(), count // LEAST_SIGNALS, count * len(dictionary) * s // LEAST_WORK))


def solve_shares(solve: Callable[[Any], Any], arrays: Any, batch: tuple[int, ...], shares: int) -> Any:
    """`solve` of shares of equal size of `arrays` (a pytree of `[*batch, ...]`), its results `[*batch, ...]` again.

    One size is one compiled program: where it does not divide the batch, the last two shares overlap.
    """
    total = int(np.prod(batch))
    size = -(-total // shares)
    starts = [min(i * size, total - size) for i in range(shares)]
    flat = jax.tree.map(lambda a: a.reshape(total, *a.shape[len(batch) :]), arrays)
    parts = [_rows(flat, start, size=size) for start in starts]
    precise = jax.config.read("jax_enable_x64")  # set by a context, it would not be known to another thread

    def run(part: Any) -> Any:
        with jax.enable_x64(precise):
            return jax.block_until_ready(solve(part))

    with ThreadPoolExecutor(shares) as pool:
        return _joined(list(pool.map(run, parts)), batch=batch)


@partial(jax.jit, static_argnames="size")
def _rows(arrays: Any, start: jax.Array | int, *, size: int) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), arrays)


@partial(jax.jit, static_argnames="batch")
def _joined(parts: list, *, batch: tuple[int, ...]) -> Any:
    def join(*part: jax.Array) -> jax.Array:
        repeated = sum(map(len, part)) - int(np.prod(batch))
        rows = jnp.concatenate([*part[:-1], part[-1][repeated:]])
        return rows.reshape(*batch, *rows.shape[1:])

    return jax.tree.map(join, *parts)
