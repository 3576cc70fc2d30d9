"""One update of the discriminator, the generator and perhaps an encoder, as a pure function.

The same global batch gives the same update on any number of devices: latents are drawn per image
from its number in the global batch, groups of the minibatch standard deviation are runs of
neighbours, and gradients are averaged over the axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from jax_noisy_anogan import losses
from jax_noisy_anogan.config import ConfigError, LossConfig, SearchConfig
from jax_noisy_anogan.losses import DiscriminatorLoss, Logits, Places, Scalar
from jax_noisy_anogan.model import DiscriminatorStatistics, normality_of
from jax_noisy_anogan.networks import (
    DiscriminatorOutput,
    NetworkParams,
    Networks,
    Params,
    sample_latents,
)
from jax_noisy_anogan.networks.layers import fade_real_images
from jax_noisy_anogan.networks.pixels import (
    PAPER_SCALE,
    ByteImages,
    Images,
    PixelScale,
    to_float_images,
)
from jax_noisy_anogan.training.state import TrainState

Metrics = dict[str, Scalar]
Tree = TypeVar("Tree")


class Batch(NamedTuple):
    """One device's part of a minibatch, as the networks see it.

    Attributes:
      real: normal training images.
      fake: G(z) of this update, as many.
      abnormal: known abnormal images, as many; None for plain AnoGAN.
      masks: the defective share of every pixel of those, in [0, 1]; None without a dense D.
      alpha: share of the newest layers.
      mix: one number in [0, 1] per image, for the gradient penalty of WGAN-GP.
    """

    real: Images
    fake: Images
    abnormal: Images | None
    masks: Places | None
    alpha: Scalar
    mix: Float[Array, " batch"]


class Judged(NamedTuple):
    """Logits of some images, and of their pixels where D is dense."""

    logits: Logits
    dense: Places | None


class Learner(NamedTuple):
    """One network's parameters and the state of its optimiser."""

    params: Params
    optimizer: optax.OptState


@dataclass(frozen=True, eq=False)
class TrainStep:
    """The update of one phase: `step(state, real, abnormal, alpha, key) -> (state, metrics)`.

    D descends first; G then learns from the new D, by the same generated images. An encoder, where
    there is one, learns beside them and moves neither, unless `loss.reconstruction_weight` asks G
    to draw what the encoder found.

    Attributes:
      optimizer: of all networks, each with a state of its own.
      loss: the objective; with gamma = 1 pass `abnormal=None`.
      prior: p_z, see `sample_latents`.
      ema_decay: weight of the past in the running averages, per update.
      discriminator_rate: what D's updates are multiplied by, after the optimiser.
      pixels: how images enter the networks.
      axis_name: the mapped axis to average over; None outside `data_parallel` and `jax.pmap`.
      search: lambda, features and reduction of the loss that an encoder learns.
    """

    networks: Networks
    optimizer: optax.GradientTransformation
    _: KW_ONLY
    loss: LossConfig
    prior: str
    ema_decay: float
    discriminator_rate: float = 1.0
    pixels: PixelScale = PAPER_SCALE
    axis_name: str | None = None
    search: SearchConfig = field(default_factory=SearchConfig)

    def __call__(
        self,
        state: TrainState,
        real: ByteImages,
        abnormal: ByteImages | None,
        alpha: Scalar,
        key: PRNGKeyArray,
        masks: UInt8[Array, "batch height width"] | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Update both networks once.

        Args:
          real, abnormal: this device's normal and known abnormal images, 0..255.
          alpha: share of the newest layers, in [0, 1].
          key: the run's key, the same for every step.
          masks: for a dense D, the defective share of every pixel of `abnormal`, 0..255.

        Raises:
          ConfigError: a device's part of the batch would be grouped or penalised otherwise than in
            the whole batch.
        """
        chex.assert_shape(real, (None, *self.networks.image_shape))
        if abnormal is not None:
            chex.assert_shape(abnormal, (None, *self.networks.image_shape))
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        require_whole_groups(self.loss, self._group, len(real), devices)
        z, mix = self._draw(jax.random.fold_in(key, state.step), len(real))
        # Both networks learn from the same generated images, so G runs forward once per step.
        fake, pull_back = jax.vjp(
            lambda params: self.networks.generate(params, z, alpha), state.params.generator
        )
        shown = None if abnormal is None else self._show(abnormal, alpha)
        shares = None if masks is None else masks / 255.0
        batch = Batch(self._show(real, alpha), fake, shown, shares, alpha, mix)
        discriminator, seen, metrics_d = self._learn_to_judge(state, batch)
        encoder, metrics_e = self._learn_to_encode(state, batch)
        generator, metrics_g = self._learn_to_generate(
            state, discriminator.params, batch, pull_back
        )
        new = self._advance(state, generator, discriminator, encoder, seen)
        return new, metrics_d | metrics_g | metrics_e

    # -- The parts of an update -------------------------------------------------------------------

    def _learn_to_judge(
        self, state: TrainState, batch: Batch
    ) -> tuple[Learner, DiscriminatorStatistics, Metrics]:
        """D after its update, and what it said of the batch before."""
        old = Learner(state.params.discriminator, state.optimizer.discriminator)
        gradient, (metrics, seen) = jax.grad(self._discriminator_objective, has_aux=True)(
            old.params, batch
        )
        gradient = self._mean(gradient)
        norm = {"d_gradient_norm": optax.tree.norm(gradient)}
        new = self._descend(old, gradient, self.discriminator_rate)
        return new, self._mean(seen), self._mean(metrics) | norm

    def _learn_to_generate(
        self,
        state: TrainState,
        discriminator: Params,
        batch: Batch,
        pull_back: Callable[[Images], tuple[Params]],
    ) -> tuple[Learner, Metrics]:
        """G after its update, against a D that has had its own.

        Args:
          pull_back: from a gradient by the generated images to one by G's parameters.
        """
        old = Learner(state.params.generator, state.optimizer.generator)
        loss, by_image = jax.value_and_grad(self._generator_objective)(
            batch.fake, discriminator, batch.alpha
        )
        (gradient,) = self._mean(pull_back(by_image))
        metrics = {
            "g_loss": self._mean(loss),
            "g_spread": self._spread(batch.fake),
            "real_spread": self._spread(batch.real),
            "g_gradient_norm": optax.tree.norm(gradient),
        }
        if self.loss.reconstruction_weight:
            error, more = jax.value_and_grad(self._reconstruction_error)(old.params, state, batch)
            metrics["g_reconstruction"] = self._mean(error)
            more = optax.tree.scale(self.loss.reconstruction_weight, self._mean(more))
            gradient = optax.tree.add(gradient, more)
        return self._descend(old, gradient), metrics

    def _learn_to_encode(self, state: TrainState, batch: Batch) -> tuple[Learner | None, Metrics]:
        """The encoder after its update; None where none is trained.

        It sees the first real and the first generated image of every group of D's statistic: a
        whole minibatch would cost half as much again as the update of G and D.
        """
        if state.params.encoder is None:
            return None, {}
        old = Learner(state.params.encoder, state.optimizer.encoder)
        x = jnp.concatenate([images[:: self._group] for images in (batch.real, batch.fake)])
        loss, gradient = jax.value_and_grad(self._encoder_objective)(
            old.params, x, state, batch.alpha
        )
        gradient = self._mean(gradient)
        metrics = {"e_loss": self._mean(loss), "e_gradient_norm": optax.tree.norm(gradient)}
        return self._descend(old, gradient), metrics

    def _advance(
        self,
        state: TrainState,
        generator: Learner,
        discriminator: Learner,
        encoder: Learner | None,
        seen: DiscriminatorStatistics,
    ) -> TrainState:
        """The state after the update, its running averages included."""
        params = NetworkParams(
            generator.params, discriminator.params, encoder.params if encoder else None
        )
        optimizer = NetworkParams(
            generator.optimizer, discriminator.optimizer, encoder.optimizer if encoder else None
        )

        def average(new: Tree, old: Tree) -> Tree:
            return optax.incremental_update(new, old, 1.0 - self.ema_decay)

        new = TrainState(
            step=state.step + 1,
            params=params,
            optimizer=optimizer,
            average=average(params, state.average),
            statistics=average(seen, state.statistics),
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        return new

    # -- What an update is made of ----------------------------------------------------------------

    def _draw(
        self, key: PRNGKeyArray, batch: int
    ) -> tuple[Float[Array, "batch latent"], Float[Array, " batch"]]:
        """The latents of an update and `Batch.mix`, by each image's number in the global batch."""
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * batch
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(batch))

        def draw(key: PRNGKeyArray) -> tuple[Float[Array, " latent"], Scalar]:
            key_z, key_mix = (jax.random.fold_in(key, use) for use in (0, 1))
            z = sample_latents(key_z, self.prior, (self.networks.latent_size,))
            return z, jax.random.uniform(key_mix)

        return jax.vmap(draw)(keys)

    def _show(self, images: ByteImages, alpha: Scalar) -> Images:
        """Training images as D sees them: scaled, and without detail that G cannot draw yet."""
        shown = to_float_images(images, self.pixels)
        return fade_real_images(shown, alpha) if self.networks.generator.fading else shown

    def _descend(self, old: Learner, gradient: Params, rate: float = 1.0) -> Learner:
        updates, optimizer = self.optimizer.update(gradient, old.optimizer, old.params)
        return Learner(optax.apply_updates(old.params, optax.tree.scale(rate, updates)), optimizer)

    def _mean(self, tree: Tree) -> Tree:
        """The mean over devices."""
        return tree if self.axis_name is None else lax.pmean(tree, self.axis_name)

    def _spread(self, images: Images) -> Scalar:
        """Standard deviation of a pixel over the images, averaged over pixels.

        It is in the units of [-1, 1], as `collapse` judges it, whatever the networks are shown.
        """
        # Moments, since the mean of the devices' deviations would not be the whole batch's.
        mean, square = self._mean((images.mean(axis=0), jnp.square(images).mean(axis=0)))
        spread = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0.0)).mean()
        return spread * (self.pixels.std / PAPER_SCALE.std)

    # -- Objectives -------------------------------------------------------------------------------

    def _generator_objective(self, fake: Images, discriminator: Params, alpha: Scalar) -> Scalar:
        logits = self.networks.discriminate(discriminator, fake, alpha).logits
        return losses.GENERATOR_LOSSES[self.loss.objective](logits)

    def _discriminator_objective(
        self, params: Params, batch: Batch
    ) -> tuple[Scalar, tuple[Metrics, DiscriminatorStatistics]]:
        """What D minimises; with its terms, and what D says of the batch."""
        loss = self.loss
        real, by_image = self._judge_real(params, batch)
        fake, abnormal = self._judge_not_normal(params, batch, real.stddev)
        terms = losses.DISCRIMINATOR_LOSSES[loss.objective](
            real.logits, fake.logits, None if abnormal is None else abnormal.logits, loss.gamma
        )
        total = terms.total
        metrics = {
            "d_loss": terms.total,
            "d_real": terms.real,
            "d_fake": terms.fake,
            "d_abnormal": terms.abnormal,
            "d_accuracy_real": (real.logits > 0).mean(),
            "d_accuracy_fake": (fake.logits < 0).mean(),
        }
        if abnormal is not None:
            metrics["d_accuracy_abnormal"] = (abnormal.logits < 0).mean()
        if real.dense is not None:
            dense = self._dense_loss(real.dense, fake, abnormal, batch.masks)
            metrics |= {f"d_dense_{name}": value for name, value in dense._asdict().items()}
            total = total + loss.dense_weight * dense.total
        if loss.penalty != "none":
            metrics["d_penalty"] = self._penalty(params, batch, by_image)
            total = total + penalty_weight(loss) * metrics["d_penalty"]
        if loss.objective == "wgan_gp":
            total = total + loss.drift_weight * losses.drift_penalty(real.logits)
        seen = DiscriminatorStatistics(
            jnp.ones(()), real.stddev.mean(), real.logits.mean(), fake.logits.mean()
        )
        return total, (metrics, seen)

    def _encoder_objective(
        self, params: Params, x: Images, state: TrainState, alpha: Scalar
    ) -> Scalar:
        """Mean L' of Eq. 24 at z = E(x): the search's own loss, through what it will search.

        G, D and its statistics are the averages that scores are made with. Before D has the
        resolution of f(x), its highest layer takes that place. f-AnoGAN's izi_f (Schlegl et al.
        2019) has L_R and L_D there, as means.
        """
        average, search = state.average, self.search
        stddev = state.statistics.mean("stddev")
        layer = min(search.feature_resolution, self.networks.resolution)
        generated = self.networks.generate(
            average.generator, self.networks.encode(params, x, alpha), alpha
        )
        features = self.networks.discriminate(average.discriminator, x, alpha, stddev).features
        judged = self.networks.discriminate(average.discriminator, generated, alpha, stddev)
        normality = normality_of(self.loss.objective, state.statistics)(judged.logits)

        def loss_of(
            x: Array, generated: Array, features: Array, features_generated: Array, normality: Array
        ) -> Scalar:
            return losses.search_loss(
                x,
                generated,
                features,
                features_generated,
                normality,
                gamma=self.loss.gamma,
                feature_weight=search.feature_weight,
                reduction=search.reduction,
            ).total

        ours, theirs = (search.feature_scale * f[layer] for f in (features, judged.features))
        return jax.vmap(loss_of)(x, generated, ours, theirs, normality).mean()

    def _reconstruction_error(self, generator: Params, state: TrainState, batch: Batch) -> Scalar:
        """Mean |x - G(E(x))| over real images and their pixels, by which G alone learns.

        Known abnormal images never enter it.
        """
        x = batch.real[:: self._group]
        z = self.networks.encode(state.params.encoder, x, batch.alpha)
        return jnp.abs(x - self.networks.generate(generator, z, batch.alpha)).mean()

    def _judge_real(
        self, params: Params, batch: Batch
    ) -> tuple[DiscriminatorOutput, Images | None]:
        """What D says of real images and, for R1 on all of them, its gradient by each image.

        The penalty and the loss share one forward pass, and with it one backward pass through it:
        judged twice, every real image would cost D two convolutions more per layer, of eight.
        """

        def judge(images: Images) -> tuple[Scalar, DiscriminatorOutput]:
            out = self.networks.discriminate(params, images, batch.alpha)
            return out.logits.sum(), out

        if self.loss.penalty != "r1" or self.loss.penalty_interval > 1:
            return judge(batch.real)[1], None
        by_image, out = jax.grad(judge, has_aux=True)(batch.real)
        return out, by_image

    def _judge_not_normal(
        self, params: Params, batch: Batch, stddev_real: Float[Array, " batch"]
    ) -> tuple[Judged, Judged | None]:
        """What D says of the generated and of the known abnormal images."""

        def judge(images: Images, stddev: Float[Array, " batch"] | None = None) -> Judged:
            out = self.networks.discriminate(params, images, batch.alpha, stddev)
            return Judged(out.logits, out.dense)

        fake, abnormal = batch.fake, batch.abnormal
        if abnormal is None:
            return judge(fake), None
        if self.loss.abnormal_statistic == "real":
            return judge(fake), judge(abnormal, lax.stop_gradient(stddev_real))
        if len(fake) % self._group == 0:
            both = judge(jnp.concatenate([fake, abnormal]))
            count = len(fake)
            return (
                jax.tree.map(lambda leaf: leaf[:count], both),
                jax.tree.map(lambda leaf: leaf[count:], both),
            )
        # Batches smaller than a group: one pass over both would mix them in a group.
        return judge(fake), judge(abnormal)

    def _dense_loss(
        self, real: Places, fake: Judged, abnormal: Judged | None, masks: Places | None
    ) -> DiscriminatorLoss:
        """The objective of every pixel."""
        assert fake.dense is not None
        return losses.dense_discriminator_loss(
            real,
            fake.dense,
            None if abnormal is None else abnormal.dense,
            masks,
            gamma=self.loss.gamma,
            objective=self.loss.objective,
        )

    def _penalty(self, params: Params, batch: Batch, by_image: Images | None) -> Scalar:
        """The gradient penalty; `by_image` is D's gradient where `_judge_real` has it."""

        def critic(images: Images) -> Logits:
            return self.networks.discriminate(params, images, batch.alpha).logits

        if by_image is not None:
            return losses.r1_penalty(lambda x: (x * by_image).sum(axis=(1, 2, 3)), batch.real)
        keep = _penalised_images(len(batch.real), self._group, self.loss.penalty_interval)
        if self.loss.penalty == "r1":
            return losses.r1_penalty(critic, batch.real[keep])
        return losses.wgan_gradient_penalty(
            critic, batch.real[keep], batch.fake[keep], batch.mix[keep]
        )

    # -- Groups -----------------------------------------------------------------------------------

    @property
    def _group(self) -> int:
        return self.networks.discriminator.stddev_group


def require_whole_groups(loss: LossConfig, group: int, batch: int, devices: int) -> None:
    """Check that an update does not depend on the number of devices.

    Args:
      group: images of D's minibatch statistic.
      batch: images of each device.

    Raises:
      ConfigError: a device has other than whole groups.
    """
    interval = 1 if loss.penalty == "none" else loss.penalty_interval
    if devices > 1 and batch % (group * interval):
        raise ConfigError(
            f"config.growth.minibatch gives each of {devices} devices {batch} images: expected a "
            f"multiple of network.stddev_group x loss.penalty_interval ({group} x {interval}), so "
            f"a minibatch that is a multiple of {devices * group * interval}; or use fewer devices"
        )


def penalty_weight(loss: LossConfig) -> float:
    """Weight of the gradient penalty beside the objective.

    Both logistic objectives weigh the generated images by gamma. R1, which pulls D's slope to 0, is
    weighed by gamma too, so that its strength in the game between D and G does not depend on gamma:
    unscaled, at gamma = 0.1, it kept D from telling even noise from digits. The penalty of WGAN-GP
    asks for a slope of 1 instead and needs no scale.
    """
    return loss.weight_of_penalty * (loss.gamma if loss.penalty == "r1" else 1.0)


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
