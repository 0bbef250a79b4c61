"""The few operations that touch the atoms themselves: Gram matrix, correlations, and `y - X_S c`.

Everything else works in N dimensions. These are bound by memory bandwidth, so their orientation decides their speed
(measured in DESIGN section 4, and again in benchmarks/omp.py).
"""

import jax
import jax.numpy as jnp
from jax import lax

HIGHEST = lax.Precision.HIGHEST
# Float32 matmul is tf32 or bf16 by default on accelerators, and a greedy argmax amplifies that.


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Working precision: float64 if any array has it, else float32 (half-precision atoms accumulate in float32)."""
    return jnp.dtype(jnp.float64) if any(a.dtype == jnp.float64 for a in arrays) else jnp.dtype(jnp.float32)


def shared_gram(atoms: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`X X^T` `[N, N]` of atoms `[N, D]`, or `[P, N, N]` of `[P, N, D]`."""
    atoms = atoms.astype(dtype)
    return jnp.einsum("...nd,...md->...nm", atoms, atoms, precision=HIGHEST, preferred_element_type=dtype)


def shared_correlations(atoms: jax.Array, signals: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`Y X^T` `[B, N]` for atoms `[N, D]` and signals `[B, D]`, reading the atoms once."""
    batch, width = signals.shape
    if batch == 1 and width % 16 == 0:
        # A matrix-vector product on a CPU runs on one core; this contraction is split over all and stays at memory speed.
        y = signals.astype(dtype).reshape(width // 16, 16)
        x = atoms.reshape(atoms.shape[0], width // 16, 16).astype(dtype)
        return jnp.einsum("nck,ck->n", x, y, precision=HIGHEST)[None]
    product = lax.dot_general(atoms.astype(dtype), signals.astype(dtype).T, (((1,), (0,)), ((), ())), precision=HIGHEST)
    # Without the barrier XLA folds the transpose into the product and picks an orientation that is ten times slower.
    return lax.optimization_barrier(product).T


def own_correlations(atoms: jax.Array, signals: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`X_p y_lp` `[P, L, N]` for atoms `[P, N, D]` and signals `[P, L, D]`."""
    return jnp.einsum("pnd,pld->pln", atoms.astype(dtype), signals.astype(dtype), precision=HIGHEST)


def subtract_rows(atoms: jax.Array, signal: jax.Array, support: jax.Array, coef: jax.Array) -> jax.Array:
    """`y - sum_i c_i X[S_i]` `[D]` for one signal `[D]`, atoms `[N, D]`, support and coef `[s]`.

    Unrolled, so that XLA fuses the chain into one pass over the s rows; a gather would copy them first.
    """
    out = signal
    for i in range(support.shape[0]):
        row = lax.dynamic_index_in_dim(atoms, jnp.maximum(support[i], 0), 0, keepdims=False)
        out = out - coef[i] * row.astype(signal.dtype)
    return out
