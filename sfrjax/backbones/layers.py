"""The few layers these networks are made of, with BatchNorm already folded into the convolutions.

Feature maps are [B, H, W, C]; kernels are [k, k, C_in, C_out], depthwise kernels [k, k, C]. Padding is either an
int p (torch's: p on every side) or "SAME" (TensorFlow's: at stride 2 it pads more at the end than at the start; the
shapes of the two agree, the numbers do not).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

Padding = int | str

# Up to this many positions a 3x3 convolution is faster on a CPU as one matrix product over gathered columns.
_SMALL_MAP = 16 * 16


class Conv(nnx.Module):
    """Convolution with bias.

    With `winograd`, a 3x3 convolution at stride 1 keeps its kernel transformed, [16, C_in, C_out] (see `winograd`):
    on a CPU that takes two thirds to three quarters of the time, at twice the rounding error.
    """

    def __init__(
        self, c_in: int, c_out: int, size: int, stride: int = 1, padding: Padding | None = None, winograd: bool = False
    ):
        self.winograd = winograd and size == 3 and stride == 1
        shape = (16, c_in, c_out) if self.winograd else (size, size, c_in, c_out)
        self.kernel = nnx.Param(jnp.zeros(shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((c_out,), jnp.float32))
        self.stride = stride
        self.padding = size // 2 if padding is None else padding

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        if self.winograd:
            y = _winograd_conv(x, kernel)
        elif kernel.shape[0] == 1:
            y = x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        elif kernel.shape[0] == 3 and x.shape[1] * x.shape[2] <= _SMALL_MAP:
            y = lax.platform_dependent(x, kernel, cpu=self._conv_by_columns, default=self._conv)
        else:
            y = self._conv(x, kernel)
        return y + self.bias[...]

    def _conv(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        pads = _pads(x, kernel.shape[0], self.stride, self.padding)
        return lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def _conv_by_columns(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        size, c_in, c_out = kernel.shape[1:]
        columns = jnp.concatenate(_taps(x, size, self.stride, self.padding), axis=-1)
        # Without the barrier XLA would fuse the gathering into the product and lose its fast matrix routine.
        return lax.optimization_barrier(columns) @ kernel.reshape(size * size * c_in, c_out)


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
        size = self.kernel.shape[0]
        kernel = self.kernel[...].reshape(size * size, -1)
        taps = _taps(x, size, self.stride, self.padding)
        return sum((tap * kernel[i] for i, tap in enumerate(taps)), start=self.bias[...])


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 2 with padding 1, as after the stem of a ResNet."""
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


def winograd_kernel(kernel: np.ndarray) -> np.ndarray:
    """G k G^T of a kernel [3, 3, C_in, C_out], as [16, C_in, C_out], for Winograd's F(2x2, 3x3) (arXiv 1509.09308)."""
    out = np.empty((4, 4, *kernel.shape[2:]), kernel.dtype)

    def transform(k: Any) -> list[np.ndarray]:  # G k; written out, since large temporaries would show in peak memory
        return [k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]]

    for i, row in enumerate(transform(kernel)):
        for j, value in enumerate(transform(row)):
            out[i, j] = value
    return out.reshape(16, *kernel.shape[2:])


def _winograd_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, stride 1, padding 1: output tiles of 2x2 from input tiles of 4x4, 16 matrix products in all."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0)))
    tiles = [[x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for j in range(4)] for i in range(4)]

    def transform(a: Any, b: Any, c: Any, d: Any) -> list[Any]:  # rows of B^T
        return [a - c, b + c, c - b, b - d]

    down = [transform(*column) for column in zip(*tiles, strict=True)]  # [j][i]
    spectra = [value for row in zip(*down, strict=True) for value in transform(*row)]
    # The barriers keep XLA from fusing (and so repeating) the transforms inside the matrix products.
    stacked = lax.optimization_barrier(jnp.stack(spectra).reshape(16, batch * rows * columns, channels))
    products = lax.optimization_barrier(lax.dot_general(stacked, kernel, (((2,), (1,)), ((0,), (0,)))))
    p = products.reshape(4, 4, batch, rows, columns, -1)

    def gather(a: Any, b: Any, c: Any, d: Any) -> list[Any]:  # rows of A^T
        return [a + b + c, b - c - d]

    halves = [gather(*(p[i, j] for i in range(4))) for j in range(4)]
    outputs = [gather(*(halves[j][i] for j in range(4))) for i in range(2)]
    y = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
    return y.reshape(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]


def _taps(x: jax.Array, size: int, stride: int, padding: Padding) -> list[jax.Array]:
    """The padded input as each of the size * size kernel elements meets it: [B, h, w, C] each."""
    pads = _pads(x, size, stride, padding)
    rows, columns = (stride * ((n + sum(p) - size) // stride) for n, p in zip(x.shape[1:3], pads, strict=True))
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return [x[:, i : i + rows + 1 : stride, j : j + columns + 1 : stride] for i in range(size) for j in range(size)]


def _pads(x: jax.Array, size: int, stride: int, padding: Padding) -> list[tuple[int, int]]:
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), padding)
        return [(int(a), int(b)) for a, b in pads]
    return [(padding, padding)] * 2
