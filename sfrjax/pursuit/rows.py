"""OMP in Gram space on orthonormalised rows: no separate factor, no triangular solve.

How it differs from the textbook (select, least squares, new residual):

1. No residual vector: only its correlations `alpha = X e` `[N]` are kept. Each new atom contributes one orthonormal
   direction q_k; its row `r_k = X q_k` follows from the Gram row by Gram-Schmidt, `r_k = (G[j] - sum_i r_i[j] r_i) / d`,
   and `alpha <- alpha - z r_k` with `z = alpha[j] / d`.
2. No least squares: the rows carry s more columns that start as the identity, so that the same update builds the
   inverse Cholesky factor, and the tail of `alpha` is the coefficient vector (negated).
3. `h = G_jj - sum_k r_k[j]^2`, the squared distance of every atom to the span of the support, decides which atoms are
   still eligible. It is the pivot of each atom, known before the choice: duplicates and dependent atoms are never chosen, so
   there is no failed factorisation to recover from. Its threshold is relative to G_jj.
4. Signals have unit norm here (the caller scales), so rounding level is a number: an atom whose correlation with the
   residual is below it is not chosen, which ends the pursuit at exact recovery.
5. s iterations always; a finished signal is masked.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sfrjax.pursuit.code import Status
from sfrjax.pursuit.products import HIGHEST


class Problem(NamedTuple):
    """A block of b pursuits in Gram space. N atoms each; signals scaled to unit norm.

    rows: `[T, N]` Gram rows of one dictionary, or of several one after the other; signal i uses rows `first[i] + j`.
    diag: `[b, N]` or `[1, N]`, squared norms of the atoms.
    correlations: `[b, N]`.
    weights: `[b, N]`, `[1, N]` or None, factors on the correlations for selection (1 / norm with `unit_norm`).
    allowed: bool `[b, N]` or None, which atoms may be chosen.
    tol: `[b]`, residual norm at which to stop, relative to the signal's.
    alive: bool `[b]`, False for a signal whose pursuit must not start; `status` says why not.
    status: int32 `[b]`.
    """

    rows: jax.Array
    first: jax.Array
    diag: jax.Array
    correlations: jax.Array
    weights: jax.Array | None
    allowed: jax.Array | None
    tol: jax.Array
    alive: jax.Array
    status: jax.Array


class Solution(NamedTuple):
    """Of b pursuits: support int32 `[b, s]`; coef `[b, s]` (path: `[b, s, s]`); sq_norm `[b]` (path: `[b, s]`), the
    running squared residual norm, relative to the signal's and with an absolute error of some eps; alive, status `[b]`;
    inverse_factor `[b, s, s]`, row k the k-th orthonormal direction in terms of the support.
    """

    support: jax.Array
    coef: jax.Array
    sq_norm: jax.Array
    status: jax.Array
    inverse_factor: jax.Array


def choose(
    alpha: jax.Array, eligible: jax.Array, floor: jax.Array, weights: jax.Array | None, selection: str
) -> tuple[jax.Array, jax.Array]:
    """The best atom `[b]` and whether there is one `[b]`; `floor` is the squared correlation at rounding level."""
    above = eligible & (alpha * alpha > floor)
    score = alpha if weights is None else alpha * weights
    if selection == "absolute":
        score = jnp.where(above, jnp.abs(score), -jnp.inf)
        found = jnp.any(above, -1)
    else:
        # The signed rule may choose an atom that correlates negatively or hardly, as long as some atom still helps.
        score = jnp.where(eligible, score, -jnp.inf)
        found = jnp.any(above, -1)
    return jnp.argmax(score, -1).astype(jnp.int32), found


def pursue(problem: Problem, *, n_nonzero_coefs: int, selection: str, path: bool) -> Solution:
    """Solve one block; see the module's docstring."""
    s = n_nonzero_coefs
    b, n = problem.correlations.shape
    dtype = problem.correlations.dtype
    eps = float(jnp.finfo(dtype).eps)
    threshold = 16 * eps * problem.diag
    floor = (8 * eps) ** 2 * problem.diag
    allowed = jnp.ones((b, n), bool) if problem.allowed is None else problem.allowed

    def step(k: jax.Array, state: tuple) -> tuple:
        rows, alpha, height, sq, support, alive, status, coefs, sqs = state
        j, found = choose(alpha[:, :n], (height > threshold) & allowed, floor, problem.weights, selection)
        gram_row = problem.rows[problem.first + j]
        pivot = jnp.take_along_axis(height, j[:, None], 1)
        status = jnp.where(alive & ~found, Status.EXHAUSTED, status)
        alive = alive & found
        inverse = jnp.where(alive[:, None], lax.rsqrt(jnp.maximum(pivot, jnp.finfo(dtype).tiny)), 0)

        earlier = jnp.take_along_axis(rows, j[:, None, None], 2)[:, :, 0]
        unit = jnp.broadcast_to((jnp.arange(s) == k).astype(dtype), (b, s))
        row = jnp.concatenate([gram_row, unit], 1)
        row = (row - jnp.einsum("bs,bsn->bn", earlier, rows, precision=HIGHEST)) * inverse
        z = jnp.take_along_axis(alpha, j[:, None], 1) * inverse
        rows = lax.dynamic_update_index_in_dim(rows, row, k, 1)
        alpha = alpha - z * row
        height = height - row[:, :n] ** 2
        sq = jnp.maximum(sq - z[:, 0] ** 2, 0)
        support = support.at[:, k].set(jnp.where(alive, j, -1))
        reached = alive & (sq <= problem.tol**2)
        status = jnp.where(reached, Status.TOLERANCE, status)
        if path:
            coefs = lax.dynamic_update_index_in_dim(coefs, -alpha[:, n:], k, 1)
            sqs = lax.dynamic_update_index_in_dim(sqs, sq, k, 1)
        return rows, alpha, height, sq, support, alive & ~reached, status, coefs, sqs

    state = (
        jnp.zeros((b, s, n + s), dtype),
        jnp.concatenate([problem.correlations, jnp.zeros((b, s), dtype)], 1),
        jnp.broadcast_to(problem.diag, (b, n)),
        jnp.ones(b, dtype),
        jnp.full((b, s), -1, jnp.int32),
        problem.alive,
        problem.status,
        jnp.zeros((b, s, s) if path else (0,), dtype),
        jnp.zeros((b, s) if path else (0,), dtype),
    )
    rows, alpha, _, sq, support, _, status, coefs, sqs = lax.fori_loop(0, s, step, state)
    if not path:
        coefs, sqs = -alpha[:, n:], sq
    # NaN never wins a comparison, so it would only make atoms unavailable: look for it once, at the end.
    broken = ~jnp.all(jnp.isfinite(alpha[:, :n]) | ~allowed, -1) | ~jnp.all(jnp.isfinite(alpha[:, n:]), -1)
    status = jnp.where(broken, Status.BREAKDOWN, status)
    return Solution(support, coefs, sqs, status, rows[:, :, n:])
