"""From a solution of scaled signals to the code in the caller's units: accurate small residuals, and the status."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from sfrjax.pursuit.blocks import map_blocks
from sfrjax.pursuit.code import SparseCode, Status
from sfrjax.pursuit.dispatch import Options, Work
from sfrjax.pursuit.products import HIGHEST, gather_atoms
from sfrjax.pursuit.step import Solution

REFINEMENTS = 3
UNRESOLVED = 1e5  # in eps: squared residual norms below this share of the signal's are recomputed from the residual


def norms(y: jax.Array) -> jax.Array:
    """L2 norms `[b]`; a second pass, scaled, only where squares over- or underflow."""
    tiny, huge = (float(x) for x in (jnp.finfo(y.dtype).tiny, jnp.finfo(y.dtype).max))
    squares = jnp.sum(y * y, -1)

    def scaled() -> jax.Array:
        top = jnp.max(jnp.abs(y), -1)
        unit = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
        return jnp.where(jnp.isfinite(top), unit * jnp.sqrt(jnp.sum((y / unit[:, None]) ** 2, -1)), jnp.nan)

    outside = jnp.any(~((squares > tiny * 1e8) & (squares < huge)))
    return lax.cond(outside, scaled, lambda: jnp.sqrt(squares))


def finish_code(
    solution: Solution, work: Work, norm: jax.Array, limit: jax.Array, atoms: jax.Array, options: Options
) -> tuple[SparseCode, jax.Array]:
    """Back to the caller's units, with small residuals made accurate and the status told."""
    s = solution.support.shape[1]
    eps = float(jnp.finfo(norm.dtype).eps)
    broken = solution.broken | ~jnp.isfinite(norm)
    support = jnp.where(broken[:, None], -1, solution.support)
    n_atoms = jnp.sum(support >= 0, -1, dtype=jnp.int32)

    def like(a: jax.Array, target: jax.Array) -> jax.Array:
        return a.reshape(-1, *[1] * (target.ndim - 1))

    coef = solution.coef * like(work.norm, solution.coef)
    rnorm = jnp.sqrt(solution.sq_norm)
    rnorm = jnp.where(like(n_atoms, rnorm) == 0, like(norm, rnorm), rnorm * like(work.norm, rnorm))
    unresolved = (solution.sq_norm < UNRESOLVED * eps) & (like(n_atoms, rnorm) > 0)
    coef, rnorm = lax.cond(
        jnp.any(unresolved),
        lambda: _refine(solution, work, atoms, coef, rnorm, unresolved, options),
        lambda: (coef, rnorm),
    )
    coef = jnp.where(like(broken, coef), 0, coef)
    rnorm = jnp.where(like(broken, rnorm), jnp.nan, rnorm)
    last = rnorm[:, -1] if options.path else rnorm
    status = jnp.where(n_atoms == options.n_nonzero_coefs, Status.SPARSITY, Status.EXHAUSTED)
    status = jnp.where(last <= jnp.maximum(limit, 32 * eps * norm), Status.TOLERANCE, status)
    status = jnp.where(broken, Status.BREAKDOWN, status).astype(jnp.int32)
    missing = options.n_nonzero_coefs - s
    support = jnp.pad(support, ((0, 0), (0, missing)), constant_values=-1)
    if options.path:
        coef = jnp.pad(coef, ((0, 0), (0, missing), (0, 0)), mode="edge")
        rnorm = jnp.pad(rnorm, ((0, 0), (0, missing)), mode="edge")
    coef = jnp.pad(coef, [(0, 0)] * (coef.ndim - 1) + [(0, missing)])
    return SparseCode(support, coef, rnorm, n_atoms, status), ~jnp.any(solution.broken & jnp.isfinite(norm))


def _refine(
    solution: Solution,
    work: Work,
    atoms: jax.Array,
    coef: jax.Array,
    rnorm: jax.Array,
    unresolved: jax.Array,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """A few steps of conjugate gradients on the least squares of signals with small residuals, and their true norms.

    In Gram space a squared norm is a difference of numbers the size of the signal's; this reads the atoms again, but
    only in blocks where some signal needs it. The pursuit's factor preconditions; as it may be wrong by its own size
    for nearly dependent atoms, its solutions are directions and not steps.
    """
    s, d = coef.shape[-1], work.y.shape[1]

    def one(index, used, factor, y, coef, rnorm, unresolved):  # type: ignore[no-untyped-def]
        chosen = gather_atoms(atoms, index, used, y.dtype)

        def through(c: jax.Array) -> jax.Array:
            return jnp.einsum("bs,bsd->bd", c, chosen, precision=HIGHEST)

        better, error = coef, y - through(coef)
        direction, slope = jnp.zeros_like(coef), jnp.ones(coef.shape[0], y.dtype)
        for _ in range(REFINEMENTS):
            gradient = jnp.einsum("bsd,bd->bs", chosen, error, precision=HIGHEST)
            step = cho_solve((factor, False), gradient[:, :, None])[:, :, 0]
            last, slope = slope, jnp.sum(gradient * step, -1)
            direction = step + (slope / jnp.where(last > 0, last, 1))[:, None] * direction
            image = through(direction)
            length = jnp.sum(image * image, -1)
            size = jnp.where((length > 0) & (slope > 0), slope / jnp.where(length > 0, length, 1), 0)[:, None]
            better, error = better + size * direction, error - size * image
        if options.selection == "non-negative":
            better = jnp.maximum(better, 0)
        before, after = norms(y - through(coef)), norms(y - through(better))
        improved = after <= before  # also False for NaN
        better = jnp.where((unresolved & improved)[:, None], better, coef)
        return better, jnp.where(unresolved, jnp.where(improved, after, before), rnorm)

    def solve(block):  # type: ignore[no-untyped-def]
        first, support, factor, y, coef, rnorm, unresolved = block
        index = first[:, None] + jnp.maximum(support, 0)
        used = support >= 0
        if not options.path:
            args = (index, used, factor, y, coef, rnorm, unresolved)
            return lax.cond(jnp.any(unresolved), lambda: one(*args), lambda: (coef, rnorm))

        def with_atoms(k, c, r, u):  # type: ignore[no-untyped-def]
            kept = jnp.arange(s) <= k
            inside = kept[:, None] & kept
            args = (index, used & kept, jnp.where(inside, factor, jnp.eye(s, dtype=y.dtype)), y, c, r, u)
            return lax.cond(jnp.any(u), lambda: one(*args), lambda: (c, r))

        steps = (jnp.arange(s), coef.swapaxes(0, 1), rnorm.T, unresolved.T)
        coef, rnorm = lax.map(lambda a: with_atoms(*a), steps)
        return coef.swapaxes(0, 1), rnorm.T

    arrays = (work.first, solution.support, solution.factor, work.y, coef, rnorm, unresolved)
    return map_blocks(solve, arrays, s * d, most_lanes=1)  # seldom needed, and every lane costs compile time
