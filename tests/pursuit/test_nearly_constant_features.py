"""Positions where all images look alike: features there differ by parts in a thousand, and float32 has little left.

A pursuit must then stop at rounding level, not fill its support with directions made of noise.
"""

import numpy as np
import pytest

from sfrjax.pursuit import omp


def case(seed, decay, scale, n=209, d=512, rank=60):
    """Rectified features that differ along few directions, each a `decay`-th of the one before it."""
    rng = np.random.default_rng(seed)
    base = np.maximum(rng.normal(size=d), 0)
    directions = scale * decay ** np.arange(rank)[:, None] * rng.normal(size=(rank, d))

    def draw(count):
        brightness = 1 + 0.05 * rng.normal(size=(count, 1))
        return np.maximum(base * brightness + rng.normal(size=(count, rank)) @ directions, 0).astype(np.float32)

    return draw(n), draw(1)[0]


@pytest.fixture(scope="module")
def cases():
    """72 positions: atoms `[P, N, D]`, signals `[P, D]`."""
    drawn = [case(s, decay, scale) for decay in (0.5, 0.7, 0.9) for scale in (1e-2, 1e-3, 1e-4) for s in range(8)]
    return np.stack([atoms for atoms, _ in drawn]), np.stack([signal for _, signal in drawn])


def check(atoms, signal, support, coef, reported):
    used = support >= 0
    coef = coef[used].astype(np.float64)
    assert used.any()
    assert np.abs(coef).max() < 100
    chosen = atoms[support[used]].astype(np.float64)
    explicit = np.linalg.norm(signal - coef @ chosen)
    norm = np.linalg.norm(signal.astype(np.float64))
    # No worse than the best of its atoms alone, and truly what is reported.
    alone = min(np.linalg.norm(signal - (a @ signal) / (a @ a) * a) for a in chosen)
    assert explicit <= 1.01 * alone + 1e-6 * norm
    assert abs(explicit - reported) <= 1e-3 * explicit + 2e-6 * norm


@pytest.mark.parametrize("algorithm", ["rows", "gram", "residual"])
@pytest.mark.parametrize("candidates", [False, True])
def test_no_garbage_where_everything_is_alike(cases, algorithm, candidates):
    atoms, signals = cases
    allowed = np.where(np.arange(209) % 7 == 3, -1, np.arange(209)).astype(np.int32) if candidates else None
    gram = None if algorithm == "residual" else np.einsum("pnd,pmd->pnm", atoms, atoms)
    options = {"tol": 1e-6, "selection": "signed", "algorithm": algorithm}
    code = omp(atoms, signals, n_nonzero_coefs=17, gram=gram, candidates=allowed, **options)
    for p in range(len(signals)):
        check(atoms[p], signals[p], *(np.asarray(a[p]) for a in (code.support, code.coef, code.residual_norm)))


@pytest.mark.parametrize("algorithm", [None, "rows", "gram"])
def test_no_garbage_from_a_shared_dictionary(cases, algorithm):
    for atoms, signal in zip(*(a[::4] for a in cases), strict=True):
        code = omp(atoms, signal, n_nonzero_coefs=17, tol=1e-6, selection="signed", algorithm=algorithm)
        check(atoms, signal, *(np.asarray(a) for a in (code.support, code.coef, code.residual_norm)))
