"""From a backbone's name (and perhaps a file) to a function of images."""

import dataclasses
import functools
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from sfrjax.backbones.efficientnet_lite import EFFICIENTNET_LITES, EfficientNetLiteConfig
from sfrjax.backbones.preprocess import Preprocess
from sfrjax.backbones.resnet import RESNETS, ResNetConfig
from sfrjax.errors import SfrjaxError
from sfrjax.weights.conventions import conventions
from sfrjax.weights.fetch import locate
from sfrjax.weights.folding import fold_checkpoint, read_folded
from sfrjax.weights.opening import open_weights
from sfrjax.weights.tensors import WeightsFile

Config = ResNetConfig | EfficientNetLiteConfig
Level = int | str

_CONFIGS: dict[str, Config] = {**EFFICIENTNET_LITES, **RESNETS}
BACKBONES = tuple(_CONFIGS)
LEVELS: tuple[Level, ...] = (1, 2, 3, 4, "last")


@dataclass(frozen=True)
class Backbone:
    """A network with its weights, ready for `forward`.

    Attributes:
        name: the network, one of BACKBONES.
        weights_name: the weights, a catalogue name such as "wide_resnet50_2.tv_in1k", or the file's name.
        weights_sha256: SHA-256 of the weights file, hexadecimal.
        preprocess: what the weights expect of their input.
        levels: the levels that `forward` returns, in this order.
        graphdef: the network's structure (static, hashable).
        state: its folded parameters, a nested dictionary of arrays, none deeper than the deepest level.
    """

    name: str
    weights_name: str
    weights_sha256: str
    preprocess: Preprocess
    levels: tuple[Level, ...]
    graphdef: Any
    state: Any


def load_backbone(
    name: str,
    *,
    levels: Iterable[Level],
    weights: str | os.PathLike[str] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Backbone:
    """Loads a pre-trained network, cut off behind the deepest of the given levels.

    Args:
        name: one of BACKBONES, or a catalogue name such as "resnet50.tv_in1k".
        levels: a non-empty subset of 1, 2, 3, 4 (the maps at 1/4, 1/8, 1/16, 1/32 of the image) and "last" (the
            average of level 4 over positions).
        weights: a .pth or .safetensors file (torchvision's names, timm's, or converted by sfrjax). Default: the
            backbone's named weights, embedded, cached, or else downloaded.
        dtype: float32 or bfloat16, in which the network computes. Features are float32 in either case.

    Raises:
        SfrjaxError: unknown backbone, level or dtype; weights that cannot be had, read, or do not fit the network.
    """
    backbone, config = network_config(name)
    wanted = _check_levels(levels)
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise SfrjaxError(f"dtype {jnp.dtype(dtype).name} is not one that backbones compute in: float32 or bfloat16")
    located = locate(name, weights)
    file = open_weights(located.path)
    config, parameters = folded_parameters(backbone, config, file)

    graphdef, shallow = _structure(config, wanted)
    flat = {}
    for where, kernel, bias in parameters:
        for part, value in (("kernel", kernel), ("bias", bias)):
            keys, _ = shallow.get(f"{where}.{part}", (None, None))
            if keys is not None:
                flat[keys] = jnp.asarray(value, dtype)
    state = traverse_util.unflatten_dict(flat)
    return Backbone(backbone, located.name, located.sha256, config.preprocess, wanted, graphdef, state)


def untrained_backbone(name: str, *, levels: Iterable[Level], dtype: DTypeLike = jnp.float32) -> Backbone:
    """The network with zeros for weights: to learn the shapes of its features, and how fast it is, before any download.

    Raises:
        SfrjaxError: unknown backbone or level.
    """
    backbone, config = network_config(name)
    wanted = _check_levels(levels)
    graphdef, shallow = _structure(config, wanted)
    state = traverse_util.unflatten_dict({keys: jnp.zeros(shape, dtype) for keys, shape in shallow.values()})
    return Backbone(backbone, "none", "", config.preprocess, wanted, graphdef, state)


def _structure(config: Config, levels: tuple[Level, ...]) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """The network down to the deepest level: its graph, and {PATH.kernel or PATH.bias: (keys in the state, shape)}."""
    model = nnx.eval_shape(functools.partial(config.build, max(4 if k == "last" else int(k) for k in levels)))
    graphdef, abstract = nnx.split(model)
    flat = nnx.to_flat_state(abstract)
    return graphdef, {".".join(map(str, keys)): (keys, leaf.get_value().shape) for keys, leaf in flat}


def forward(
    graphdef: Any, state: Any, preprocess: Preprocess, levels: tuple[Level, ...], images: jax.Array
) -> OrderedDict[Level, jax.Array]:
    """Features of a batch: pure and traceable, for use inside a jitted function (all but `state` and `images` static).

    Args:
        images: uint8 [B, H, W, 3], RGB, already of the size the network shall see.

    Returns:
        Level -> float32 [B, h, w, c] in the order of `levels`; "last" is [B, 1, 1, c]. An OrderedDict, because JAX
        sorts the keys of a plain dict that crosses jit, and 4 and "last" do not compare.
    """
    dtype = jax.tree.leaves(state)[0].dtype
    outputs = nnx.merge(graphdef, state)(preprocess(images).astype(dtype))
    features: OrderedDict[Level, jax.Array] = OrderedDict()
    for level in levels:
        x = outputs[3 if level == "last" else int(level) - 1].astype(jnp.float32)
        features[level] = x.mean((1, 2), keepdims=True) if level == "last" else x
    return features


def level_shapes(backbone: Backbone, image_size: tuple[int, int]) -> dict[Level, tuple[int, int, int]]:
    """(h, w, c) of each of the backbone's levels for images of (height, width) pixels; computes nothing."""
    run = functools.partial(forward, backbone.graphdef, backbone.state, backbone.preprocess, backbone.levels)
    shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8))
    return {level: tuple(shape.shape[1:]) for level, shape in shapes.items()}


def folded_parameters(
    name: str, config: Config, file: WeightsFile
) -> tuple[Config, Iterator[tuple[str, np.ndarray, np.ndarray]]]:
    """The configuration as the file amends it, and (path, kernel, bias) of every convolution of the whole network.

    Raises:
        SfrjaxError: as `fold_checkpoint`; metadata for another network, or not understood.
    """
    if "sfrjax" in file.metadata:
        description = _description(file)
        stated = description["backbone"]
        changes = {**description["network"], "preprocess": description["preprocess"]}
    else:
        stated = file.metadata.get("architecture", name)
        changes = conventions(file.path, file.metadata)
    if stated != name:
        raise SfrjaxError(f"{file.path} holds weights of {stated}, not of {name}: ask for --backbone {stated}")
    if "preprocess" in changes:
        changes["preprocess"] = Preprocess.from_dict(changes["preprocess"])
    if unfit := changes.keys() - {field.name for field in dataclasses.fields(config)}:
        raise SfrjaxError(f"{file.path}: its metadata states {', '.join(sorted(unfit))}, which {name} does not have")
    config = dataclasses.replace(config, **changes)

    kernels = kernel_shapes(config)
    if "sfrjax" in file.metadata:
        return config, read_folded(file, name, kernels)
    return config, fold_checkpoint(file, name, kernels, config.torch_names, config.ignored, config.batch_norm_eps)


def kernel_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Path of every convolution of the whole network -> shape of its kernel."""
    _, abstract = nnx.split(nnx.eval_shape(functools.partial(config.build, 4)))
    flat = {".".join(map(str, keys)): leaf.get_value().shape for keys, leaf in nnx.to_flat_state(abstract)}
    return {path.removesuffix(".kernel"): shape for path, shape in flat.items() if path.endswith(".kernel")}


def describe(name: str, config: Config) -> dict[str, Any]:
    """What `folded_parameters` needs to know of a network, JSON-serialisable: its name, input, and deviations."""
    network = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "preprocess" and value != getattr(_CONFIGS[name], field.name):
            network[field.name] = value
    return {"backbone": name, "network": network, "preprocess": config.preprocess.to_dict()}


def _description(file: WeightsFile) -> dict[str, Any]:
    try:
        description = json.loads(file.metadata["sfrjax"])
        return {key: description[key] for key in ("backbone", "network", "preprocess")}
    except (ValueError, KeyError, TypeError) as e:
        raise SfrjaxError(f"{file.path}: its sfrjax metadata is damaged; convert the original weights again") from e


def network_config(name: str) -> tuple[str, Config]:
    """(backbone, configuration) for a backbone's or a catalogue's name.

    Raises:
        SfrjaxError: unknown backbone.
    """
    backbone = name.partition(".")[0]
    if backbone not in _CONFIGS:
        raise SfrjaxError(f"unknown backbone {name!r}; known are {', '.join(BACKBONES)}")
    return backbone, _CONFIGS[backbone]


def _check_levels(levels: Iterable[Level]) -> tuple[Level, ...]:
    wanted = tuple(levels)
    if not wanted or any(level not in LEVELS for level in wanted) or len(set(wanted)) != len(wanted):
        listed = ", ".join(map(str, wanted)) or "none"
        raise SfrjaxError(f"levels {listed}: give each of 1, 2, 3, 4 and last at most once, and at least one of them")
    return wanted
