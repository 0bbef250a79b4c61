"""Cache blocking: a batch of pursuits in blocks that fit the cache, in as many independent loops as there are cores."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

CACHE_FLOATS = 120_000  # working set of a block, in numbers (0.5 MB): flat optimum between half and four times of it
MOST_LANES = 4  # every lane is compiled anew


def map_blocks(
    solve: Callable[[Any], Any], arrays: Any, floats_per_row: int, most_lanes: int = MOST_LANES, least: int = 8
) -> Any:
    """`solve` applied to blocks of rows of `arrays` (a pytree, `[b, ...]` each), results put together again.

    On a CPU a block is as large as the cache allows. XLA runs one loop on one core, but independent loops of one
    program at the same time: the blocks are dealt to as many loops as there are cores, with no environment variable
    and no second device. Elsewhere the batch is one block. A block has at least `least` rows.
    """
    b = jax.tree.leaves(arrays)[0].shape[0]
    if jax.default_backend() != "cpu" or b == 0:
        return solve(arrays)
    # Overheads of a step are shared by a block's signals: wide problems get more of them than the second-level cache
    # holds, within reason.
    target = max(least, min(24, 4 * CACHE_FLOATS // floats_per_row), CACHE_FLOATS // floats_per_row)
    count = -(-b // target)
    if count == 1:
        return solve(arrays)
    lanes = min(count, cores(), most_lanes)
    rounds = next((r for r in range(-(-count // lanes), 2 * count) if b % (lanes * r) == 0), -(-count // lanes))
    size = -(-b // (lanes * rounds))
    padding = lanes * rounds * size - b  # a copy of everything; avoided above where a slightly smaller block divides b
    if padding:
        arrays = jax.tree.map(lambda a: jnp.concatenate([a, jnp.broadcast_to(a[:1], (padding, *a.shape[1:]))]), arrays)

    def block(i: jax.Array) -> Any:
        return solve(jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * size, size), arrays))

    parts = [lax.map(block, jnp.arange(lane * rounds, (lane + 1) * rounds)) for lane in range(lanes)]
    return jax.tree.map(lambda *part: jnp.concatenate(part).reshape(-1, *part[0].shape[2:])[:b], *parts)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
