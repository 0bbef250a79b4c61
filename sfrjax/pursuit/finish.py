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
# In eps, of the signal's squared norm. Below the first a squared residual norm is recomputed from the residual. Below
# the second even the coefficients are too rough for that: for atoms not in each other's span at rounding level
# (`DEPENDENT`) they miss by at most some sqrt(eps / 32) of the signal.
UNRESOLVED, ROUGH = 1e5, 1e3


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
    coef, rnorm = lax.cond(
        jnp.any(_below(UNRESOLVED, solution)),
        lambda: _refine(solution, work, atoms, coef, rnorm, options),
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


def _below(share: float, solution: Solution) -> jax.Array:
    """bool `[b]`, or `[b, s]` for a path: whether the squared residual norm is below `share` eps."""
    started = jnp.any(solution.support >= 0, -1).reshape(-1, *[1] * (solution.sq_norm.ndim - 1))
    return (solution.sq_norm < share * float(jnp.finfo(solution.sq_norm.dtype).eps)) & started


def _refine(
    solution: Solution, work: Work, atoms: jax.Array, coef: jax.Array, rnorm: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The true norms of small residuals, and better coefficients where they are very small.

    In Gram space a squared norm is a difference of numbers the size of the signal's; this reads the atoms again, but
    only in blocks where some signal needs it.
    """
    s, d = coef.shape[-1], work.y.shape[1]

    def solve(block):  # type: ignore[no-untyped-def]
        first, support, factor, y, coef, rnorm, unresolved, rough = block
        used = support >= 0
        # An unused slot reads the first atom chosen: another one may be NaN, and 0 * NaN is not 0.
        index = first[:, None] + jnp.maximum(jnp.where(used, support, support[:, :1]), 0)

        def at(kept, factor, coef, rnorm, unresolved, rough):  # type: ignore[no-untyped-def]
            def measured() -> tuple[jax.Array, jax.Array]:
                return coef, jnp.where(unresolved, norms(_error(atoms, index, used & kept, y, coef)), rnorm)

            def better() -> tuple[jax.Array, jax.Array]:
                chosen = gather_atoms(atoms, index, used & kept, y.dtype)
                found, before, after = _conjugate_gradients(chosen, factor, y, coef, options)
                improved = rough & (after <= before)  # also False for NaN
                norm = jnp.where(improved, after, before)
                return jnp.where(improved[:, None], found, coef), jnp.where(unresolved, norm, rnorm)

            return lax.cond(
                jnp.any(rough), better, lambda: lax.cond(jnp.any(unresolved), measured, lambda: (coef, rnorm))
            )

        if not options.path:
            return at(True, factor, coef, rnorm, unresolved, rough)

        def with_atoms(k, *rest):  # type: ignore[no-untyped-def]
            kept = jnp.arange(s) <= k
            return at(kept, jnp.where(kept[:, None] & kept, factor, jnp.eye(s, dtype=y.dtype)), *rest)

        steps = (jnp.arange(s), coef.swapaxes(0, 1), rnorm.T, unresolved.T, rough.T)
        coef, rnorm = lax.map(lambda a: with_atoms(*a), steps)
        return coef.swapaxes(0, 1), rnorm.T

    flags = (_below(UNRESOLVED, solution), _below(ROUGH, solution))
    arrays = (work.first, solution.support, solution.factor, work.y, coef, rnorm, *flags)
    return map_blocks(solve, arrays, s * d, options.lanes, least=1)


def _error(atoms: jax.Array, index: jax.Array, used: jax.Array, y: jax.Array, coef: jax.Array) -> jax.Array:
    """`y - X_S c` `[b, D]`, as a chain of row reads that XLA fuses into one pass."""
    coef = jnp.where(used, coef, 0)
    for t in range(index.shape[1]):
        y = y - coef[:, t, None] * atoms[index[:, t]].astype(y.dtype)
    return y


def _conjugate_gradients(
    chosen: jax.Array, factor: jax.Array, y: jax.Array, coef: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A few steps on the least squares of the chosen atoms `[b, s, D]`: coefficients, residual norms before and after.

    The pursuit's factor preconditions; as it may be wrong by its own size for nearly dependent atoms, its solutions are
    directions and not steps.
    """

    def through(c: jax.Array) -> jax.Array:
        return jnp.einsum("bs,bsd->bd", c, chosen, precision=HIGHEST)

    better, error = coef, y - through(coef)
    before = norms(error)
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
    return better, before, norms(y - through(better))
