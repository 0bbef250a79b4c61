"""Which nominal images may reconstruct a test image: its memory bank (section III-B of the paper)."""

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax.pursuit import omp


def subspace_support(
    atoms: jax.Array,
    gram: jax.Array,
    signals: jax.Array,
    *,
    s_ref: int,
    eps: float,
    candidates: jax.Array | None = None,
) -> jax.Array:
    """Subspace-based sampling: the support of a pursuit at the reference level (Eq. 6, 7).

    Args:
        atoms: float32 [N, D], nominal features at the reference level.
        gram: float32 [N, N], atoms @ atoms.T.
        signals: float32 [B, D], test features at the reference level.
        s_ref: number of atoms to keep.
        eps: the pursuit stops at this residual norm.
        candidates: int32 [B, K], atoms to choose from; all where None.

    Returns:
        int32 [B, s_ref], indices of nominal images; -1 where the pursuit stopped before.
    """
    code = omp(atoms, signals, n_nonzero_coefs=s_ref, tol=eps, selection="signed", gram=gram, candidates=candidates)
    return code.support


def random_support(n_images: int, *, s_ref: int, seed: int) -> jax.Array:
    """Random sampling, the paper's control: int32 [s_ref], one draw without replacement for all test images."""
    return jnp.asarray(np.sort(np.random.default_rng(seed).choice(n_images, s_ref, replace=False)), jnp.int32)
