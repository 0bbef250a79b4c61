"""Large eager calls, solved as one execution per core: the same codes as one program's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sfrjax.pursuit import Status, omp, shares


@pytest.fixture(autouse=True)
def three_shares(monkeypatch):
    monkeypatch.setattr(shares, "cores", lambda: 3)
    monkeypatch.setattr(shares, "LEAST_SIGNALS", 10)
    monkeypatch.setattr(shares, "LEAST_WORK", 1)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((24, 16), dtype=np.float32)
    return jnp.asarray(atoms), jnp.asarray(rng.standard_normal((5, 11, 16), dtype=np.float32))


def agree(code, expected):
    for name in ("support", "n_atoms", "status"):
        np.testing.assert_array_equal(getattr(code, name), getattr(expected, name))
    np.testing.assert_allclose(code.coef, expected.coef, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(code.residual_norm, expected.residual_norm, rtol=1e-4, atol=1e-5)


def options():
    rng = np.random.default_rng(1)
    return {
        "plain": {},
        "a tolerance for each": {"tol": rng.uniform(0, 4, (5, 11)).astype(np.float32)},
        "relative": {"rtol": 0.5, "selection": "signed", "unit_norm": True},
        "non-negative": {"selection": "non-negative"},
        "path": {"path": True},
        "residual": {"algorithm": "residual"},
        "candidates": {"candidates": rng.permuted(np.tile(np.arange(24, dtype=np.int32), (11, 1)), axis=1)[:, :9]},
    }


@pytest.mark.parametrize("name", options())
def test_same_codes_as_one_program(problem, name):
    assert shares.count_shares(*problem, 4) == 3  # 55 signals in shares of 19, the last two overlapping
    solve = partial(omp, n_nonzero_coefs=4, **options()[name])
    agree(solve(*problem), jax.jit(solve)(*problem))


def test_same_codes_with_gram_and_correlations(problem):
    atoms, signals = problem
    solve = partial(omp, n_nonzero_coefs=4, gram=atoms @ atoms.T, correlations=signals @ atoms.T)
    agree(solve(*problem), jax.jit(solve)(*problem))


def test_coherent_atoms_get_the_residual_form(problem):
    atoms, signals = problem
    atoms = atoms + 20
    solve = partial(omp, n_nonzero_coefs=4)
    agree(solve(atoms, signals), jax.jit(partial(solve, algorithm="residual"))(atoms, signals))


def test_float64_of_a_context_reaches_every_share(problem):
    with jax.enable_x64(True):
        atoms, signals = (jnp.asarray(np.asarray(a, np.float64)) for a in problem)
        assert omp(atoms, signals, n_nonzero_coefs=4).coef.dtype == jnp.float64


def test_a_broken_signal_breaks_alone_and_a_broken_dictionary_is_an_error(problem):
    atoms, signals = problem
    status = omp(atoms, signals.at[4, 10, 3].set(jnp.nan), n_nonzero_coefs=4).status
    assert status[4, 10] == Status.BREAKDOWN
    assert jnp.sum(status == Status.BREAKDOWN) == 1
    with pytest.raises(ValueError, match="NaN or infinity"):
        omp(atoms.at[3, 3].set(jnp.inf), signals, n_nonzero_coefs=4)


def test_small_and_traced_calls_are_one_program(problem, monkeypatch):
    monkeypatch.setattr(shares, "LEAST_SIGNALS", 50)
    assert shares.count_shares(*problem, 4) == 1
    monkeypatch.setattr("sfrjax.pursuit.solve.count_shares", lambda *_: pytest.fail("asked about traced arrays"))
    jax.jit(partial(omp, n_nonzero_coefs=4))(*problem)
