"""`omp`: preparation shared by all algorithms, the choice between them, and the code made of their solution."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sfrjax.pursuit.check import check_arrays, check_options, is_concrete
from sfrjax.pursuit.code import SparseCode
from sfrjax.pursuit.derivative import code_tangents
from sfrjax.pursuit.dispatch import GRAM_BLOCK, Options, Work, by_residual, in_gram_space
from sfrjax.pursuit.finish import finish_code, norms
from sfrjax.pursuit.products import compute_dtype, gram_matrix
from sfrjax.pursuit.shares import count_shares, solve_shares

COHERENT = 0.5  # mean absolute cosine of atoms from which a call that leaves the algorithm open gets the residual form
WIDE = 512  # atoms of a shared dictionary from which on `gram` beats `rows` on a CPU (measured at 256 and 1024)
STORED_ROWS = 1 << 28  # most numbers that `rows` may keep at once where there is no blocking (1 GiB in float32)


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
            Only these atoms are read, unless `gram` is given and each signal has half of all atoms or more, or the
            batch together as many as there are.
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
    eager = all(map(is_concrete, jax.tree.leaves((dictionary, signals, extras))))
    if eager and (shares := count_shares(dictionary, signals, options.n_nonzero_coefs)) > 1:
        code, sane = _solve_in_shares(options, dictionary, signals, extras, shares)
    else:
        code, sane = _solve(options, dictionary, signals, extras)
    if is_concrete(sane) and not jnp.all(sane):
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
    norm = norms(y)
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
        solution = by_residual(work, dictionary, s, options)
    elif algorithm != "non-negative" and options.algorithm is None and extras.gram is None and candidates is None:
        gram = gram_matrix(dictionary, dtype)
        # Nearly parallel atoms leave differences of correlations at float32's rounding level in Gram space.
        solution = lax.cond(
            _coherence(gram) > COHERENT,
            lambda: by_residual(work, dictionary, s, options),
            lambda: in_gram_space(algorithm, work, dictionary, gram, s, options),
        )
    else:
        solution = in_gram_space(algorithm, work, dictionary, extras.gram, s, options)
    code, sane = finish_code(solution, work, norm, limit, dictionary.reshape(-1, d), options)
    return jax.tree.map(unflat, code), sane


@partial(_code.defjvp, symbolic_zeros=True)
def _code_jvp(options, primals, tangents):  # type: ignore[no-untyped-def]
    dictionary, signals, extras = primals
    code, sane = _code(options, dictionary, signals, extras)
    return (code, sane), (code_tangents(dictionary, signals, code, *tangents[:2]), np.zeros((), jax.dtypes.float0))


_solve = jax.jit(_code, static_argnums=0)
_gram = jax.jit(gram_matrix, static_argnums=1)


def _solve_in_shares(
    options: Options, dictionary: jax.Array, signals: jax.Array, extras: Extras, shares: int
) -> tuple[SparseCode, jax.Array]:
    """The same as `_solve`, as one execution per core; what concerns the dictionary alone is done once, before."""
    batch, n = signals.shape[:-1], len(dictionary)
    options = options._replace(lanes=1)
    if extras.candidates is None:
        s, b = min(options.n_nonzero_coefs, *dictionary.shape), int(np.prod(batch))
        algorithm = _algorithm(options, s, n, b, b, extras.gram is not None)
        if extras.gram is None and algorithm != "residual":
            gram = _gram(dictionary, compute_dtype(dictionary, signals))
            if algorithm != "non-negative" and options.algorithm is None and _coherence(gram) > COHERENT:
                algorithm = "residual"
            extras = extras._replace(gram=gram)
        options = options._replace(algorithm=None if algorithm == "non-negative" else algorithm)

    def spread(a: jax.Array | None, trailing: int) -> jax.Array | None:
        return None if a is None else jnp.broadcast_to(a, (*batch, *a.shape[a.ndim - trailing :]))

    arrays = extras._replace(
        tol=spread(extras.tol, 0),
        rtol=spread(extras.rtol, 0),
        gram=None,
        correlations=spread(extras.correlations, 1),
        candidates=spread(extras.candidates, 1),
    )

    def solve(part: tuple[jax.Array, Extras]) -> tuple[SparseCode, jax.Array]:
        code, sane = _solve(options, dictionary, part[0], part[1]._replace(gram=extras.gram))
        return code, jnp.broadcast_to(sane, code.status.shape)

    return solve_shares(solve, (signals, arrays), batch, shares)


def _algorithm(options: Options, s: int, available: int, per_dictionary: int, b: int, has_gram: bool) -> str:
    """By shape. Without a Gram matrix at hand, computing one costs `available` passes over the atoms where the residual
    form needs s per signal. With one, `rows` is fastest but stores s x N numbers per signal: where those outgrow the
    cache (a wide dictionary on a CPU) or the memory, `gram` is, given signals enough to fill its larger blocks.
    """
    if options.selection == "non-negative":
        return "non-negative"
    if options.algorithm is not None:
        return options.algorithm
    if not has_gram and available > per_dictionary * s:
        return "residual"
    if jax.default_backend() == "cpu":
        return "gram" if available >= WIDE and per_dictionary >= 2 * GRAM_BLOCK else "rows"
    return "rows" if b * s * available <= STORED_ROWS else "gram"


@jax.jit
def _coherence(gram: jax.Array) -> jax.Array:
    """Mean absolute cosine between atoms."""
    diag = jnp.diagonal(gram, axis1=-2, axis2=-1)
    weight = jnp.where(diag > 0, lax.rsqrt(jnp.where(diag > 0, diag, 1)), 0)
    return jnp.mean(jnp.abs(gram) * weight[..., :, None] * weight[..., None, :])
