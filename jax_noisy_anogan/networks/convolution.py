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
# - Few outputs leave a core's vector registers empty: 4 have 4. Neighbours in a row are taken as
#   channels of one wider pixel, and the kernel is written for those, partly zeros: 16 to 17. A
#   stride does it, without a copy; inputs are taken together until they have 8 channels. For the
#   kernel's gradient the inputs of wide pixels are copied: 15 to 18 instead of 11. Not chosen
#   by device: an alternative per platform in the convolution breaks the transposition of
#   `in_parts` (jax 0.10.2), and networks for accelerators are wider.
# ---------------------------------------------------------------------------------------------

_NHWC = ("NHWC", "HWIO", "NHWC")
_CACHED_NUMBERS = 2**18
_FILLED_CHANNELS = 32
FEW_CHANNELS = 8


def _neighbours(width: int, kernel_width: int, outputs: int) -> int:
    """How many pixels in a row to take as one; 1 where that would not help."""
    if kernel_width == 1 or outputs > FEW_CHANNELS:
        return 1
    neighbours = largest_divisor(width, _FILLED_CHANNELS // outputs)
    return neighbours if neighbours >= kernel_width - 1 else 1


def _taps(
    neighbours: int, kernel_width: int, margin: int
) -> Float[np.ndarray, "inputs outputs taps"]:
    """1 where a tap of the kernel joins a pixel to an output; `margin` pixels come before those."""
    inputs, outputs, taps = np.ogrid[: neighbours + 2 * margin, :neighbours, :kernel_width]
    return (inputs - margin == outputs + taps - kernel_width // 2).astype(np.float32)


def _conv_same(x: Images, kernel: Kernel) -> Images:
    n, h, w, inputs = x.shape
    kernel_h, kernel_w, _, outputs = kernel.shape
    if kernel_h * kernel_w > h * w:  # XLA exchanges the two, and falls to its naive loop
        rows, columns = (
            _taps(side, size, margin=0).astype(kernel.dtype)
            for side, size in ((h, kernel_h), (w, kernel_w))
        )
        matrix = jnp.einsum("ijp,klq,pqco->ikcjlo", rows, columns, kernel)
        matrix = matrix.reshape(h * w * inputs, h * w * outputs)
        return (x.reshape(n, -1) @ matrix).reshape(n, h, w, outputs)
    neighbours = _neighbours(w, kernel_w, outputs)
    together = largest_divisor(neighbours, FEW_CHANNELS // inputs)
    margin = -(-(kernel_w // 2) // together)
    if neighbours > 1:
        taps = _taps(neighbours, kernel_w, margin * together).astype(kernel.dtype)
        kernel = jnp.einsum("ijt,htco->hicjo", taps, kernel)
        kernel = kernel.reshape(kernel_h, -1, together * inputs, neighbours * outputs)
    y = lax.conv_general_dilated(
        x.reshape(n, h, w // together, together * inputs),
        kernel,
        (1, neighbours // together),
        [(kernel_h // 2, kernel_h // 2), (margin, margin)],
        dimension_numbers=_NHWC,
    )
    return y.reshape(n, h, w, outputs)


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
        return _correlate(x, cotangent, kernel_size, kernel_size[0] // 2, neighbours=1)

    def in_pieces(x: Images, cotangent: Images) -> Kernel:
        return _kernel_gradient_in_pieces(x, cotangent, kernel_size)

    return lax.platform_dependent(x, cotangent, cpu=in_pieces, default=whole)


def _correlate(
    x: Images, cotangent: Images, kernel_size: tuple[int, int], margin_h: int, neighbours: int
) -> Kernel:
    """The kernel's gradient: images are summed over as channels are elsewhere.

    Args:
      margin_h: rows of zeros above and below `x`.
      neighbours: how many cotangents in a row to take as one pixel.
    """
    n, h, w, outputs = cotangent.shape
    kernel_h, kernel_w = kernel_size
    if neighbours > 1:
        wide = cotangent.reshape(n, h, w // neighbours, neighbours * outputs)
        found = _correlate(_windows(x, neighbours, kernel_w), wide, (kernel_h, 1), margin_h, 1)
        found = found.reshape(kernel_h, -1, x.shape[-1], neighbours, outputs)
        taps = _taps(neighbours, kernel_w, kernel_w // 2).astype(found.dtype)
        return jnp.einsum("ijt,hicjo->htco", taps, found)
    found = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        [(margin_h, margin_h), (kernel_w // 2, kernel_w // 2)],
        dimension_numbers=_NHWC,
    )
    return found.transpose(1, 2, 0, 3)


def _windows(x: Images, neighbours: int, kernel_width: int) -> Images:
    """All pixels that meet some cotangents in a row, as channels of one."""
    n, h, w, c = x.shape
    margin = kernel_width // 2
    padded = jnp.pad(x, ((0, 0), (0, 0), (margin, neighbours - margin), (0, 0)))
    here, beside = (
        part.reshape(n, h, w // neighbours, neighbours * c)
        for part in (padded[:, :, :w], padded[:, :, neighbours:])
    )
    return jnp.concatenate([here, beside[..., : 2 * margin * c]], axis=-1)


def _kernel_gradient_in_pieces(
    x: Images, cotangent: Images, kernel_size: tuple[int, int]
) -> Kernel:
    """The kernel's gradient as a sum over pieces of at most `_CACHED_NUMBERS` cotangents.

    Pieces are whole images if two of them fit, otherwise bands of rows through all images.
    """
    n, h, w, c = x.shape
    outputs = cotangent.shape[-1]
    margin = kernel_size[0] // 2
    neighbours = _neighbours(w, kernel_size[1], outputs)
    images = largest_divisor(n, _CACHED_NUMBERS // (h * w * outputs))
    if images >= 2 or n * h * w * outputs <= _CACHED_NUMBERS:
        parts = n // images
        xs = x.reshape(parts, images, h, w, c)
        cotangents = cotangent.reshape(parts, images, h, w, outputs)
    else:
        rows = largest_divisor(h, _CACHED_NUMBERS // (n * w * outputs))
        padded = jnp.pad(x, ((0, 0), (margin, margin), (0, 0), (0, 0)))
        xs = jnp.stack([padded[:, row : row + rows + 2 * margin] for row in range(0, h, rows)])
        cotangents = cotangent.reshape(n, h // rows, rows, w, outputs).swapaxes(0, 1)
        margin = 0

    def add(total: Kernel, piece: tuple[Images, Images]) -> tuple[Kernel, None]:
        return total + _correlate(*piece, kernel_size, margin, neighbours), None

    zero = jnp.zeros((*kernel_size, c, outputs), x.dtype)
    return lax.scan(add, zero, (xs, cotangents))[0]


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
