"""Resolutions of one image: a square at the largest, and exact area averages below it."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

SMALLEST = 4
_LARGEST_PADDED = 8192


def levels(resolution: int) -> tuple[int, ...]:
    """Resolutions of the pyramid, largest first: 32 gives (32, 16, 8, 4)."""
    return tuple(2**k for k in range(resolution.bit_length() - 1, SMALLEST.bit_length() - 2, -1))


def area_average(
    images: UInt8[np.ndarray, "*batch height width channels"], resolution: int
) -> UInt8[np.ndarray, "*batch resolution resolution channels"]:
    """Mean over square blocks of pixels, rounded once (halves upwards).

    Args:
      images: 0..255, square, a multiple of `resolution` wide.
    """
    *batch, height, _, channels = images.shape
    factor = height // resolution
    if factor == 1:
        return images
    blocks = images.reshape(*batch, resolution, factor, resolution, factor, channels)
    sums = blocks.sum(axis=(-4, -2), dtype=np.uint32)
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def fit_square(
    image: UInt8[np.ndarray, "height width channels"], resolution: int, fit: str
) -> UInt8[np.ndarray, "resolution resolution channels"]:
    """Bring an image of any size to a square.

    Args:
      fit: "stretch" (both axes on their own), "crop" (the largest central square) or "pad" (a
        square with zeros around the image).
    """
    height, width, channels = image.shape
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    elif fit == "pad":
        # A strip of few pixels can have a square of terabytes around it.
        image = _shrunk(image, _LARGEST_PADDED)
        height, width, channels = image.shape
        side = max(height, width)
        square = np.zeros((side, side, channels), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        image = square
    return _resize(image, resolution)


def _shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """With the same proportions, no side longer than `longest`."""
    height, width, channels = image.shape
    if max(height, width) <= longest:
        return image
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(picture.resize(size, Image.Resampling.BOX)).reshape(*size[::-1], channels)


def _resize(image: np.ndarray, resolution: int) -> np.ndarray:
    height, width, channels = image.shape
    if (height, width) == (resolution, resolution):
        return image
    # BOX is the exact area average when shrinking but repeats pixels when enlarging.
    shrinking = height >= resolution and width >= resolution
    method = Image.Resampling.BOX if shrinking else Image.Resampling.BILINEAR
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = np.asarray(picture.resize((resolution, resolution), method))
    return resized.reshape(resolution, resolution, channels)


def mask_square(
    mask: Bool[np.ndarray, "height width"], resolution: int, fit: str
) -> UInt8[np.ndarray, "resolution resolution 1"]:
    """A mask as the covered share of every pixel, 0 (none) to 255 (all), in the image's frame."""
    return fit_square(mask[..., None].astype(np.uint8) * np.uint8(255), resolution, fit)


def encode_png(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Lossless PNG bytes; fast rather than small."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes) -> UInt8[np.ndarray, "height width channels"]:
    """Undo `encode_png`."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        image = np.asarray(picture)
    return image[..., None] if image.ndim == 2 else image
