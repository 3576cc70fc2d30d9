"""Trained networks as functions: what scoring needs of a run, and nothing of how it was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_noisy_anogan.config import Config, ConfigError, DataConfig
from jax_noisy_anogan.latent_search import Bank, Judgement, generate_bank, nearest
from jax_noisy_anogan.networks import NetworkParams, Networks
from jax_noisy_anogan.networks.pixels import PixelScale

_BANK_KEY = 5


class Model(NamedTuple):
    """Trained networks, ready to score; `params` are the averaged ones.

    Attributes:
      bank: what a search may begin at; see `with_initialisation`.
    """

    networks: Networks
    params: NetworkParams
    statistics: DiscriminatorStatistics
    bank: Bank | None = None


def bind(
    networks: Networks, params: NetworkParams, statistics: DiscriminatorStatistics, config: Config
) -> tuple[Callable[[Array], Array], Callable[[Array], Judgement]]:
    """G of one latent, and what D says of one image, as the search sees them."""
    squash = normality_of(config.loss.objective, statistics)
    stddev, search = statistics.mean("stddev"), config.search

    def generate(z: Float[Array, "latent"]) -> Float[Array, "h w c"]:
        return networks.generate(params.generator, z[None])[0]

    def judge(x: Float[Array, "h w c"]) -> Judgement:
        out = networks.discriminate(params.discriminator, x[None], stddev=stddev)
        logit = out.logits[0]
        dense = None if out.dense is None else out.dense[0]
        features = search.feature_scale * out.features[search.feature_resolution][0]
        return Judgement(squash(logit), logit, features, dense)

    return generate, judge


def with_initialisation(model: Model, config: Config) -> Model:
    """The model with what `search.start` begins at: generates the bank where it asks for one.

    Raises:
      ConfigError: an encoder is asked for, and none was trained.
    """
    search, (networks, params, statistics, bank) = config.search, model
    if search.start == "encoder" and params.encoder is None:
        raise ConfigError(
            "config.search.start is 'encoder', and this run has trained none: train another one "
            "with --config.train.encoder=true, or search from 'prior' or 'bank'"
        )
    if search.start != "bank":
        return model._replace(bank=None)
    if bank is not None and len(bank.latents) == search.bank_images:
        return model

    @jax.jit
    def generate(params: NetworkParams) -> Bank:
        return generate_bank(
            bind(networks, params, statistics, config)[0],
            jax.random.fold_in(jax.random.key(config.train.seed), _BANK_KEY),
            count=search.bank_images,
            prior=config.network.prior,
            latent_size=networks.latent_size,
            batch_size=search.batch_size,
        )

    return model._replace(bank=generate(params))


def initial_latents(
    config: Config, networks: Networks, params: NetworkParams, bank: Bank | None
) -> Callable[[Array], Float[Array, "starts latent"]] | None:
    """The latents of an image that its search begins at, as `search.start` says."""
    if config.search.start == "bank" and bank is not None:
        return lambda x: nearest(bank, x, config.search.restarts)
    if config.search.start == "encoder" and params.encoder is not None:
        encoder = params.encoder
        return lambda x: networks.encode(encoder, x[None])
    return None


def normality_of(objective: str, statistics: DiscriminatorStatistics) -> Callable[[Array], Array]:
    """From D's output to D(x) in [0, 1], which Eq. 25 needs.

    A logistic D is squashed by the sigmoid that it was trained with. A Wasserstein critic has no
    scale of its own: its mean on real training images is put at sigmoid(2) = 0.88, its mean on
    generated ones at sigmoid(-2) = 0.12.
    """
    if objective != "wgan_gp":
        return jax.nn.sigmoid
    real, fake = statistics.mean("logit_real"), statistics.mean("logit_fake")
    middle, half = (real + fake) / 2, jnp.maximum(jnp.abs(real - fake) / 2, 1e-6)
    return lambda logit: jax.nn.sigmoid(2.0 * (logit - middle) / half)


class DiscriminatorStatistics(flax.struct.PyTreeNode):
    """Running averages of what D says of training batches; needed to judge single images.

    Attributes:
      weight: the share of the average that is filled; divides the others.
      stddev: minibatch standard deviation of real batches.
      logit_real, logit_fake: mean logits.
    """

    weight: Float[Array, ""]
    stddev: Float[Array, ""]
    logit_real: Float[Array, ""]
    logit_fake: Float[Array, ""]

    def mean(self, name: str) -> Float[Array, ""]:
        """The average called `name`, corrected for its start at zero."""
        return getattr(self, name) / jnp.maximum(self.weight, 1e-8)


def pixel_scale(data: DataConfig) -> PixelScale:
    """How pixels enter the networks of a run."""
    return PixelScale(data.pixel_mean, data.pixel_std)
