"""What the algorithms have in common: the problem they are given, what they return, and the choice of the next atom."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sfrjax.pursuit.products import HIGHEST

# Both in units of eps, relative to the atom's own size, so that rescaling signals or atoms changes nothing.
DEPENDENT = 32.0  # an atom whose squared distance to the span of the support is below this share of its squared norm
ROUNDING = 8.0  # a cosine between atom and residual below this is rounding noise (signals have unit norm)


class Problem(NamedTuple):
    """A block of b pursuits over N atoms each, in Gram space, with every signal scaled to unit norm.

    rows: `[T, N]`, Gram rows of one dictionary, or of several one after the other: atom j of signal i has row
        `first[i] + j`.
    first: int32 `[b]`.
    columns: int32 `[b, N]`, or None: where rows are wider than N, the columns (and with `first` the rows) of the atoms.
    diag: `[b, N]` or `[1, N]`, squared norms of the atoms.
    correlations: `[b, N]`.
    weights: `[b, N]`, `[1, N]` or None: factors on the correlations in the choice (1 / norm with `unit_norm`).
    allowed: bool `[b, N]` or None: atoms that may be chosen.
    sq_tol: `[b]`, squared residual norm at which to stop, relative to the signal's; infinity for one not to be started.
    """

    rows: jax.Array
    first: jax.Array
    columns: jax.Array | None
    diag: jax.Array
    correlations: jax.Array
    weights: jax.Array | None
    allowed: jax.Array | None
    sq_tol: jax.Array

    def row(self, j: jax.Array) -> jax.Array:
        """Gram row `[b, N]` of the atoms j `[b]`."""
        if self.columns is None:
            return self.rows[self.first + j]
        # In range; the checks that XLA would make for every entry take as long as the reading.
        place = (self.first + at(self.columns, j))[:, None], self.columns
        return self.rows.at[place].get(mode="promise_in_bounds")


class Solution(NamedTuple):
    """Of b pursuits with at most s atoms, in units of the scaled signals.

    support: int32 `[b, s]`, -1 unused.
    coef: `[b, s]`, or `[b, s, s]` for a path.
    sq_norm: `[b]`, or `[b, s]` for a path: squared residual norms, with an absolute error of some eps in Gram space.
    factor: `[b, s, s]`, upper triangular U with `X_S X_S^T = U^T U`; identity in unused slots.
    broken: bool `[b]`, NaN or infinity was met.
    """

    support: jax.Array
    coef: jax.Array
    sq_norm: jax.Array
    factor: jax.Array
    broken: jax.Array


def correlation_floor(diag: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """Squared correlation up to which an atom is not eligible; infinite for atoms that may not be chosen at all."""
    floor = (ROUNDING * float(jnp.finfo(diag.dtype).eps)) ** 2 * diag
    return floor if allowed is None else jnp.where(allowed, floor, jnp.inf)


def choose(
    alpha: jax.Array, eligible: jax.Array, weights: jax.Array | None, selection: str
) -> tuple[jax.Array, jax.Array]:
    """The atom `[b]` with the best correlation `alpha` `[b, N]` among the eligible ones, and whether there is one."""
    score = alpha if selection == "signed" else jnp.abs(alpha)
    score = score if weights is None else score * weights
    # One materialised score: XLA would otherwise compute it again for the maximum and for its position.
    score = lax.optimization_barrier(jnp.where(eligible, score, -jnp.inf))
    best, best_score = argmax(score)
    return best, best_score > -jnp.inf


def argmax(score: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First position `[b]` int32 and value `[b]` of the maximum along the last axis of `[b, N]`, N >= 1.

    On a CPU a reduction along the last axis is a scalar loop, an argmax one with branches (3 ns an element). Folding
    slices onto each other first is elementwise, hence vectorised: five times faster at N = 256.
    """
    n = score.shape[-1]
    if jax.default_backend() != "cpu":
        return jnp.argmax(score, -1).astype(jnp.int32), jnp.max(score, -1)
    best = _fold(score, jnp.maximum, -jnp.inf).max(-1)
    where = jnp.where(score == best[:, None], jnp.arange(n, dtype=jnp.int32), n)
    return jnp.minimum(_fold(where, jnp.minimum, n).min(-1), n - 1), best


def _fold(x: jax.Array, combine, fill: float) -> jax.Array:  # type: ignore[no-untyped-def]
    """Combine slices of the last axis until at most 16 columns are left."""
    while (n := x.shape[-1]) > 16:
        width = 16 if n <= 1024 else -(-n // 64 // 16) * 16
        x = jnp.pad(x, ((0, 0), (0, -n % width)), constant_values=fill)
        parts = [x[:, i : i + width] for i in range(0, x.shape[-1], width)]
        while len(parts) > 1:
            paired = [combine(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = paired + parts[2 * len(paired) :]
        # Kept apart from the reduction that follows; fused into it, this would be scalar again.
        x = lax.optimization_barrier(parts[0])
    return x


def at(x: jax.Array, j: jax.Array) -> jax.Array:
    """`x[i, ..., j[i]]` for x `[b, ..., N]` and j `[b]`."""
    index = j.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis=-1)[..., 0]


def put(x: jax.Array, row: jax.Array, k: jax.Array, axis: int) -> jax.Array:
    """`x` with `row` as entry k of `axis`."""
    return lax.dynamic_update_index_in_dim(x, row, k, axis)


def finish(directions: jax.Array, z: jax.Array, support: jax.Array, sq_norm: jax.Array, path: bool) -> Solution:
    """From directions `q_k . x_{S_i}` `[b, s, s]` and `z_k = q_k . y` `[b, s]` to coefficients: solve `U c = z`."""
    s = support.shape[1]
    used = support >= 0
    upper = jnp.triu(jnp.ones((s, s), bool)) & used[:, None, :] & used[:, :, None]
    factor = jnp.where(upper, directions, jnp.eye(s, dtype=z.dtype))
    if path:
        inverse = back_substitute(factor, jnp.broadcast_to(jnp.eye(s, dtype=z.dtype), factor.shape))
        coef = jnp.cumsum(inverse * z[:, None, :], -1).swapaxes(1, 2)
    else:
        coef = back_substitute(factor, z[:, :, None])[:, :, 0]
    return Solution(support, coef, sq_norm, factor, ~jnp.all(jnp.isfinite(coef), range(1, coef.ndim)))


def back_substitute(upper: jax.Array, rhs: jax.Array) -> jax.Array:
    """`U^-1 rhs` for upper triangular `[b, s, s]` and `[b, s, m]`: batched products, where LAPACK goes one by one."""
    s = upper.shape[1]
    diagonal = jnp.diagonal(upper, axis1=1, axis2=2)

    def step(i: jax.Array, x: jax.Array) -> jax.Array:
        k = s - 1 - i
        row = lax.dynamic_index_in_dim(upper, k, 1, keepdims=False)
        known = jnp.einsum("bi,bim->bm", row, x, precision=HIGHEST)
        right = lax.dynamic_index_in_dim(rhs, k, 1, keepdims=False)
        pivot = lax.dynamic_index_in_dim(diagonal, k, 1)
        return put(x, (right - known) / pivot, k, 1)

    return lax.fori_loop(0, s, step, jnp.zeros_like(rhs))
