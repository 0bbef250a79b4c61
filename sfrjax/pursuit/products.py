"""The few operations that touch the atoms themselves: Gram matrix, correlations, and `y - X_S c`.

Everything else works in N dimensions. These are bound by memory bandwidth, so their orientation decides their speed.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sfrjax.pursuit.code import SparseCode

# Float32 products are tf32 or bfloat16 by default on accelerators, and a greedy choice amplifies that.
HIGHEST = lax.Precision.HIGHEST
UNROLLED = 16  # signals whose long row chains are compiled one by one
HALF_BLOCK = 1 << 22  # most numbers of a block of half-precision atoms in working precision (16 MB)
CHUNK = 1 << 14  # entries of rows that are gathered at a time: the copy stays in the cache
LONG = 1 << 15  # from this many entries on, one signal's row chain keeps all cores busy


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Working precision: float64 if any array has it, else float32 (half-precision atoms accumulate in float32)."""
    return jnp.dtype(jnp.float64) if any(a.dtype == jnp.float64 for a in arrays) else jnp.dtype(jnp.float32)


def gram_matrix(atoms: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`X X^T` `[..., N, N]` of atoms `[..., N, D]`."""
    atoms = atoms.astype(dtype)
    return jnp.einsum("...nd,...md->...nm", atoms, atoms, precision=HIGHEST)


def shared_correlations(atoms: jax.Array, signals: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`Y X^T` `[B, N]` for atoms `[N, D]` and signals `[B, D]`, reading the atoms once."""
    batch, width = signals.shape
    rows = max(1, HALF_BLOCK // width)
    if atoms.dtype.itemsize == 2 and len(atoms) > rows:
        return _half_precision_correlations(atoms, signals, dtype, rows)
    atoms, signals = atoms.astype(dtype), signals.astype(dtype)
    if batch == 1 and width % 16 == 0:
        # A matrix-vector product on a CPU runs on one core; this contraction is split over all, at memory speed.
        x = atoms.reshape(atoms.shape[0], width // 16, 16)
        return jnp.einsum("nck,ck->n", x, signals.reshape(width // 16, 16), precision=HIGHEST)[None]
    product = jnp.dot(atoms, signals.T, precision=HIGHEST)
    # Without the barrier XLA folds the transpose into the product and picks an orientation ten times slower.
    return lax.optimization_barrier(product).T


def _half_precision_correlations(atoms: jax.Array, signals: jax.Array, dtype: jnp.dtype, rows: int) -> jax.Array:
    """Converted a block at a time: at once, the copy would undo what half precision saves, and be slower besides."""

    def block(part: jax.Array) -> jax.Array:
        # The barrier keeps the conversion out of the product, where it would be repeated for every signal.
        return shared_correlations(lax.optimization_barrier(part.astype(dtype)), signals, dtype)

    whole = len(atoms) // rows
    parts = lax.map(lambda i: block(lax.dynamic_slice_in_dim(atoms, i * rows, rows)), jnp.arange(whole))
    first = parts.swapaxes(0, 1).reshape(len(signals), whole * rows)
    return jnp.concatenate([first, block(atoms[whole * rows :])], axis=1) if len(atoms) % rows else first


def own_correlations(atoms: jax.Array, signals: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`X_p y_pl` `[P, L, N]` for atoms `[P, N, D]` and signals `[P, L, D]`."""
    product = jnp.einsum("pnd,pld->pnl", atoms.astype(dtype), signals.astype(dtype), precision=HIGHEST)
    # As in `shared_correlations`: with the transpose folded in, six times as slow for several signals a position.
    return lax.optimization_barrier(product).swapaxes(1, 2)


def candidate_correlations(atoms: jax.Array, signals: jax.Array, index: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x_j . y_b` `[B, K]` for signals `[B, D]` and the atoms j in `index` `[B, K]`, the only ones of `[N, D]` read."""
    width = atoms.shape[1]

    def part(start: jax.Array | int, length: int) -> jax.Array:
        chosen = lax.dynamic_slice_in_dim(atoms, start, length, 1)[index]
        return own_correlations(chosen, lax.dynamic_slice_in_dim(signals, start, length, 1)[:, None], dtype)[:, 0]

    whole = width // CHUNK
    total = part(whole * CHUNK, width - whole * CHUNK)
    return total + jnp.sum(lax.map(lambda i: part(i * CHUNK, CHUNK), jnp.arange(whole)), 0) if whole else total


def gather_atoms(atoms: jax.Array, index: jax.Array, used: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Atoms `[..., s, D]` at `index` `[..., s]` of `[T, D]`, zero where not `used`."""
    return jnp.where(used[..., None], atoms[jnp.where(used, index, 0)].astype(dtype), 0)


def residual(dictionary: jax.Array, signals: jax.Array, code: SparseCode) -> jax.Array:
    """`y - X_S c` `[..., D]` for dictionary `[N, D]` or `[P, N, D]` and signals `[..., D]` as given to `omp`.

    Reads s rows per signal and writes the result, in one fused pass. float32, or float64 if an argument is. Raises
    ValueError for a code with a path (take one row of it: `code._replace(coef=code.coef[..., k - 1, :])`).
    """
    dictionary, signals = jnp.asarray(dictionary), jnp.asarray(signals)
    if code.coef.shape != code.support.shape:
        raise ValueError("this code holds a whole path; take one row: code._replace(coef=code.coef[..., k - 1, :])")
    if signals.shape != (*code.support.shape[:-1], dictionary.shape[-1]):
        expected = (*code.support.shape[:-1], dictionary.shape[-1])
        raise ValueError(f"signals must have shape {expected}, as this code and dictionary have; got {signals.shape}")
    return _residual(dictionary, signals, code.support, code.coef)


@jax.jit
def _residual(dictionary: jax.Array, signals: jax.Array, support: jax.Array, coef: jax.Array) -> jax.Array:
    dtype = compute_dtype(dictionary, signals)
    width = dictionary.shape[-1]
    # An unused slot reads the first atom chosen: another one may be NaN, and 0 * NaN is not 0.
    index = jnp.maximum(jnp.where(support < 0, support[..., :1], support), 0)
    if dictionary.ndim == 3:
        index = index + jnp.arange(dictionary.shape[0])[:, None] * dictionary.shape[1]
    table = dictionary.reshape(-1, width)
    s = support.shape[-1]
    flat = (signals.astype(dtype).reshape(-1, width), index.reshape(-1, s), coef.astype(dtype).reshape(-1, s))
    # Unrolled: XLA fuses the chain into one pass over the rows, where a gather would copy them first. A sum to the norm
    # inside the same fusion would undo that.
    if width >= LONG:
        count = flat[0].shape[0]
        if 0 < count <= UNROLLED:
            out = jnp.stack([_subtract_rows(table, *(a[i] for a in flat)) for i in range(count)])
        else:
            out = lax.map(lambda a: _subtract_rows(table, *a), flat)
        return out.reshape(signals.shape)
    out, index, coef = flat
    for i in range(s):
        out = out - coef[:, i, None] * table[index[:, i]].astype(dtype)
    return out.reshape(signals.shape)


def _subtract_rows(atoms: jax.Array, signal: jax.Array, index: jax.Array, coef: jax.Array) -> jax.Array:
    for i in range(index.shape[0]):
        signal = signal - coef[i] * lax.dynamic_index_in_dim(atoms, index[i], 0, keepdims=False).astype(signal.dtype)
    return signal


def reconstruct(dictionary: jax.Array, code: SparseCode) -> jax.Array:
    """`X_S c` `[..., D]`, the approximation that the code stands for; shapes and errors as `residual`."""
    dictionary = jnp.asarray(dictionary)
    shape = (*code.support.shape[:-1], dictionary.shape[-1])
    return -residual(dictionary, jnp.zeros(shape, compute_dtype(dictionary, code.coef)), code)
