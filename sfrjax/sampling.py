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


def random_support(n_images: int, *, s_ref: int, seed: int, candidates: jax.Array | None = None) -> jax.Array:
    """Random sampling, the paper's control: the first s_ref of one random order of the nominal images.

    Args:
        n_images: N, the number of nominal images.
        s_ref: number of nominal images to keep.
        seed: decides the order, which is the same for all test images.
        candidates: int32 [B, N], i in column i where image i may be used, -1 elsewhere; all may where None.

    Returns:
        int32 [1, s_ref], or [B, s_ref] with candidates: indices of nominal images, -1 where they ran out.
    """
    order = np.random.default_rng(seed).permutation(n_images).astype(np.int32)
    if candidates is None:
        return jnp.asarray(order[None, :s_ref])
    shuffled = candidates[:, order]
    usable_first = jnp.argsort(shuffled < 0, axis=1, stable=True)
    return jnp.take_along_axis(shuffled, usable_first[:, :s_ref], axis=1)
