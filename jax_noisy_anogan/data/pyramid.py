"""Resolutions of one image: the largest, and exact area averages below it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

SMALLEST = 4


def levels(resolution: int) -> tuple[int, ...]:
    """Resolutions of the pyramid, largest first: 32 gives (32, 16, 8, 4)."""
    return tuple(2**k for k in range(resolution.bit_length() - 1, SMALLEST.bit_length() - 2, -1))


def area_average(
    images: UInt8[Any, "*batch height width channels"], resolution: int
) -> UInt8[Any, "*batch resolution resolution channels"]:
    """Mean over square blocks of pixels, rounded once (halves upwards).

    Args:
      images: 0..255, square, a multiple of `resolution` wide; an array of NumPy or JAX.
    """
    return block_average(images, images.shape[-2] // resolution)


def block_average(
    images: UInt8[Any, "*batch height width channels"], factor: int
) -> UInt8[Any, "*batch rows columns channels"]:
    """Mean over blocks of `factor` x `factor` pixels, rounded once (halves upwards).

    An edge that no multiple of `factor` reaches is continued by its last pixels.
    """
    if factor == 1:
        return images
    *batch, height, width, channels = images.shape
    missing = [(0, -size % factor) for size in (height, width)]
    if any(more for _, more in missing):
        images = np.pad(images, [(0, 0)] * len(batch) + [*missing, (0, 0)], mode="edge")
    rows, columns = -(-height // factor), -(-width // factor)
    blocks = images.reshape(*batch, rows, factor, columns, factor, channels)
    sums = blocks.sum(axis=(-4, -2), dtype=np.uint32)
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def encode_png(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Lossless PNG bytes; fast rather than small."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_bits(mask: Bool[np.ndarray, "height width"]) -> bytes:
    """A mask as PNG of one bit per pixel."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def decode_bits(data: bytes) -> Bool[np.ndarray, "height width"]:
    """Undo `encode_bits`."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return np.asarray(picture, bool)


def decode_png(data: bytes) -> UInt8[np.ndarray, "height width channels"]:
    """Undo `encode_png`."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        image = np.asarray(picture)
    return image[..., None] if image.ndim == 2 else image
