"""Generator of the progressive GAN (Karras et al. 2018, Table 2)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_noisy_anogan.networks.layers import (
    HE_GAIN,
    EqualizedConv,
    EqualizedDense,
    add_bias,
    at_least_float32,
    crossfade,
    in_parts,
    leaky_relu,
    pixel_norm,
    upsample_nearest,
)


def channels_at(resolution: int, fmap_base: int, fmap_max: int) -> int:
    """Feature maps of the block that works at `resolution`: `min(fmap_base / 2^s, fmap_max)`."""
    return min(fmap_base >> (resolution.bit_length() - 2), fmap_max)


class Generator(nn.Module):
    """Latents to images, at one stage of growth.

    Attributes:
      resolution: side of the images, a power of two from 4.
      fading: the newest block is being cross-faded in; the tree then also holds `to_rgb` of half
        the resolution.
      channels: 1 (grey) or 3 (RGB).
      fmap_base, fmap_max: widths, see `channels_at`.
      dtype: of convolutions and dense products.
      rematerialize: compute every block again for the backward pass instead of keeping what lies
        inside it.
      microbatch: images that pass through at once, see `in_parts`; 0 means all.
    """

    resolution: int
    fading: bool
    channels: int
    fmap_base: int = 8192
    fmap_max: int = 512
    dtype: DTypeLike = jnp.float32
    rematerialize: bool = False
    microbatch: int = 0

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"], alpha: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "batch height width channels"]:
        """Draw images.

        Args:
          z: latents; only their direction matters, they are put on the hypersphere first.
          alpha: share of the newest block while `fading`, in [0, 1]; otherwise unused.

        Returns:
          Images, float32, linear output, on the pixel scale of training: [-1, 1] by default, which
          drawn ones may exceed.
        """

        def draw(self: Generator, z: Array) -> Array:
            return self._draw(z, alpha)

        return in_parts(draw, self, z, self.microbatch)

    def _draw(self, z: Array, alpha: Array | float) -> Array:
        width = channels_at(4, self.fmap_base, self.fmap_max)
        x = EqualizedDense(
            16 * width, gain=HE_GAIN / 4, use_bias=False, dtype=self.dtype, name="block_4_dense"
        )(pixel_norm(z))
        x = x.reshape(-1, 4, 4, width)
        bias = self.param("block_4_bias", nn.initializers.zeros, (width,))
        x = pixel_norm(leaky_relu(add_bias(x, bias)))
        x = self._conv(width, "block_4_conv")(x)
        x = pixel_norm(leaky_relu(x))

        previous, resolution = x, 4
        while resolution < self.resolution:
            previous, resolution = x, 2 * resolution
            block = functools.partial(Generator._block, resolution=resolution)
            x = (nn.remat(block) if self.rematerialize else block)(self, x)

        image = self._to_rgb(resolution)(x)
        if self.fading:
            old = upsample_nearest(self._to_rgb(resolution // 2)(previous))
            image = crossfade(old, image, alpha)
        return at_least_float32(image)

    def _block(self, x: Array, resolution: int) -> Array:
        width = channels_at(resolution, self.fmap_base, self.fmap_max)
        x = upsample_nearest(x)
        for index in range(2):
            x = self._conv(width, f"block_{resolution}_conv_{index}")(x)
            x = pixel_norm(leaky_relu(x))
        return x

    def _conv(self, width: int, name: str) -> EqualizedConv:
        return EqualizedConv(width, dtype=self.dtype, name=name)

    def _to_rgb(self, resolution: int) -> EqualizedConv:
        return EqualizedConv(
            self.channels, kernel_size=1, gain=1.0, dtype=self.dtype, name=f"to_rgb_{resolution}"
        )
