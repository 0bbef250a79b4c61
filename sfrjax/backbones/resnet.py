"""ResNets with basic and bottleneck blocks, wide ones included (arXiv 1512.03385, 1605.07146), BatchNorm folded."""

import functools
from dataclasses import dataclass

import jax
from flax import nnx

from sfrjax.backbones.layers import Conv, by_images, max_pool
from sfrjax.backbones.preprocess import IMAGENET, Preprocess


@dataclass(frozen=True)
class ResNetConfig:
    """One member of the family.

    Attributes:
        blocks: residual blocks per stage.
        bottleneck: 1x1-3x3-1x1 blocks with outputs four times as wide, else 3x3-3x3 blocks.
        base_width: inner width of the first stage's bottlenecks (64; 128 for the wide ones).
        stride_on_first: downsample in the block's first convolution (the original, "v1") instead of its 3x3.
        batch_norm_eps: epsilon of the BatchNorms that are folded away.
        preprocess: what the weights expect of their input.
        ignored: tensors of a checkpoint that are no part of the features.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    base_width: int = 64
    stride_on_first: bool = False
    batch_norm_eps: float = 1e-5
    preprocess: Preprocess = IMAGENET

    ignored: tuple[str, ...] = ("fc.weight", "fc.bias")

    def build(self, stages: int) -> "ResNet":
        """The network up to the given stage (1..4)."""
        return ResNet(self, stages)

    def torch_names(self, path: str) -> list[tuple[str, str]]:
        """(convolution, BatchNorm) names in a torchvision or timm checkpoint, for the folded convolution at `path`."""
        if path.endswith("downsample"):
            return [(f"{path}.0", f"{path}.1")]
        return [(path, path.replace("conv", "bn"))]


RESNETS = {
    "resnet18": ResNetConfig((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetConfig((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetConfig((3, 4, 6, 3)),
    "resnet101": ResNetConfig((3, 4, 23, 3)),
    "resnet152": ResNetConfig((3, 8, 36, 3)),
    "wide_resnet50_2": ResNetConfig((3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": ResNetConfig((3, 4, 23, 3), base_width=128),
}


class Block(nnx.Module):
    """One residual block."""

    def __init__(self, config: ResNetConfig, c_in: int, width: int, c_out: int, stride: int):
        first, second = (stride, 1) if config.stride_on_first or not config.bottleneck else (1, stride)
        if config.bottleneck:
            self.conv1 = Conv(c_in, width, 1, first)
            self.conv2 = Conv(width, width, 3, second)
            self.conv3 = Conv(width, c_out, 1)
        else:
            self.conv1 = Conv(c_in, width, 3, first)
            self.conv2 = Conv(width, c_out, 3, second)
        self.bottleneck = config.bottleneck
        self.downsample = Conv(c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else None

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.conv1(x, jax.nn.relu)
        if self.bottleneck:
            return self.conv3(self.conv2(y, jax.nn.relu), jax.nn.relu, add=shortcut)
        return self.conv2(y, jax.nn.relu, add=shortcut)


class ResNet(nnx.Module):
    """Stem and the first `stages` residual stages; calling it yields the output of each stage in turn."""

    def __init__(self, config: ResNetConfig, stages: int):
        self.conv1 = Conv(3, 64, 7, 2)
        channels = 64
        for k in range(1, stages + 1):
            width = (config.base_width if config.bottleneck else 64) * 2 ** (k - 1)
            c_out = 64 * 2 ** (k - 1) * (4 if config.bottleneck else 1)
            stage = []
            for i in range(config.blocks[k - 1]):
                stride = 2 if k > 1 and i == 0 else 1
                stage.append(Block(config, channels, width, c_out, stride))
                channels = c_out
            setattr(self, f"layer{k}", nnx.List(stage))
        self.stages = stages

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        outputs = []
        for k in range(1, self.stages + 1):
            # The first stage's maps are so large that two images after two are faster than a batch.
            stage = functools.partial(self._stage, k)
            x = by_images(stage, x, 2) if k == 1 else stage(x)
            outputs.append(x)
        return outputs

    def _stage(self, k: int, x: jax.Array) -> jax.Array:
        if k == 1:
            x = max_pool(self.conv1(x, jax.nn.relu))
        for block in getattr(self, f"layer{k}"):
            x = block(x)
        return x
