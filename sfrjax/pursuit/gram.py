"""OMP in Gram space with an explicit inverse factor: storage s x s per signal, where `rows` needs s x N.

How it differs from the textbook:

1. No residual vector: correlations are `alpha = X y - G[:, S] c`, read afresh from the Gram rows of the support in
   every iteration, so that nothing of size N is kept per atom chosen. (Batch-OMP, Rubinstein et al. 2008.)
2. No triangular solve: the inverse F of the Cholesky factor grows by a row per atom (for g the Gram entries between
   the new atom and the support: `w = F g`, `d^2 = G_jj - |w|^2`, new row `(e_k - F^T w) / d`), and the coefficients
   change by z times that row, `z = alpha[j] / d`.
3. An atom's distance d to the span of the support is known only once it is chosen. One that is in the span at
   rounding level is barred, and the signal chooses again; hence a `while` loop, which ends when no signal goes on.
4. Signals have unit norm; atoms whose correlation with the residual is at rounding level are not eligible.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sfrjax.pursuit.products import HIGHEST
from sfrjax.pursuit.step import DEPENDENT, Problem, Solution, at, choose, correlation_floor


def pursue(problem: Problem, *, n_nonzero_coefs: int, selection: str, path: bool) -> Solution:
    """Solve one block."""
    s = n_nonzero_coefs
    b, n = problem.correlations.shape
    dtype = problem.correlations.dtype
    eps = float(jnp.finfo(dtype).eps)
    diag = jnp.broadcast_to(problem.diag, (b, n))
    slots = jnp.arange(s)

    def gram_rows(support: jax.Array, t: int) -> jax.Array:
        return problem.rows[problem.first + jnp.maximum(support[:, t], 0)]

    def step(state: tuple) -> tuple:
        inverse, factor, coef, support, floor, alpha, sq, count, _, coefs, sqs = state
        j, found = choose(alpha, alpha * alpha > floor, problem.weights, selection)
        going = found & (count < s) & (sq > problem.sq_tol)
        g = problem.rows[problem.first[:, None] + jnp.maximum(support, 0), j[:, None]]
        w = jnp.einsum("bij,bj->bi", inverse, jnp.where(support < 0, 0, g), precision=HIGHEST)
        pivot = at(diag, j) - jnp.sum(w * w, -1)
        taken = going & (pivot > DEPENDENT * eps * at(diag, j))
        root = jnp.sqrt(jnp.where(taken, pivot, 1))
        new = (slots == count[:, None]) & taken[:, None]
        unit = new.astype(dtype)
        direction = (unit - jnp.einsum("bi,bij->bj", w, inverse, precision=HIGHEST)) / root[:, None]
        z = jnp.where(taken, at(alpha, j) / root, 0)

        inverse = jnp.where(new[:, :, None], direction[:, None, :], inverse)
        factor = jnp.where(new[:, None, :], (w + unit * root[:, None])[:, :, None], factor)
        coef = coef + z[:, None] * direction
        support = jnp.where(new, j[:, None], support)
        floor = floor.at[jnp.arange(b), jnp.where(going, j, n)].set(jnp.inf, mode="drop")
        sq = jnp.maximum(sq - z * z, 0)
        # A chain of row reads that XLA fuses into one pass; a gather would write the rows out first.
        alpha = problem.correlations
        for t in range(s):
            alpha = alpha - coef[:, t, None] * gram_rows(support, t)
        if path:
            coefs = jnp.where(new[:, :, None], coef[:, None, :], coefs)
            sqs = jnp.where(new, sq[:, None], sqs)
        return inverse, factor, coef, support, floor, alpha, sq, count + taken, going, coefs, sqs

    identity = jnp.broadcast_to(jnp.eye(s, dtype=dtype), (b, s, s))
    state: tuple = (
        jnp.zeros((b, s, s), dtype),
        identity,
        jnp.zeros((b, s), dtype),
        jnp.full((b, s), -1, jnp.int32),
        jnp.broadcast_to(correlation_floor(diag, problem.allowed), (b, n)),
        problem.correlations,
        jnp.ones(b, dtype),
        jnp.zeros(b, jnp.int32),
        jnp.ones(b, bool),
        jnp.zeros((b, s, s) if path else (0,), dtype),
        jnp.zeros((b, s) if path else (0,), dtype),
    )
    state = lax.while_loop(lambda state: jnp.any(state[8]), step, state)
    _, factor, coef, support, _, alpha, sq, count, _, coefs, sqs = state
    if path:  # slots never filled repeat the last code
        unused = slots >= count[:, None]
        coef = jnp.where(unused[:, :, None], coef[:, None, :], coefs)
        sq = jnp.where(unused, sq[:, None], sqs)
    finite = jnp.isfinite(alpha) if problem.allowed is None else jnp.isfinite(alpha) | ~problem.allowed
    return Solution(support, coef, sq, factor, ~jnp.all(finite, -1))
