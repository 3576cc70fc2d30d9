"""Encoder of images to latents: where a latent search may begin (izi_f of f-AnoGAN)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_noisy_anogan.networks.generator import channels_at
from jax_noisy_anogan.networks.layers import (
    EqualizedConv,
    EqualizedDense,
    at_least_float32,
    crossfade,
    downsample_average,
    in_parts,
    leaky_relu,
)


class Encoder(nn.Module):
    """The discriminator's blocks, without its minibatch statistic and with latents as output.

    It grows as the discriminator does.

    Attributes: as in `Generator`, and
      latent_size: of the generator.
    """

    resolution: int
    fading: bool
    latent_size: int
    fmap_base: int = 8192
    fmap_max: int = 512
    dtype: DTypeLike = jnp.float32
    rematerialize: bool = False
    microbatch: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        alpha: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "batch latent"]:
        """Encode images.

        Args:
          x: images on the pixel scale of training.
          alpha: share of the newest block while `fading`, in [0, 1]; otherwise unused.

        Returns:
          Latents, float32, of any length: only their direction matters to the generator.
        """

        def encode(self: Encoder, x: Array) -> Array:
            return self._encode(x, alpha)

        return in_parts(encode, self, x, self.microbatch)

    def _encode(self, x: Array, alpha: Array | float) -> Array:
        y, resolution = leaky_relu(self._from_rgb(self.resolution)(x)), self.resolution
        while resolution > 4:
            block = functools.partial(Encoder._block, resolution=resolution)
            y = (nn.remat(block) if self.rematerialize else block)(self, y)
            resolution //= 2
            if self.fading and 2 * resolution == self.resolution:
                old = leaky_relu(self._from_rgb(resolution)(downsample_average(x)))
                y = crossfade(old, y, alpha)
        y = y.reshape(y.shape[0], -1)
        dense = EqualizedDense(4 * self.latent_size, dtype=self.dtype, name="block_4_dense")
        latent = EqualizedDense(self.latent_size, gain=1.0, dtype=self.dtype, name="latent")
        return at_least_float32(latent(leaky_relu(dense(y))))

    def _block(self, y: Array, resolution: int) -> Array:
        for index, place in enumerate((resolution, resolution // 2)):
            width = channels_at(place, self.fmap_base, self.fmap_max)
            name = f"block_{resolution}_conv_{index}"
            y = leaky_relu(EqualizedConv(width, dtype=self.dtype, name=name)(y))
        return downsample_average(y)

    def _from_rgb(self, resolution: int) -> EqualizedConv:
        width = channels_at(resolution, self.fmap_base, self.fmap_max)
        return EqualizedConv(width, kernel_size=1, dtype=self.dtype, name=f"from_rgb_{resolution}")
