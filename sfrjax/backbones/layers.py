"""The few layers these networks are made of, with BatchNorm already folded into the convolutions.

Feature maps are [B, H, W, C]; kernels are [k, k, C_in, C_out], depthwise kernels [k, k, C]. Padding is either an
int p (torch's: p on every side) or "SAME" (TensorFlow's: at stride 2 it pads more at the end than at the start; the
shapes of the two agree, the numbers do not).

On a CPU some convolutions take other routes than XLA's own, each measured faster where it is taken. The parameters
are the same on every device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Padding = int | str
Activation = Callable[[jax.Array], jax.Array]

# Winograd's algorithm transforms the kernel in every call, which pays from this many output tiles of 2x2 on; it works
# on as many images at once as its sixteen transformed maps stay below this many bytes, about half a CPU's last cache.
_WINOGRAD_TILES = 100
_WINOGRAD_BYTES = 2**24
# Up to this many positions other 3x3 convolutions are faster on a CPU as one matrix product over gathered columns.
_SMALL_MAP = 16 * 16


def on_cpu() -> bool:
    """Whether what is being traced will probably run on a CPU: a matter of speed, never of results."""
    return jax.default_backend() == "cpu"


def by_images(function: Callable[[jax.Array], Any], x: jax.Array, count: int) -> Any:
    """function(x) for a function of [B, ...] that treats images alike, on a CPU at most `count` images at a time.

    Large maps of a whole batch stream through memory; those of a few images stay in the cache.
    """
    batch = x.shape[0]
    if not on_cpu() or batch <= count:
        return function(x)
    chunk = next(n for n in range(max(count, 1), 0, -1) if batch % n == 0)
    outputs = lax.map(function, x.reshape(batch // chunk, chunk, *x.shape[1:]))
    return jax.tree.map(lambda y: y.reshape(batch, *y.shape[2:]), outputs)


class Conv(nnx.Module):
    """Convolution with bias."""

    def __init__(self, c_in: int, c_out: int, size: int, stride: int = 1, padding: Padding | None = None):
        self.kernel = nnx.Param(jnp.zeros((size, size, c_in, c_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((c_out,), jnp.float32))
        self.stride = stride
        self.padding = size // 2 if padding is None else padding

    def __call__(self, x: jax.Array, activation: Activation = lambda y: y, add: jax.Array | None = None) -> jax.Array:
        """activation(convolution + bias + add), in one pass over the output."""
        kernel, bias = self.kernel[...], self.bias[...]
        size, c_out = kernel.shape[0], kernel.shape[3]
        if size == 1:
            x = x[:, :: self.stride, :: self.stride]
            # All in two dimensions: XLA's CPU code is twice as fast on them as on four.
            y = x.reshape(-1, x.shape[3]) @ kernel[0, 0] + bias
            y = activation(y if add is None else y + add.reshape(-1, c_out))
            return y.reshape(*x.shape[:3], c_out)
        if add is not None:
            return activation(self(x) + add)
        if size == 3 and on_cpu():
            tiles = x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
            if self.stride == 1 and self.padding == 1 and tiles >= _WINOGRAD_TILES and x.dtype == jnp.float32:
                return _winograd_conv(x, kernel, lambda y: activation(y + bias))
            if x.shape[1] * x.shape[2] <= _SMALL_MAP:
                columns = jnp.concatenate(_taps(x, size, self.stride, self.padding), axis=-1)
                # Without the barrier XLA would fuse the gathering into the product and lose its fast matrix routine.
                flat = lax.optimization_barrier(columns).reshape(-1, kernel[..., 0].size)
                return activation(flat @ kernel.reshape(-1, c_out) + bias).reshape(*columns.shape[:3], c_out)
        pads = _pads(x, size, self.stride, self.padding)
        y = lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return activation(y + bias)


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
    if on_cpu():  # vectorised over channels, which XLA's window is not: less than half the time
        return functools.reduce(jnp.maximum, _taps(x, 3, 2, 1, fill=lowest))
    return lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _winograd_conv(x: jax.Array, kernel: jax.Array, finish: Activation) -> jax.Array:
    """finish(3x3 convolution, stride 1, padding 1) by Winograd's F(2x2, 3x3) (arXiv 1509.09308).

    Output tiles of 2x2 come from input tiles of 4x4 in 16 products instead of 36, at twice the rounding error. The
    products are separate: stacked into one batched product, their operands would be copied.
    """
    # The barriers keep XLA from fusing (and so repeating) the transforms inside the matrix products.
    spectrum = lax.optimization_barrier(tuple(_twice(_kernel_transform, [list(row) for row in kernel])))

    def convolve(x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        rows, columns = -(-height // 2), -(-width // 2)
        x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0)))
        tiles = [[x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for j in range(4)] for i in range(4)]
        inputs = lax.optimization_barrier(tuple(t.reshape(-1, channels) for t in _twice(_input_transform, tiles)))
        products = lax.optimization_barrier(tuple(a @ k for a, k in zip(inputs, spectrum, strict=True)))
        outputs = _twice(_output_transform, [list(products[i : i + 4]) for i in range(0, 16, 4)])
        a, b, c, d = (finish(y).reshape(batch, rows, columns, -1) for y in outputs)
        y = jnp.stack([jnp.stack([a, b], axis=3), jnp.stack([c, d], axis=3)], axis=2)
        return y.reshape(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]

    return by_images(convolve, x, _WINOGRAD_BYTES // (4 * x[0].size * x.dtype.itemsize))


def _twice(transform: Callable[..., list[Any]], grid: list[list[Any]]) -> list[Any]:
    """A 1D transform along both axes of a grid of arrays: T grid T^T, flattened row by row."""
    down = [transform(*column) for column in zip(*grid, strict=True)]  # [j][i]
    return [value for row in zip(*down, strict=True) for value in transform(*row)]


def _kernel_transform(a: Any, b: Any, c: Any) -> list[Any]:
    return [a, (a + b + c) / 2, (a - b + c) / 2, c]


def _input_transform(a: Any, b: Any, c: Any, d: Any) -> list[Any]:
    return [a - c, b + c, c - b, b - d]


def _output_transform(a: Any, b: Any, c: Any, d: Any) -> list[Any]:
    return [a + b + c, b - c - d]


def _taps(x: jax.Array, size: int, stride: int, padding: Padding, fill: float | jax.Array = 0) -> list[jax.Array]:
    """The padded input as each of the size * size kernel elements meets it: [B, h, w, C] each."""
    pads = _pads(x, size, stride, padding)
    rows, columns = (stride * ((n + sum(p) - size) // stride) for n, p in zip(x.shape[1:3], pads, strict=True))
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    return [x[:, i : i + rows + 1 : stride, j : j + columns + 1 : stride] for i in range(size) for j in range(size)]


def _pads(x: jax.Array, size: int, stride: int, padding: Padding) -> list[tuple[int, int]]:
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), padding)
        return [(int(a), int(b)) for a, b in pads]
    return [(padding, padding)] * 2
