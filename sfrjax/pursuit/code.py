"""What a pursuit returns, and the two ways to read it back as numbers."""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Status(enum.IntEnum):
    """Why the pursuit of one signal ended.

    SPARSITY: `n_nonzero_coefs` atoms are in use.
    TOLERANCE: the residual is within `tol` or `rtol`, or at rounding level (exact recovery; a zero signal).
    EXHAUSTED: no atom is left that could lower the residual: all are in use or in the span of those in use, or
        none correlates with the residual (non-negative: none positively).
    BREAKDOWN: NaN or infinity in this signal or in its dictionary; support -1, coefficients 0, residual norm NaN.
    """

    SPARSITY = 0
    TOLERANCE = 1
    EXHAUSTED = 2
    BREAKDOWN = 3


class SparseCode(NamedTuple):
    """Sparse codes of a batch of signals `[..., D]` over N atoms, at most s atoms each; a pytree.

    support: int32 `[..., s]`, atoms in the order they were chosen, -1 in unused slots.
    coef: float `[..., s]`, in units of the caller's atoms (never of normalised ones), 0 in unused slots.
        With `path=True` `[..., s, s]`: `coef[..., k - 1, :]` is the code with k atoms, over the same `support`.
    residual_norm: float `[...]`, `||y - X_S c||_2`; with `path=True` `[..., s]`. Rows of a path beyond `n_atoms` repeat
        the last one.
    n_atoms: int32 `[...]`, atoms in use.
    status: int32 `[...]`, a `Status`.
    """

    support: jax.Array
    coef: jax.Array
    residual_norm: jax.Array
    n_atoms: jax.Array
    status: jax.Array


def densify(code: SparseCode, n_atoms: int) -> jax.Array:
    """Dense coefficients `[..., n_atoms]` (float, zeros where no atom is used); a path gives `[..., s, n_atoms]`."""
    support = code.support if code.coef.ndim == code.support.ndim else code.support[..., None, :]
    support = jnp.broadcast_to(support, code.coef.shape)
    flat_support, flat_coef = (a.reshape(-1, a.shape[-1]) for a in (support, code.coef))
    # Unused slots go to an extra column, cut off again: -1 would count from the end.
    column = jnp.where(flat_support < 0, n_atoms, flat_support)
    dense = jnp.zeros((flat_coef.shape[0], n_atoms + 1), flat_coef.dtype)
    dense = dense.at[jnp.arange(flat_coef.shape[0])[:, None], column].add(flat_coef)
    return dense[:, :n_atoms].reshape(*code.coef.shape[:-1], n_atoms)
