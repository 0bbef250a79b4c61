"""`omp`: preparation shared by all algorithms, the choice between them, and the code made of their solution."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from sfrjax.pursuit import gram as gram_form
from sfrjax.pursuit import nonnegative, residual_form, rows
from sfrjax.pursuit.blocks import map_blocks
from sfrjax.pursuit.check import check_arrays, check_options, is_concrete
from sfrjax.pursuit.code import SparseCode, Status
from sfrjax.pursuit.derivative import code_tangents
from sfrjax.pursuit.products import (
    HIGHEST,
    compute_dtype,
    gather_atoms,
    gram_matrix,
    own_correlations,
    shared_correlations,
)
from sfrjax.pursuit.step import ROUNDING, Problem, Solution

REFINEMENTS = 3
UNRESOLVED = 1e5  # in eps: squared residual norms below this share of the signal's are recomputed from the residual
COHERENT = 0.5  # mean absolute cosine of atoms from which a call that leaves the algorithm open gets the residual form
STORED_ROWS = 1 << 28  # most numbers that `rows` may keep at once where there is no blocking (1 GiB in float32)


class Options(NamedTuple):
    """The static part of a call."""

    n_nonzero_coefs: int
    selection: str
    unit_norm: bool
    path: bool
    algorithm: str | None


class Extras(NamedTuple):
    """What a call may bring along; see `omp`."""

    tol: jax.Array | None
    rtol: jax.Array | None
    gram: jax.Array | None
    correlations: jax.Array | None
    candidates: jax.Array | None


def omp(
    dictionary: jax.Array,
    signals: jax.Array,
    *,
    n_nonzero_coefs: int,
    tol: float | jax.Array | None = None,
    rtol: float | jax.Array | None = None,
    selection: str = "absolute",
    unit_norm: bool = False,
    gram: jax.Array | None = None,
    correlations: jax.Array | None = None,
    candidates: jax.Array | None = None,
    path: bool = False,
    algorithm: str | None = None,
) -> SparseCode:
    """Orthogonal matching pursuit: code each signal as a combination of at most `n_nonzero_coefs` atoms.

    Repeats, for each signal y: choose the atom that correlates best with the residual, solve least squares on all
    chosen atoms, form the new residual; until `n_nonzero_coefs` atoms are in use or the residual is within tolerance
    (Pati, Rezaiifar and Krishnaprasad 1993; with selection="signed" Algorithm 1 of SFR, arXiv 2309.13904).

    Args:
        dictionary: `[N, D]`, atoms are rows, shared by all signals; or `[P, N, D]`, one dictionary for each of P
            positions. float32, float64, or float16 / bfloat16 (accumulated in float32). Need not be normalised.
        signals: `[..., D]`, or `[..., P, D]` for P dictionaries; leading axes are batch axes and may be empty.
        n_nonzero_coefs: most atoms per signal; may exceed N or D.
        tol: stop once `||y - X_S c||_2 <= tol` (absolute). A scalar or an array over the batch.
        rtol: stop once `||y - X_S c||_2 <= rtol ||y||_2`; with both, whichever comes first.
        selection: "absolute" chooses the largest `|x_j . e|` (standard OMP), "signed" the largest `x_j . e` (SFR,
            Eq. 3), "non-negative" the largest positive one, with coefficients kept non-negative.
        unit_norm: choose as if all atoms had norm 1. Coefficients remain those of the atoms as given.
        gram: `[N, N]` or `[P, N, N]`, `X X^T` computed beforehand; worth it when a dictionary is used more than once.
        correlations: `[..., N]`, `X y` computed beforehand.
        candidates: int32 `[..., K]`, broadcastable over the batch: the atoms each signal may use, -1 in unused slots.
            Without `gram` only these atoms are read.
        path: also return the codes with 1, 2, ... atoms (see `SparseCode`).
        algorithm: "rows", "gram" or "residual"; None chooses by shape (docs/omp.md). They agree up to rounding.

    Returns:
        A `SparseCode`. Computation and results are in float32, or in float64 if dictionary or signals are.

    Differentiable in dictionary and signals, forwards and backwards, with the support held fixed; `gram` and
    `correlations` are taken for functions of them. Works under jit and vmap. A signal with NaN or infinity gets the
    status BREAKDOWN, it alone.

    Raises:
        ValueError: shapes that do not fit, candidates out of range, NaN or infinity in the dictionary (under jit, where
            nothing can be raised, the status BREAKDOWN of every signal that may use that atom).
        TypeError: arrays that are not floating point, an `n_nonzero_coefs` that is not an int.
    """
    check_options(n_nonzero_coefs, selection, algorithm, path)
    dictionary, signals = jnp.asarray(dictionary), jnp.asarray(signals)
    given = (None if a is None else jnp.asarray(a) for a in (tol, rtol, gram, correlations, candidates))
    extras = Extras(*given)
    check_arrays(dictionary, signals, *extras[2:])
    options = Options(int(n_nonzero_coefs), selection, bool(unit_norm), bool(path), algorithm)
    code, sane = _solve(options, dictionary, signals, extras)
    if is_concrete(sane) and not sane:
        raise ValueError(
            "the dictionary (or the gram or correlations given with it) contains NaN or infinity: no code using it "
            "would mean anything; remove or repair those atoms"
        )
    return code


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _code(options: Options, dictionary: jax.Array, signals: jax.Array, extras: Extras) -> tuple[SparseCode, jax.Array]:
    """The code, and whether every breakdown is explained by the signal itself."""
    dtype = compute_dtype(dictionary, signals)
    n, d = dictionary.shape[-2:]
    p = dictionary.shape[0] if dictionary.ndim == 3 else 1
    batch = signals.shape[:-1]

    def flat(a: jax.Array) -> jax.Array:
        """`[..., (P,) m]` to `[P * L, m]`, position-major: neighbouring signals share a dictionary."""
        a = jnp.broadcast_to(a, (*batch, a.shape[-1]))
        return a.reshape(int(np.prod(batch)) // p, p, a.shape[-1]).swapaxes(0, 1).reshape(-1, a.shape[-1])

    def unflat(a: jax.Array) -> jax.Array:
        rest = a.shape[1:]
        return a.reshape(p, a.shape[0] // p, *rest).swapaxes(0, 1).reshape(*batch, *rest)

    y = flat(signals).astype(dtype)
    b = y.shape[0]
    norm = _norms(y)
    limit = jnp.zeros(b, dtype)
    if extras.tol is not None:
        limit = jnp.maximum(limit, flat(extras.tol.astype(dtype)[..., None])[:, 0])
    if extras.rtol is not None:
        limit = jnp.maximum(limit, flat(extras.rtol.astype(dtype)[..., None])[:, 0] * norm)
    candidates = None
    if extras.candidates is not None:
        candidates = flat(extras.candidates).astype(jnp.int32)
        candidates = jnp.where(candidates < n, candidates, -1)
    work = Work(
        first=jnp.repeat(jnp.arange(p, dtype=jnp.int32) * n, b // p),
        y=y,
        norm=jnp.where((norm > 0) & jnp.isfinite(norm), norm, 1),
        limit=jnp.where(norm <= limit, jnp.inf, limit),
        candidates=candidates,
        correlations=None if extras.correlations is None else flat(extras.correlations).astype(dtype),
    )
    available = n if candidates is None else candidates.shape[1]
    s = min(options.n_nonzero_coefs, available, d)
    algorithm = _algorithm(options, s, available, b // p if candidates is None else 1, b, extras.gram is not None)
    if algorithm == "residual":
        solution = _by_residual(work, dictionary, s, options)
    elif algorithm != "non-negative" and options.algorithm is None and extras.gram is None and candidates is None:
        gram = gram_matrix(dictionary, dtype)
        # Nearly parallel atoms leave differences of correlations at float32's rounding level in Gram space.
        solution = lax.cond(
            _coherence(gram) > COHERENT,
            lambda: _by_residual(work, dictionary, s, options),
            lambda: _in_gram_space(algorithm, work, dictionary, gram, s, options),
        )
    else:
        solution = _in_gram_space(algorithm, work, dictionary, extras.gram, s, options)
    code, sane = _finish(solution, work, norm, limit, dictionary.reshape(-1, d), options)
    return jax.tree.map(unflat, code), sane


@partial(_code.defjvp, symbolic_zeros=True)
def _code_jvp(options, primals, tangents):  # type: ignore[no-untyped-def]
    dictionary, signals, extras = primals
    code, sane = _code(options, dictionary, signals, extras)
    return (code, sane), (code_tangents(dictionary, signals, code, *tangents[:2]), np.zeros((), jax.dtypes.float0))


_solve = jax.jit(_code, static_argnums=0)


class Work(NamedTuple):
    """The batch, flat: first `[b]` (row of the signal's first atom in the flat dictionary), y `[b, D]`, norm `[b]` (1
    where it is zero or not finite), limit `[b]` (largest acceptable residual norm; infinity: not to be started),
    candidates `[b, K]`, correlations `[b, N]`.
    """

    first: jax.Array
    y: jax.Array
    norm: jax.Array
    limit: jax.Array
    candidates: jax.Array | None
    correlations: jax.Array | None


def _norms(y: jax.Array) -> jax.Array:
    """L2 norms `[b]`; a second pass, scaled, only where squares over- or underflow."""
    tiny, huge = (float(x) for x in (jnp.finfo(y.dtype).tiny, jnp.finfo(y.dtype).max))
    squares = jnp.sum(y * y, -1)

    def scaled() -> jax.Array:
        top = jnp.max(jnp.abs(y), -1)
        unit = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
        return jnp.where(jnp.isfinite(top), unit * jnp.sqrt(jnp.sum((y / unit[:, None]) ** 2, -1)), jnp.nan)

    outside = jnp.any(~((squares > tiny * 1e8) & (squares < huge)))
    return lax.cond(outside, scaled, lambda: jnp.sqrt(squares))


def _algorithm(options: Options, s: int, available: int, per_dictionary: int, b: int, has_gram: bool) -> str:
    """By shape. Without a Gram matrix at hand, computing one costs `available` passes over the atoms where the residual
    form needs s per signal. With one, `rows` is fastest but stores s x N numbers per signal.
    """
    if options.selection == "non-negative":
        return "non-negative"
    if options.algorithm is not None:
        return options.algorithm
    if not has_gram and available > per_dictionary * s:
        return "residual"
    blocked = jax.default_backend() == "cpu"
    return "rows" if blocked or b * s * available <= STORED_ROWS else "gram"


def _coherence(gram: jax.Array) -> jax.Array:
    """Mean absolute cosine between atoms."""
    diag = jnp.diagonal(gram, axis1=-2, axis2=-1)
    weight = jnp.where(diag > 0, lax.rsqrt(jnp.where(diag > 0, diag, 1)), 0)
    return jnp.mean(jnp.abs(gram) * weight[..., :, None] * weight[..., None, :])


def _in_gram_space(
    algorithm: str, work: Work, dictionary: jax.Array, gram: jax.Array | None, s: int, options: Options
) -> Solution:
    dtype, n, d = work.y.dtype, dictionary.shape[-2], work.y.shape[1]
    if work.candidates is None:
        table = (gram_matrix(dictionary, dtype) if gram is None else gram.astype(dtype)).reshape(-1, n)
        diag = jnp.diagonal(table.reshape(-1, n, n), axis1=1, axis2=2)
        width, per_signal = n, s * n
        work = work._replace(correlations=_correlations(work, dictionary))
    else:
        width = work.candidates.shape[1]
        # A shared dictionary with its Gram is read once, whole; otherwise only the candidates are read.
        if gram is not None and dictionary.ndim == 2:
            work = work._replace(correlations=_correlations(work, dictionary))
        reads_atoms = gram is None or work.correlations is None
        per_signal = width * (width + s + (d if reads_atoms else 0))
    if work.correlations is not None:
        work = work._replace(y=jnp.zeros((work.y.shape[0], 0), dtype))
    # The running norm has an absolute error of some eps: stop only where it is surely within tolerance.
    slack = ROUNDING * float(jnp.finfo(dtype).eps)

    def solve(block: Work) -> Solution:
        if block.candidates is None:
            rows_, first, corr, allowed = table, block.first, block.correlations, None
            assert corr is not None
            dg = diag if diag.shape[0] == 1 else diag[block.first // n]
        else:
            rows_, corr = _at_candidates(block, dictionary, gram)
            first = jnp.arange(block.first.shape[0], dtype=jnp.int32) * width
            dg = jnp.diagonal(rows_.reshape(-1, width, width), axis1=1, axis2=2)
            allowed = block.candidates >= 0
        problem = Problem(
            rows=rows_,
            first=first,
            diag=dg,
            correlations=corr / block.norm[:, None],
            weights=_weights(dg, options),
            allowed=allowed,
            sq_tol=(block.limit / block.norm) ** 2 - slack,
        )
        if algorithm == "non-negative":
            solution = nonnegative.pursue(problem, n_nonzero_coefs=s)
        else:
            pursue = rows.pursue if algorithm == "rows" else gram_form.pursue
            solution = pursue(problem, n_nonzero_coefs=s, selection=options.selection, path=options.path)
        return _from_candidates(solution, block.candidates)

    return map_blocks(solve, work, per_signal)


def _at_candidates(block: Work, dictionary: jax.Array, gram: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Gram rows `[b * K, K]` and correlations `[b, K]` of each signal's candidates."""
    n, d = dictionary.shape[-2:]
    dtype = block.norm.dtype
    assert block.candidates is not None
    local = jnp.maximum(block.candidates, 0)
    index = block.first[:, None] + local

    def chosen() -> jax.Array:
        return dictionary.reshape(-1, d)[index].astype(dtype)

    if gram is None:
        small = gram_matrix(chosen(), dtype)
    else:
        small = gram.reshape(-1, n)[index[:, :, None], local[:, None, :]].astype(dtype)
    if block.correlations is None:
        corr = own_correlations(chosen(), block.y[:, None], dtype)[:, 0]
    else:
        corr = jnp.take_along_axis(block.correlations, local, 1)
    return small.reshape(-1, local.shape[1]), corr


def _correlations(work: Work, dictionary: jax.Array) -> jax.Array:
    if work.correlations is not None:
        return work.correlations
    if dictionary.ndim == 2:
        return shared_correlations(dictionary, work.y, work.y.dtype)
    p, n, d = dictionary.shape
    return own_correlations(dictionary, work.y.reshape(p, -1, d), work.y.dtype).reshape(-1, n)


def _by_residual(work: Work, dictionary: jax.Array, s: int, options: Options) -> Solution:
    """Blocks of groups: the signals of one position, or single ones where the dictionary is shared or gathered."""
    dtype, d, n = work.y.dtype, work.y.shape[1], dictionary.shape[-2]
    shared = dictionary.ndim == 2 and work.candidates is None
    table = dictionary.reshape(-1, d)
    by_position = dictionary.ndim == 3 and work.candidates is None
    group = work.y.shape[0] // dictionary.shape[0] if by_position else 1
    grouped = jax.tree.map(lambda a: a.reshape(-1, group, *a.shape[1:]), work._replace(correlations=None))
    shared_diag = jnp.sum(table.astype(dtype) ** 2, -1)[None] if shared else None

    def solve(arrays: tuple[Work, jax.Array | None]) -> Solution:
        grouped, atoms = arrays
        block = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), grouped)
        size = block.first.shape[0]
        allowed = None
        if block.candidates is not None:
            allowed = block.candidates >= 0
            atoms = gather_atoms(table, block.first[:, None] + block.candidates, allowed, dtype)
        if atoms is None:
            assert shared_diag is not None
            rows_, first, dg = table, block.first, shared_diag

            def correlate(residual: jax.Array) -> jax.Array:
                return shared_correlations(table, residual, dtype)
        else:
            count = atoms.shape[1]
            rows_ = atoms.reshape(-1, d)
            first = jnp.repeat(jnp.arange(atoms.shape[0], dtype=jnp.int32) * count, size // atoms.shape[0])
            dg = jnp.sum(atoms.astype(dtype) ** 2, -1)[first // count]

            def correlate(residual: jax.Array) -> jax.Array:
                return own_correlations(atoms, residual.reshape(atoms.shape[0], -1, d), dtype).reshape(-1, count)

        problem = Problem(
            rows=rows_,
            first=first,
            diag=dg,
            correlations=jnp.zeros((size, 0), dtype),
            weights=_weights(dg, options),
            allowed=allowed,
            sq_tol=(block.limit / block.norm) ** 2,
        )
        solution = residual_form.pursue(
            problem,
            block.y / block.norm[:, None],
            correlate,
            n_nonzero_coefs=s,
            selection=options.selection,
            path=options.path,
        )
        solution = _from_candidates(solution, block.candidates)
        return jax.tree.map(lambda a: a.reshape(-1, group, *a.shape[1:]), solution)

    count = n if work.candidates is None else work.candidates.shape[1]
    floats = group * (s * d + count) + (0 if shared else count * d)
    solution = map_blocks(solve, (grouped, dictionary if by_position else None), floats)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), solution)


def _weights(diag: jax.Array, options: Options) -> jax.Array | None:
    return lax.rsqrt(jnp.where(diag > 0, diag, 1)) if options.unit_norm else None


def _from_candidates(solution: Solution, candidates: jax.Array | None) -> Solution:
    """Positions among the candidates to atoms of the dictionary."""
    if candidates is None:
        return solution
    support = jnp.take_along_axis(candidates, jnp.maximum(solution.support, 0), 1)
    return solution._replace(support=jnp.where(solution.support < 0, -1, support))


def _finish(
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
        before, after = _norms(y - through(coef)), _norms(y - through(better))
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
