"""From a flat batch to an algorithm and back: blocks, candidates, and the problem that each form is given."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sfrjax.pursuit import gram as gram_form
from sfrjax.pursuit import nonnegative, residual_form, rows
from sfrjax.pursuit.blocks import MOST_LANES, map_blocks
from sfrjax.pursuit.products import (
    candidate_correlations,
    gather_atoms,
    gram_matrix,
    own_correlations,
    shared_correlations,
)
from sfrjax.pursuit.step import ROUNDING, Problem, Solution

GRAM_BLOCK = 250  # signals of a block of the `gram` form on a CPU; measured from 12 to 1000 at N = 1024


class Options(NamedTuple):
    """The static part of a call. lanes: most independent loops of the program."""

    n_nonzero_coefs: int
    selection: str
    unit_norm: bool
    path: bool
    algorithm: str | None
    lanes: int = MOST_LANES


class Work(NamedTuple):
    """The batch, flat: first `[b]` (row of the signal's first atom in the flat dictionary), y `[b, D]`, norm `[b]` (1
    where it is zero or not finite), limit `[b]` (largest acceptable residual norm; infinity: not to be started),
    candidates `[b, K]`, correlations `[b, N]` (or `[b, K]`, those of the candidates, once only they matter), allowed
    `[b, N]` bool (candidates spelt as a mask, in their place).
    """

    first: jax.Array
    y: jax.Array
    norm: jax.Array
    limit: jax.Array
    candidates: jax.Array | None
    correlations: jax.Array | None
    allowed: jax.Array | None = None


# Where a block's signals find their atoms: rows, first, columns and diag of its `Problem`.
Place = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]


def in_gram_space(
    algorithm: str, work: Work, dictionary: jax.Array, gram: jax.Array | None, s: int, options: Options
) -> Solution:
    dtype, (n, d) = work.y.dtype, dictionary.shape[-2:]
    if work.candidates is not None and gram is not None and 2 * work.candidates.shape[1] >= n:
        # Most of the atoms: the whole Gram matrix with the others barred, instead of a choice from it per signal.
        work = work._replace(candidates=None, allowed=_mask(work.candidates, n))
    if work.candidates is None:
        work = work._replace(correlations=_correlations(work, dictionary))
        place = _in_whole_gram(gram_matrix(dictionary, dtype) if gram is None else gram.astype(dtype))
        per_signal = s * n
    else:
        width = work.candidates.shape[1]
        if gram is not None or work.correlations is not None:
            work = _correlated(work, dictionary)
        per_signal = width * (s + (d if gram is None or work.correlations is None else 0))
        if algorithm == "rows" and gram is not None:
            place = _in_whole_gram(gram.astype(dtype))
        else:
            place = partial(_in_own_gram, dictionary=dictionary, gram=gram)
            per_signal += width * width
    if work.correlations is not None:
        work = work._replace(y=jnp.zeros((work.y.shape[0], 0), dtype))
    # The running norm has an absolute error of some eps: stop only where it is surely within tolerance.
    slack = ROUNDING * float(jnp.finfo(dtype).eps)

    def solve(block: Work) -> Solution:
        rows_, first, columns, diag = place(block)
        corr, allowed = block.correlations, block.allowed
        if block.candidates is not None:
            allowed = block.candidates >= 0
            if corr is None:
                corr = own_correlations(_chosen(block, dictionary), block.y[:, None], dtype)[:, 0]
        assert corr is not None
        problem = Problem(
            rows=rows_,
            first=first,
            columns=columns,
            diag=diag,
            correlations=corr / block.norm[:, None],
            weights=_weights(diag, options),
            allowed=allowed,
            sq_tol=(block.limit / block.norm) ** 2 - slack,
        )
        if algorithm == "non-negative":
            solution = nonnegative.pursue(problem, n_nonzero_coefs=s)
        else:
            pursue = rows.pursue if algorithm == "rows" else gram_form.pursue
            solution = pursue(problem, n_nonzero_coefs=s, selection=options.selection, path=options.path)
        return _from_candidates(solution, block.candidates)

    # XLA splits the row reads of `gram` over all cores, in whatever loop they are: many signals share that overhead.
    least = GRAM_BLOCK if algorithm == "gram" and work.candidates is None else 8
    return map_blocks(solve, work, per_signal, options.lanes, least)


def _mask(candidates: jax.Array, n: int) -> jax.Array:
    """bool `[b, n]`: the atoms among candidates `[b, K]`."""
    column = jnp.where(candidates < 0, n, candidates)  # unused slots go to an extra column, cut off again
    return jnp.zeros((len(candidates), n + 1), bool).at[jnp.arange(len(candidates))[:, None], column].set(True)[:, :n]


def _in_whole_gram(gram: jax.Array) -> Callable[[Work], Place]:
    """Signals read the Gram matrix, or that of their position, where they choose atoms."""
    n = gram.shape[-1]
    table = gram.reshape(-1, n)
    diags = jnp.diagonal(table.reshape(-1, n, n), axis1=1, axis2=2)

    def place(block: Work) -> Place:
        diag = diags if len(diags) == 1 else diags[block.first // n]
        if block.candidates is None:
            return table, block.first, None, diag
        columns = jnp.maximum(block.candidates, 0)
        diag = jnp.take_along_axis(jnp.broadcast_to(diag, (len(columns), n)), columns, 1)
        return table, block.first, columns, diag

    return place


def _in_own_gram(block: Work, dictionary: jax.Array, gram: jax.Array | None) -> Place:
    """Every signal has a Gram matrix of its candidates."""
    assert block.candidates is not None
    b, width = block.candidates.shape
    dtype = block.norm.dtype
    if gram is None:
        small = gram_matrix(_chosen(block, dictionary), dtype)
    else:
        local = jnp.maximum(block.candidates, 0)
        index = block.first[:, None] + local
        small = gram.reshape(-1, gram.shape[-1])[index[:, :, None], local[:, None, :]].astype(dtype)
    first = jnp.arange(b, dtype=jnp.int32) * width
    return small.reshape(-1, width), first, None, jnp.diagonal(small, axis1=1, axis2=2)


def _chosen(block: Work, dictionary: jax.Array) -> jax.Array:
    """The candidates' atoms `[b, K, D]`."""
    assert block.candidates is not None
    index = block.first[:, None] + jnp.maximum(block.candidates, 0)
    return dictionary.reshape(-1, dictionary.shape[-1])[index].astype(block.norm.dtype)


def _correlated(work: Work, dictionary: jax.Array) -> Work:
    """With correlations of the candidates; without any where a block had better read its few atoms itself."""
    assert work.candidates is not None
    local = jnp.maximum(work.candidates, 0)
    few = local.size < dictionary.size // dictionary.shape[-1]
    if work.correlations is None and few:
        if dictionary.ndim == 3:
            return work
        return work._replace(correlations=candidate_correlations(dictionary, work.y, local, work.y.dtype))
    # For many signals a dictionary is read once, whole.
    return work._replace(correlations=jnp.take_along_axis(_correlations(work, dictionary), local, 1))


def _correlations(work: Work, dictionary: jax.Array) -> jax.Array:
    if work.correlations is not None:
        return work.correlations
    if dictionary.ndim == 2:
        return shared_correlations(dictionary, work.y, work.y.dtype)
    p, n, d = dictionary.shape
    return own_correlations(dictionary, work.y.reshape(p, -1, d), work.y.dtype).reshape(-1, n)


def by_residual(work: Work, dictionary: jax.Array, s: int, options: Options) -> Solution:
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
            columns=None,
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
    solution = map_blocks(solve, (grouped, dictionary if by_position else None), floats, options.lanes)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), solution)


def _weights(diag: jax.Array, options: Options) -> jax.Array | None:
    return lax.rsqrt(jnp.where(diag > 0, diag, 1)) if options.unit_norm else None


def _from_candidates(solution: Solution, candidates: jax.Array | None) -> Solution:
    """Positions among the candidates to atoms of the dictionary."""
    if candidates is None:
        return solution
    support = jnp.take_along_axis(candidates, jnp.maximum(solution.support, 0), 1)
    return solution._replace(support=jnp.where(solution.support < 0, -1, support))
