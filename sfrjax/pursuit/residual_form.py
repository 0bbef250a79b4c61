"""OMP on the atoms themselves, for dictionaries whose Gram matrix is too large or not worth its price.

How it differs from the textbook:

1. The span of the support is kept as orthonormal directions q_k `[D]` (Gram-Schmidt, every atom orthogonalised twice),
   so that the new residual is `e - q_k (q_k . e)`: no least squares while choosing. The triangular factor falls out
   and one back substitution at the end gives the coefficients.
2. Correlations are computed from the residual, so that their error is relative to the residual, not to the signal: of
   the three algorithms this is the most accurate on nearly parallel atoms, and the only one that needs no `[N, N]`.
3. An atom whose cosine with the residual is at rounding level is not eligible. A cosine bounds the distance to the span
   from below, so no chosen atom can be dependent and no factorisation can fail.
4. A residual at rounding level of the signal ends the pursuit (exact recovery).
5. Always s iterations; a finished signal chooses nothing and changes nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sfrjax.pursuit.products import HIGHEST
from sfrjax.pursuit.step import ROUNDING, Problem, Solution, choose, correlation_floor, finish, put


def pursue(
    problem: Problem,
    signals: jax.Array,
    correlate: Callable[[jax.Array], jax.Array],
    *,
    n_nonzero_coefs: int,
    selection: str,
    path: bool,
) -> Solution:
    """Solve one block.

    problem: as for Gram space, but `rows` `[T, D]` are the atoms; `correlations` is not read.
    signals: `[b, D]`, unit norm.
    correlate: residuals `[b, D]` to correlations `[b, N]`.
    """
    s = n_nonzero_coefs
    b, d = signals.shape
    dtype = signals.dtype
    n = problem.diag.shape[-1]
    rounding = (ROUNDING * float(jnp.finfo(dtype).eps)) ** 2
    floor = 16 * correlation_floor(problem.diag, problem.allowed)

    def step(k: jax.Array, state: tuple) -> tuple:
        basis, residual, sq, barred, support, factor, zs, sqs, broken = state
        alpha = correlate(residual)
        eligible = ~barred & (alpha * alpha > floor * sq[:, None])
        j, found = choose(alpha, eligible, problem.weights, selection)
        going = found & (sq > problem.sq_tol) & (sq > rounding)
        atom = problem.rows[problem.first + j].astype(dtype)
        atom = jnp.where(going[:, None], atom, 0)
        known = jnp.einsum("bsd,bd->bs", basis, atom, precision=HIGHEST)
        q = atom - jnp.einsum("bs,bsd->bd", known, basis, precision=HIGHEST)
        again = jnp.einsum("bsd,bd->bs", basis, q, precision=HIGHEST)
        q = q - jnp.einsum("bs,bsd->bd", again, basis, precision=HIGHEST)
        length = jnp.sqrt(jnp.sum(q * q, -1))
        q = q / jnp.where(going, length, 1)[:, None]
        z = jnp.sum(q * residual, -1)
        basis = put(basis, q, k, 1)
        residual = residual - z[:, None] * q
        leak = jnp.einsum("bsd,bd->bs", basis, residual, precision=HIGHEST)
        residual = residual - jnp.einsum("bs,bsd->bd", leak, basis, precision=HIGHEST)
        sq = jnp.sum(residual * residual, -1)
        column = jnp.where(jnp.arange(s) == k, length[:, None], known + again)
        readable = alpha if problem.allowed is None else jnp.where(problem.allowed, alpha, 0)
        return (
            basis,
            residual,
            sq,
            barred | ((jnp.arange(n) == j[:, None]) & going[:, None]),
            put(support, jnp.where(going, j, -1), k, 0),
            put(factor, column, k, 2),
            put(zs, z, k, 0),
            put(sqs, sq, k, 0),
            broken | ~jnp.all(jnp.isfinite(readable), -1),
        )

    state: tuple = (
        jnp.zeros((b, s, d), dtype),
        signals,
        jnp.sum(signals * signals, -1),
        jnp.zeros((b, n), bool),
        jnp.full((s, b), -1, jnp.int32),
        jnp.zeros((b, s, s), dtype),
        jnp.zeros((s, b), dtype),
        jnp.zeros((s, b), dtype),
        jnp.zeros(b, bool),
    )
    _, _, sq, _, support, factor, zs, sqs, broken = lax.fori_loop(0, s, step, state)
    solution = finish(factor, zs.T, support.T, sqs.T if path else sq, path)
    return solution._replace(broken=solution.broken | broken)
