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
# What XLA's CPU compiler makes of a 3 x 3 convolution depends on how it is written. Gflop/s of one
# core from 32 channels on, jax 0.10.2 and 0.12.0, from `benchmarks/convolutions.py`:
#
# - The input's gradient that autodiff writes, a transposed convolution, falls to a naive loop
#   inside `scan`, where the latent search lives: 2 to 14. As an ordinary convolution with the
#   flipped kernel it has 90 to 133. Both derivatives are built from the two functions below, so
#   that the gradient penalties can differentiate them again.
# - The kernel's gradient is a convolution whose window is the whole cotangent: 24 to 50. In pieces
#   of at most 2^18 numbers, which a second-level cache holds, it has 27 to 84, and is never slower.
#   Other devices have a routine of their own for it.
# - Few channels leave a core's vector registers empty: 4 have 4. Neighbours in a row are taken as
#   channels of one wider pixel, which costs no copy, and the kernel is written for those, mostly
#   zeros: 13 to 17. For the kernel's gradient of few channels neither this nor pieces pay. Not
#   chosen by device: an alternative per platform in the convolution breaks the transposition of
#   `in_parts` (jax 0.10.2), and networks for accelerators are wider.
# ---------------------------------------------------------------------------------------------

_NHWC = ("NHWC", "HWIO", "NHWC")
_CACHED_NUMBERS = 2**18
_FILLED_CHANNELS = 32
FEW_CHANNELS = 8


def _packing(x: Images, kernel_width: int, channels: int) -> int:
    """How many neighbours in a row of `x` to take as one pixel; 1 where that would not help."""
    if kernel_width == 1 or channels > FEW_CHANNELS:
        return 1
    return largest_divisor(x.shape[2], _FILLED_CHANNELS // channels)


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
        x = x.reshape(*shape[:2], shape[2] // neighbours, neighbours * inputs)
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

    def in_pieces(x: Images, cotangent: Images) -> Kernel:
        if cotangent.shape[-1] <= FEW_CHANNELS:
            return whole(x, cotangent)
        return _kernel_gradient_in_pieces(x, cotangent, kernel_size)

    return lax.platform_dependent(x, cotangent, cpu=in_pieces, default=whole)


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
