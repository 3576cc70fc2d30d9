"""Trained networks as functions: what scoring needs of a run, and nothing of how it was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from jax_noisy_anogan.config import Config, DataConfig
from jax_noisy_anogan.latent_search import Bank, Judgement, draw_bank, nearest
from jax_noisy_anogan.networks import NetworkParams, Networks, Params, project_to_hypersphere
from jax_noisy_anogan.networks.encoder import Encoder
from jax_noisy_anogan.networks.pixels import PixelScale
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.runtime.checkpoint import CheckpointError, Checkpoints
from jax_noisy_anogan.runtime.files import checksum
from jax_noisy_anogan.settings import ConfigError


class Reference(flax.struct.PyTreeNode):
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


_BANK_KEY = 5


class Model(NamedTuple):
    """A trained pair of networks, ready to score; `params` are the averaged ones.

    Attributes:
      guide: what `search.start` begins at: a bank, an encoder's parameters, or nothing; see
        `with_guide`.
    """

    networks: Networks
    params: NetworkParams
    reference: Reference
    guide: Bank | Params | None = None


def bind(
    networks: Networks, params: NetworkParams, reference: Reference, config: Config
) -> tuple[Callable[[Array], Array], Callable[[Array], Judgement]]:
    """G of one latent, and what D says of one image, as the search sees them."""
    squash = _squash(config.loss.objective, reference)
    stddev, resolution = reference.mean("stddev"), config.search.feature_resolution

    def generate(z: Float[Array, "latent"]) -> Float[Array, "h w c"]:
        return networks.generate(params.generator, z[None])[0]

    def judge(x: Float[Array, "h w c"]) -> Judgement:
        out = networks.discriminate(params.discriminator, x[None], stddev=stddev)
        logit = out.logits[0]
        return Judgement(squash(logit), logit, out.features[resolution][0])

    return generate, judge


def with_guide(model: Model, config: Config) -> Model:
    """The model with what its search begins at: draws the bank where `search.start` asks for one.

    Raises:
      ConfigError: an encoder is asked for, and the model has none.
    """
    search, (networks, params, reference, guide) = config.search, model
    if search.start == "prior":
        return model._replace(guide=None)
    if search.start == "encoder":
        if guide is None or isinstance(guide, Bank):
            raise ConfigError(
                "config.search.start is 'encoder', and this run has no encoder of its networks and "
                "settings: run `python -m jax_noisy_anogan.evaluate --workdir DIR --set "
                "search.start=encoder`, which trains it"
            )
        return model
    if isinstance(guide, Bank) and len(guide.latents) == search.bank_images:
        return model

    @jax.jit
    def draw(params: NetworkParams) -> Bank:
        return draw_bank(
            bind(networks, params, reference, config)[0],
            jax.random.fold_in(jax.random.key(config.train.seed), _BANK_KEY),
            count=search.bank_images,
            prior=config.network.prior,
            latent_size=networks.latent_size,
            batch_size=search.batch_size,
        )

    return model._replace(guide=draw(params))


def make_encoder(config: Config) -> Encoder:
    """The encoder of a run's networks, without parameters."""
    network = config.network
    return Encoder(
        network.latent_size, network.fmap_base, network.fmap_max, jnp.dtype(network.compute_dtype)
    )


def _guess(config: Config, guide: Any) -> Callable[[Array], Float[Array, "guesses latent"]] | None:
    """The latents of an image that its search begins at, as `search.start` says."""
    if config.search.start == "bank":
        return lambda x: nearest(guide, x, config.search.restarts)
    if config.search.start == "encoder":
        encoder = make_encoder(config)
        return lambda x: project_to_hypersphere(encoder.apply({"params": guide}, x[None]))
    return None


def _squash(objective: str, reference: Reference) -> Callable[[Array], Array]:
    """From D's output to D(x) in [0, 1], which Eq. 25 needs.

    A logistic D is squashed by the sigmoid that it was trained with. A Wasserstein critic has no
    scale of its own: its mean on real training images is put at sigmoid(2) = 0.88, its mean on
    drawn ones at sigmoid(-2) = 0.12.
    """
    if objective != "wgan_gp":
        return jax.nn.sigmoid
    real, fake = reference.mean("logit_real"), reference.mean("logit_fake")
    middle, half = (real + fake) / 2, jnp.maximum(jnp.abs(real - fake) / 2, 1e-6)
    return lambda logit: jax.nn.sigmoid(2.0 * (logit - middle) / half)


_KEY = 6


class EncoderState(NamedTuple):
    """Parameters and optimiser state."""

    params: Params
    optimizer: optax.OptState


def init_encoder(
    config: Config, networks: Networks, optimizer: optax.GradientTransformation
) -> EncoderState:
    """Fresh parameters and optimiser state."""
    key = jax.random.fold_in(jax.random.key(config.train.seed), _KEY)
    images = jnp.zeros((1, *networks.image_shape))
    params = jax.jit(make_encoder(config).init)(key, images)["params"]
    return EncoderState(params, optimizer.init(params))


def load(config: Config, workdir: Path, model: Model) -> Model:
    """The model with the encoder that `fit` has stored for it, where `search.start` asks for it.

    Without one where there is none for these networks and settings, or none that can be read.
    """
    folder = workdir / "encoder"
    if config.search.start != "encoder" or not (folder / "checkpoints").is_dir():
        return model
    sharding = NamedSharding(parallel.make_mesh(), parallel.REPLICATED)
    shapes = jax.eval_shape(
        lambda: init_encoder(config, model.networks, optax.identity()).params,
    )
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
    try:
        with Checkpoints(folder, read_only=True) as checkpoints:
            restored = checkpoints.restore_newest(lambda position: template)
    except CheckpointError as error:
        logging.warning("the encoder cannot be used (%s)", error)
        return model
    if restored is None or restored.data != _belongs_to(config, model):
        return model
    return model._replace(guide=parallel.local_copy(restored.state))


def _belongs_to(config: Config, model: Model) -> dict[str, Any]:
    """What decides the encoder: the networks, its loss, and how long it was trained."""
    search = config.search
    return {
        "networks": checksum((model.params, model.reference)),
        "gamma": config.loss.gamma,
        "prior": config.network.prior,
        "images": search.encoder_images,
        "feature_weight": search.feature_weight,
        "feature_resolution": search.feature_resolution,
        "reduction": search.reduction,
    }
