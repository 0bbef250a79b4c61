"""Gram matrices of a bank, in tiles of one shape.

Every tile is a sum of products of the same shapes, whatever the number of images, and an entry of a product depends on
its two rows alone. So the tiles of a bank that grows have the bits that they would have in a bank built at once, and
only those with new images are computed. Memory beside the matrix: one panel of columns, float32.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax.progress import tracked

ROWS = 128  # images of a tile
COLUMNS = 8192  # of one product: short sums keep float32 accurate over half a million terms
POSITIONS = 64  # of per-pixel dictionaries at a time


def fill_gram(
    gram: np.ndarray, atoms: jax.Array | np.ndarray, known: np.ndarray | None = None, *, progress: bool = False
) -> None:
    """Write `atoms @ atoms.T` of the atoms as they are stored, computed in float32.

    Args:
        gram: float32 [N, N] or [P, N, N], written.
        atoms: [N, D] or [P, N, c]; a NumPy array may be a map of a file, which is read once.
        known: the Gram matrix of the first images, computed by this function before.
        progress: show a progress bar on standard error.
    """
    n = atoms.shape[-2]
    kept = 0 if known is None else known.shape[-1]
    if known is not None:
        gram[..., :kept, :kept] = known
    # The tile that the old bank did not fill is computed anew, to the same bits.
    tiles = [(i, j) for i in range(kept // ROWS, -(-n // ROWS)) for j in range(i + 1)]
    positions = list(_blocks(atoms.shape[0], POSITIONS)) if atoms.ndim == 3 else [slice(0)]
    steps = [(block, columns) for block in positions for columns in _blocks(atoms.shape[-1], COLUMNS)]
    sums: dict[tuple[int, int], jax.Array] = {}
    for block, columns in tracked(steps, "Gram matrix", len(steps), shown=progress):
        panel = [_read(atoms, block, rows, columns) for rows in _blocks(n, ROWS)]
        for i, j in tiles:
            product = _product(panel[i], panel[j])
            sums[i, j] = product if columns.start == 0 else _add(sums[i, j], product)
        jax.block_until_ready(sums)  # unbounded, the queue would hold every panel
        if columns.stop == atoms.shape[-1]:
            where = (block,) if atoms.ndim == 3 else ()
            for (i, j), tile in sums.items():
                rows, across = (slice(k * ROWS, min((k + 1) * ROWS, n)) for k in (i, j))
                values = np.asarray(tile)[..., : rows.stop - rows.start, : across.stop - across.start]
                gram[(*where, rows, across)] = values
                gram[(*where, across, rows)] = values.swapaxes(-1, -2)


def _blocks(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _read(atoms: jax.Array | np.ndarray, positions: slice, rows: slice, columns: slice) -> jax.Array:
    """float32 [(P,) ROWS, C], zero in rows beyond the last image."""
    where = (rows, columns) if atoms.ndim == 2 else (positions, rows, columns)
    if isinstance(atoms, np.ndarray):
        part = jnp.asarray(atoms[where])
    else:
        sizes = tuple(s.stop - s.start for s in where)
        part = _slice(atoms, tuple(s.start for s in where), sizes=sizes)
    return _padded(part, size=ROWS)


@partial(jax.jit, static_argnames="sizes")
def _slice(atoms: jax.Array, starts: tuple[int, ...], *, sizes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(atoms, starts, sizes)


@partial(jax.jit, static_argnames="size")
def _padded(part: jax.Array, *, size: int) -> jax.Array:
    missing = size - part.shape[-2]
    return jnp.pad(part.astype(jnp.float32), [(0, 0)] * (part.ndim - 2) + [(0, missing), (0, 0)])


@jax.jit
def _product(rows: jax.Array, across: jax.Array) -> jax.Array:
    return jnp.einsum("...nd,...md->...nm", rows, across, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, donate_argnums=0)
def _add(total: jax.Array, product: jax.Array) -> jax.Array:
    return total + product
