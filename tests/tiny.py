"""The networks and settings that tests share: as small as can be, with every part in them."""

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config, GrowthConfig, NetworkConfig
from jax_noisy_anogan.networks import Networks, build_networks

WIDTHS = {"fmap_base": 64, "fmap_max": 8, "latent_size": 8}


def networks(resolution: int = 8, *, fading: bool = False, channels: int = 1) -> Networks:
    """Networks as `config` describes them."""
    return build_networks(resolution=resolution, fading=fading, channels=channels, **WIDTHS)


def config(**sections) -> Config:
    """Settings that work, for networks of 8 x 8 that do not grow; whole sections are replaced."""
    small = {
        "network": NetworkConfig(**WIDTHS),
        "growth": GrowthConfig(start_resolution=8, resolution=8),
    }
    return config_lib.validate(Config(**(small | sections)))
