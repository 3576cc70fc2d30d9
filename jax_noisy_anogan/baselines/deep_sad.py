"""Deep SAD (Ruff et al. 2020): a hypersphere around the unlabelled, known anomalies kept out.

Network and settings are those of the authors' MNIST experiment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jax_noisy_anogan.baselines.deep import (
    Batch,
    Conv,
    Images,
    Scores,
    check_images,
    in_chunks,
    jit_of_few_channels,
    keys_and_shuffler,
    max_pool,
    run_updates,
    updates_per_epoch,
)
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.networks.layers import upsample_nearest

_INVERSE_EPSILON = 1e-6
_CENTRE_MARGIN = 0.1


@dataclass(frozen=True)
class Settings:
    """The authors' MNIST configuration.

    Attributes:
      eta: weight of the known abnormal images.
      epochs, milestone, learning_rate, weight_decay: of the second stage; from the epoch
        `milestone` on the rate is a tenth. Adam with L2 weight decay.
      autoencoder_epochs, autoencoder_weight_decay: of the first stage, at the same rate.
    """

    eta: float = 1.0
    epochs: int = 150
    milestone: int = 50
    learning_rate: float = 1e-4
    weight_decay: float = 0.5e-6
    autoencoder_epochs: int = 150
    autoencoder_weight_decay: float = 0.5e-3
    batch_size: int = 128


# Few epochs at ten times the rate; for tests and quick tables.
QUICK = Settings(epochs=10, milestone=7, learning_rate=1e-3, autoencoder_epochs=5)


class Encoder(nn.Module):
    """phi: two convolutions and a dense layer, nowhere a bias.

    A bias, or a learnt shift in the normalisation, would let the network map everything to the
    centre. The representation has 2 (side/8)^2 entries: 32 at 32 x 32, as published.
    """

    @nn.compact
    def __call__(self, x: Batch, train: bool) -> Float[Array, "batch representation"]:
        x = 0.5 * (x + 1.0)  # The published settings belong to pixels in [0, 1].
        for features in (8, 4):
            x = Conv(features, use_bias=False)(x)
            x = max_pool(_activate(_normalise(x, train)))
        size = 2 * (x.shape[1] // 2) ** 2
        return nn.Dense(size, use_bias=False)(x.reshape(len(x), -1))


class Decoder(nn.Module):
    """The encoder backwards, for the first stage only; returns pixels in [0, 1]."""

    channels: int
    side: int

    @nn.compact
    def __call__(self, z: Float[Array, "batch representation"], train: bool) -> Batch:
        x = _activate(z.reshape(len(z), self.side // 8, self.side // 8, 2))
        for features in (4, 8):
            x = Conv(features, use_bias=False)(upsample_nearest(x))
            x = _activate(_normalise(x, train))
        return nn.sigmoid(Conv(self.channels, use_bias=False)(upsample_nearest(x)))


class Autoencoder(nn.Module):
    channels: int
    side: int

    def setup(self) -> None:
        self.encoder = Encoder()
        self.decoder = Decoder(self.channels, self.side)

    def __call__(self, x: Batch, train: bool) -> Batch:
        return self.decoder(self.encoder(x, train), train)


def _normalise(x: Batch, train: bool) -> Batch:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-4,
        use_bias=False,
        use_scale=False,
    )(x)


def _activate(x: Array) -> Array:
    return nn.leaky_relu(x, 0.01)


class Training(NamedTuple):
    """`statistics` are the running means and variances that scoring uses."""

    params: Any
    statistics: Any
    optimizer: Any


def fit_score(
    train_unlabelled: Images,
    known_abnormal: Images,
    test: Images,
    *,
    seed: int,
    settings: Settings = Settings(),
) -> Scores:
    """Train on unlabelled and known abnormal images; squared distance of the test images to c.

    Without known abnormal images this is Deep SVDD with the same network. Training always ends
    after the epochs of the settings; the test images are only scored.

    Raises:
      DataError: no unlabelled image, or see `check_images`.
    """
    check_images(train_unlabelled=train_unlabelled, known_abnormal=known_abnormal, test=test)
    if not len(train_unlabelled):
        raise DataError("Deep SAD: no unlabelled training images")
    images = np.concatenate([train_unlabelled, known_abnormal])
    known = np.repeat([False, True], [len(train_unlabelled), len(known_abnormal)])
    key, rng = keys_and_shuffler(seed)
    params, statistics = _pretrain(images, key, rng, settings)
    c = centre(in_chunks(partial(_represent, params, statistics), images))
    params, statistics = _train(params, statistics, c, images, known, rng, settings)
    represent = partial(_represent, params, statistics)
    return np.square(in_chunks(represent, test) - c[None]).sum(axis=1)


def deep_sad_loss(
    representations: Float[Array, "batch representation"],
    known_abnormal: Array,
    c: Float[Array, "representation"],
    eta: float,
) -> Float[Array, ""]:
    """Eq. 7 without weight decay: mean of |phi - c|^2, and eta / |phi - c|^2 where known abnormal.

    1/(n+m) sum_unlabelled |phi(x) - c|^2 + eta/(n+m) sum_known (|phi(x) - c|^2)^y with y = -1.
    """
    square = jnp.square(representations - c[None]).sum(axis=1)
    return jnp.where(known_abnormal, eta / (square + _INVERSE_EPSILON), square).mean()


def centre(
    representations: Float[np.ndarray, "n representation"],
) -> Float[np.ndarray, " representation"]:
    """Mean representation after the first stage, with every entry at least 0.1 away from 0.

    An entry of 0 could be reached by weights of 0 for every image.
    """
    mean = representations.mean(axis=0)
    away = np.where(mean < 0, -_CENTRE_MARGIN, _CENTRE_MARGIN)
    return np.where(np.abs(mean) < _CENTRE_MARGIN, away, mean).astype(np.float32)


def _adam(learning_rate: optax.ScalarOrSchedule, decay: float) -> optax.GradientTransformation:
    """Weight decay inside the gradient, as in the authors' optimiser, not decoupled from it."""
    return optax.chain(optax.add_decayed_weights(decay), optax.adam(learning_rate))


# Settings are static arguments, so that the fits of a sweep share their compiled programs.


def _autoencoder_adam(settings: Settings) -> optax.GradientTransformation:
    return _adam(settings.learning_rate, settings.autoencoder_weight_decay)


def _encoder_adam(settings: Settings, milestone: int) -> optax.GradientTransformation:
    rate = optax.piecewise_constant_schedule(settings.learning_rate, {milestone: 0.1})
    return _adam(rate, settings.weight_decay)


def _pretrain(
    images: Images, key: Array, rng: np.random.Generator, settings: Settings
) -> tuple[Any, Any]:
    """First stage: the encoder of an autoencoder by squared error."""
    epoch = updates_per_epoch(len(images), settings.batch_size)
    state, _, _ = run_updates(
        partial(_autoencoder_step, settings),
        _initial(settings, key, jnp.asarray(images[:1])),
        (images,),
        updates=settings.autoencoder_epochs * epoch,
        window=epoch,
        batch_size=settings.batch_size,
        rng=rng,
    )
    return state.params["encoder"], state.statistics["encoder"]


@jax.jit(static_argnames="settings")
def _initial(settings: Settings, key: Array, x: Batch) -> Training:
    variables = Autoencoder(x.shape[-1], x.shape[1]).init(key, x, False)
    params = variables["params"]
    return Training(params, variables["batch_stats"], _autoencoder_adam(settings).init(params))


@jit_of_few_channels("settings")
def _autoencoder_step(settings: Settings, state: Training, x: Batch) -> tuple[Training, Array]:
    def loss(params):
        reconstruction, changed = Autoencoder(x.shape[-1], x.shape[1]).apply(
            {"params": params, "batch_stats": state.statistics}, x, True, mutable="batch_stats"
        )
        return jnp.square(reconstruction - 0.5 * (x + 1.0)).mean(), changed["batch_stats"]

    return _updated(state, loss, _autoencoder_adam(settings))


def _train(
    params: Any,
    statistics: Any,
    c: Float[np.ndarray, " representation"],
    images: Images,
    known: np.ndarray,
    rng: np.random.Generator,
    settings: Settings,
) -> tuple[Any, Any]:
    """Second stage: Eq. 7."""
    epoch = updates_per_epoch(len(images), settings.batch_size)
    milestone = settings.milestone * epoch
    state, _, _ = run_updates(
        partial(_encoder_step, settings, milestone, jnp.asarray(c)),
        Training(params, statistics, _encoder_adam(settings, milestone).init(params)),
        (images, known),
        updates=settings.epochs * epoch,
        window=epoch,
        batch_size=settings.batch_size,
        rng=rng,
    )
    return state.params, state.statistics


@jit_of_few_channels("settings", "milestone")
def _encoder_step(
    settings: Settings,
    milestone: int,
    c: Float[Array, "representation"],
    state: Training,
    x: Batch,
    known_abnormal: Array,
) -> tuple[Training, Array]:
    def loss(params):
        phi, changed = Encoder().apply(
            {"params": params, "batch_stats": state.statistics}, x, True, mutable="batch_stats"
        )
        return deep_sad_loss(phi, known_abnormal, c, settings.eta), changed["batch_stats"]

    return _updated(state, loss, _encoder_adam(settings, milestone))


def _updated(
    state: Training, loss: Any, optimizer: optax.GradientTransformation
) -> tuple[Training, Array]:
    (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    change, opt_state = optimizer.update(gradient, state.optimizer, state.params)
    return Training(optax.apply_updates(state.params, change), statistics, opt_state), value


@jax.jit
def _represent(params: Any, statistics: Any, x: Batch) -> Float[Array, "batch representation"]:
    return Encoder().apply({"params": params, "batch_stats": statistics}, x, False)
