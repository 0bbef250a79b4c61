"""The derivative of a code with its support held fixed: that of least squares on the chosen atoms.

With X_S the chosen atoms, c the coefficients, e the residual and `G = X_S X_S^T`:
`G dc = dX_S e + X_S dy - X_S dX_S^T c`, and `d||e|| = e . (dy - dX_S^T c) / ||e||` (e is orthogonal to the chosen
atoms, so dc drops out), zero where ||e|| is zero.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.linalg import cho_factor, cho_solve

from sfrjax.pursuit.code import SparseCode
from sfrjax.pursuit.products import HIGHEST, compute_dtype, gather_atoms


def code_tangents(
    dictionary: jax.Array, signals: jax.Array, code: SparseCode, d_dictionary: jax.Array, d_signals: jax.Array
) -> SparseCode:
    """Tangents of a code, linear in those of dictionary and signals (either may be a `SymbolicZero`)."""
    support, signals, path = code.support, signals, code.coef.ndim > code.support.ndim
    if path:  # row k uses the first k + 1 slots
        s = support.shape[-1]
        support = jnp.where(jnp.tril(jnp.ones((s, s), bool)), support[..., None, :], -1)
        signals = signals[..., None, :]
        d_signals = d_signals if isinstance(d_signals, SymbolicZero) else d_signals[..., None, :]
    dtype = compute_dtype(dictionary, signals)
    index = support
    if dictionary.ndim == 3:
        offset = jnp.arange(dictionary.shape[0]) * dictionary.shape[1]
        index = index + offset.reshape(-1, *[1] * (1 + path))
    used = support >= 0

    def chosen(array: jax.Array) -> jax.Array:
        return gather_atoms(array.reshape(-1, array.shape[-1]), index, used, dtype)

    def contract(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a, b, precision=HIGHEST)

    atoms = chosen(dictionary)
    residual = signals.astype(dtype) - contract("...s,...sd->...d", code.coef, atoms)
    right = jnp.zeros(code.coef.shape, dtype)
    moved = jnp.zeros(residual.shape, dtype)  # dy - dX_S^T c
    if not isinstance(d_dictionary, SymbolicZero):
        d_atoms = chosen(d_dictionary)
        moved = moved - contract("...s,...sd->...d", code.coef, d_atoms)
        right = right + contract("...sd,...d->...s", d_atoms, residual)
    if not isinstance(d_signals, SymbolicZero):
        moved = moved + d_signals.astype(dtype)
    right = right + contract("...sd,...d->...s", atoms, moved)
    gram = contract("...sd,...td->...st", atoms, atoms)
    gram = jnp.where(used[..., :, None] & used[..., None, :], gram, jnp.eye(gram.shape[-1], dtype=dtype))
    d_coef = cho_solve(cho_factor(gram), jnp.where(used, right, 0)[..., None])[..., 0]
    norm = code.residual_norm
    d_norm = contract("...d,...d->...", residual, moved) / jnp.where(norm > 0, norm, 1)

    def none(a: jax.Array) -> Any:
        return np.zeros(a.shape, jax.dtypes.float0)

    return SparseCode(none(code.support), d_coef, jnp.where(norm > 0, d_norm, 0), none(code.n_atoms), none(code.status))
