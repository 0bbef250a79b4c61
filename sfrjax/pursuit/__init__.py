"""Orthogonal matching pursuit in JAX: `omp` and what belongs to it. Knows nothing of images; needs only jax."""

from sfrjax.pursuit.code import SparseCode, Status, densify
from sfrjax.pursuit.solve import omp, reconstruct, residual

__all__ = ["SparseCode", "Status", "densify", "omp", "reconstruct", "residual"]
