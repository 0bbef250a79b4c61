"""Orthogonal matching pursuit in JAX: `omp` and what belongs to it. Knows nothing of images; needs only jax."""

from sfrjax.pursuit.code import SparseCode, Status, densify
from sfrjax.pursuit.products import reconstruct, residual
from sfrjax.pursuit.solve import omp

__all__ = ["SparseCode", "Status", "densify", "omp", "reconstruct", "residual"]
