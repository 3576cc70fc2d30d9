"""Discriminator of the progressive GAN (Karras et al. 2018, Table 2)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_noisy_anogan.networks.decoder import Decoder
from jax_noisy_anogan.networks.generator import channels_at
from jax_noisy_anogan.networks.layers import (
    EqualizedConv,
    EqualizedDense,
    at_least_float32,
    crossfade,
    downsample_average,
    in_parts,
    leaky_relu,
    minibatch_stddev,
)


class DiscriminatorOutput(NamedTuple):
    """What the discriminator says of a batch.

    Attributes:
      logits: above 0 means "looks normal and real".
      features: activations that enter the block of each resolution, by resolution, and those that
        the logit is made of as 1 x 1. All but the last lie before the minibatch standard
        deviation, so each image's depend on that image alone.
      stddev: the minibatch standard deviation that was appended.
      dense: a logit of every pixel, which depends on its image alone; None without a decoder.
    """

    logits: Float[Array, " batch"]
    features: dict[int, Float[Array, "batch height width width_at"]]
    stddev: Float[Array, " batch"]
    dense: Float[Array, "batch height width"] | None = None


class Discriminator(nn.Module):
    """Images to logits, at one stage of growth; attributes as in `Generator`.

    Attributes:
      stddev_group: images per group of the minibatch standard deviation.
      dense: whether a decoder judges every pixel beside the whole image.
    """

    resolution: int
    fading: bool
    channels: int
    fmap_base: int = 8192
    fmap_max: int = 512
    stddev_group: int = 4
    dtype: DTypeLike = jnp.float32
    rematerialize: bool = False
    microbatch: int = 0
    dense: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        alpha: Float[Array, ""] | float = 1.0,
        stddev: Float[Array, ""] | Float[Array, " batch"] | None = None,
    ) -> DiscriminatorOutput:
        """Judge images.

        Args:
          x: images on the pixel scale of training ([-1, 1] by default).
          alpha: share of the newest block while `fading`, in [0, 1]; otherwise unused.
          stddev: the minibatch statistic, one for all images or for each. With it, every image is
            judged on its own: this is how scores are made. Without it the statistic comes from the
            batch: this is how the network is trained.
        """

        def features_of(self: Discriminator, x: Array) -> tuple[dict[int, Array], Array | None]:
            features, skips = self._features(x, alpha)
            return features, self._decoder()(skips, alpha) if self.dense else None

        # Images meet only after their last feature: until there they may pass one by one.
        features, dense = in_parts(features_of, self, x, self.microbatch)
        y = features[4]
        if stddev is None:
            statistic = minibatch_stddev(y, self.stddev_group)
        else:
            statistic = jnp.broadcast_to(stddev, y.shape[:1])
        plane = jnp.broadcast_to(statistic[:, None, None, None], (*y.shape[:3], 1))
        y = jnp.concatenate([y, plane.astype(y.dtype)], axis=-1)

        width = channels_at(4, self.fmap_base, self.fmap_max)
        y = leaky_relu(self._conv(width, "block_4_conv")(y))
        whole = EqualizedDense(width, dtype=self.dtype, name="block_4_dense")
        y = leaky_relu(whole(y.reshape(y.shape[0], -1)))
        features[1] = y[:, None, None, :]
        logits = EqualizedDense(1, gain=1.0, dtype=self.dtype, name="logits")(y)
        return DiscriminatorOutput(at_least_float32(logits[:, 0]), features, statistic, dense)

    def _features(
        self, x: Array, alpha: Array | float
    ) -> tuple[dict[int, Array], dict[int, Array | None]]:
        """`DiscriminatorOutput.features`, and what the decoder takes: one layer further on."""
        features: dict[int, Array] = {}
        skips: dict[int, Array | None] = {}
        y = leaky_relu(self._from_rgb(self.resolution)(x))
        resolution = self.resolution
        while resolution > 4:
            features[resolution] = y
            block = functools.partial(Discriminator._block, resolution=resolution)
            y, skips[resolution] = (nn.remat(block) if self.rematerialize else block)(self, y)
            if self.fading and resolution == self.resolution:
                old = leaky_relu(self._from_rgb(resolution // 2)(downsample_average(x)))
                y = crossfade(old, y, alpha)
            resolution //= 2
        features[4] = skips[4] = y
        return features, skips

    def _block(self, y: Array, resolution: int) -> tuple[Array, Array | None]:
        width = channels_at(resolution, self.fmap_base, self.fmap_max)
        next_width = channels_at(resolution // 2, self.fmap_base, self.fmap_max)
        skip = leaky_relu(self._conv(width, f"block_{resolution}_conv_0")(y))
        y = leaky_relu(self._conv(next_width, f"block_{resolution}_conv_1")(skip))
        return downsample_average(y), skip if self.dense else None

    def _decoder(self) -> Decoder:
        widths = (self.fmap_base, self.fmap_max)
        how = (self.dtype, self.rematerialize)
        return Decoder(self.resolution, self.fading, *widths, *how, name="decoder")

    def _conv(self, width: int, name: str) -> EqualizedConv:
        return EqualizedConv(width, dtype=self.dtype, name=name)

    def _from_rgb(self, resolution: int) -> EqualizedConv:
        width = channels_at(resolution, self.fmap_base, self.fmap_max)
        return EqualizedConv(width, kernel_size=1, dtype=self.dtype, name=f"from_rgb_{resolution}")
