"""The half of the discriminator that says where: its features back to one logit per pixel.

With it D is a U-Net (Schönfeld et al. 2020, "A U-Net Based Discriminator for Generative Adversarial
Networks"), whose encoder is the network of Karras et al. 2018.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_noisy_anogan.networks.generator import channels_at
from jax_noisy_anogan.networks.layers import (
    EqualizedConv,
    at_least_float32,
    crossfade,
    leaky_relu,
    upsample_nearest,
)


class Decoder(nn.Module):
    """Activations of D at every resolution to logits of every pixel; grows as D does.

    Attributes: as in `Discriminator`.
    """

    resolution: int
    fading: bool
    fmap_base: int
    fmap_max: int
    dtype: DTypeLike
    rematerialize: bool

    @nn.compact
    def __call__(
        self,
        skips: dict[int, Float[Array, "batch height width width_at"]],
        alpha: Float[Array, ""] | float,
    ) -> Float[Array, "batch height width"]:
        """Judge every pixel.

        Args:
          skips: D's activations by resolution, from 4 to its own.
          alpha: share of the newest block while `fading`.

        Returns:
          Logits, above 0 where a pixel looks normal and real.
        """
        y = leaky_relu(self._conv(4)(skips[4]))
        below, resolution = y, 4
        while resolution < self.resolution:
            below, resolution = y, 2 * resolution
            block = functools.partial(Decoder._block, resolution=resolution)
            y = (nn.remat(block) if self.rematerialize else block)(self, y, skips[resolution])
        logits = self._logits(resolution)(y)
        if self.fading:
            old = upsample_nearest(self._logits(resolution // 2)(below))
            logits = crossfade(old, logits, alpha)
        return at_least_float32(logits[..., 0])

    def _block(self, y: Array, skip: Array, resolution: int) -> Array:
        both = jnp.concatenate([upsample_nearest(y), skip], axis=-1)
        return leaky_relu(self._conv(resolution)(both))

    def _conv(self, resolution: int) -> EqualizedConv:
        width = channels_at(resolution, self.fmap_base, self.fmap_max)
        return EqualizedConv(width, dtype=self.dtype, name=f"block_{resolution}")

    def _logits(self, resolution: int) -> EqualizedConv:
        return EqualizedConv(
            1, kernel_size=1, gain=1.0, dtype=self.dtype, name=f"logits_{resolution}"
        )
