"""What load_backbone promises besides numbers: levels, errors, formats, preprocessing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
from sfrjax.backbones import BACKBONES, LEVELS, Preprocess, forward, level_shapes, load_backbone  # noqa: E402
from sfrjax.errors import SfrjaxError  # noqa: E402
from sfrjax.weights.convert import convert  # noqa: E402
from tests.backbones import torch_reference  # noqa: E402

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)


run_network = jax.jit(forward, static_argnums=(0, 2, 3))


def features(backbone, images=IMAGES):
    return run_network(backbone.graphdef, backbone.state, backbone.preprocess, backbone.levels, images)


@pytest.fixture
def resnet18(checkpoint):
    return checkpoint("resnet18")[1]


def edited(path, **changes):
    """The file with tensors replaced (None: removed)."""
    tensors = load_file(path)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, path)
    return path


def test_nothing_deeper_than_the_deepest_level_is_kept_or_computed(resnet18):
    whole = features(load_backbone("resnet18", levels=LEVELS, weights=resnet18))
    for deepest in (1, 2, 3):
        backbone = load_backbone("resnet18", levels=(deepest,), weights=resnet18)
        assert set(backbone.state) == {"conv1", *(f"layer{k}" for k in range(1, deepest + 1))}
        np.testing.assert_array_equal(features(backbone)[deepest], whole[deepest])
    lite = load_backbone("efficientnet_lite0", levels=(1, 2))
    assert len(lite.state["blocks"]) == 5


def test_levels_come_in_the_order_asked_for_also_through_jit(resnet18):
    backbone = load_backbone("resnet18", levels=("last", 2, 4), weights=resnet18)
    out = jax.jit(lambda state, x: forward(backbone.graphdef, state, backbone.preprocess, backbone.levels, x))(
        backbone.state, IMAGES
    )
    assert list(out) == ["last", 2, 4]
    np.testing.assert_allclose(out["last"], out[4].mean((1, 2), keepdims=True), rtol=1e-5, atol=1e-6)
    assert level_shapes(backbone, (64, 96)) == {"last": (1, 1, 512), 2: (8, 12, 128), 4: (2, 3, 512)}


def test_structure_is_hashable_and_equal_between_loads(resnet18):
    a, b = (load_backbone("resnet18", levels=(1,), weights=resnet18) for _ in range(2))
    assert hash(a.graphdef) == hash(b.graphdef)
    assert a.graphdef == b.graphdef
    assert hash(a.preprocess) == hash(b.preprocess)
    assert a.weights_sha256 == b.weights_sha256
    assert a.weights_name == "resnet18.safetensors"


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet50", {1: (64, 64, 256), 2: (32, 32, 512), 3: (16, 16, 1024), 4: (8, 8, 2048), "last": (1, 1, 2048)}),
        (
            "efficientnet_lite0",
            {1: (64, 64, 24), 2: (32, 32, 40), 3: (16, 16, 112), 4: (8, 8, 320), "last": (1, 1, 320)},
        ),
    ],
)
def test_shapes_at_256(name, shapes, checkpoint):
    _, path = checkpoint(name)
    assert level_shapes(load_backbone(name, levels=LEVELS, weights=path), (256, 256)) == shapes


def test_unknown_backbone_names_the_known_ones():
    with pytest.raises(SfrjaxError, match="unknown backbone 'resnet51'") as e:
        load_backbone("resnet51", levels=(1,))
    assert all(name in str(e.value) for name in BACKBONES)


@pytest.mark.parametrize("levels", [(), (0,), (5,), ("first",), (1, 1)])
def test_bad_levels(levels):
    with pytest.raises(SfrjaxError, match="1, 2, 3, 4 and last"):
        load_backbone("efficientnet_lite0", levels=levels)


def test_bad_dtype():
    with pytest.raises(SfrjaxError, match=r"float16 .*float32 or bfloat16"):
        load_backbone("efficientnet_lite0", levels=(1,), dtype=jnp.float16)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(resnet18, value):
    bad = load_file(resnet18)["layer4.1.conv2.weight"].copy()
    bad[3, 4, 1, 1] = value
    edited(resnet18, **{"layer4.1.conv2.weight": bad, "bn1.running_mean": np.full(64, value, np.float32)})
    with pytest.raises(SfrjaxError, match="NaN or infinite") as e:
        load_backbone("resnet18", levels=(1,), weights=resnet18)  # checked although level 1 does not need layer4
    assert "layer4.1.conv2.weight" in str(e.value)
    assert "bn1.running_mean" in str(e.value)


def test_negative_variance_is_named(resnet18):
    edited(resnet18, **{"bn1.running_var": np.full(64, -1, np.float32)})
    with pytest.raises(SfrjaxError, match=r"negative variance: bn1\.running_var"):
        load_backbone("resnet18", levels=(1,), weights=resnet18)


def test_all_mismatches_in_one_error(resnet18):
    edited(
        resnet18,
        **{
            "conv1.weight": None,
            "layer2.0.bn1.bias": None,
            "layer1.0.conv1.weight": np.zeros((64, 64, 1, 1), np.float32),
            "layer3.0.bn2.weight": np.zeros(256, np.int32),
            "layer5.0.conv1.weight": np.zeros(3, np.float32),
            "extra.bias": np.zeros(3, np.float32),
        },
    )
    with pytest.raises(SfrjaxError) as e:
        load_backbone("resnet18", levels=(1,), weights=resnet18)
    message = str(e.value)
    assert "\n" not in message
    assert str(resnet18) in message
    assert "missing: conv1.weight, layer2.0.bn1.bias" in message
    assert "layer1.0.conv1.weight [64, 64, 1, 1] instead of [64, 64, 3, 3]" in message
    assert "not of floating-point type: layer3.0.bn2.weight (int32)" in message
    assert "unknown: extra.bias, layer5.0.conv1.weight" in message


def test_classifier_and_counters_may_be_absent(resnet18):
    before = features(load_backbone("resnet18", levels=(2,), weights=resnet18))[2]
    names = [n for n in load_file(resnet18) if n.startswith("fc.") or n.endswith("num_batches_tracked")]
    assert len(names) == 22
    edited(resnet18, **dict.fromkeys(names))
    np.testing.assert_array_equal(features(load_backbone("resnet18", levels=(2,), weights=resnet18))[2], before)


def test_weights_of_another_network(resnet18):
    with pytest.raises(SfrjaxError, match="does not hold the weights of resnet34"):
        load_backbone("resnet34", levels=(1,), weights=resnet18)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "resnet34"}, "holds weights of resnet34, not of resnet18"),
        ({"batch_norm_eps": "tiny"}, "batch_norm_eps: 'tiny'"),
        ({"batch_norm_eps": "-1"}, "batch_norm_eps: '-1'"),
        ({"stage_stride": "second"}, "stage_stride: 'second'"),
        ({"input": "YUV, 0..255, minus (1, 2, 3)"}, "input: 'YUV"),
        ({"input": "RGB, 0..255, minus (1, 2, 3..4)"}, "input: 'RGB"),
        ({"pool_padding": "reflect"}, "pool_padding: 'reflect'"),
        ({"sfrjax": "{}"}, "damaged"),
    ],
)
def test_metadata_that_is_not_understood_is_refused(checkpoint, metadata, message):
    _, path = checkpoint("resnet18", metadata=metadata)
    with pytest.raises(SfrjaxError, match=message):
        load_backbone("resnet18", levels=(1,), weights=path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 no archive at all", b"\x10\0\0\0\0\0\0\0{not json}......", b"\xff" * 8 + b"{", b"x" * 99],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_unreadable_files(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(SfrjaxError, match="weights"):
        load_backbone("resnet18", levels=(1,), weights=path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(SfrjaxError, match=r"nowhere\.pth cannot be read"):
        load_backbone("resnet18", levels=(1,), weights=tmp_path / "nowhere.pth")
    with pytest.raises(SfrjaxError, match="cannot be read"):
        load_backbone("resnet18", levels=(1,), weights=tmp_path)


def test_truncated_safetensors(resnet18):
    resnet18.write_bytes(resnet18.read_bytes()[:-1000])
    with pytest.raises(SfrjaxError, match="not a readable safetensors file"):
        load_backbone("resnet18", levels=(1,), weights=resnet18)


def test_wide_resnet50_2_has_its_parameters_and_round_trips_through_every_format(checkpoint, tmp_path):
    model, path = checkpoint("wide_resnet50_2")
    assert sum(p.numel() for p in model.parameters()) == 68_883_240
    backbone = load_backbone("wide_resnet50_2", levels=LEVELS, weights=path)
    # Convolutions and folded biases are all that is left: no classifier, one bias instead of gamma and beta.
    classifier = 1000 * 2048 + 1000
    biases = sum(p.numel() for n, p in model.named_parameters() if ".bn" in n and n.endswith("bias"))
    shortcut_and_stem = 64 + 256 + 512 + 1024 + 2048
    counted = sum(leaf.size for leaf in jax.tree.leaves(backbone.state))
    assert counted == 68_883_240 - classifier - biases - shortcut_and_stem

    expected = features(backbone)
    state, files = model.state_dict(), []
    for is_zip in (False, True):
        files.append(tmp_path / f"zip{is_zip}.pth")
        torch.save(state, files[-1], _use_new_zipfile_serialization=is_zip)
    files.append(convert("wide_resnet50_2", tmp_path / "converted.safetensors", path))
    for file in files:
        again = features(load_backbone("wide_resnet50_2", levels=LEVELS, weights=file))
        for level in LEVELS:
            np.testing.assert_array_equal(again[level], expected[level], err_msg=file.name)
        file.unlink()


def test_conversion_keeps_conventions_and_provenance(checkpoint, tmp_path):
    metadata = {"stage_stride": "first 1x1 conv (v1)", "batch_norm_eps": "1e-3", "source": "here"}
    metadata["input"] = "BGR, 0..255, minus (1, 2, 3)"
    _, path = checkpoint("resnet50", v1=True, metadata=metadata)
    output = convert("resnet50", tmp_path / "sub" / "folded.safetensors", path)
    a, b = (load_backbone("resnet50", levels=(3,), weights=file) for file in (path, output))
    assert b.preprocess == a.preprocess == Preprocess("bgr", 1.0, (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(features(a)[3], features(b)[3])
    from safetensors import safe_open

    with safe_open(output, "np") as file:
        provenance = json.loads(file.metadata()["sfrjax"])["provenance"]
    assert provenance["file"] == path.name
    assert provenance["sha256"] == a.weights_sha256
    assert provenance["licence"] == "unknown"
    assert provenance["metadata"]["source"] == "here"
    assert [p.name for p in output.parent.iterdir()] == [output.name]
    with pytest.raises(SfrjaxError, match="holds weights of resnet50, not of resnet18"):
        load_backbone("resnet18", levels=(1,), weights=output)


def test_conversion_to_a_place_that_cannot_be_written(tmp_path, resnet18):
    (tmp_path / "file").write_text("")
    with pytest.raises(SfrjaxError, match="cannot be written"):
        convert("resnet18", tmp_path / "file" / "out.safetensors", resnet18)


def test_timm_names_of_an_efficientnet(tmp_path):
    """The same parameters under the other naming scheme give the same features."""
    model = torch_reference.build("efficientnet_lite0")
    renamed = {}
    stages = [(k, i) for k, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(repeats)]
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inverted |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            stage, within = stages[int(parts[1])]
            new = ["blocks", str(stage), str(within), (inverted if stage else separable)[parts[2]], parts[3]]
        else:
            new = [outer[parts[0]], parts[1]]
        renamed[".".join(new)] = value.numpy()
    save_file(renamed, tmp_path / "timm.safetensors", {"format": "pt"})
    torch.save(model.state_dict(), tmp_path / "original.pth")
    a, b = (
        load_backbone("efficientnet_lite0", levels=(4,), weights=tmp_path / f)
        for f in ("timm.safetensors", "original.pth")
    )
    np.testing.assert_array_equal(features(a)[4], features(b)[4])


@pytest.mark.parametrize(
    "wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_usual_wrappers_of_a_state_dictionary(tmp_path, resnet18, wrap):
    state = {name: torch.from_numpy(value) for name, value in load_file(resnet18).items()}
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    a, b = (load_backbone("resnet18", levels=(1,), weights=file) for file in (resnet18, tmp_path / "wrapped.pth"))
    np.testing.assert_array_equal(features(a)[1], features(b)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_of_storage(tmp_path, dtype):
    """A float16 file gives exactly the features of its values in float32."""
    state = torch_reference.build("resnet18").state_dict()
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(stored, tmp_path / "stored.pth")
    torch.save({k: v.float() if v.is_floating_point() else v for k, v in stored.items()}, tmp_path / "float32.pth")
    a, b = (load_backbone("resnet18", levels=(2,), weights=tmp_path / f"{f}.pth") for f in ("stored", "float32"))
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_preprocess_formula_and_round_trip(channels):
    settings = Preprocess(channels, 1 / 255, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert Preprocess.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    pixels = IMAGES.astype(np.float64)[..., :: -1 if channels == "bgr" else 1]
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(settings(IMAGES), expected, atol=1e-6)


@pytest.mark.parametrize("change", [{"channels": "gbr"}, {"mean": [1, 2]}, {"std": [1, 0, 1]}, {"scale": None}])
def test_preprocess_refuses_nonsense(change):
    fields = Preprocess("rgb", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).to_dict() | change
    with pytest.raises(SfrjaxError, match="preprocessing description"):
        Preprocess.from_dict(fields)
