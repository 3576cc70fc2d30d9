"""ALOCC (Sabokrou et al. 2018): an autoencoder R that repairs, a discriminator D that it deceives.

R learns to repair noisy normal images so that D takes them for real ones (Eq. 3). What R has not
learnt it distorts, and D(R(x)) of Eq. 7 separates better than D(x) of Eq. 6. Training ends by the
paper's own rule: R's squared error on the training images is below rho.

Differences from the original: pooling and nearest upsampling instead of strided convolutions (see
`deep`); normalisation within an image and in R only, instead of over the batch, so that a score
does not depend on the images beside it; a smaller width and Adam, for two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jax_noisy_anogan.baselines.deep import (
    Batch,
    Conv,
    Images,
    Scores,
    check_images,
    in_chunks,
    jit_of_few_channels,
    keys_and_shuffler,
    run_updates,
)
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.networks.layers import downsample_average, leaky_relu, upsample_nearest


@dataclass(frozen=True)
class Settings:
    """How R and D are trained.

    Attributes:
      noise: standard deviation of eta in R(x + eta), pixels in [-1, 1].
      refinement_weight: lambda of Eq. 5, which weighs |x - R(x + eta)|^2 against deceiving D.
      refined_enough: rho, in units of the noise's variance, which is the error of an R that does
        nothing. Training stops when the mean squared error per pixel of the last `window` updates
        is below it: by default once R removes half of the noise. The paper asks for "small" and
        prints no number.
      most_updates: where training stops at the latest.
      width: maps of the first convolution; the following ones have 2 and 4 times as many.
    """

    noise: float = 0.3
    refinement_weight: float = 0.4
    refined_enough: float = 0.5
    most_updates: int = 3000
    window: int = 50
    learning_rate: float = 1e-3
    batch_size: int = 64
    width: int = 8


QUICK = Settings(most_updates=1000, width=4)


class AloccScores(NamedTuple):
    """Scores of the test images, higher is more outlying, and how far training went.

    Attributes:
      refined: minus D's logit of "real" for R(x), Eq. 7.
      direct: minus D's logit for x itself, Eq. 6.
      updates: of R and of D.
      stopped: by the rule of `Settings.refined_enough`, not by `most_updates`.
    """

    refined: Scores
    direct: Scores
    updates: int
    stopped: bool


class Refiner(nn.Module):
    """R: encoder and decoder of three convolutions each; returns pixels in [-1, 1]."""

    width: int

    @nn.compact
    def __call__(self, x: Batch) -> Batch:
        channels = x.shape[-1]
        for factor in (1, 2, 4):
            x = downsample_average(_layer(self.width * factor)(x))
        for factor in (4, 2, 1):
            x = upsample_nearest(_layer(self.width * factor)(x))
        return jnp.tanh(Conv(channels)(x))


class Judge(nn.Module):
    """D: the logit of "real"."""

    width: int

    @nn.compact
    def __call__(self, x: Batch) -> Float[Array, "batch"]:
        for factor in (1, 2, 4):
            x = downsample_average(leaky_relu(Conv(self.width * factor)(x)))
        return nn.Dense(1, use_bias=False)(x.reshape(len(x), -1))[:, 0]


def _layer(features: int) -> nn.Sequential:
    return nn.Sequential([Conv(features), _normalise, leaky_relu])


def _normalise(x: Batch) -> Batch:
    """Zero mean and unit variance of each map within each image."""
    mean = x.mean(axis=(1, 2), keepdims=True)
    variance = jnp.square(x - mean).mean(axis=(1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-3)


class Training(NamedTuple):
    refiner: Any
    judge: Any
    refiner_optimizer: Any
    judge_optimizer: Any
    key: PRNGKeyArray


def fit_score(
    train_images: Images,
    test_images: Images,
    *,
    seed: int,
    settings: Settings = Settings(),
) -> AloccScores:
    """Train R and D on `train_images`, taken as normal; score `test_images` without noise.

    When training stops depends on the training images alone, see `Settings.refined_enough`.

    Raises:
      DataError: no training image, or see `check_images`.
    """
    check_images(train_images=train_images, test_images=test_images)
    if not len(train_images):
        raise DataError("ALOCC: no training images")
    key, rng = keys_and_shuffler(seed)
    enough = settings.refined_enough * settings.noise**2
    state, curve, updates = run_updates(
        partial(
            _step,
            settings.width,
            settings.noise,
            settings.refinement_weight,
            settings.learning_rate,
        ),
        _initial(settings.width, key, jnp.asarray(train_images[:1])),
        (train_images,),
        updates=settings.most_updates,
        window=settings.window,
        batch_size=settings.batch_size,
        rng=rng,
        finished=lambda error: error < enough,
    )
    refined, direct = -in_chunks(partial(_logits, settings.width, state), test_images).T
    return AloccScores(refined, direct, updates, curve[-1] < enough)


def judge_loss(real: Float[Array, "batch"], refined: Float[Array, "batch"]) -> Float[Array, ""]:
    """-E log D(x) - E log(1 - D(R(x + eta))), of logits: what D minimises of Eq. 3."""
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(refined).mean()


def refiner_loss(
    refined: Float[Array, "batch"], error: Float[Array, ""], weight: float
) -> Float[Array, ""]:
    """-E log D(R(x + eta)) + weight * error: Eq. 5 for R, its adversarial part non-saturating."""
    return jax.nn.softplus(-refined).mean() + weight * error


# Only the width is a static argument, so that most fits share their compiled programs.


def _optimizer(learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(learning_rate, b1=0.5)


@jax.jit(static_argnames="width")
def _initial(width: int, key: PRNGKeyArray, x: Batch) -> Training:
    key_r, key_d, key = jax.random.split(key, 3)
    refiner, judge = Refiner(width).init(key_r, x), Judge(width).init(key_d, x)
    optimizer = _optimizer(0.0)
    return Training(refiner, judge, optimizer.init(refiner), optimizer.init(judge), key)


@jit_of_few_channels("width")
def _step(
    width: int, noise: float, weight: float, learning_rate: float, state: Training, x: Batch
) -> tuple[Training, Array]:
    """One update of D, then one of R; also returns the mean squared error per pixel."""
    refine, judge = Refiner(width).apply, Judge(width).apply
    optimizer = _optimizer(learning_rate)
    key, noise_key = jax.random.split(state.key)
    noisy = x + noise * jax.random.normal(noise_key, x.shape)
    refined = refine(state.refiner, noisy)

    def loss_d(params):
        return judge_loss(judge(params, x), judge(params, refined))

    change, judge_state = optimizer.update(jax.grad(loss_d)(state.judge), state.judge_optimizer)
    params_d = optax.apply_updates(state.judge, change)

    def loss_r(params):
        refined = refine(params, noisy)
        square = jnp.square(x - refined)
        # The norm of Eq. 4 sums over the pixels of an image.
        error = square.sum(axis=(1, 2, 3)).mean()
        loss = refiner_loss(judge(params_d, refined), error, weight)
        return loss, square.mean()

    gradient, error = jax.grad(loss_r, has_aux=True)(state.refiner)
    change, refiner_state = optimizer.update(gradient, state.refiner_optimizer)
    params_r = optax.apply_updates(state.refiner, change)
    return Training(params_r, params_d, refiner_state, judge_state, key), error


@jax.jit(static_argnames="width")
def _logits(width: int, state: Training, x: Batch) -> Float[Array, "batch 2"]:
    """D of R(x), and D of x."""
    refined = Refiner(width).apply(state.refiner, x)
    judge = Judge(width).apply
    return jnp.stack([judge(state.judge, image) for image in (refined, x)], axis=1)
