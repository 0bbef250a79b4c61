"""The solver on features of real images (MVTec AD bottle, EfficientNet-Lite0), per image and per position."""

import numpy as np
import pytest

from sfrjax.pursuit import omp
from tests.pursuit.reference import textbook

ATOMS, SIGNALS, S = 32, 8, 12
TIE = 2  # in float32 eps of |signal| |atom| / h, h the least sine between an atom of the support and those before it


@pytest.fixture(scope="module")
def maps(shared_data):
    from sfrjax.backbones import load_backbone
    from sfrjax.datasets.images import list_images, read_image
    from sfrjax.features import extract

    root = shared_data / "mvtec" / "bottle"
    files = list_images(root / "train" / "good")[:ATOMS] + list_images(root / "test")[:: 63 // SIGNALS][:SIGNALS]
    images = np.stack([read_image(file, 256)[0] for file in files])
    return np.asarray(extract(load_backbone("efficientnet_lite0", levels=(2,)), images)[2])


@pytest.mark.parametrize("with_gram", [True, False])
def test_per_image_equals_float64_at_every_k(maps, with_gram):
    flat = maps.reshape(len(maps), -1)
    atoms, signals = flat[:ATOMS], flat[ATOMS:]
    gram = atoms @ atoms.T if with_gram else None
    code = omp(atoms, signals, n_nonzero_coefs=S, selection="signed", tol=1e-6, gram=gram, path=True)
    for i, signal in enumerate(signals):
        support, coefs, norms = textbook(atoms, signal, S, "signed")
        assert code.support[i].tolist() == support
        np.testing.assert_allclose(code.coef[i, -1], coefs[-1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(code.residual_norm[i], norms, rtol=1e-4)


def test_per_position_equals_float64_but_for_ties(maps):
    """At every k the choice is float64's, or a tie: as good to float32's rounding, which a nearly dependent support
    amplifies (19 of 752 pairs when this was written)."""
    n, _, _, channels = maps.shape
    own = maps.reshape(n, -1, channels).swapaxes(0, 1)[::11]
    atoms, signals = own[:, :ATOMS], own[:, ATOMS:].swapaxes(0, 1)
    code = omp(atoms, signals, n_nonzero_coefs=S, selection="signed", tol=1e-6, path=True, algorithm="residual")
    same = 0
    for i, p in np.ndindex(signals.shape[:2]):
        size = np.linalg.norm(signals[i, p])
        support, coefs, norms = textbook(atoms[p], signals[i, p], S, "signed")
        used = code.support[i, p, : int(code.n_atoms[i, p])].tolist()
        if len(used) < S:  # background where images are the same to the last bit: the textbook goes on with noise
            assert norms[max(len(used) - 1, 0)] <= norms[-1] + 1e-5 * size
        k = next((k for k, (a, b) in enumerate(zip(used, support, strict=False)) if a != b), None)
        if k is None:
            same += 1
            np.testing.assert_allclose(
                code.residual_norm[i, p, : len(used)], norms[: len(used)], rtol=1e-3, atol=1e-6 * size
            )
            continue
        wide = atoms[p].astype(np.float64)
        before = wide[support[:k]]
        error = signals[i, p] - (coefs[k - 1] @ before if k else 0)
        sines = np.abs(np.diag(np.linalg.qr(before.T).R)) / np.linalg.norm(before, axis=1) if k else np.ones(1)
        rounding = np.finfo(np.float32).eps * size * np.linalg.norm(wide[support[k]]) / sines.min()
        assert (wide[support[k]] - wide[used[k]]) @ error <= TIE * rounding
    assert same >= 0.95 * signals[..., 0].size
