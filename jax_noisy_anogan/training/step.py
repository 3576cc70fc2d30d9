"""One update of the discriminator and the generator, as a pure function.

The same global batch gives the same update on any number of devices: latents are drawn per image
from its number in the global batch, groups of the minibatch standard deviation are runs of
neighbours, and gradients are averaged over the axis.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from jax_noisy_anogan import losses
from jax_noisy_anogan.config import LossConfig
from jax_noisy_anogan.model import Reference
from jax_noisy_anogan.networks import (
    NetworkParams,
    Networks,
    Params,
    sample_latents,
)
from jax_noisy_anogan.networks.layers import fade_real_images
from jax_noisy_anogan.networks.pixels import PAPER_SCALE, PixelScale, to_float_images
from jax_noisy_anogan.settings import ConfigError
from jax_noisy_anogan.training.state import TrainState

ByteImages = UInt8[Array, "batch height width channels"]
Images = Float[Array, "batch height width channels"]
Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    *,
    loss: LossConfig,
    prior: str,
    ema_decay: float,
    discriminator_rate: float = 1.0,
    pixels: PixelScale = PAPER_SCALE,
    axis_name: str | None = None,
) -> Callable[
    [TrainState, ByteImages, ByteImages | None, Float[Array, ""], PRNGKeyArray],
    tuple[TrainState, Metrics],
]:
    """Build `step(state, real, abnormal, alpha, key) -> (state, metrics)` for one phase.

    Args:
      loss: the objective; with gamma = 1 pass `abnormal=None`.
      ema_decay: weight of the past in the parameter average, per update.
      discriminator_rate: what D's updates are multiplied by, after the optimiser.
      pixels: how images enter the networks.
      axis_name: the mapped axis to average over; None outside `data_parallel` and `jax.pmap`.

    Returns:
      A pure function. `key` is the run's key, the same for every step. Traced over several devices,
      it raises ConfigError where a device's part of the batch would be grouped or penalised
      otherwise than in the whole batch.
    """
    discriminator_loss = losses.DISCRIMINATOR_LOSSES[loss.objective]
    generator_loss = losses.GENERATOR_LOSSES[loss.objective]
    group = networks.discriminator.stddev_group

    def mean_over_devices(tree):
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def first_index(batch: int) -> Array | int:
        return 0 if axis_name is None else lax.axis_index(axis_name) * batch

    def judge_real(params: Params, real: Images, alpha: Array):
        """What D says of real images and, for R1 on all of them, its gradient by each image.

        The penalty and the loss share one forward pass, and with it one backward pass through it:
        judged twice, every real image would cost D two convolutions more per layer, of eight.
        """

        def judge(images: Images):
            out = networks.discriminate(params, images, alpha)
            return out.logits.sum(), out

        if loss.penalty != "r1" or loss.penalty_interval > 1:
            return judge(real)[1], None
        gradient, out = jax.grad(judge, has_aux=True)(real)
        return out, gradient

    def penalty_of(
        params: Params,
        real: Images,
        gradient: Images | None,
        fake: Images,
        alpha: Array,
        mix: Float[Array, "batch"],
    ) -> Float[Array, ""]:
        def critic(images: Images) -> Float[Array, "batch"]:
            return networks.discriminate(params, images, alpha).logits

        if gradient is not None:
            return losses.r1_penalty(lambda x: (x * gradient).sum(axis=(1, 2, 3)), real)
        keep = _penalised_images(real.shape[0], group, loss.penalty_interval)
        if loss.penalty == "r1":
            return losses.r1_penalty(critic, real[keep])
        return losses.wgan_gradient_penalty(critic, real[keep], fake[keep], mix[keep])

    def judge_not_normal(params, fake, abnormal, alpha, stddev_real):
        count = fake.shape[0]
        if abnormal is not None and loss.abnormal_statistic == "real":
            logits_fake = networks.discriminate(params, fake, alpha).logits
            stddev = lax.stop_gradient(stddev_real)
            return logits_fake, networks.discriminate(params, abnormal, alpha, stddev).logits
        if abnormal is not None and count % group == 0:
            both = jnp.concatenate([fake, abnormal])
            logits = networks.discriminate(params, both, alpha).logits
            return logits[:count], logits[count:]
        # Batches smaller than a group: one pass over both would mix them in a group.
        logits_fake = networks.discriminate(params, fake, alpha).logits
        if abnormal is None:
            return logits_fake, None
        return logits_fake, networks.discriminate(params, abnormal, alpha).logits

    def discriminator_objective(params, real, fake, abnormal, alpha, mix):
        out_real, gradient = judge_real(params, real, alpha)
        logits_fake, logits_abnormal = judge_not_normal(
            params, fake, abnormal, alpha, out_real.stddev
        )
        terms = discriminator_loss(out_real.logits, logits_fake, logits_abnormal, loss.gamma)
        total = terms.total
        metrics = {
            "d_loss": terms.total,
            "d_real": terms.real,
            "d_fake": terms.fake,
            "d_abnormal": terms.abnormal,
            "d_accuracy_real": (out_real.logits > 0).mean(),
            "d_accuracy_fake": (logits_fake < 0).mean(),
        }
        if logits_abnormal is not None:
            metrics["d_accuracy_abnormal"] = (logits_abnormal < 0).mean()
        if loss.penalty != "none":
            penalty = penalty_of(params, real, gradient, fake, alpha, mix)
            total = total + penalty_weight(loss) * penalty
            metrics["d_penalty"] = penalty
        if loss.objective == "wgan_gp":
            total = total + loss.drift_weight * losses.drift_penalty(out_real.logits)
        seen = (out_real.stddev.mean(), out_real.logits.mean(), logits_fake.mean())
        return total, (metrics, seen)

    def step(state, real, abnormal, alpha, key):
        batch = real.shape[0]
        if axis_name is not None:
            interval = 1 if loss.penalty == "none" else loss.penalty_interval
            _require_whole_groups(batch, group, interval, lax.axis_size(axis_name))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, state.step), first_index(batch) + jnp.arange(batch)
        )
        z = jax.vmap(
            lambda k: sample_latents(jax.random.fold_in(k, 0), prior, (networks.latent_size,))
        )(keys)
        mix = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 1)))(keys)

        real = to_float_images(real, pixels)
        abnormal = None if abnormal is None else to_float_images(abnormal, pixels)
        if networks.generator.fading:
            real = fade_real_images(real, alpha)
            abnormal = None if abnormal is None else fade_real_images(abnormal, alpha)

        # Both networks learn from the same drawn images, so G runs forward once per step.
        fake, generator_vjp = jax.vjp(
            lambda params: networks.generate(params, z, alpha), state.params.generator
        )

        gradients_d, (metrics, seen) = jax.grad(discriminator_objective, has_aux=True)(
            state.params.discriminator, real, fake, abnormal, alpha, mix
        )
        gradients_d = mean_over_devices(gradients_d)
        updates, optimizer_d = optimizer.update(
            gradients_d, state.optimizer.discriminator, state.params.discriminator
        )
        updates = optax.tree.scale(discriminator_rate, updates)
        params_d = optax.apply_updates(state.params.discriminator, updates)

        g_loss, image_gradients = jax.value_and_grad(
            lambda images: generator_loss(networks.discriminate(params_d, images, alpha).logits)
        )(fake)
        gradients_g = mean_over_devices(generator_vjp(image_gradients)[0])
        updates, optimizer_g = optimizer.update(
            gradients_g, state.optimizer.generator, state.params.generator
        )
        params_g = optax.apply_updates(state.params.generator, updates)

        params = NetworkParams(params_g, params_d)
        seen = Reference(jnp.ones(()), *mean_over_devices(seen))
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            optimizer=NetworkParams(optimizer_g, optimizer_d),
            average=optax.incremental_update(params, state.average, 1.0 - ema_decay),
            reference=optax.incremental_update(seen, state.reference, 1.0 - ema_decay),
        )
        # Moments, since the mean of the devices' deviations would not be the whole batch's.
        mean, square = mean_over_devices((fake.mean(axis=0), jnp.square(fake).mean(axis=0)))
        spread = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0.0)).mean()
        # In the units of [-1, 1], as `collapse` judges it, whatever the networks are shown.
        metrics |= {"g_loss": g_loss, "g_spread": spread * (pixels.std / PAPER_SCALE.std)}
        norms = {
            "d_gradient_norm": optax.tree.norm(gradients_d),
            "g_gradient_norm": optax.tree.norm(gradients_g),
        }
        return new_state, mean_over_devices(metrics) | norms

    return step


def penalty_weight(loss: LossConfig) -> float:
    """Weight of the gradient penalty beside the objective.

    Both logistic objectives weigh the drawn images by gamma. R1, which pulls D's slope to 0, is
    weighed by gamma too, so that its strength in the game between D and G does not depend on gamma:
    unscaled, at gamma = 0.1, it kept D from telling even noise from digits. The penalty of WGAN-GP
    asks for a slope of 1 instead and needs no scale.
    """
    return loss.penalty_weight * (loss.gamma if loss.penalty == "r1" else 1.0)


def _penalised_images(batch: int, group: int, interval: int) -> slice | Array:
    """Images that this step's gradient penalty looks at: one group in every `interval`.

    A lazy penalty without its jumps: each step pays a share of the cost, instead of every
    `interval`-th step all of it with an `interval` times larger weight.
    """
    if interval == 1:
        return slice(None)
    group = min(group, batch)
    first = jnp.arange(0, batch // group, interval) * group
    return (first[:, None] + jnp.arange(group)[None, :]).reshape(-1)


def _require_whole_groups(batch: int, group: int, interval: int, devices: int) -> None:
    """Raise ConfigError where the update would depend on the number of devices."""
    if devices > 1 and batch % (group * interval):
        raise ConfigError(
            f"config.growth.minibatch gives each of {devices} devices {batch} images: expected a "
            f"multiple of network.stddev_group x loss.penalty_interval ({group} x {interval}), so "
            f"a minibatch that is a multiple of {devices * group * interval}; or use fewer devices"
        )
