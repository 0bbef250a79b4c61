"""The few layers these networks are made of, with BatchNorm already folded into the convolutions.

Feature maps are [B, H, W, C]; kernels are [k, k, C_in, C_out], depthwise kernels [k, k, C]. Padding is either an
int p (torch's: p on every side) or "SAME" (TensorFlow's: at stride 2 it pads more at the end than at the start; the
shapes of the two agree, the numbers do not).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Padding = int | str


class Conv(nnx.Module):
    """Convolution with bias."""

    def __init__(self, c_in: int, c_out: int, size: int, stride: int = 1, padding: Padding | None = None):
        self.kernel = nnx.Param(jnp.zeros((size, size, c_in, c_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((c_out,), jnp.float32))
        self.stride = stride
        self.padding = size // 2 if padding is None else padding

    def __call__(self, x: jax.Array) -> jax.Array:
        pads = _pads(x, self.kernel.shape[0], self.stride, self.padding)
        y = lax.conv_general_dilated(
            x, self.kernel[...], (self.stride, self.stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.bias[...]


class DepthwiseConv(nnx.Module):
    """Depthwise convolution with bias, as a sum over taps of shifted images.

    XLA's grouped convolution is 20-50 times slower than this on a CPU; here all taps fuse into one pass.
    """

    def __init__(self, channels: int, size: int, stride: int = 1, padding: Padding | None = None):
        self.kernel = nnx.Param(jnp.zeros((size, size, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.stride = stride
        self.padding = size // 2 if padding is None else padding

    def __call__(self, x: jax.Array) -> jax.Array:
        size, stride = self.kernel.shape[0], self.stride
        pads = _pads(x, size, stride, self.padding)
        height, width = ((n + sum(p) - size) // stride + 1 for n, p in zip(x.shape[1:3], pads, strict=True))
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        y = jnp.broadcast_to(self.bias[...], (x.shape[0], height, width, x.shape[3]))
        for i in range(size):
            for j in range(size):
                rows, columns = i + stride * (height - 1) + 1, j + stride * (width - 1) + 1
                y += x[:, i:rows:stride, j:columns:stride] * self.kernel[i, j]
        return y


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 2 with padding 1, as after the stem of a ResNet."""
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _pads(x: jax.Array, size: int, stride: int, padding: Padding) -> list[tuple[int, int]]:
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), padding)
        return [(int(a), int(b)) for a, b in pads]
    return [(padding, padding)] * 2
