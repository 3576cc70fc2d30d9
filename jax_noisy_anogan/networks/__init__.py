"""The two networks as pure functions of their parameters, one pair per stage of growth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jax_noisy_anogan.networks.discriminator import Discriminator, DiscriminatorOutput
from jax_noisy_anogan.networks.generator import Generator, channels_at

__all__ = [
    "Discriminator",
    "DiscriminatorOutput",
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
    """Parameter trees of both networks."""

    generator: Params
    discriminator: Params


@dataclass(frozen=True)
class Networks:
    """Generator and discriminator at one stage; hashable, holds no parameters."""

    generator: Generator
    discriminator: Discriminator
    latent_size: int

    @property
    def resolution(self) -> int:
        return self.generator.resolution

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.resolution, self.resolution, self.generator.channels)

    def init(self, key: PRNGKeyArray) -> NetworkParams:
        """Fresh parameters, float32."""
        key_g, key_d = jax.random.split(key)
        # Compiled, drawing parameters costs no forward pass: XLA drops what nothing depends on.
        init_g, init_d = jax.jit(self.generator.init), jax.jit(self.discriminator.init)
        generator = init_g(key_g, jnp.zeros((1, self.latent_size)))["params"]
        discriminator = init_d(key_d, jnp.zeros((1, *self.image_shape)))["params"]
        return NetworkParams(generator, discriminator)

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
) -> Networks:
    """The pair of networks for one stage of growth."""
    widths = (resolution, fading, channels, fmap_base, fmap_max)
    how = (jnp.dtype(compute_dtype), rematerialize, microbatch)
    return Networks(
        Generator(*widths, *how), Discriminator(*widths, stddev_group, *how), latent_size
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
