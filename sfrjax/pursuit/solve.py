"""`omp`: the checks, the preparation shared by all algorithms, and the choice between them."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from sfrjax.pursuit import products, rows
from sfrjax.pursuit.code import SparseCode, Status

SELECTIONS = ("absolute", "signed")


def omp(
    dictionary: jax.Array,
    signals: jax.Array,
    *,
    n_nonzero_coefs: int,
    tol: float | None = None,
    rtol: float | None = None,
    selection: str = "absolute",
    unit_norm: bool = False,
    gram: jax.Array | None = None,
    correlations: jax.Array | None = None,
    candidates: jax.Array | None = None,
    path: bool = False,
    algorithm: str | None = None,
) -> SparseCode:
    """Orthogonal matching pursuit: approximate each signal by at most `n_nonzero_coefs` atoms.

    dictionary: `[N, D]`, atoms are rows, shared by all signals `[..., D]`; or `[P, N, D]`, one dictionary for each
        position of signals `[..., P, D]`.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}; got {selection!r}")
    if n_nonzero_coefs < 1:
        raise ValueError(f"n_nonzero_coefs must be at least 1; got {n_nonzero_coefs}")
    dictionary, signals = jnp.asarray(dictionary), jnp.asarray(signals)
    gram, correlations, candidates = (None if a is None else jnp.asarray(a) for a in (gram, correlations, candidates))
    code, sane = _solve(
        dictionary,
        signals,
        tol,
        rtol,
        gram,
        correlations,
        candidates,
        n_nonzero_coefs=n_nonzero_coefs,
        selection=selection,
        unit_norm=unit_norm,
        path=path,
    )
    if not isinstance(sane, jax.core.Tracer) and not sane:
        raise ValueError(
            "the dictionary (or the given gram or correlations) contains NaN or infinity; remove those atoms"
        )
    return code


@partial(jax.jit, static_argnames=("n_nonzero_coefs", "selection", "unit_norm", "path"))
def _solve(
    dictionary, signals, tol, rtol, gram, correlations, candidates, *, n_nonzero_coefs, selection, unit_norm, path
):
    dtype = products.compute_dtype(dictionary, signals)
    own = dictionary.ndim == 3
    n, d = dictionary.shape[-2:]
    batch = signals.shape[:-1]
    p = dictionary.shape[0] if own else 1

    def flat(a):  # [..., (P,) m] -> [P * L, m], position-major, so that a block of signals shares few dictionaries
        a = jnp.broadcast_to(a, (*batch, a.shape[-1]))
        a = a.reshape(-1, p, a.shape[-1])
        return a.swapaxes(0, 1).reshape(-1, a.shape[-1])

    def unflat(a):
        rest = a.shape[1:]
        return a.reshape(p, -1, *rest).swapaxes(0, 1).reshape(*batch, *rest)

    y = flat(signals).astype(dtype)
    b = y.shape[0]
    norm = jnp.sqrt(jnp.sum(y * y, -1))
    first = jnp.repeat(jnp.arange(p, dtype=jnp.int32), b // p) * n
    atoms = dictionary.reshape(-1, d)

    cand = None if candidates is None else flat(candidates).astype(jnp.int32)
    if cand is not None:
        cand = jnp.where((cand < 0) | (cand >= n), -1, cand)
    if gram is None and cand is None:
        gram = products.shared_gram(dictionary, dtype)
    if gram is not None:
        gram = gram.astype(dtype)
        diag = jnp.diagonal(gram, axis1=-2, axis2=-1).reshape(p, n)
        gram = gram.reshape(-1, n)
    if correlations is not None:
        corr = flat(correlations).astype(dtype)
    elif not own:
        corr = products.shared_correlations(dictionary, y, dtype)
    elif cand is None:
        corr = products.own_correlations(dictionary, y.reshape(p, -1, d), dtype).reshape(b, n)
    else:
        corr = None  # only of the candidates, block by block

    limit = jnp.zeros(b, dtype)
    if tol is not None:
        limit = jnp.maximum(limit, jnp.asarray(tol, dtype))
    if rtol is not None:
        limit = jnp.maximum(limit, jnp.asarray(rtol, dtype) * norm)
    safe = jnp.where(norm > 0, norm, 1)
    alive = ~(norm <= limit)
    s = min(n_nonzero_coefs, n if cand is None else cand.shape[-1], d)

    def solve_block(block):
        first, y, corr, cand, safe, limit, alive = block
        bb = first.shape[0]
        if cand is None:
            table, origin, allowed = gram, first, None
            dg = diag if p == 1 else diag[first // n]
        else:
            allowed = cand >= 0
            index = first[:, None] + jnp.maximum(cand, 0)
            origin = jnp.arange(bb, dtype=jnp.int32) * cand.shape[-1]
            if gram is not None:
                local = gram[index[:, :, None], jnp.maximum(cand, 0)[:, None, :]]
            chosen = atoms[index].astype(dtype) if gram is None or corr is None else None
            if gram is None:
                local = products.shared_gram(chosen, dtype)
            corr = (
                jnp.take_along_axis(corr, jnp.maximum(cand, 0), 1)
                if corr is not None
                else products.own_correlations(chosen, y[:, None], dtype)[:, 0]
            )
            dg = jnp.diagonal(local, axis1=-2, axis2=-1)
            table = local.reshape(-1, local.shape[-1])
        weights = lax.rsqrt(dg) if unit_norm else None
        problem = rows.Problem(
            table,
            origin,
            dg,
            corr / safe[:, None],
            weights,
            allowed,
            limit / safe,
            alive,
            jnp.where(alive, Status.SPARSITY, Status.TOLERANCE).astype(jnp.int32),
        )
        solution = rows.pursue(problem, n_nonzero_coefs=s, selection=selection, path=path)
        if cand is not None:
            local = jnp.take_along_axis(cand, jnp.maximum(solution.support, 0), 1)
            solution = solution._replace(support=jnp.where(solution.support < 0, -1, local))
        return solution

    block = min(b, 64)
    solution = _blocks(solve_block, (first, y, corr, cand, safe, limit, alive), block)
    broken = (solution.status == Status.BREAKDOWN) | ~jnp.isfinite(norm)
    n_atoms = jnp.sum(solution.support >= 0, -1, dtype=jnp.int32)
    scale = safe.reshape(-1, *[1] * (solution.coef.ndim - 1))
    coef = solution.coef * scale
    rnorm = jnp.sqrt(solution.sq_norm) * safe.reshape(-1, *[1] * (solution.sq_norm.ndim - 1))
    status = solution.status
    if s < n_nonzero_coefs:
        status = jnp.where(status == Status.SPARSITY, Status.EXHAUSTED, status)
    rnorm = jnp.where(norm.reshape(scale.shape[: rnorm.ndim]) > 0, rnorm, 0)
    code = SparseCode(
        jnp.where(broken[:, None], -1, solution.support),
        jnp.where(broken.reshape(scale.shape), 0, coef),
        jnp.where(broken.reshape(-1, *[1] * (rnorm.ndim - 1)), jnp.nan, rnorm),
        jnp.where(broken, 0, n_atoms),
        jnp.where(broken, Status.BREAKDOWN, status).astype(jnp.int32),
    )
    extra = n_nonzero_coefs - s
    if extra:
        code = code._replace(
            support=jnp.pad(code.support, ((0, 0), (0, extra)), constant_values=-1),
            coef=jnp.pad(code.coef, [(0, 0), *[(0, extra)] * (code.coef.ndim - 1)]),
        )
    sane = ~jnp.any((code.status == Status.BREAKDOWN) & jnp.isfinite(norm))
    return jax.tree.map(unflat, code), sane


def _blocks(solve_block, arrays, size):
    """Map over blocks of the leading axis; the last one is padded with copies of the first rows."""
    b = arrays[0].shape[0]
    count = -(-b // size)
    if count == 1:
        return solve_block(arrays)
    pad = count * size - b

    def split(a):
        return (
            jnp.concatenate([a, a[:pad]]).reshape(count, size, *a.shape[1:])
            if pad
            else a.reshape(count, size, *a.shape[1:])
        )

    out = lax.map(solve_block, jax.tree.map(split, arrays))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:b], out)


@jax.jit
def residual(dictionary: jax.Array, signals: jax.Array, code: SparseCode) -> jax.Array:
    """`y - X_S c` `[..., D]`."""
    dtype = products.compute_dtype(dictionary, signals)
    own = dictionary.ndim == 3
    y = signals.astype(dtype)
    if not own:
        flat = (
            y.reshape(-1, y.shape[-1]),
            code.support.reshape(-1, code.support.shape[-1]),
            code.coef.reshape(-1, code.coef.shape[-1]),
        )
        out = lax.map(lambda a: products.subtract_rows(dictionary, *a), flat)
        return out.reshape(y.shape)
    p = dictionary.shape[0]
    lead = y.shape[:-2]
    y3 = y.reshape(-1, p, y.shape[-1])
    support = code.support.reshape(-1, p, code.support.shape[-1])
    coef = code.coef.reshape(support.shape)

    def one(a):
        y, s, c = a
        return jax.vmap(products.subtract_rows)(dictionary, y, s, c)

    return lax.map(one, (y3, support, coef)).reshape(*lead, p, y.shape[-1])


def reconstruct(dictionary: jax.Array, code: SparseCode) -> jax.Array:
    """`X_S c` `[..., D]`."""
    lead = code.support.shape[:-1]
    zeros = jnp.zeros((*lead, dictionary.shape[-1]), products.compute_dtype(dictionary, code.coef))
    return -residual(dictionary, zeros, code)
