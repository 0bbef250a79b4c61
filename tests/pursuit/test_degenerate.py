"""Every row of the table of degenerate inputs in docs/omp.md."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrjax.pursuit import Status, densify, omp, residual
from tests.pursuit.reference import textbook, unit_atoms

ALGORITHMS = ["rows", "gram", "residual"]
everywhere = pytest.mark.parametrize("algorithm", ALGORITHMS)
N, D, S = 40, 24, 17


def data(seed=0, batch=6):
    rng = np.random.default_rng(seed)
    return rng, unit_atoms(rng, N, D), rng.standard_normal((batch, D)).astype(np.float32)


def solve(atoms, signals, algorithm, s=S, **options):
    return omp(atoms, signals, n_nonzero_coefs=s, algorithm=algorithm, **options)


def check_sane(code, atoms, signals):
    """No NaN, no atom twice, coefficients of least squares, and the true residual norm."""
    for i, signal in enumerate(np.asarray(signals, np.float64)):
        support = np.asarray(code.support[i])
        n = int(code.n_atoms[i])
        assert (support[:n] >= 0).all()
        assert (support[n:] == -1).all()
        assert len(set(support[:n].tolist())) == n
        coef = np.asarray(code.coef[i], np.float64)
        assert np.isfinite(coef).all()
        assert (coef[n:] == 0).all()
        error = signal - coef[:n] @ atoms[support[:n]].astype(np.float64)
        scale = np.linalg.norm(signal)
        np.testing.assert_allclose(code.residual_norm[i], np.linalg.norm(error), rtol=1e-3, atol=1e-5 * scale)
        assert np.abs(atoms[support[:n]].astype(np.float64) @ error).max(initial=0) <= 2e-5 * scale


@everywhere
def test_exact_duplicates_are_used_once(algorithm):
    _, atoms, signals = data()
    doubled = np.concatenate([atoms, atoms])
    for selection in ("absolute", "signed"):
        code = solve(doubled, signals, algorithm, selection=selection)
        single = solve(atoms, signals, algorithm, selection=selection)
        check_sane(code, doubled, signals)
        for support in np.asarray(code.support):
            assert len(set((support % N).tolist())) == S
        np.testing.assert_allclose(code.residual_norm, single.residual_norm, rtol=1e-3)


@everywhere
def test_near_duplicates(algorithm):
    rng, atoms, signals = data(1)
    near = np.concatenate([atoms, atoms + 1e-4 * rng.standard_normal(atoms.shape)]).astype(np.float32)
    code = solve(near, signals, algorithm)
    check_sane(code, near, signals)
    assert np.all(code.n_atoms == S)
    assert np.abs(code.coef).max() < 1e3


@everywhere
def test_zero_atoms_are_never_chosen(algorithm):
    _, atoms, signals = data(2)
    atoms[[3, 7]] = 0
    for unit_norm in (False, True):
        code = solve(atoms, signals, algorithm, unit_norm=unit_norm)
        check_sane(code, atoms, signals)
        assert not np.isin(np.asarray(code.support), [3, 7]).any()
    none = solve(np.zeros_like(atoms), signals, algorithm)
    assert np.all(none.n_atoms == 0)
    assert np.all(none.status == Status.EXHAUSTED)
    np.testing.assert_allclose(none.residual_norm, np.linalg.norm(signals, axis=1), rtol=1e-5)


@everywhere
def test_zero_signal(algorithm):
    _, atoms, signals = data(3)
    signals[2] = 0
    code = solve(atoms, signals, algorithm)
    assert code.n_atoms.tolist() == [S, S, 0, S, S, S]
    assert code.status[2] == Status.TOLERANCE
    assert code.residual_norm[2] == 0
    assert not np.asarray(code.coef[2]).any()


@everywhere
def test_signal_in_the_span_of_five_atoms_ends_there(algorithm):
    rng, atoms, _ = data(4)
    atoms[:, D // 2 :] *= 0.5
    chosen = np.stack([rng.choice(N, 2, replace=False) for _ in range(8)])
    signals = np.stack([2 * atoms[a] + atoms[b] for a, b in chosen])
    code = solve(atoms, signals, algorithm)
    check_sane(code, atoms, signals)
    assert np.all(code.status == Status.TOLERANCE)
    wide = unit_atoms(rng, 200, 512)
    five = np.stack([rng.choice(200, 5, replace=False) for _ in range(8)])
    signals = np.einsum("bs,bsd->bd", rng.uniform(1, 2, (8, 5)), wide[five]).astype(np.float32)
    for options in ({}, {"tol": 1e-6}):
        code = solve(wide, signals, algorithm, **options)
        assert np.all(code.n_atoms == 5)
        assert np.all(code.status == Status.TOLERANCE)
        np.testing.assert_array_equal(np.sort(code.support[:, :5]), np.sort(five))
        assert np.all(code.residual_norm < 1e-5)


@everywhere
def test_more_atoms_asked_for_than_the_rank(algorithm):
    rng, _, signals = data(5)
    atoms = (rng.standard_normal((N, 8)) @ rng.standard_normal((8, D))).astype(np.float32)
    code = solve(atoms, signals, algorithm)
    check_sane(code, atoms, signals)
    assert np.all(code.n_atoms == 8)
    assert np.all(code.status == Status.EXHAUSTED)


@everywhere
def test_more_atoms_asked_for_than_there_are_or_dimensions(algorithm):
    _, atoms, signals = data(6)
    few = solve(atoms[:10], signals, algorithm)
    check_sane(few, atoms[:10], signals)
    assert few.support.shape == (6, S)
    assert np.all(few.n_atoms == 10)
    assert np.all(few.status == Status.EXHAUSTED)
    narrow = solve(atoms[:, :5].copy(), signals[:, :5].copy(), algorithm)
    assert np.all(narrow.n_atoms == 5)
    assert np.all(narrow.status == Status.TOLERANCE)
    path = solve(atoms[:10], signals, algorithm, path=True)
    assert path.coef.shape == (6, S, S)
    np.testing.assert_allclose(path.coef[:, -1], few.coef, atol=1e-5)
    np.testing.assert_allclose(path.residual_norm[:, 9:], np.repeat(few.residual_norm[:, None], 8, 1), rtol=1e-4)


@everywhere
@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e-25])
def test_scale_of_signals_and_atoms_changes_nothing(scale, algorithm):
    _, atoms, signals = data(7)
    plain = solve(atoms, signals, algorithm, s=8)
    scaled = solve(atoms, signals * np.float32(scale), algorithm, s=8)
    np.testing.assert_array_equal(plain.support, scaled.support)
    np.testing.assert_allclose(scaled.coef, plain.coef * scale, rtol=1e-4, atol=1e-6 * scale)
    np.testing.assert_allclose(scaled.residual_norm, plain.residual_norm * scale, rtol=1e-4)
    np.testing.assert_array_equal(plain.status, scaled.status)
    if scale > 1e-10:
        atoms_scaled = solve(atoms * np.float32(scale), signals, algorithm, s=8)
        np.testing.assert_array_equal(plain.support, atoms_scaled.support)
        np.testing.assert_allclose(atoms_scaled.coef * scale, plain.coef, rtol=1e-4, atol=1e-6)


@everywhere
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_in_one_signal_stays_there(bad, algorithm):
    _, atoms, signals = data(8)
    clean = solve(atoms, signals, algorithm)
    signals[1, 4] = bad
    code = solve(atoms, signals, algorithm)
    assert code.status.tolist() == [0, Status.BREAKDOWN, 0, 0, 0, 0]
    assert code.n_atoms[1] == 0
    assert np.isnan(code.residual_norm[1])
    assert np.all(code.support[1] == -1)
    assert not np.asarray(code.coef[1]).any()
    others = np.arange(6) != 1
    np.testing.assert_array_equal(code.support[others], clean.support[others])
    np.testing.assert_allclose(code.coef[others], clean.coef[others], rtol=1e-5)


@everywhere
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_the_dictionary(bad, algorithm):
    _, atoms, signals = data(9)
    atoms[5, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        solve(atoms, signals, algorithm)
    code = jax.jit(lambda a, y: solve(a, y, algorithm))(atoms, signals)
    assert np.all(code.status == Status.BREAKDOWN)
    assert np.all(code.n_atoms == 0)
    assert not np.asarray(code.coef).any()
    own = np.stack([atoms, data(9)[1]])
    code = jax.jit(lambda a, y: solve(a, y, algorithm))(own, signals[:2])
    assert code.status.tolist() == [Status.BREAKDOWN, Status.SPARSITY]


def test_nan_in_a_given_gram_is_an_error():
    _, atoms, signals = data(10)
    gram = atoms @ atoms.T
    gram[3, 8] = gram[8, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        omp(atoms, signals, n_nonzero_coefs=N, gram=gram)


@everywhere
def test_one_atom_one_dimension_and_empty_batch(algorithm):
    _, atoms, signals = data(11)
    code = solve(atoms[:1], signals, algorithm, s=1)
    np.testing.assert_allclose(code.coef[:, 0], signals @ atoms[0], rtol=1e-4, atol=1e-6)
    code = solve(np.array([[2.0], [3.0]], np.float32), np.array([[6.0], [0.0]], np.float32), algorithm, s=1)
    assert code.support.tolist() == [[1], [-1]]
    np.testing.assert_allclose(code.coef, [[2.0], [0.0]])
    for shape in ((0, D), (3, 0, D)):
        empty = solve(atoms, np.zeros(shape, np.float32), algorithm, s=3)
        assert empty.support.shape == (*shape[:-1], 3)
        assert residual(atoms, np.zeros(shape, np.float32), empty).shape == shape
    single = solve(atoms, signals[0], algorithm, s=3)
    assert single.support.shape == (3,)
    assert single.residual_norm.shape == ()


@everywhere
def test_no_candidate_at_all(algorithm):
    _, atoms, signals = data(12)
    code = solve(atoms, signals, algorithm, s=3, candidates=np.full((6, 4), -1))
    assert np.all(code.n_atoms == 0)
    assert np.all(code.status == Status.EXHAUSTED)
    twice = solve(atoms, signals, algorithm, s=3, candidates=np.array([4, 4, 9, 4]))
    assert np.all(np.sort(twice.support) == [-1, 4, 9])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"dictionary": np.zeros((D,), np.float32)}, ValueError, r"dictionary must be \[N, D\]"),
        ({"dictionary": np.zeros((0, D), np.float32)}, ValueError, "none of them 0"),
        ({"dictionary": np.ones((D, N), np.float32)}, ValueError, "D = 40"),
        ({"dictionary": np.ones((N, D), np.int32)}, TypeError, "dictionary must be real floating point"),
        ({"signals": np.ones((3, D), np.complex64)}, TypeError, "signals must be real floating point"),
        ({"signals": np.ones((3, N), np.float32)}, ValueError, "transpose"),
        ({"dictionary": np.ones((4, N, D), np.float32)}, ValueError, "P = 4"),
        ({"gram": np.ones((N, D), np.float32)}, ValueError, "gram must have shape"),
        ({"correlations": np.ones((5, N), np.float32)}, ValueError, "correlations must have shape"),
        ({"candidates": np.ones((5, 3), np.int32)}, ValueError, "broadcastable"),
        ({"candidates": np.ones((6, 3), np.float32)}, TypeError, "integer"),
        ({"candidates": np.full((6, 3), N)}, ValueError, "must lie in 0 .. 39"),
        ({"n_nonzero_coefs": 0}, ValueError, "at least 1"),
        ({"n_nonzero_coefs": 2.5}, TypeError, "Python int"),
        ({"selection": "largest"}, ValueError, "selection must be one of"),
        ({"algorithm": "fast"}, ValueError, "algorithm must be None or one of"),
        ({"selection": "non-negative", "path": True}, ValueError, "leave out path"),
    ],
)
def test_wrong_input_is_told(change, error, match):
    _, atoms, signals = data(13)
    with pytest.raises(error, match=match):
        omp(**{"dictionary": atoms, "signals": signals, "n_nonzero_coefs": 3, **change})


def test_non_negative_equals_nnls_and_truncates():
    from scipy.optimize import nnls

    rng, atoms, signals = data(14, 30)
    full = omp(atoms, signals, n_nonzero_coefs=N, selection="non-negative")
    expected = np.stack([nnls(atoms.T.astype(np.float64), y.astype(np.float64))[0] for y in signals])
    np.testing.assert_allclose(densify(full, N), expected, atol=1e-4)
    assert np.all(full.status == Status.EXHAUSTED)
    atoms = np.abs(atoms) + 0.1
    signals = np.abs(rng.standard_normal((30, 6))).astype(np.float32) @ atoms[:6]
    for k in (1, 2, 4):
        code = omp(atoms, signals, n_nonzero_coefs=k, selection="non-negative")
        check_sane(code, atoms, signals)
        assert np.all(code.coef >= 0)
        assert np.all(code.n_atoms <= k)
        if k == 1:  # the first atom is the same as the signed rule's
            assert code.support[:, 0].tolist() == [textbook(atoms, y, 1, "signed")[0][0] for y in signals]
    none = omp(atoms, -signals, n_nonzero_coefs=3, selection="non-negative")
    assert np.all(none.n_atoms == 0)


def test_candidates_out_of_range_under_jit_are_unused():
    _, atoms, signals = data(15)
    code = jax.jit(lambda c: omp(atoms, signals, n_nonzero_coefs=3, candidates=c))(jnp.array([2, 99, 5, -7]))
    assert np.all(np.sort(code.support) == [-1, 2, 5])
