"""A plain classifier, normal against known abnormal: what the labels alone are worth."""

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
    keys_and_shuffler,
    max_pool,
    run_updates,
    updates_per_epoch,
)
from jax_noisy_anogan.errors import DataError


@dataclass(frozen=True)
class Settings:
    """Adam with decoupled weight decay; `widths` are the maps of the three convolutions."""

    epochs: int = 30
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    widths: tuple[int, ...] = (16, 32, 32)


QUICK = Settings(epochs=6, widths=(8, 16, 16))


class Classifier(nn.Module):
    """Three convolutions with pooling and a dense layer; returns the logit of "abnormal"."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Batch) -> Float[Array, "batch"]:
        for width in self.widths:
            x = max_pool(nn.relu(Conv(width, kernel_size=3)(x)))
        # Not by `use_bias`: its broadcast over ranks is what the strict shape mode forbids.
        x = nn.Dense(1, use_bias=False)(x.reshape(len(x), -1))[:, 0]
        return x + self.param("bias", nn.initializers.zeros, ())


class Training(NamedTuple):
    params: Any
    optimizer: Any


def fit_score(
    train_unlabelled: Images,
    known_abnormal: Images,
    test: Images,
    *,
    seed: int,
    settings: Settings = Settings(),
) -> Scores:
    """Train with the unlabelled images as normal; the logit of "abnormal" of the test images.

    Both classes weigh half of the loss. Training always ends after the epochs of the settings; the
    test images are only scored.

    Raises:
      DataError: one class is empty, or see `check_images`.
    """
    check_images(train_unlabelled=train_unlabelled, known_abnormal=known_abnormal, test=test)
    if not len(train_unlabelled) or not len(known_abnormal):
        raise DataError(
            f"supervised CNN: {len(train_unlabelled)} unlabelled and {len(known_abnormal)} known "
            "abnormal training images: both are needed"
        )
    images = np.concatenate([train_unlabelled, known_abnormal])
    abnormal = np.repeat([0.0, 1.0], [len(train_unlabelled), len(known_abnormal)])
    weights = np.where(abnormal, 1.0 / len(known_abnormal), 1.0 / len(train_unlabelled))
    weights *= 0.5 * len(images)
    key, rng = keys_and_shuffler(seed)
    epoch = updates_per_epoch(len(images), settings.batch_size)
    state, _, _ = run_updates(
        partial(_step, settings),
        _initial(settings, key, jnp.asarray(images[:1])),
        (images, abnormal.astype(np.float32), weights.astype(np.float32)),
        updates=settings.epochs * epoch,
        window=epoch,
        batch_size=settings.batch_size,
        rng=rng,
    )
    return in_chunks(partial(_logits, settings, state.params), test)


def weighted_loss(
    logits: Float[Array, "batch"], target: Float[Array, "batch"], weight: Float[Array, "batch"]
) -> Float[Array, ""]:
    """Mean of weight times binary cross-entropy; `target` is 1 for abnormal."""
    return (weight * optax.sigmoid_binary_cross_entropy(logits, target)).mean()


# Settings are static arguments, so that the fits of a sweep share their compiled programs.


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    return optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)


@jax.jit(static_argnames="settings")
def _initial(settings: Settings, key: Array, x: Batch) -> Training:
    params = Classifier(settings.widths).init(key, x)["params"]
    return Training(params, _optimizer(settings).init(params))


@jax.jit(static_argnames="settings")
def _step(
    settings: Settings, state: Training, x: Batch, target: Array, weight: Array
) -> tuple[Training, Array]:
    def loss(params):
        return weighted_loss(_logits(settings, params, x), target, weight)

    value, gradient = jax.value_and_grad(loss)(state.params)
    change, opt_state = _optimizer(settings).update(gradient, state.optimizer, state.params)
    return Training(optax.apply_updates(state.params, change), opt_state), value


@jax.jit(static_argnames="settings")
def _logits(settings: Settings, params: Any, x: Batch) -> Float[Array, "batch"]:
    return Classifier(settings.widths).apply({"params": params}, x)
