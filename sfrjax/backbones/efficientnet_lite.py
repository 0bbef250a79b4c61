"""EfficientNet-Lite (arXiv 1905.11946 without squeeze-and-excitation, with ReLU6), BatchNorm folded."""

import functools
import math
from dataclasses import dataclass

import jax
from flax import nnx

from sfrjax.backbones.layers import Conv, DepthwiseConv, by_images
from sfrjax.backbones.preprocess import EFFICIENTNET_LITE, Preprocess

# Blocks of the seven stages: repeats, kernel size, stride, expansion, output channels (at width 1).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Index of the stage whose last block is the last one at stride 1/4, 1/8, 1/16, 1/32: levels 1..4.
LEVEL_STAGES = (1, 2, 4, 6)

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """One member of the family.

    Attributes:
        width: factor on the number of channels.
        depth: factor on the number of blocks per stage (the first and the last stage keep theirs).
        batch_norm_eps: epsilon of the BatchNorms that are folded away.
        preprocess: what the weights expect of their input.
        ignored: tensors of a checkpoint that are no part of the features.
    """

    width: float = 1.0
    depth: float = 1.0
    batch_norm_eps: float = 1e-3
    preprocess: Preprocess = EFFICIENTNET_LITE

    ignored: tuple[str, ...] = (
        *("_conv_head.weight", *(f"_bn1.{part}" for part in _BATCH_NORM), "_fc.weight", "_fc.bias"),
        *("conv_head.weight", *(f"bn2.{part}" for part in _BATCH_NORM), "classifier.weight", "classifier.bias"),
    )

    def build(self, stages: int) -> "EfficientNetLite":
        """The network up to the given level (1..4)."""
        return EfficientNetLite(self, stages)

    @property
    def repeats(self) -> list[int]:
        """Blocks per stage."""
        inner = [math.ceil(repeats * self.depth) for repeats, *_ in STAGES[1:-1]]
        return [STAGES[0][0], *inner, STAGES[-1][0]]

    def torch_names(self, path: str) -> list[tuple[str, str]]:
        """(convolution, BatchNorm) names for the folded convolution at `path`: in the original port, and in timm's."""
        if path == "stem":
            return [("_conv_stem", "_bn0"), ("conv_stem", "bn1")]
        _, block, layer = path.split(".")
        original = {
            "expand": ("_expand_conv", "_bn0"),
            "depthwise": ("_depthwise_conv", "_bn1"),
            "project": ("_project_conv", "_bn2"),
        }[layer]
        stage, within = [(k, i) for k, repeats in enumerate(self.repeats) for i in range(repeats)][int(block)]
        timm = {
            "expand": ("conv_pw", "bn1"),
            "depthwise": ("conv_dw", "bn2") if stage else ("conv_dw", "bn1"),
            "project": ("conv_pwl", "bn3") if stage else ("conv_pw", "bn2"),
        }[layer]
        return [
            (f"_blocks.{block}.{original[0]}", f"_blocks.{block}.{original[1]}"),
            (f"blocks.{stage}.{within}.{timm[0]}", f"blocks.{stage}.{within}.{timm[1]}"),
        ]


EFFICIENTNET_LITES = {
    "efficientnet_lite0": EfficientNetLiteConfig(),
    "efficientnet_lite1": EfficientNetLiteConfig(depth=1.1),
    "efficientnet_lite2": EfficientNetLiteConfig(width=1.1, depth=1.2),
}


class InvertedResidual(nnx.Module):
    """Expand, convolve depthwise, project; TensorFlow's padding, as these weights were trained."""

    def __init__(self, c_in: int, c_out: int, expansion: int, size: int, stride: int):
        inner = c_in * expansion
        self.expand = Conv(c_in, inner, 1) if expansion > 1 else None
        self.depthwise = DepthwiseConv(inner, size, stride, "SAME")
        self.project = Conv(inner, c_out, 1)
        self.skip = stride == 1 and c_in == c_out

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x if self.expand is None else self.expand(x, jax.nn.relu6)
        return self.project(jax.nn.relu6(self.depthwise(y)), add=x if self.skip else None)


class EfficientNetLite(nnx.Module):
    """Stem and the blocks up to the given level; calling it yields the output of each level in turn."""

    def __init__(self, config: EfficientNetLiteConfig, levels: int):
        self.stem = Conv(3, 32, 3, 2, "SAME")
        channels, blocks, ends = 32, [], []
        for index, (_, size, stride, expansion, c_out) in enumerate(STAGES[: LEVEL_STAGES[levels - 1] + 1]):
            c_out = _round_channels(c_out * config.width)
            for i in range(config.repeats[index]):
                blocks.append(InvertedResidual(channels, c_out, expansion, size, stride if i == 0 else 1))
                channels = c_out
            if index in LEVEL_STAGES:
                ends.append(len(blocks) - 1)
        self.blocks = nnx.List(blocks)
        self.ends = tuple(ends)

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        outputs = []
        for k in range(len(self.ends)):
            # The first two levels' maps are so large that one image after the other is faster than a batch.
            level = functools.partial(self._level, k)
            x = by_images(level, x, 1) if k < 2 else level(x)
            outputs.append(x)
        return outputs

    def _level(self, k: int, x: jax.Array) -> jax.Array:
        if k == 0:
            x = self.stem(x, jax.nn.relu6)
        for block in self.blocks[self.ends[k - 1] + 1 if k else 0 : self.ends[k] + 1]:
            x = block(x)
        return x


def _round_channels(channels: float) -> int:
    """Nearest multiple of 8, never more than 10 % below (as the reference implementation rounds)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
