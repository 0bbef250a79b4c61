"""Real weights see what is in real photographs: nothing between the pixels and the last level is subtly wrong."""

import jax
import numpy as np
import pytest
from PIL import Image

from sfrjax.backbones import forward, load_backbone
from sfrjax.weights.fetch import locate
from sfrjax.weights.opening import open_weights

data = pytest.importorskip("skimage.data")

ESPRESSO = {967}
CATS = {281, 282, 283, 284, 285}  # tabby, tiger, Persian, Siamese, Egyptian


def photograph(name):
    pixels = getattr(data, name)()
    side = min(pixels.shape[:2])
    top, left = ((n - side) // 2 for n in pixels.shape[:2])
    crop = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(crop.resize((224, 224), Image.Resampling.BICUBIC))[None]


run_network = jax.jit(forward, static_argnums=(0, 2, 3))


def features(backbone, name):
    out = run_network(backbone.graphdef, backbone.state, backbone.preprocess, backbone.levels, photograph(name))
    return np.asarray(out[backbone.levels[0]])[0]


@pytest.mark.parametrize(("name", "classes"), [("coffee", ESPRESSO), ("chelsea", CATS)])
def test_resnet50(shared_data, name, classes):
    path = shared_data / "weights" / "resnet50_v1_caffe.safetensors"
    file = open_weights(path)
    backbone = load_backbone("resnet50", levels=("last",), weights=path)
    logits = file.tensors["fc.weight"].read().astype(np.float32) @ features(backbone, name)[0, 0]
    assert int(np.argmax(logits + file.tensors["fc.bias"].read())) in classes


@pytest.mark.parametrize(("name", "classes"), [("coffee", ESPRESSO), ("chelsea", CATS)])
def test_efficientnet_lite0(name, classes):
    tensors = open_weights(locate("efficientnet_lite0").path).tensors

    def read(key):
        return tensors[key].read()

    x = features(load_backbone("efficientnet_lite0", levels=(4,)), name) @ read("_conv_head.weight")[:, :, 0, 0].T
    x = (x - read("_bn1.running_mean")) / np.sqrt(read("_bn1.running_var") + 1e-3)
    x = np.clip(x * read("_bn1.weight") + read("_bn1.bias"), 0, 6).mean((0, 1))
    assert int(np.argmax(read("_fc.weight") @ x + read("_fc.bias"))) in classes
