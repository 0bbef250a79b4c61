"""Non-negative OMP: every coefficient at least zero, atoms chosen by their largest positive correlation.

This is the active-set method for non-negative least squares (Lawson and Hanson 1974, chapter 23) stopped at
`n_nonzero_coefs` atoms, which is the canonical non-negative OMP (Nguyen et al., "Non-negative orthogonal greedy
algorithms", 2019). How it differs from the textbook:

1. Gram space: least squares on the support is a Cholesky solve of its `[s, s]` Gram matrix.
2. One loop for both levels: in each pass a signal either accepts its least squares solution and chooses the next
   atom, or, where that solution is negative somewhere, moves towards it until the first coefficient is zero and
   drops that atom. Signals of a batch are in different phases.
3. A dropped atom leaves its slot free for another, so the support is in no particular order.
4. Signals have unit norm; correlations at rounding level count as zero. Passes are limited to 4 s + 8 as a guard
   against cycling by rounding (about s are needed).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from sfrjax.pursuit.step import DEPENDENT, Problem, Solution, choose, correlation_floor


def pursue(problem: Problem, *, n_nonzero_coefs: int) -> Solution:
    """Solve one block."""
    s = n_nonzero_coefs
    b, n = problem.correlations.shape
    dtype = problem.correlations.dtype
    eps = float(jnp.finfo(dtype).eps)
    eye = jnp.eye(s, dtype=dtype)
    floor0 = jnp.broadcast_to(correlation_floor(problem.diag, problem.allowed), (b, n))
    ids = jnp.arange(n)

    def factorise(support: jax.Array) -> jax.Array:
        """Lower Cholesky factor of the Gram matrix of each support, identity in unused slots."""
        used = support >= 0
        atoms = jnp.maximum(support, 0)
        gram = problem.rows[(problem.first[:, None] + atoms)[:, :, None], atoms[:, None, :]]
        gram = jnp.where(used[:, :, None] & used[:, None, :], gram, eye)
        return jnp.linalg.cholesky(gram)

    def step(state: tuple) -> tuple:
        support, coef, floor, sq, _, passes = state
        used = support >= 0
        atoms = jnp.maximum(support, 0)
        lower = factorise(support)
        target = jnp.where(used, jnp.take_along_axis(problem.correlations, atoms, 1), 0)
        goal = cho_solve((lower, True), target[:, :, None])[:, :, 0]
        # The atom chosen last (coefficient still zero) may turn out to be dependent: then it is barred.
        pivot = jnp.diagonal(lower, axis1=1, axis2=2) ** 2
        size = jnp.where(used, jnp.take_along_axis(jnp.broadcast_to(problem.diag, (b, n)), atoms, 1), 1)
        dependent = used & (coef == 0) & ~(pivot > DEPENDENT * eps * size)
        failed = jnp.any(dependent, -1) | ~jnp.all(jnp.isfinite(goal), -1)
        negative = used & (goal <= 0)
        inside = ~jnp.any(negative, -1) & ~failed

        # Towards the goal until the first coefficient reaches zero; those at zero leave the support.
        ratio = jnp.where(negative, coef / jnp.maximum(coef - goal, jnp.finfo(dtype).tiny), jnp.inf)
        share = jnp.clip(jnp.min(ratio, -1, keepdims=True), 0, 1)
        leaving = negative & (ratio <= share) | (failed[:, None] & used & (coef == 0))
        moved = jnp.where(failed[:, None], coef, coef + share * (goal - coef))
        coef = jnp.where(inside[:, None], jnp.where(used, goal, 0), jnp.where(leaving | ~used, 0, moved))
        barred = jnp.any((ids == atoms[:, :, None]) & (leaving & (state[1] == 0))[:, :, None], 1) & ~inside[:, None]
        floor = jnp.where(barred, jnp.inf, floor)
        support = jnp.where(leaving & ~inside[:, None], -1, support)

        # Those inside choose the next atom.
        alpha = problem.correlations
        for t in range(s):
            row = problem.rows[problem.first + jnp.maximum(support[:, t], 0)]
            alpha = alpha - coef[:, t, None] * row
        fit = jnp.sum(coef * (target + jnp.take_along_axis(alpha, atoms, 1)), -1)
        sq = jnp.where(inside, jnp.maximum(1 - fit, 0), sq)
        taken = jnp.any(ids == jnp.where(support < 0, -1, support)[:, :, None], 1)
        eligible = ~taken & (alpha > 0) & (alpha * alpha > floor)
        j, found = choose(alpha, eligible, problem.weights, "signed")
        free = jnp.argmin(support, -1)
        adding = inside & found & jnp.any(support < 0, -1) & (sq > problem.sq_tol)
        support = jnp.where((jnp.arange(s) == free[:, None]) & adding[:, None], j[:, None], support)
        return support, coef, floor, sq, adding | ~inside, passes + 1

    state = (
        jnp.full((b, s), -1, jnp.int32),
        jnp.zeros((b, s), dtype),
        floor0,
        jnp.ones(b, dtype),
        jnp.ones(b, bool),
        jnp.zeros((), jnp.int32),
    )
    state = lax.while_loop(lambda st: jnp.any(st[4]) & (st[5] < 4 * s + 8), step, state)
    support, coef, _, sq, _, _ = state
    support = jnp.where(coef > 0, support, -1)
    order = jnp.argsort(support < 0, axis=-1, stable=True)
    support, coef = (jnp.take_along_axis(a, order, 1) for a in (support, coef))
    allowed = True if problem.allowed is None else problem.allowed
    broken = jnp.any(~jnp.isfinite(problem.correlations) & allowed, -1) | ~jnp.all(jnp.isfinite(coef), -1)
    return Solution(support, coef, sq, factorise(support).swapaxes(1, 2), broken)
