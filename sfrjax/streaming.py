"""Reconstruction from dictionaries on disk: what a batch needs of them is read, solved in memory, and dropped.

A dictionary is on disk where its atoms are a NumPy array (a map of the bank file). Its full-vector Gram matrix is in
memory, a per-pixel one on disk, too. What a batch reads:

* full-vector, with sampling: the s_ref nominal images that each test image may use;
* full-vector, without: every nominal image once, to correlate it with the batch, then s of them per test image;
* per-pixel: everything once, a few positions at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax.pursuit import omp

BLOCK = 1 << 26  # bytes of a dictionary in memory at a time


def solve_vectors(
    solve: Callable,
    atoms: np.ndarray,
    gram: jax.Array,
    features: jax.Array,
    support: jax.Array | None,
    *,
    s: int,
    eps: float,
) -> jax.Array:
    """Residual norms [B, h, w] in full-vector mode.

    Args:
        solve: (atoms, gram, features, support, s=, eps=) -> norms, for atoms in memory.
        atoms: [N, D], on disk.
        gram: float32 [N, N].
        features: float32 [B, h, w, c].
        support: int32 [B, K] or [1, K], images that may be used, -1 in unused slots; all where None.
        s, eps: sparsity and tolerance.
    """
    n = len(atoms)
    if support is None or support.shape[-1] == n:
        support = choose(atoms, gram, features.reshape(len(features), -1), support, s=s, eps=eps)
    norms = []
    for i, chosen in enumerate(np.asarray(support)):
        rows = np.maximum(chosen, 0)
        few = np.asarray(atoms[rows])
        images = features if len(support) == 1 else features[i : i + 1]
        allowed = np.where(chosen < 0, -1, np.arange(len(rows), dtype=np.int32))
        norms.append(solve(few, gram[rows][:, rows], images, allowed[None], s=s, eps=eps))
    return jnp.concatenate(norms)


def choose(
    atoms: np.ndarray, gram: jax.Array, signals: jax.Array, allowed: jax.Array | None, *, s: int, eps: float
) -> jax.Array:
    """Support int32 [B, s] of a pursuit of signals [B, D] whose atoms [N, D] are read once, to correlate them."""
    step = max(1, BLOCK // (atoms.shape[1] * atoms.itemsize))
    blocks = [_correlate(np.asarray(atoms[start : start + step]), signals) for start in range(0, len(atoms), step)]
    # With Gram matrix and correlations given, all that the choice needs of the signals themselves is their norm.
    norm_only = jnp.zeros((len(signals), s)).at[:, 0].set(jnp.linalg.norm(signals, axis=1))
    stand_in = jnp.zeros((len(atoms), s))
    return omp(
        stand_in,
        norm_only,
        n_nonzero_coefs=s,
        tol=eps,
        selection="signed",
        gram=gram,
        correlations=jnp.concatenate(blocks, axis=1),
        candidates=allowed,
    ).support


@jax.jit
def _correlate(atoms: jax.Array, signals: jax.Array) -> jax.Array:
    return jnp.dot(signals, atoms.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)


def solve_positions(
    solve: Callable,
    atoms: np.ndarray,
    gram: np.ndarray | None,
    features: jax.Array,
    support: jax.Array | None,
    *,
    s: int,
    eps: float,
) -> jax.Array:
    """Residual norms [B, h, w] in per-pixel mode; atoms [P, N, c] and gram [P, N, N] are on disk, the rest as above."""
    batch, height, width, channels = features.shape
    positions, n = atoms.shape[:2]
    most = max(1, BLOCK // (n * (channels * atoms.itemsize + (0 if gram is None else 4 * n))))
    step = max(k for k in range(1, min(most, positions) + 1) if positions % k == 0)  # blocks of one shape
    columns = features.reshape(batch, positions, 1, channels)
    norms = []
    for start in range(0, positions, step):
        part = slice(start, start + step)
        few = None if gram is None else np.asarray(gram[part])
        norms.append(solve(np.asarray(atoms[part]), few, columns[:, part], support, s=s, eps=eps))
    return jnp.concatenate(norms, axis=1).reshape(batch, height, width)
