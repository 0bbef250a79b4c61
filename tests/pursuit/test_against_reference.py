"""Supports and norms against float64: scikit-learn's OMP and the textbook one, at every k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import orthogonal_mp

from sfrjax.pursuit import Status, densify, omp, products, reconstruct, residual
from tests.pursuit.reference import coherent, textbook, unit_atoms

ALGORITHMS = ["rows", "gram", "residual"]


def sklearn_path(atoms, signals, s):
    """Dense coefficients of scikit-learn in float64: `[B, s, N]`."""
    path = orthogonal_mp(atoms.T.astype(np.float64), signals.T.astype(np.float64), n_nonzero_coefs=s, return_path=True)
    return np.moveaxis(path, (0, 1, 2), (2, 0, 1))


def check_every_k(code, expected, atoms, signals):
    got = np.asarray(densify(code, atoms.shape[0]))
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got != 0, expected != 0)
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())
    norms = np.linalg.norm(signals[:, None] - expected @ atoms.astype(np.float64), axis=-1)
    np.testing.assert_allclose(code.residual_norm, norms, rtol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("width", "count", "s", "batch"), [(64, 256, 16, 300), (512, 1024, 17, 40)])
def test_random_dictionary_equals_scikit_learn_at_every_k(width, count, s, batch, algorithm):
    rng = np.random.default_rng(0)
    atoms = unit_atoms(rng, count, width)
    signals = rng.standard_normal((batch, width)).astype(np.float32)
    code = omp(atoms, signals, n_nonzero_coefs=s, path=True, algorithm=algorithm)
    check_every_k(code, sklearn_path(atoms, signals, s), atoms, signals)
    assert np.all(code.n_atoms == s)
    assert np.all(code.status == Status.SPARSITY)


@pytest.mark.parametrize("cosine", [0.9, 0.99, 0.9999])
def test_nearly_parallel_atoms_equal_scikit_learn_at_every_k(cosine):
    rng = np.random.default_rng(1)
    atoms, signals = coherent(rng, 300, 512, cosine), coherent(rng, 60, 512, cosine)
    code = omp(atoms, signals, n_nonzero_coefs=16, path=True)
    expected = sklearn_path(atoms, signals, 16)
    got = np.asarray(densify(code, 300))
    np.testing.assert_array_equal(got != 0, expected != 0)
    norms = np.linalg.norm(signals[:, None] - expected @ atoms.astype(np.float64), axis=-1)
    np.testing.assert_allclose(code.residual_norm, norms, rtol=1e-4)


@pytest.mark.parametrize("algorithm", ["rows", "gram"])
@pytest.mark.parametrize("cosine", [0.9, 0.99, 0.9999])
def test_gram_space_on_nearly_parallel_atoms(cosine, algorithm):
    """With only a float32 Gram matrix some choices are ties; what is reported about them must still be true."""
    rng = np.random.default_rng(2)
    atoms, signals = coherent(rng, 300, 512, cosine), coherent(rng, 60, 512, cosine)
    code = omp(atoms, signals, n_nonzero_coefs=16, algorithm=algorithm)
    assert np.all(code.n_atoms == 16)
    agree = 0
    for i, signal in enumerate(signals.astype(np.float64)):
        support = np.asarray(code.support[i])
        chosen = atoms[support].astype(np.float64)
        coef = np.linalg.lstsq(chosen.T, signal, rcond=None)[0]
        np.testing.assert_allclose(code.residual_norm[i], np.linalg.norm(signal - coef @ chosen), rtol=1e-4)
        best, _, norms = textbook(atoms, signal, 16)
        agree += set(best) == set(support.tolist())
        assert code.residual_norm[i] < norms[-1] * 1.02
    assert agree >= {0.9: 57, 0.99: 51, 0.9999: 3}[cosine]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("selection", ["absolute", "signed"])
def test_rules_tolerances_and_unit_norm_against_textbook(selection, algorithm):
    rng = np.random.default_rng(3)
    atoms = (unit_atoms(rng, 40, 24) * rng.uniform(0.3, 3, (40, 1))).astype(np.float32)
    signals = rng.standard_normal((20, 24)).astype(np.float32)
    for options in ({}, {"unit_norm": True}, {"tol": 2.0}, {"rtol": 0.4, "unit_norm": True}):
        code = omp(atoms, signals, n_nonzero_coefs=9, selection=selection, algorithm=algorithm, **options)
        for i, signal in enumerate(signals):
            tol = options.get("tol", 0) or options.get("rtol", 0) * np.linalg.norm(signal.astype(np.float64))
            support, coefs, norms = textbook(atoms, signal, 9, selection, tol, options.get("unit_norm", False))
            n = len(support)
            assert code.n_atoms[i] == n
            assert code.support[i].tolist() == support + [-1] * (9 - n)
            np.testing.assert_allclose(code.coef[i, :n], coefs[-1], rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(code.residual_norm[i], norms[-1], rtol=1e-4)
            assert code.status[i] == (Status.TOLERANCE if norms[-1] <= tol else Status.SPARSITY)


@pytest.mark.parametrize("kept", [20, 45])  # with a Gram matrix, most of the atoms are a mask
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("with_gram", [True, False])
def test_candidates_against_textbook(with_gram, algorithm, kept):
    rng = np.random.default_rng(4)
    atoms = rng.standard_normal((50, 24)).astype(np.float32)
    signals = rng.standard_normal((2, 7, 24)).astype(np.float32)
    candidates = np.stack([rng.permutation(50)[:kept] for _ in range(14)]).reshape(2, 7, kept).astype(np.int32)
    candidates[..., 3] = -1
    gram = atoms @ atoms.T if with_gram else None
    code = omp(atoms, signals, n_nonzero_coefs=6, candidates=candidates, gram=gram, algorithm=algorithm)
    for i in np.ndindex(2, 7):
        support, coefs, _ = textbook(atoms, signals[i], 6, candidates=candidates[i])
        assert code.support[i].tolist() == support
        np.testing.assert_allclose(code.coef[i], coefs[-1], rtol=1e-3, atol=1e-4)


def test_few_candidates_are_all_that_is_read():
    rng = np.random.default_rng(4)
    atoms = rng.standard_normal((50, 24)).astype(np.float32)
    signals = rng.standard_normal((2, 24)).astype(np.float32)
    candidates = np.stack([rng.permutation(50)[:9] for _ in range(2)]).astype(np.int32)
    candidates[1, 5:] = -1
    gram = atoms @ atoms.T
    unread = np.setdiff1d(np.arange(50), candidates)
    code = omp(atoms, signals, n_nonzero_coefs=6, candidates=candidates, gram=gram)
    # Traced, because an eager call would refuse them.
    broken = jax.jit(lambda x: omp(x, signals, n_nonzero_coefs=6, candidates=candidates, gram=gram))
    poisoned = broken(np.where(np.isin(np.arange(50), unread)[:, None], np.nan, atoms).astype(np.float32))
    for i in range(2):
        support, coefs, _ = textbook(atoms, signals[i], (6, 5)[i], candidates=candidates[i])
        assert code.support[i, : len(support)].tolist() == support
        np.testing.assert_allclose(code.coef[i, : len(support)], coefs[-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(poisoned.support, code.support)


@pytest.mark.parametrize("noise", [0.3, 1e-4])  # a true norm is enough; coefficients are refined, too
def test_an_unread_atom_may_be_nan_where_the_pursuit_ends_early(noise):
    rng = np.random.default_rng(4)
    atoms = rng.standard_normal((50, 64)).astype(np.float32)
    signal = atoms[3] + noise * rng.standard_normal(64).astype(np.float32) / 8
    candidates = np.array([3, 5, 7, 9, 11], np.int32)
    gram = atoms @ atoms.T
    atoms[0] = np.nan  # traced, because an eager call would refuse it
    code = jax.jit(lambda x: omp(x, signal, n_nonzero_coefs=4, tol=0.5, candidates=candidates, gram=gram))(atoms)
    assert code.support.tolist() == [3, -1, -1, -1]
    error = signal - code.coef[0] * atoms[3]
    np.testing.assert_allclose(code.residual_norm, np.linalg.norm(error), rtol=1e-4)
    np.testing.assert_allclose(residual(atoms, signal, code), error, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("width", [24, 40])  # a remainder alone; whole chunks and a remainder
def test_correlations_of_candidates_in_chunks(monkeypatch, width, dtype):
    monkeypatch.setattr(products, "CHUNK", 16)
    rng = np.random.default_rng(6)
    atoms = rng.standard_normal((7, width)).astype(dtype)
    signals = rng.standard_normal((3, width)).astype(np.float32)
    index = rng.integers(0, 7, (3, 4)).astype(np.int32)
    got = products.candidate_correlations(jnp.asarray(atoms), jnp.asarray(signals), jnp.asarray(index), jnp.float32)
    expected = np.einsum("bkd,bd->bk", atoms[index].astype(np.float64), signals)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_dictionary_per_position_equals_one_call_per_position(algorithm):
    rng = np.random.default_rng(5)
    atoms = rng.standard_normal((5, 40, 24)).astype(np.float32)
    signals = rng.standard_normal((3, 5, 24)).astype(np.float32)
    candidates = np.stack([rng.permutation(40)[:15] for _ in range(3)])[:, None].astype(np.int32)
    gram = np.einsum("pnd,pmd->pnm", atoms, atoms)
    most = np.stack([rng.permutation(40)[:30] for _ in range(3)])[:, None].astype(np.int32)
    few = candidates[..., :10]  # fewer atoms than a position has, for all its signals together
    choices = ({}, {"candidates": candidates}, {"candidates": most}, {"candidates": few})
    for extra in (*choices, *({**choice, "gram": gram} for choice in choices)):
        code = omp(atoms, signals, n_nonzero_coefs=6, algorithm=algorithm, **extra)
        for i, p in np.ndindex(3, 5):
            support, coefs, norms = textbook(
                atoms[p], signals[i, p], 6, candidates=extra["candidates"][i, 0] if "candidates" in extra else None
            )
            assert code.support[i, p].tolist() == support
            np.testing.assert_allclose(code.coef[i, p], coefs[-1], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(code.residual_norm[i, p], norms[-1], rtol=1e-4)
        expected = signals - np.einsum("lpn,pnd->lpd", densify(code, 40), atoms)
        np.testing.assert_allclose(residual(atoms, signals, code), expected, atol=1e-5)


def test_given_gram_and_correlations_change_nothing():
    rng = np.random.default_rng(6)
    atoms = rng.standard_normal((40, 24)).astype(np.float32)
    signals = rng.standard_normal((9, 24)).astype(np.float32)
    plain = omp(atoms, signals, n_nonzero_coefs=5, algorithm="rows")
    given = omp(
        atoms, signals, n_nonzero_coefs=5, gram=atoms @ atoms.T, correlations=signals @ atoms.T, algorithm="rows"
    )
    np.testing.assert_array_equal(plain.support, given.support)
    np.testing.assert_allclose(plain.coef, given.coef, rtol=1e-4)


def test_long_signals_take_the_row_chain():
    """D beyond the threshold of the fused chain, few and many signals, half-precision atoms too."""
    rng = np.random.default_rng(7)
    atoms = rng.standard_normal((24, 1 << 15)).astype(np.float32)
    signals = rng.standard_normal((18, 1 << 15)).astype(np.float32)
    gram = atoms.astype(np.float64) @ atoms.T.astype(np.float64)

    @jax.jit
    def solve(atoms, signals, gram):
        code = omp(atoms, signals, n_nonzero_coefs=4, gram=gram, selection="signed", tol=1e-6)
        return code, residual(atoms, signals, code), reconstruct(atoms, code)

    for batch in (1, 3, 18):
        code, error, fit = solve(atoms, signals[:batch], gram.astype(np.float32))
        for i in range(batch):
            support, _, norms = textbook(atoms, signals[i], 4, "signed")
            assert code.support[i].tolist() == support
            np.testing.assert_allclose(np.linalg.norm(error[i]), norms[-1], rtol=1e-5)
        np.testing.assert_allclose(error + fit, signals[:batch], atol=1e-4)


@pytest.mark.parametrize(("count", "algorithm"), [(256, "rows"), (512, None)])
def test_a_batch_of_many_blocks_equals_its_parts(count, algorithm):
    """Blocks and parallel loops, with a batch that no block size divides; a wide dictionary gets larger blocks."""
    rng = np.random.default_rng(8)
    atoms = unit_atoms(rng, count, 32)
    signals = rng.standard_normal((1009, 32)).astype(np.float32)
    whole = omp(atoms, signals, n_nonzero_coefs=8, algorithm=algorithm)
    for start in (0, 500, 1001):
        part = omp(atoms, signals[start : start + 8], n_nonzero_coefs=8, algorithm="rows")
        np.testing.assert_array_equal(whole.support[start : start + 8], part.support)
        np.testing.assert_allclose(whole.residual_norm[start : start + 8], part.residual_norm, rtol=1e-5)
