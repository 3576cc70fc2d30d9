"""The paper's equations, one function each, with the paper's numbers.

"Paper" is Kimura and Yanagihara, "Anomaly Detection Using GANs for Visual Inspection in Noisy
Training Data" (2018). D(x) is the probability that x is normal, `sigmoid(logits)`; every function
takes logits, so that nothing overflows. Values V are maximised by D; losses are minimised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_noisy_anogan.networks.layers import at_least_float32

Logits = Float[Array, " batch"]
Scalar = Float[Array, ""]
Places = Float[Array, "batch height width"]
Critic = Callable[[Float[Array, " batch *image"]], Logits]


def log_normal(logits: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """log D(x)."""
    return jax.nn.log_sigmoid(logits)


def log_abnormal(logits: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """log(1 - D(x))."""
    return jax.nn.log_sigmoid(-logits)


# ---------------------------------------------------------------------------------------------
# Training objectives
# ---------------------------------------------------------------------------------------------


class DiscriminatorLoss(NamedTuple):
    """A discriminator objective and what each group of images contributes to it (weighted)."""

    total: Scalar
    real: Scalar
    fake: Scalar
    abnormal: Scalar


def adversarial_value(logits_real: Logits, logits_fake: Logits) -> Scalar:
    """V(D, G) of Eq. 1, which is l_Adv of Eq. 16: E log D(x) + E log(1 - D(G(z)))."""
    return log_normal(logits_real).mean() + log_abnormal(logits_fake).mean()


def abnormal_value(logits_abnormal: Logits) -> Scalar:
    """l_An(D) of Eq. 17: E log(1 - D(x)) over known abnormal images."""
    return log_abnormal(logits_abnormal).mean()


def discriminator_loss_equation_15(
    logits_real: Logits, logits_fake: Logits, logits_abnormal: Logits | None, gamma: float
) -> DiscriminatorLoss:
    """-V'(D, G) of Eq. 15, taken literally: the real term is weighted by gamma too.

    The optimum is D* = gamma p_d / (gamma p_d + gamma p_g + (1 - gamma) p_an), not the one that
    Eq. 18 and 19 derive; `discriminator_loss_equation_18` has that one.
    """
    return _logistic_loss(logits_real, logits_fake, logits_abnormal, gamma, real_weight=gamma)


def discriminator_loss_equation_18(
    logits_real: Logits, logits_fake: Logits, logits_abnormal: Logits | None, gamma: float
) -> DiscriminatorLoss:
    """The balanced objective whose optimal D leaves G with JSD(p_d || p_N), Eq. 18 and 19.

    E log D(x) + gamma E log(1 - D(G(z))) + (1 - gamma) E log(1 - D(x_an)), negated.
    """
    return _logistic_loss(logits_real, logits_fake, logits_abnormal, gamma, real_weight=1.0)


def _logistic_loss(
    logits_real: Logits,
    logits_fake: Logits,
    logits_abnormal: Logits | None,
    gamma: float,
    real_weight: float,
) -> DiscriminatorLoss:
    real = -real_weight * log_normal(logits_real).mean()
    fake = -gamma * log_abnormal(logits_fake).mean()
    abnormal = jnp.zeros(())
    if logits_abnormal is not None:
        abnormal = -(1.0 - gamma) * abnormal_value(logits_abnormal)
    return DiscriminatorLoss(real + fake + abnormal, real, fake, abnormal)


def discriminator_loss_wgan(
    critic_real: Logits, critic_fake: Logits, critic_abnormal: Logits | None, gamma: float
) -> DiscriminatorLoss:
    """Balanced Wasserstein objective: -E D(x) + gamma E D(G(z)) + (1 - gamma) E D(x_an).

    Only the balanced form exists: with Eq. 15's weights D + c lowers the loss without bound.
    """
    real = -critic_real.mean()
    fake = gamma * critic_fake.mean()
    abnormal = jnp.zeros(())
    if critic_abnormal is not None:
        abnormal = (1.0 - gamma) * critic_abnormal.mean()
    return DiscriminatorLoss(real + fake + abnormal, real, fake, abnormal)


DISCRIMINATOR_LOSSES = {
    "equation_15": discriminator_loss_equation_15,
    "equation_18": discriminator_loss_equation_18,
    "wgan_gp": discriminator_loss_wgan,
}


def dense_discriminator_loss(
    real: Places,
    fake: Places,
    abnormal: Places | None,
    masks: Places | None,
    *,
    gamma: float,
    objective: str,
) -> DiscriminatorLoss:
    """Eq. 15 or 18 with pixels in the place of images, negated.

    p_d are the pixels of real images and, of abnormal ones, those outside the mask, half each; p_g
    those of generated images; p_an those under the masks. Every abnormal image counts the same,
    however large its defect is. Where no mask is known, it enters by the pixel that looks least
    normal.

    Args:
      real, fake, abnormal: logits of every pixel.
      masks: the defective share of every pixel of the abnormal images, in [0, 1]; empty (all 0)
        where it is unknown.
      objective: "equation_15" or "equation_18": a Wasserstein critic has no loss per pixel here.
    """
    real_weight = gamma if objective == "equation_15" else 1.0
    normal = log_normal(real).mean()
    fake_term = -gamma * log_abnormal(fake).mean()
    abnormal_term = jnp.zeros(())
    if abnormal is not None and masks is not None:
        is_located = masks.any(axis=(1, 2))
        outside = jnp.where(is_located, _mean_over(log_normal(abnormal), 1.0 - masks), 0.0)
        normal = (normal + outside.mean()) / 2
        inside = _mean_over(log_abnormal(abnormal), masks)
        worst = log_abnormal(abnormal.min(axis=(1, 2)))
        abnormal_term = -(1.0 - gamma) * jnp.where(is_located, inside, worst).mean()
    real_term = -real_weight * normal
    total = real_term + fake_term + abnormal_term
    return DiscriminatorLoss(total, real_term, fake_term, abnormal_term)


def _mean_over(values: Places, weights: Places) -> Float[Array, " batch"]:
    """Weighted mean over the pixels of every image; 0 where nothing weighs."""
    total = weights.sum(axis=(1, 2))
    return (weights * values).sum(axis=(1, 2)) / jnp.where(total > 0, total, 1.0)


def generator_loss_non_saturating(logits_fake: Logits) -> Scalar:
    """-E log D(G(z)): the usual replacement for minimising E log(1 - D(G(z))) of Eq. 1."""
    return -log_normal(logits_fake).mean()


def generator_loss_wgan(critic_fake: Logits) -> Scalar:
    """-E D(G(z))."""
    return -critic_fake.mean()


GENERATOR_LOSSES = {
    "equation_15": generator_loss_non_saturating,
    "equation_18": generator_loss_non_saturating,
    "wgan_gp": generator_loss_wgan,
}


# ---------------------------------------------------------------------------------------------
# Regularisation of the discriminator
# ---------------------------------------------------------------------------------------------


def _gradient_square(critic: Critic, x: Float[Array, " batch *image"]) -> Logits:
    """Squared Euclidean length of the critic's gradient at each image."""
    gradient = jax.grad(lambda images: critic(images).sum())(x)
    return jnp.square(gradient).reshape(x.shape[0], -1).sum(axis=1)


def r1_penalty(critic: Critic, real: Float[Array, " batch *image"]) -> Scalar:
    """E |grad_x D(x)|^2 / 2 on real images (Mescheder et al. 2018, R1)."""
    return 0.5 * _gradient_square(critic, real).mean()


def wgan_gradient_penalty(
    critic: Critic,
    real: Float[Array, " batch *image"],
    fake: Float[Array, " batch *image"],
    mix: Float[Array, " batch"],
) -> Scalar:
    """E (|grad D(x')| - 1)^2 at x' = mix real + (1 - mix) fake (Gulrajani et al. 2017).

    Args:
      mix: one number in [0, 1] per image.
    """
    weight = mix.reshape(-1, *(1,) * (real.ndim - 1))
    square = _gradient_square(critic, weight * real + (1.0 - weight) * fake)
    # The tiny constant keeps the square root's derivative finite where the gradient vanishes.
    return jnp.square(jnp.sqrt(square + 1e-12) - 1.0).mean()


def drift_penalty(critic_real: Logits) -> Scalar:
    """E D(x)^2, which keeps a Wasserstein critic near zero (Karras et al. 2018, Appendix A)."""
    return jnp.square(critic_real).mean()


# ---------------------------------------------------------------------------------------------
# Latent search and score
# ---------------------------------------------------------------------------------------------


class SearchTerms(NamedTuple):
    """The terms of one image's search loss; `total` is the anomaly score of the paper."""

    total: Scalar
    anogan: Scalar
    residual: Scalar
    feature: Scalar
    penalty: Scalar


def _absolute_sum(difference: Float[Array, "*shape"], reduction: str) -> Scalar:
    return jnp.abs(difference).sum() if reduction == "sum" else jnp.abs(difference).mean()


def residual_loss(
    x: Float[Array, "height width channels"],
    generated: Float[Array, "height width channels"],
    reduction: str = "sum",
) -> Scalar:
    """L_R of Eq. 2: sum |x - G(z)|.

    Args:
      reduction: `sum` (the paper) or `mean`, which keeps the balance between the terms of Eq. 24
        the same at every resolution.
    """
    return _absolute_sum(x - generated, reduction)


def feature_loss(
    features_x: Float[Array, "height width width_at"],
    features_generated: Float[Array, "height width width_at"],
    reduction: str = "sum",
) -> Scalar:
    """L_D of Eq. 3: sum |f(x) - f(G(z))| over an intermediate layer f of D."""
    difference = at_least_float32(features_x) - at_least_float32(features_generated)
    return _absolute_sum(difference, reduction)


def anogan_loss(residual: Scalar, feature: Scalar, feature_weight: float) -> Scalar:
    """L_Ano of Eq. 4: (1 - lambda) L_R + lambda L_D."""
    return (1.0 - feature_weight) * residual + feature_weight * feature


def abnormality_loss(normality_generated: Scalar) -> Scalar:
    """L'_An of Eq. 25: |1 - D(G(z))|, with D in [0, 1]."""
    return jnp.abs(1.0 - normality_generated)


def noisy_anogan_loss(anogan: Scalar, penalty: Scalar, gamma: float) -> Scalar:
    """L' of Eq. 24: gamma L_Ano + (1 - gamma) L'_An."""
    return gamma * anogan + (1.0 - gamma) * penalty


def search_loss(
    x: Float[Array, "height width channels"],
    generated: Float[Array, "height width channels"],
    features_x: Float[Array, "height width width_at"],
    features_generated: Float[Array, "height width width_at"],
    normality_generated: Scalar,
    *,
    gamma: float,
    feature_weight: float,
    reduction: str = "sum",
) -> SearchTerms:
    """Every term of Eq. 24 for one image."""
    residual = residual_loss(x, generated, reduction)
    feature = feature_loss(features_x, features_generated, reduction)
    anogan = anogan_loss(residual, feature, feature_weight)
    penalty = abnormality_loss(normality_generated)
    total = noisy_anogan_loss(anogan, penalty, gamma)
    return SearchTerms(total, anogan, residual, feature, penalty)
