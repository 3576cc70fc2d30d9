"""The networks as pure functions of their parameters, one set per stage of growth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jax_noisy_anogan.networks.discriminator import Discriminator, DiscriminatorOutput
from jax_noisy_anogan.networks.encoder import Encoder
from jax_noisy_anogan.networks.generator import Generator, channels_at
from jax_noisy_anogan.networks.layers import draw_parameters

__all__ = [
    "Discriminator",
    "DiscriminatorOutput",
    "Encoder",
    "Generator",
    "NetworkParams",
    "Networks",
    "Params",
    "build_networks",
    "channels_at",
    "grow_params",
    "project_to_hypersphere",
    "sample_latents",
]

Params = dict[str, Any]


class NetworkParams(NamedTuple):
    """Parameter trees of all networks.

    Attributes:
      encoder: None where none is trained.
    """

    generator: Params
    discriminator: Params
    encoder: Params | None = None

    def map(self, function: Callable[..., Any], *others: NetworkParams) -> NetworkParams:
        """`function` of each network's tree, and of the others' trees in the same place."""
        places = zip(self, *others, strict=True)
        return NetworkParams._make(
            None if tree is None else function(tree, *rest) for tree, *rest in places
        )


@dataclass(frozen=True)
class Networks:
    """Generator, discriminator and perhaps an encoder at one stage; holds no parameters."""

    generator: Generator
    discriminator: Discriminator
    latent_size: int
    encoder: Encoder | None = None

    @property
    def resolution(self) -> int:
        return self.generator.resolution

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.resolution, self.resolution, self.generator.channels)

    def init(self, key: PRNGKeyArray) -> NetworkParams:
        """Fresh parameters, float32."""
        key_g, key_d = jax.random.split(key)
        image = jnp.zeros((1, *self.image_shape))
        generator = draw_parameters(self.generator, key_g, jnp.zeros((1, self.latent_size)))
        discriminator = draw_parameters(self.discriminator, key_d, image)
        if self.encoder is None:
            return NetworkParams(generator, discriminator)
        # From a key of its own, so that G and D begin as they do without an encoder.
        encoder = draw_parameters(self.encoder, jax.random.fold_in(key, 2), image)
        return NetworkParams(generator, discriminator, encoder)

    def generate(
        self, params: Params, z: Float[Array, "batch latent"], alpha: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "batch height width channels"]:
        """G(z); see `Generator`."""
        return self.generator.apply({"params": params}, z, alpha)

    def discriminate(
        self,
        params: Params,
        x: Float[Array, "batch height width channels"],
        alpha: Float[Array, ""] | float = 1.0,
        stddev: Float[Array, ""] | Float[Array, " batch"] | None = None,
    ) -> DiscriminatorOutput:
        """D(x); see `Discriminator`."""
        return self.discriminator.apply({"params": params}, x, alpha, stddev)

    def encode(
        self,
        params: Params | None,
        x: Float[Array, "batch height width channels"],
        alpha: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "batch latent"]:
        """E(x) on the hypersphere; see `Encoder`.

        Raises:
          ValueError: there is no encoder.
        """
        if self.encoder is None or params is None:
            raise ValueError("these networks were built or trained without an encoder")
        return project_to_hypersphere(self.encoder.apply({"params": params}, x, alpha))


def build_networks(
    *,
    resolution: int,
    fading: bool,
    channels: int,
    fmap_base: int = 8192,
    fmap_max: int = 512,
    latent_size: int = 512,
    stddev_group: int = 4,
    compute_dtype: str = "float32",
    rematerialize: bool = False,
    microbatch: int = 0,
    dense: bool = False,
    encoder: bool = False,
) -> Networks:
    """The networks for one stage of growth; with an encoder if asked for."""
    widths = (resolution, fading, channels, fmap_base, fmap_max)
    how = (jnp.dtype(compute_dtype), rematerialize, microbatch)
    encodes = Encoder(resolution, fading, latent_size, fmap_base, fmap_max, *how)
    return Networks(
        Generator(*widths, *how),
        Discriminator(*widths, stddev_group, *how, dense),
        latent_size,
        encodes if encoder else None,
    )


def grow_params(old: Params, fresh: Params) -> Params:
    """`fresh` with every layer that `old` also has taken from `old`.

    Used when a resolution is added (the layers of the lower ones carry over) and when a fade ends
    (the path of the lower resolution is dropped).

    Raises:
      ValueError: a layer exists in both with different shapes.
    """
    grown = {}
    for name, layer in fresh.items():
        if name not in old:
            grown[name] = layer
            continue
        if name == "decoder":
            grown[name] = grow_params(old[name], layer)
            continue
        had, wanted = (jax.tree.map(jnp.shape, tree) for tree in (old[name], layer))
        if had != wanted:
            raise ValueError(
                f"layer {name} has shapes {had}, the network expects {wanted}: network.fmap_base, "
                "network.fmap_max, network.latent_size and data.channels must stay as they were"
            )
        grown[name] = old[name]
    return grown


def sample_latents(key: PRNGKeyArray, prior: str, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """z ~ p_z on the hypersphere of radius sqrt(latent size).

    Args:
      prior: `uniform` (the paper: a cube's points, projected) or `normal` (Karras et al.).
      shape: its last entry is the latent size.
    """
    if prior == "uniform":
        z = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    else:
        z = jax.random.normal(key, shape)
    return project_to_hypersphere(z)


def project_to_hypersphere(z: Float[Array, "*batch latent"]) -> Float[Array, "*batch latent"]:
    """Scale latents to length sqrt(latent size), where the generator's own scaling is idle."""
    norm = jnp.linalg.norm(z, axis=-1, keepdims=True)
    return z * (z.shape[-1] ** 0.5 / jnp.maximum(norm, 1e-12))
