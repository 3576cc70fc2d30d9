"""Convolutions that are fast on CPUs, with a gradient of their own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "kernel_h kernel_w in_channels out_channels"]

# ---------------------------------------------------------------------------------------------
# Convolution
#
# XLA's CPU compiler turns only the convolutions of a program's entry computation into its fast
# form. The input gradient that autodiff would write (a transposed convolution) therefore falls to a
# naive loop inside `scan`, which is where the latent search lives: measured 24 ms against 1.6 ms
# per image and step at 32 x 32 with 32 channels. Written as an ordinary convolution with the
# flipped, transposed kernel it is fast everywhere. Both derivatives are themselves built from the
# two functions below, so that the gradient penalties can differentiate them again.
#
# The kernel's gradient is a convolution too, whose window is the whole cotangent. On the CPU it
# reaches 100 to 125 Gflop/s of a core's 165 while that window fits the second-level cache and 25 to
# 55 beyond, where it took more than half of a training step: 32 images of 32 x 32 with 32 channels
# 21 ms whole, 6 ms in four pieces; 16 x 16 with 64 channels 10.7 and 5.4 ms. Sums of shifted matrix
# products took 11 and 8 ms, im2col 51 and 28. Other devices have a routine of their own for it.
#
# Few channels, as at 128 x 128 and above in narrow networks, leave a core's vector registers empty:
# 2 channels reach 2 Gflop/s, 32 reach 170. Neighbours in a row are therefore taken as channels of
# one wider pixel, which costs no copy, and the kernel is written for those: mostly zeros, but 4
# images of 256 x 256 with 2 channels take 1.9 ms instead of 10.8, and 128 x 128 with 4 channels 0.9
# instead of 3.4. Its gradient gains too (6.3 and 3.3 ms) while results are narrow. Not chosen by
# device: an alternative per platform in here breaks the transposition of `in_parts` (jax 0.10.2),
# and networks for accelerators have 16 and more.
# ---------------------------------------------------------------------------------------------

_NHWC = ("NHWC", "HWIO", "NHWC")
_CACHED_NUMBERS = 2**18
_FILLED_CHANNELS = 32
_FEW_CHANNELS = 8


def _packing(x: Images, kernel_width: int, channels: int) -> int:
    """How many neighbours in a row of `x` to take as one pixel; 1 where that would not help."""
    if kernel_width == 1 or channels > _FEW_CHANNELS:
        return 1
    return largest_divisor(x.shape[2], _FILLED_CHANNELS // channels)


def _pack(x: Images, neighbours: int) -> Images:
    n, h, w, c = x.shape
    return x.reshape(n, h, w // neighbours, neighbours * c)


def _taps(neighbours: int, kernel_width: int) -> Float[np.ndarray, "blocks inputs outputs taps"]:
    """1 where a tap of the kernel joins a neighbour of an input block to one of the output's."""
    margin = kernel_width // 2
    reach = -(-margin // neighbours)
    blocks, inputs, outputs, taps = np.ogrid[
        -reach : reach + 1, :neighbours, :neighbours, :kernel_width
    ]
    return (neighbours * blocks + inputs - outputs + margin == taps).astype(np.float32)


def _conv_same(x: Images, kernel: Kernel) -> Images:
    kernel_h, kernel_w, inputs, outputs = kernel.shape
    shape = (*x.shape[:3], outputs)
    neighbours = _packing(x, kernel_w, max(inputs, outputs))
    if neighbours > 1:
        taps = _taps(neighbours, kernel_w).astype(kernel.dtype)
        kernel = jnp.einsum("bijt,htco->hbicjo", taps, kernel)
        kernel = kernel.reshape(kernel_h, -1, neighbours * inputs, neighbours * outputs)
        x = _pack(x, neighbours)
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)
    return y.reshape(shape)


def _flip(kernel: Kernel) -> Kernel:
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


@jax.custom_vjp
def conv2d(x: Images, kernel: Kernel) -> Images:
    """Convolution of stride 1 that keeps the size; the kernel's height and width are odd."""
    return _conv_same(x, kernel)


@jax.custom_vjp
def conv2d_kernel_gradient(x: Images, cotangent: Images, kernel_shape: Kernel) -> Kernel:
    """Gradient of `sum(conv2d(x, kernel) * cotangent)` by the kernel.

    `kernel_shape` gives the result's shape; its values are not used.
    """
    kernel_size = (kernel_shape.shape[0], kernel_shape.shape[1])

    def whole(x: Images, cotangent: Images) -> Kernel:
        margins = tuple(size // 2 for size in kernel_size)
        return _correlate(x, cotangent, margins).transpose(1, 2, 0, 3)

    def packed(x: Images, cotangent: Images) -> Kernel:
        inputs, outputs = x.shape[-1], cotangent.shape[-1]
        neighbours = _packing(x, kernel_size[1], outputs)
        if neighbours == 1:
            return _kernel_gradient_in_pieces(x, cotangent, kernel_size)
        taps = _taps(neighbours, kernel_size[1]).astype(x.dtype)
        x, cotangent = _pack(x, neighbours), _pack(cotangent, neighbours)
        wide = _kernel_gradient_in_pieces(x, cotangent, (kernel_size[0], len(taps)))
        wide = wide.reshape(*wide.shape[:2], neighbours, inputs, neighbours, outputs)
        return jnp.einsum("bijt,hbicjo->htco", taps, wide)

    return lax.platform_dependent(x, cotangent, cpu=packed, default=whole)


def _correlate(
    x: Images, cotangent: Images, margins: tuple[int, ...]
) -> Float[Array, "in_channels kernel_h kernel_w out_channels"]:
    """The kernel's gradient: images are summed over as channels are elsewhere."""
    return lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        [(margin, margin) for margin in margins],
        dimension_numbers=_NHWC,
    )


def _kernel_gradient_in_pieces(
    x: Images, cotangent: Images, kernel_size: tuple[int, int]
) -> Kernel:
    """The kernel's gradient as a sum over pieces of at most `_CACHED_NUMBERS` cotangents.

    Pieces are whole images if two of them fit, otherwise bands of rows through all images.
    """
    n, h, w, c = x.shape
    outputs = cotangent.shape[-1]
    margin_h, margin_w = (size // 2 for size in kernel_size)
    images = largest_divisor(n, _CACHED_NUMBERS // (h * w * outputs))
    if images >= 2 or n * h * w * outputs <= _CACHED_NUMBERS:
        parts = n // images
        xs = x.reshape(parts, images, h, w, c)
        cotangents = cotangent.reshape(parts, images, h, w, outputs)
    else:
        rows = largest_divisor(h, _CACHED_NUMBERS // (n * w * outputs))
        padded = jnp.pad(x, ((0, 0), (margin_h, margin_h), (0, 0), (0, 0)))
        xs = jnp.stack([padded[:, row : row + rows + 2 * margin_h] for row in range(0, h, rows)])
        cotangents = cotangent.reshape(n, h // rows, rows, w, outputs).swapaxes(0, 1)
        margin_h = 0

    def add(total: Kernel, piece: tuple[Images, Images]) -> tuple[Kernel, None]:
        return total + _correlate(*piece, (margin_h, margin_w)), None

    zero = jnp.zeros((c, *kernel_size, outputs), x.dtype)
    total, _ = lax.scan(add, zero, (xs, cotangents))
    return total.transpose(1, 2, 0, 3)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`, and at least 1."""
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)


def _conv2d_forward(x: Images, kernel: Kernel) -> tuple[Images, tuple[Images, Kernel]]:
    return conv2d(x, kernel), (x, kernel)


def _conv2d_backward(residuals: tuple[Images, Kernel], cotangent: Images) -> tuple[Images, Kernel]:
    x, kernel = residuals
    return conv2d(cotangent, _flip(kernel)), conv2d_kernel_gradient(x, cotangent, kernel)


def _kernel_gradient_forward(
    x: Images, cotangent: Images, kernel_shape: Kernel
) -> tuple[Kernel, tuple[Images, Images, Kernel]]:
    return conv2d_kernel_gradient(x, cotangent, kernel_shape), (x, cotangent, kernel_shape)


def _kernel_gradient_backward(
    residuals: tuple[Images, Images, Kernel], kernel_cotangent: Kernel
) -> tuple[Images, Images, Kernel]:
    x, cotangent, kernel_shape = residuals
    return (
        conv2d(cotangent, _flip(kernel_cotangent)),
        conv2d(x, kernel_cotangent),
        jnp.zeros_like(kernel_shape),
    )


conv2d.defvjp(_conv2d_forward, _conv2d_backward)
conv2d_kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)
