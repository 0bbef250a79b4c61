"""Checks of what the caller passed to `omp`, each with a sentence that says what was expected."""

import jax
import jax.numpy as jnp
import numpy as np

SELECTIONS = ("absolute", "signed", "non-negative")
ALGORITHMS = ("rows", "gram", "residual")


def is_concrete(array: jax.Array) -> bool:
    """Whether the values are at hand (an eager call) and not being traced."""
    return not isinstance(array, jax.core.Tracer)


def check_options(n_nonzero_coefs: int, selection: str, algorithm: str | None, path: bool) -> None:
    if isinstance(n_nonzero_coefs, bool) or not isinstance(n_nonzero_coefs, int | np.integer):
        raise TypeError(f"n_nonzero_coefs must be a Python int (it fixes shapes); got {n_nonzero_coefs!r}")
    if n_nonzero_coefs < 1:
        raise ValueError(f"n_nonzero_coefs must be at least 1; got {n_nonzero_coefs}")
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(map(repr, SELECTIONS))}; got {selection!r}")
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be None or one of {', '.join(map(repr, ALGORITHMS))}; got {algorithm!r}")
    if selection == "non-negative" and (path or algorithm is not None):
        raise ValueError(
            "selection='non-negative' has an algorithm of its own, whose support may shrink again: leave out path and "
            "algorithm"
        )


def check_arrays(
    dictionary: jax.Array,
    signals: jax.Array,
    gram: jax.Array | None,
    correlations: jax.Array | None,
    candidates: jax.Array | None,
) -> None:
    for name, array in (
        ("dictionary", dictionary),
        ("signals", signals),
        ("gram", gram),
        ("correlations", correlations),
    ):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be real floating point (float16, bfloat16, 32, 64); got {array.dtype}")
    if dictionary.ndim not in (2, 3) or 0 in dictionary.shape:
        raise ValueError(
            "dictionary must be [N, D] (atoms are rows) or [P, N, D] (one dictionary per position), none of them 0; "
            f"got shape {dictionary.shape}"
        )
    n, width = dictionary.shape[-2:]
    if signals.ndim == 0 or signals.shape[-1] != width:
        hint = " (atoms are rows here: transpose a [D, N] dictionary)" if signals.shape[-1:] == (n,) else ""
        raise ValueError(
            f"signals must be [..., D] with D = {width} as in the dictionary; got shape {signals.shape}{hint}"
        )
    if dictionary.ndim == 3 and (signals.ndim < 2 or signals.shape[-2] != dictionary.shape[0]):
        raise ValueError(
            f"signals must be [..., P, D] with P = {dictionary.shape[0]}, one for each of the dictionaries; got shape "
            f"{signals.shape}"
        )
    if gram is not None and gram.shape != (*dictionary.shape[:-1], n):
        raise ValueError(f"gram must have shape {(*dictionary.shape[:-1], n)}; got {gram.shape}")
    if correlations is not None and correlations.shape != (*signals.shape[:-1], n):
        raise ValueError(f"correlations must have shape {(*signals.shape[:-1], n)}; got {correlations.shape}")
    if candidates is not None:
        _check_candidates(candidates, signals.shape[:-1], n)


def _check_candidates(candidates: jax.Array, batch: tuple[int, ...], n: int) -> None:
    if not jnp.issubdtype(candidates.dtype, jnp.integer):
        raise TypeError(f"candidates must be integer atom indices; got {candidates.dtype}")
    try:
        fits = candidates.ndim > 0 and candidates.shape[-1] > 0
        fits = fits and np.broadcast_shapes(candidates.shape[:-1], batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"candidates must be [..., K], K >= 1, broadcastable to batch {batch}; got shape {candidates.shape}"
        )
    if is_concrete(candidates) and candidates.size:
        values = np.asarray(candidates)  # NumPy, because under an outer jit even constants would be traced
        low, high = values.min(), values.max()
        if low < -1 or high >= n:
            raise ValueError(f"candidates must lie in 0 .. {n - 1}, or be -1 for an unused slot; got {low} .. {high}")
