"""Textbook OMP in float64 NumPy, one signal at a time: the independent reference of these tests."""

import numpy as np


def textbook(atoms, signal, s, selection="absolute", tol=0.0, unit_norm=False, candidates=None):
    """Support in order of choice and, for every k, coefficients over it and residual norm."""
    atoms, signal = np.asarray(atoms, np.float64), np.asarray(signal, np.float64)
    weights = 1 / np.maximum(np.linalg.norm(atoms, axis=1), 1e-300) if unit_norm else np.ones(len(atoms))
    usable = np.ones(len(atoms), bool)
    if candidates is not None:
        usable[:] = False
        usable[[c for c in candidates if c >= 0]] = True
    support, coefs, norms = [], [], []
    error = signal
    while len(support) < s and np.linalg.norm(error) > tol:
        score = (atoms @ error) * weights
        score = np.where(usable, np.abs(score) if selection == "absolute" else score, -np.inf)
        best = int(np.argmax(score))
        usable[best] = False
        support.append(best)
        coef = np.linalg.lstsq(atoms[support].T, signal, rcond=None)[0]
        error = signal - coef @ atoms[support]
        coefs.append(coef)
        norms.append(np.linalg.norm(error))
    return support, coefs, np.array(norms)


def coherent(rng, count, width, cosine):
    """Unit vectors whose mutual cosine is about `cosine`, float32."""
    rng_base = np.random.default_rng(99).standard_normal(width)
    base = rng_base / np.linalg.norm(rng_base)
    noise = rng.standard_normal((count, width))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return (np.sqrt(cosine) * base + np.sqrt(1 - cosine) * noise).astype(np.float32)


def unit_atoms(rng, count, width):
    atoms = rng.standard_normal((count, width))
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)
