"""jit, vmap, grad, precisions, devices, imports."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sfrjax.pursuit import densify, omp, reconstruct, residual
from tests.pursuit.reference import textbook, unit_atoms


def data(seed=0, batch=6, count=40, width=24):
    rng = np.random.default_rng(seed)
    return unit_atoms(rng, count, width), rng.standard_normal((batch, width)).astype(np.float32)


def test_jit_and_vmap_equal_the_eager_call():
    atoms, signals = data()
    eager = omp(atoms, signals, n_nonzero_coefs=5, rtol=0.5)
    jitted = jax.jit(lambda a, y, r: omp(a, y, n_nonzero_coefs=5, rtol=r))(atoms, signals, 0.5)
    mapped = jax.vmap(lambda y: omp(atoms, y, n_nonzero_coefs=5, rtol=0.5))(signals)
    stacked = jax.vmap(lambda a, y: omp(a, y, n_nonzero_coefs=5, rtol=0.5), (None, 0))(atoms, signals)
    for other in (jitted, mapped, stacked):
        np.testing.assert_array_equal(eager.support, other.support)
        np.testing.assert_allclose(eager.coef, other.coef, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(eager.status, other.status)


@pytest.mark.parametrize("algorithm", ["rows", "gram", "residual"])
def test_gradients_match_finite_differences(algorithm):
    atoms, signals = data(1, 3, 20, 12)

    def loss(a, y):
        code = omp(a, y, n_nonzero_coefs=4, algorithm=algorithm)
        return jnp.sum(jnp.sin(code.coef)) + jnp.sum(code.residual_norm**2)

    check_grads(loss, (jnp.asarray(atoms), jnp.asarray(signals)), order=1, modes=["fwd", "rev"], rtol=3e-2, eps=1e-3)


def least_squares(atoms, signals, support):
    """Coefficients as a plain differentiable function, support fixed: atoms `[..., N, D]`, signals `[..., D]`."""
    chosen = jnp.take_along_axis(atoms, support[..., None], -2)
    gram = jnp.einsum("...sd,...td->...st", chosen, chosen)
    return jnp.linalg.solve(gram, jnp.einsum("...sd,...d->...s", chosen, signals)[..., None])[..., 0]


def test_gradients_of_path_and_of_own_dictionaries_equal_those_of_least_squares():
    atoms, signals = (jnp.asarray(a) for a in data(2, 3, 20, 12))
    support = omp(atoms, signals, n_nonzero_coefs=3).support

    def path(a, y):
        return jnp.sum(jnp.sin(omp(a, y, n_nonzero_coefs=3, path=True).coef))

    def path_by_hand(a, y):
        each = jnp.broadcast_to(a, (3, *a.shape))
        return sum(jnp.sum(jnp.sin(least_squares(each, y, support[:, :k]))) for k in (1, 2, 3))

    own = jnp.stack([atoms, atoms[::-1], -atoms])
    own_support = omp(own, signals, n_nonzero_coefs=3).support

    def per_position(a, y):
        return jnp.sum(omp(a, y, n_nonzero_coefs=3).coef ** 3)

    def per_position_by_hand(a, y):
        return jnp.sum(least_squares(a, y, own_support) ** 3)

    for ours, by_hand, first in ((path, path_by_hand, atoms), (per_position, per_position_by_hand, own)):
        got, expected = (jax.grad(f, argnums=(0, 1))(first, signals) for f in (ours, by_hand))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * float(jnp.abs(b).max()))
    at_zero = jax.grad(lambda y: jnp.sum(omp(atoms, y, n_nonzero_coefs=3).residual_norm))(jnp.zeros((3, 12)))
    assert np.isfinite(at_zero).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("algorithm", ["rows", "residual"])
def test_half_precision_atoms_accumulate_in_float32(dtype, algorithm):
    atoms, signals = data(3)
    half = jnp.asarray(atoms).astype(dtype)
    code = omp(half, signals, n_nonzero_coefs=5, algorithm=algorithm)
    same = omp(half.astype(jnp.float32), signals, n_nonzero_coefs=5, algorithm=algorithm)
    assert code.coef.dtype == jnp.float32
    np.testing.assert_array_equal(code.support, same.support)
    np.testing.assert_allclose(code.coef, same.coef, rtol=1e-5)
    assert residual(half, signals, code).dtype == jnp.float32


def test_float64_is_kept_and_accurate():
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        atoms, signals = rng.standard_normal((40, 24)), rng.standard_normal((4, 24))
        for algorithm in ("rows", "gram", "residual"):
            code = omp(atoms, signals, n_nonzero_coefs=8, algorithm=algorithm)
            assert code.coef.dtype == jnp.float64
            assert code.support.dtype == jnp.int32
            for i in range(4):
                support, coefs, norms = textbook(atoms, signals[i], 8)
                assert code.support[i].tolist() == support
                np.testing.assert_allclose(code.coef[i], coefs[-1], rtol=1e-9)
                np.testing.assert_allclose(code.residual_norm[i], norms[-1], rtol=1e-9)


def test_densify_reconstruct_and_residual_fit_together():
    atoms, signals = data(5, 8)
    signals = signals.reshape(2, 4, 24)
    code = omp(atoms, signals, n_nonzero_coefs=5, rtol=0.6)
    dense = densify(code, 40)
    assert dense.shape == (2, 4, 40)
    np.testing.assert_allclose(reconstruct(atoms, code), dense @ atoms, atol=1e-5)
    np.testing.assert_allclose(residual(atoms, signals, code), signals - dense @ atoms, atol=1e-5)
    path = omp(atoms, signals, n_nonzero_coefs=5, path=True)
    last = omp(atoms, signals, n_nonzero_coefs=5)
    np.testing.assert_allclose(densify(path, 40)[..., -1, :], densify(last, 40), atol=1e-5)
    with pytest.raises(ValueError, match="whole path"):
        residual(atoms, signals, path)
    with pytest.raises(ValueError, match="signals must have shape"):
        residual(atoms, signals[0], code)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_the_solver_imports_nothing_else():
    heavy = ["flax", "matplotlib", "typer", "rich", "PIL", "scipy.ndimage", "safetensors", "httpx"]
    out = run(f"import sys; import sfrjax.pursuit; print([m for m in {heavy!r} if m in sys.modules])")
    assert out.strip() == "[]"


def test_sharded_over_host_devices():
    """Signals split: no communication. D split: sums of correlations and squared norms, nothing else on the way."""
    out = run("""
        import os, re
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
        import jax, jax.numpy as jnp, numpy as np
        from functools import partial
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        from sfrjax.pursuit import omp, residual
        assert len(jax.devices()) == 4
        mesh = Mesh(np.array(jax.devices()), ("d",))
        rng = np.random.default_rng(0)
        X = rng.standard_normal((40, 64), dtype=np.float32)
        Y = rng.standard_normal((16, 64), dtype=np.float32)
        G = X @ X.T
        plain = omp(X, Y, n_nonzero_coefs=6, gram=G)
        words = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"

        solve = partial(omp, n_nonzero_coefs=6)
        split = jax.jit(jax.shard_map(lambda X, Y, G: solve(X, Y, gram=G), mesh=mesh, in_specs=(P(), P("d"), P()),
                                      out_specs=P("d"), check_vma=False))
        text = split.lower(X, Y, G).compile().as_text()
        print("signals", len(re.findall(rf"= .*?({words})(-start)?[(]", text)))
        code = split(X, Y, G)
        assert (np.asarray(code.support) == np.asarray(plain.support)).all()

        def whole(X, Y, G):
            code = omp(X, Y, n_nonzero_coefs=6, gram=G)
            return code, residual(X, Y, code)
        wide = NamedSharding(mesh, P(None, "d"))
        args = jax.device_put(X, wide), jax.device_put(Y, wide), jax.device_put(G, NamedSharding(mesh, P()))
        compiled = jax.jit(whole).lower(*args).compile()
        text = compiled.as_text()
        entry = text[text.index("ENTRY"):]
        print("width", [m[0] for m in re.findall(rf" ({words})(-start)?[(]", entry)])
        print("shapes", re.findall(r"= (.*?) all-reduce", entry))
        code, error = compiled(*args)
        assert (np.asarray(code.support) == np.asarray(plain.support)).all()
        assert np.allclose(error, residual(X, Y, plain), atol=1e-5)
    """)
    print(out)
    lines = dict(line.split(" ", 1) for line in out.strip().splitlines())
    assert lines["signals"] == "0"
    found = eval(lines["width"])
    assert set(found) == {"all-reduce"}
    assert 1 <= len(found) <= 2
    assert "40,16" in lines["shapes"]
    assert all(shape.count("40") + shape.count("16") for shape in eval(lines["shapes"]))
