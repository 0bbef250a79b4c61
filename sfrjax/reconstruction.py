"""Test features -> residual norms: what the nominal images cannot reconstruct (Algorithm 1, Eq. 3-5)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax import streaming
from sfrjax.pursuit import SparseCode, omp, residual
from sfrjax.sampling import random_support, subspace_support
from sfrjax.settings import Settings


class Dictionary(NamedTuple):
    """Nominal features of one level, ready for the pursuit.

    atoms: jax.Array [N, h*w*c] in full mode; [h*w, N, c] in pixel mode, a dictionary for each position. float32, or
        half precision, computed with in float32. A NumPy array is a map of a file, read as needed (see `streaming`).
    gram: atoms @ atoms.T, float32 [N, N] or [h*w, N, N]; None in pixel mode with sampling where it would outgrow
        the atoms (from N > c on, c / 2 in half precision): it is then formed of the few that sampling keeps.
    """

    atoms: Any
    gram: Any

    @property
    def n_images(self) -> int:
        """N, the number of nominal images."""
        return self.atoms.shape[-2]


def residual_norms(
    scoring: tuple[Dictionary, ...],
    reference: Dictionary | None,
    features: tuple[jax.Array, ...],
    reference_features: jax.Array | None,
    allowed: jax.Array | None = None,
    *,
    settings: Settings,
) -> tuple[jax.Array, ...]:
    """Reconstruct each level's features from the nominal images that sampling keeps.

    Sampling, pursuit, residual and norm are programs of their own: as one, XLA makes them take up to 1.7 times as long.

    Args:
        scoring: dictionaries of the scoring levels.
        reference: dictionary of the reference level; None unless sampling is "subspace".
        features: per scoring level, float32 [B, h, w, c].
        reference_features: float32 [B, h, w, c]; None unless sampling is "subspace".
        allowed: int32 [B, N], i in column i where nominal image i may be used, -1 elsewhere; all may where None.
        settings: the method's settings.

    Returns:
        per scoring level, float32 [B, h, w]: the L2 norm over channels of the residual.
    """
    if reference is not None and isinstance(reference.atoms, np.ndarray):
        assert reference_features is not None
        signals = reference_features.reshape(len(reference_features), -1)
        support = streaming.choose(*reference, signals, allowed, s=settings.s_ref, eps=settings.eps)
    else:
        support = _support(scoring[0].n_images, reference, reference_features, allowed, settings)
    in_memory, streamed = (
        (_full_vector, streaming.solve_vectors) if settings.mode == "full" else (_per_pixel, streaming.solve_positions)
    )
    norms = []
    for dictionary, y in zip(scoring, features, strict=True):
        solve = partial(streamed, in_memory) if isinstance(dictionary.atoms, np.ndarray) else in_memory
        norms.append(solve(*dictionary, y, support, s=settings.s, eps=settings.eps))
    return tuple(norms)


@partial(jax.jit, static_argnames=("n_images", "settings"))
def _support(
    n_images: int,
    reference: Dictionary | None,
    reference_features: jax.Array | None,
    allowed: jax.Array | None,
    settings: Settings,
) -> jax.Array | None:
    """int32 [B, K] or [1, K], or None for all images."""
    if settings.sampling == "subspace":
        assert reference is not None
        assert reference.gram is not None
        assert reference_features is not None
        signals = reference_features.reshape(len(reference_features), -1)
        return subspace_support(
            reference.atoms, reference.gram, signals, s_ref=settings.s_ref, eps=settings.eps, candidates=allowed
        )
    if settings.sampling == "random":
        return random_support(n_images, s_ref=settings.s_ref, seed=settings.seed, candidates=allowed)
    return allowed


def _full_vector(
    atoms: jax.Array, gram: jax.Array, features: jax.Array, support: jax.Array | None, *, s: int, eps: float
) -> jax.Array:
    signals = features.reshape(len(features), -1)
    if support is not None:
        support = jnp.broadcast_to(support, (len(signals), support.shape[-1]))
    code = _pursue(atoms, gram, signals, support, s=s, eps=eps)
    return _channel_norms(residual(atoms, signals, code).reshape(features.shape))


def _per_pixel(
    atoms: jax.Array, gram: jax.Array | None, features: jax.Array, support: jax.Array | None, *, s: int, eps: float
) -> jax.Array:
    batch, height, width, channels = features.shape
    signals = features.reshape(batch, height * width, channels)
    if support is not None:
        support = jnp.broadcast_to(support[:, None], (*signals.shape[:2], support.shape[-1]))
    return _pursue(atoms, gram, signals, support, s=s, eps=eps).residual_norm.reshape(batch, height, width)


@jax.jit
def _channel_norms(error: jax.Array) -> jax.Array:
    return jnp.linalg.norm(error, axis=-1)


@partial(jax.jit, static_argnames=("s", "eps"))
def _pursue(
    atoms: jax.Array, gram: jax.Array | None, signals: jax.Array, support: jax.Array | None, *, s: int, eps: float
) -> SparseCode:
    """Algorithm 1: signed choice among unnormalised atoms (Eq. 3).

    Where no Gram matrix is kept, every position forms that of its candidates: to read their atoms again for each
    choice, as `omp` would, takes up to 3 times as long.
    """
    return omp(
        atoms,
        signals,
        n_nonzero_coefs=s,
        tol=eps,
        selection="signed",
        gram=gram,
        candidates=support,
        algorithm="rows" if gram is None else None,
    )
