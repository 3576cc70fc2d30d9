"""Encoder of images to latents: where a latent search may begin (izi_f of f-AnoGAN)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_noisy_anogan.networks.generator import channels_at
from jax_noisy_anogan.networks.layers import (
    EqualizedConv,
    EqualizedDense,
    at_least_float32,
    downsample_average,
    leaky_relu,
)


class Encoder(nn.Module):
    """The discriminator's blocks, without its minibatch statistic and with latents as output.

    Attributes:
      latent_size: of the generator.
      fmap_base, fmap_max: widths, see `channels_at`.
      dtype: of convolutions and dense products.
    """

    latent_size: int
    fmap_base: int = 8192
    fmap_max: int = 512
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch latent"]:
        """Guess latents of images.

        Args:
          x: square images on the pixel scale of training.

        Returns:
          Latents, float32, of any length: only their direction matters to the generator.
        """
        resolution = x.shape[1]
        y = EqualizedConv(self._width(resolution), kernel_size=1, dtype=self.dtype, name="from_rgb")
        x = leaky_relu(y(x))
        while resolution > 4:
            for index, width in enumerate((resolution, resolution // 2)):
                name = f"block_{resolution}_conv_{index}"
                x = leaky_relu(EqualizedConv(self._width(width), dtype=self.dtype, name=name)(x))
            x = downsample_average(x)
            resolution //= 2
        x = x.reshape(x.shape[0], -1)
        dense = EqualizedDense(4 * self.latent_size, dtype=self.dtype, name="block_4_dense")
        x = leaky_relu(dense(x))
        output = EqualizedDense(self.latent_size, gain=1.0, dtype=self.dtype, name="latent")
        return at_least_float32(output(x))

    def _width(self, resolution: int) -> int:
        return channels_at(resolution, self.fmap_base, self.fmap_max)
