"""The pixel scale of the networks: from bytes to what they are shown, and back."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

ByteImages = UInt8[Array, "batch height width channels"]
Images = Float[Array, "batch height width channels"]


class PixelScale(NamedTuple):
    """How pixels enter the networks: (pixel / 255 - mean) / std; [-1, 1] with `PAPER_SCALE`.

    Faint textures need their own: at a small contrast R1 keeps D from telling real from drawn
    images, and G settles on a single one.
    """

    mean: float
    std: float


PAPER_SCALE = PixelScale(0.5, 0.5)


def to_float_images(
    images: UInt8[Array, "*shape"], pixels: PixelScale = PAPER_SCALE
) -> Float[Array, "*shape"]:
    """Pixels 0..255 to what the networks see."""
    return images.astype(jnp.float32) * (1.0 / (255.0 * pixels.std)) - pixels.mean / pixels.std


def to_byte_images(
    images: Float[Array, "*shape"], pixels: PixelScale = PAPER_SCALE
) -> UInt8[Array, "*shape"]:
    """The inverse of `to_float_images`, rounded; values beyond 0..255 are clipped."""
    values = (images + pixels.mean / pixels.std) * (255.0 * pixels.std)
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)
