"""Properties that hold for any data; shapes are fixed so that each property compiles once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sfrjax.pursuit import omp, residual

N, D, S, B = 20, 12, 6, 4
problems = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from(["random", "coherent", "low rank", "duplicates", "uneven"])


def draw(seed, shape):
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((N, D))
    if shape == "coherent":
        atoms = rng.standard_normal(D) + 0.3 * atoms
    if shape == "low rank":
        atoms = atoms[:, :4] @ rng.standard_normal((4, D))
    if shape == "duplicates":
        atoms[N // 2 :] = atoms[: N // 2]
    if shape == "uneven":
        atoms *= 10 ** rng.uniform(-2, 2, (N, 1))
    return rng, atoms.astype(np.float32), rng.standard_normal((B, D)).astype(np.float32)


@problems
@given(seed=seeds, shape=shapes)
def test_residual_is_orthogonal_to_the_support_and_norms_fall(seed, shape):
    _, atoms, signals = draw(seed, shape)
    for algorithm in ("rows", "gram", "residual"):
        code = omp(atoms, signals, n_nonzero_coefs=S, algorithm=algorithm, path=True)
        norms = np.asarray(code.residual_norm)
        size = np.linalg.norm(signals, axis=1)
        assert (np.diff(norms, axis=1) <= 1e-4 * size[:, None]).all()
        assert (norms[:, 0] <= size * (1 + 1e-5)).all()
        last = code._replace(coef=code.coef[:, -1], residual_norm=code.residual_norm[:, -1])
        error = np.asarray(residual(atoms, signals, last))
        np.testing.assert_allclose(np.linalg.norm(error, axis=1), norms[:, -1], rtol=1e-3, atol=1e-5)
        for i in range(B):
            chosen = atoms[np.asarray(code.support[i, : code.n_atoms[i]])]
            cosine = chosen @ error[i] / np.linalg.norm(chosen, axis=1)
            assert np.abs(cosine).max(initial=0) <= 1e-3 * size[i]


@problems
@given(seed=seeds)
def test_permuting_atoms_permutes_the_support(seed):
    rng, atoms, signals = draw(seed, "random")
    order = rng.permutation(N)
    plain = omp(atoms, signals, n_nonzero_coefs=S)
    moved = omp(atoms[order], signals, n_nonzero_coefs=S)
    np.testing.assert_array_equal(plain.support, order[np.asarray(moved.support)])
    np.testing.assert_allclose(plain.coef, moved.coef, rtol=1e-2, atol=1e-3)


@problems
@given(seed=seeds)
def test_scaling_atoms_changes_nothing_with_unit_norm(seed):
    rng, atoms, signals = draw(seed, "random")
    factors = 2.0 ** rng.integers(-6, 7, (N, 1))
    plain = omp(atoms, signals, n_nonzero_coefs=S, unit_norm=True)
    scaled = omp((atoms * factors).astype(np.float32), signals, n_nonzero_coefs=S, unit_norm=True)
    np.testing.assert_array_equal(plain.support, scaled.support)
    np.testing.assert_allclose(plain.coef, scaled.coef * factors[:, 0][np.asarray(plain.support)], rtol=1e-2, atol=1e-3)


@problems
@given(seed=seeds, signed=st.booleans())
def test_all_algorithms_and_both_forms_agree(seed, signed):
    _, atoms, signals = draw(seed, "random")
    options = {"n_nonzero_coefs": S, "selection": "signed" if signed else "absolute"}
    codes = [omp(atoms, signals, algorithm=a, **options) for a in ("rows", "gram", "residual")]
    own = np.broadcast_to(atoms, (B, N, D))
    codes += [omp(own, signals, algorithm=a, **options) for a in ("rows", "residual")]
    for code in codes[1:]:
        np.testing.assert_array_equal(codes[0].support, code.support)
        np.testing.assert_allclose(codes[0].coef, code.coef, rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(codes[0].residual_norm, code.residual_norm, rtol=1e-3)
