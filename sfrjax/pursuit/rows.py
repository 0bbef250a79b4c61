"""OMP in Gram space on orthonormalised rows.

How it differs from the textbook (choose, least squares, new residual):

1. No residual vector: only its correlations `alpha = X e` `[N]` are kept. Each new atom adds one orthonormal direction
   q_k, whose row `r_k = X q_k` comes from the Gram row by Gram-Schmidt, `r_k = (G[j] - sum_i r_i[j] r_i) / d`; then
   `alpha <- alpha - z r_k` with `z = alpha[j] / d`.
2. No least squares while choosing: the kept rows contain the triangular factor of the support, and one back
   substitution at the end gives the coefficients.
3. `h = G_jj - sum_k r_k[j]^2` is every atom's squared distance to the span of the support, its pivot, known before
   the choice. Atoms in the span (duplicates, and the support itself) are not eligible, so that no factorisation
   can fail.
4. Signals have unit norm, so that rounding level is a number: atoms that correlate with the residual less than that
   are not eligible, which ends the pursuit at exact recovery.
5. Always s iterations. A finished signal chooses nothing and changes nothing: no flag is kept for it.
6. The s kept rows grow in two stages, so that the first half of the iterations does half the work.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sfrjax.pursuit.products import HIGHEST
from sfrjax.pursuit.step import DEPENDENT, Problem, Solution, at, choose, correlation_floor, finish, put


def pursue(problem: Problem, *, n_nonzero_coefs: int, selection: str, path: bool) -> Solution:
    """Solve one block; storage s x N per signal."""
    s = n_nonzero_coefs
    b, n = problem.correlations.shape
    dtype = problem.correlations.dtype
    least_height = DEPENDENT * float(jnp.finfo(dtype).eps) * problem.diag
    floor = correlation_floor(problem.diag, problem.allowed)

    def step(k: jax.Array, state: tuple) -> tuple:
        rows, alpha, height, sq, support, zs, sqs = state
        eligible = (height > least_height) & (alpha * alpha > floor)
        j, found = choose(alpha, eligible, problem.weights, selection)
        going = found & (sq > problem.sq_tol)
        inverse = jnp.where(going, lax.rsqrt(jnp.where(going, at(height, j), 1)), 0)
        z = at(alpha, j) * inverse
        known = jnp.einsum("bs,bsn->bn", at(rows, j), rows, precision=HIGHEST)
        row = (problem.row(j) - known) * inverse[:, None]
        row = lax.optimization_barrier(row)
        sq = jnp.maximum(sq - z * z, 0)
        return (
            put(rows, row, k, 1),
            alpha - z[:, None] * row,
            height - row * row,
            sq,
            put(support, jnp.where(going, j, -1), k, 0),
            put(zs, z, k, 0),
            put(sqs, sq, k, 0),
        )

    state: tuple = (
        jnp.zeros((b, 0, n), dtype),
        problem.correlations,
        jnp.broadcast_to(problem.diag, (b, n)),
        jnp.ones(b, dtype),
        jnp.full((s, b), -1, jnp.int32),
        jnp.zeros((s, b), dtype),
        jnp.zeros((s, b), dtype),
    )
    for start, stop in ((0, (s + 1) // 2), ((s + 1) // 2, s)):
        rows = jnp.pad(state[0], ((0, 0), (0, stop - start), (0, 0)))
        state = lax.fori_loop(start, stop, step, (rows, *state[1:]))
    rows, alpha, _, sq, support, zs, sqs = state
    support = support.T
    directions = jnp.take_along_axis(rows, jnp.maximum(support, 0)[:, None, :], 2)
    solution = finish(directions, zs.T, support, sqs.T if path else sq, path)
    # NaN never wins a comparison, it only makes atoms unavailable: look for it once, at the end.
    finite = jnp.isfinite(alpha) if problem.allowed is None else jnp.isfinite(alpha) | ~problem.allowed
    return solution._replace(broken=solution.broken | ~jnp.all(finite, -1))
