"""Latent search (Algorithm 1 of the paper): the image closest to x that the generator can draw.

One image's search is an optax loop inside `lax.scan`; `search_latents` maps it over many images at
once with `jax.vmap`. Nothing couples the images: each has its own optimiser state, starts from the
same latents as every other or from what it alone decides, and D judges it with a stored value of
the minibatch statistic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jax_noisy_anogan.config import SearchConfig
from jax_noisy_anogan.losses import SearchTerms, search_loss
from jax_noisy_anogan.networks import project_to_hypersphere, sample_latents

Image = Float[Array, "height width channels"]
Latent = Float[Array, "latent"]
_THUMBNAIL_SIDE = 16


class Judgement(NamedTuple):
    """What D says of one image.

    Attributes:
      normality: D(x) in [0, 1].
      logit: D(x) before it is squashed.
      features: f(x) of Eq. 3.
    """

    normality: Float[Array, ""]
    logit: Float[Array, ""]
    features: Float[Array, "feature_h feature_w feature_c"]


class SearchResult(NamedTuple):
    """The best latent of each image; with a leading batch axis from `search_latents`.

    Attributes:
      latent: z_hat, on the hypersphere.
      drawn: G(z_hat).
      terms: Eq. 2 to 4, 24 and 25 at z_hat; `terms.total` is the paper's anomaly score.
      judgement_logit: logit of D(x), of the image itself.
      curve: terms at every step, `[steps + 1]` each, of the best restart; None unless asked for.
    """

    latent: Latent
    drawn: Image
    terms: SearchTerms
    judgement_logit: Float[Array, ""]
    curve: SearchTerms | None


class Bank(NamedTuple):
    """Drawn images whose latents are known, to begin searches at.

    Attributes:
      latents: on the hypersphere.
      thumbnails: G of each, at most 16 x 16 pixels, flat.
    """

    latents: Float[Array, "count latent"]
    thumbnails: Float[Array, "count pixels"]


def make_optimizer(search: SearchConfig) -> optax.GradientTransformationExtraArgs:
    """The step rule named by the settings; any optax optimiser can be passed instead."""
    if search.optimizer == "lbfgs":
        return optax.lbfgs()
    rate: optax.ScalarOrSchedule = search.learning_rate
    if search.schedule == "cosine":
        rate = optax.cosine_decay_schedule(search.learning_rate, max(search.steps, 1))
    factory = getattr(optax, search.optimizer)
    return optax.with_extra_args_support(factory(rate))


def draw_bank(
    generate: Callable[[Latent], Image],
    key: PRNGKeyArray,
    *,
    count: int,
    prior: str,
    latent_size: int,
    batch_size: int,
) -> Bank:
    """Draw `count` images from p_z, `batch_size` at once."""
    latents = sample_latents(key, prior, (count, latent_size))
    thumbnails = lax.map(lambda z: _thumbnail(generate(z)), latents, batch_size=batch_size)
    return Bank(latents, thumbnails)


def nearest(bank: Bank, x: Image, count: int) -> Float[Array, "count latent"]:
    """Latents of the bank's `count` images nearest to x by the squares of pixel differences.

    Squares, unlike the differences of Eq. 2, are a matrix product for many images: comparing an
    image by Eq. 2 and 3 with 4,096 drawn ones took 35 ms, as long as 40 search steps (one core).
    """
    products = jnp.matmul(bank.thumbnails, _thumbnail(x), precision=lax.Precision.HIGHEST)
    distances = jnp.square(bank.thumbnails).sum(axis=1) - 2.0 * products
    return bank.latents[jnp.argsort(distances)[:count]]


def _thumbnail(x: Image) -> Float[Array, " pixels"]:
    height, width, channels = x.shape
    size = height // min(height, _THUMBNAIL_SIDE)
    return x.reshape(height // size, size, width // size, size, channels).mean((1, 3)).reshape(-1)


def search_latents(
    generate: Callable[[Latent], Image],
    judge: Callable[[Image], Judgement],
    images: Float[Array, "batch height width channels"],
    key: PRNGKeyArray,
    *,
    search: SearchConfig,
    gamma: float,
    prior: str,
    latent_size: int,
    optimizer: optax.GradientTransformationExtraArgs | None = None,
    guess: Callable[[Image], Float[Array, "guesses latent"]] | None = None,
) -> SearchResult:
    """Algorithm 1 for a batch of images.

    Args:
      generate: one latent to one image, parameters already bound.
      judge: D on one image, likewise.
      images: on the pixel scale of training.
      key: draws the starting latents, the same ones for every image, so that a score depends on
        the image alone.
      search: steps, step rule, restarts, lambda, reduction.
      gamma: weight in Eq. 24; the one of training.
      prior: p_z of the starting latents, `uniform` or `normal`.
      optimizer: replaces the step rule that `search` names.
      guess: latents on the hypersphere, at most `search.restarts`, that an image's first restarts
        begin at instead.

    Returns:
      For each image the best of all steps and restarts by Eq. 24.
    """
    optimizer = make_optimizer(search) if optimizer is None else optimizer
    starts = sample_latents(key, prior, (search.restarts, latent_size))

    def search_one(x: Image) -> SearchResult:
        judged = judge(x)
        begin = starts
        if guess is not None:
            own = guess(x)
            begin = jnp.concatenate([own, starts[len(own) :]])

        def terms_at(z: Latent) -> SearchTerms:
            drawn = generate(z)
            judged_drawn = judge(drawn)
            return search_loss(
                x,
                drawn,
                judged.features,
                judged_drawn.features,
                judged_drawn.normality,
                gamma=gamma,
                feature_weight=search.feature_weight,
                reduction=search.reduction,
            )

        found, totals, curves = jax.vmap(
            lambda start: _descend(terms_at, start, optimizer, search)
        )(begin)
        best = jnp.argmin(totals)
        latent = found[best]
        curve = jax.tree.map(lambda leaf: leaf[best], curves)
        return SearchResult(latent, generate(latent), terms_at(latent), judged.logit, curve)

    return jax.vmap(search_one)(images)


def _descend(
    terms_at: Callable[[Latent], SearchTerms],
    start: Latent,
    optimizer: optax.GradientTransformationExtraArgs,
    search: SearchConfig,
) -> tuple[Latent, Float[Array, ""], SearchTerms | None]:
    """One restart: the best latent seen, its loss, and the curve if it is recorded."""

    def total_at(z: Latent) -> Float[Array, ""]:
        return terms_at(z).total

    def objective(z: Latent) -> tuple[Float[Array, ""], SearchTerms]:
        terms = terms_at(z)
        return terms.total, terms

    def keep_best(best, z, total):
        best_z, best_total = best
        better = total < best_total
        return jnp.where(better, z, best_z), jnp.where(better, total, best_total)

    def update(carry, _):
        z, state, best = carry
        (total, terms), gradient = jax.value_and_grad(objective, has_aux=True)(z)
        best = keep_best(best, z, total)
        step, state = optimizer.update(
            gradient, state, z, value=total, grad=gradient, value_fn=total_at
        )
        z = project_to_hypersphere(optax.apply_updates(z, step))
        return (z, state, best), terms if search.record_curve else None

    best = (start, jnp.asarray(jnp.inf))
    (z, _, best), curve = lax.scan(
        update, (start, optimizer.init(start), best), length=search.steps
    )
    last = terms_at(z)
    latent, total = keep_best(best, z, last.total)
    if search.record_curve:
        curve = jax.tree.map(lambda steps, end: jnp.append(steps, end), curve, last)
    return latent, total, curve
