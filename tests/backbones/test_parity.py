"""Every network against torch, at random parameters and BatchNorm statistics, at every level."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from sfrjax.backbones import BACKBONES, LEVELS, forward, layers, load_backbone  # noqa: E402
from tests.backbones import torch_reference  # noqa: E402

SIZES = [(256, 256), (150, 203)]  # the second meets odd maps at every level


def images_of(size, batch=1):
    return np.random.default_rng(1).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def features(backbone, images):
    run = jax.jit(forward, static_argnums=(0, 2, 3))
    return run(backbone.graphdef, backbone.state, backbone.preprocess, backbone.levels, images)


def assert_parity(backbone, model, name, size, batch=1, tolerance=1e-5):
    images = images_of(size, batch)
    ours = features(backbone, images)
    with torch.inference_mode():
        theirs = model(torch_reference.preprocess(name, images))
    assert list(ours) == list(LEVELS)
    for level in LEVELS:
        reference = theirs[level].permute(0, 2, 3, 1).numpy()
        assert ours[level].shape == reference.shape
        assert ours[level].dtype == np.float32
        error = np.abs(ours[level] - reference).max() / np.abs(reference).max()
        assert error <= tolerance, f"level {level}: {error:.1e}"


@pytest.mark.parametrize("name", BACKBONES)
def test_same_features_as_torch(name, checkpoint):
    model, path = checkpoint(name)
    backbone = load_backbone(name, levels=LEVELS, weights=path)
    path.unlink()
    for size in SIZES:
        assert_parity(backbone, model, name, size)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_same_features_without_the_cpu_algorithms(name, checkpoint, monkeypatch):
    """What a GPU runs: plain convolutions everywhere."""
    model, path = checkpoint(name)
    monkeypatch.setattr(layers, "on_cpu", lambda: False)
    backbone = load_backbone(name, levels=LEVELS, weights=path)
    assert_parity(backbone, model, name, (150, 203), batch=2)


def test_original_stride_placement_eps_and_input_come_from_the_file(checkpoint):
    metadata = {
        "stage_stride": "first 1x1 conv (v1)",
        "batch_norm_eps": "1e-3",
        "input": "BGR, 0..255, minus (103.939, 116.779, 123.68), divided by (50, 60, 70)",
        "pool_padding": "zeros, 1",
        "architecture": "resnet50",
    }
    model, path = checkpoint("resnet50", v1=True, metadata=metadata)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3
    backbone = load_backbone("resnet50", levels=LEVELS, weights=path)
    images = images_of((150, 203))
    bgr = torch.as_tensor(images[..., ::-1].copy()).permute(0, 3, 1, 2).float()
    mean, std = torch.tensor([103.939, 116.779, 123.68]), torch.tensor([50.0, 60.0, 70.0])
    with torch.inference_mode():
        theirs = model((bgr - mean[:, None, None]) / std[:, None, None])
    ours = features(backbone, images)
    for level in LEVELS:
        reference = theirs[level].permute(0, 2, 3, 1).numpy()
        assert np.abs(ours[level] - reference).max() <= 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_bfloat16_computes_in_bfloat16_and_returns_float32(name, checkpoint):
    _, path = checkpoint(name)
    exact = load_backbone(name, levels=LEVELS, weights=path)
    rough = load_backbone(name, levels=LEVELS, weights=path, dtype=jax.numpy.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough.state)} == {np.dtype(jax.numpy.bfloat16)}
    a, b = (features(backbone, images_of((64, 64))) for backbone in (exact, rough))
    for level in LEVELS:
        assert b[level].dtype == np.float32
        error = np.linalg.norm(a[level] - b[level]) / np.linalg.norm(a[level])
        assert 1e-4 < error < 0.05  # eight bits of mantissa, and truly used
