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
from jax_noisy_anogan.losses import Scalar, SearchTerms, search_loss
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
      dense: the logit of every pixel; None unless D judges pixels.
    """

    normality: Float[Array, ""]
    logit: Float[Array, ""]
    features: Float[Array, "feature_h feature_w feature_c"]
    dense: Float[Array, "height width"] | None = None


class SearchResult(NamedTuple):
    """The best latent of each image; with a leading batch axis from `search_latents`.

    Attributes:
      latent: z_hat, on the hypersphere.
      loss: L' of Eq. 24 at z_hat, the paper's anomaly score.
      curve: terms at every step, `[steps + 1]` each, of the best restart; None unless asked for.
    """

    latent: Latent
    loss: Scalar
    curve: SearchTerms | None


class Bank(NamedTuple):
    """Generated images whose latents are known, to begin searches at.

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


def generate_bank(
    generate: Callable[[Latent], Image],
    key: PRNGKeyArray,
    *,
    count: int,
    prior: str,
    latent_size: int,
    batch_size: int,
) -> Bank:
    """A bank of `count` images, their latents from p_z; `batch_size` are generated at once."""
    latents = sample_latents(key, prior, (count, latent_size))
    thumbnails = lax.map(lambda z: _thumbnail(generate(z)), latents, batch_size=batch_size)
    return Bank(latents, thumbnails)


def nearest(bank: Bank, x: Image, count: int) -> Float[Array, "count latent"]:
    """Latents of the bank's `count` images nearest to x by the squares of pixel differences.

    Squares, unlike the differences of Eq. 2, are a matrix product for many images: comparing an
    image by Eq. 2 and 3 with 4,096 generated ones took 35 ms on one core, as long as 40 search
    steps.
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
    initial: Callable[[Image], Float[Array, "starts latent"]] | None = None,
) -> SearchResult:
    """Algorithm 1 for a batch of images.

    Args:
      generate: one latent to one image, parameters already bound.
      judge: D on one image, likewise.
      images: on the pixel scale of training.
      key: draws the starting latents, the same ones for every image, so that a score depends on
        the image alone.
      search: steps, step rule, restarts, lambda, reduction. With 0 steps and one restart the
        initialisation is the answer, and nothing is computed to choose it.
      gamma: weight in Eq. 24; the one of training.
      prior: p_z of the starting latents, `uniform` or `normal`.
      optimizer: replaces the step rule that `search` names.
      initial: latents on the hypersphere, at most `search.restarts`, that an image's first restarts
        begin at instead.

    Returns:
      For each image the best of all steps and restarts by Eq. 24.
    """
    optimizer = make_optimizer(search) if optimizer is None else optimizer
    drawn = sample_latents(key, prior, (search.restarts, latent_size))

    def search_one(x: Image) -> SearchResult:
        own = drawn[:0] if initial is None else initial(x)
        starts = jnp.concatenate([own, drawn[len(own) :]])
        terms_at = _terms_at(generate, judge, x, search, gamma)
        found = jax.vmap(lambda start: _descend(terms_at, start, optimizer, search))(starts)
        best = jnp.argmin(found.loss) if search.restarts > 1 else 0
        return jax.tree.map(lambda leaf: leaf[best], found)

    return jax.vmap(search_one)(images)


def _terms_at(
    generate: Callable[[Latent], Image],
    judge: Callable[[Image], Judgement],
    x: Image,
    search: SearchConfig,
    gamma: float,
) -> Callable[[Latent], SearchTerms]:
    """The terms of Eq. 24 for one image as a function of the latent; D judges x once."""
    features = judge(x).features

    def terms_at(z: Latent) -> SearchTerms:
        generated = generate(z)
        judged = judge(generated)
        return search_loss(
            x,
            generated,
            features,
            judged.features,
            judged.normality,
            gamma=gamma,
            feature_weight=search.feature_weight,
            reduction=search.reduction,
        )

    return terms_at


class _Descent(NamedTuple):
    """A restart between two steps: where it is, and the best that it has seen."""

    z: Latent
    optimizer: optax.OptState
    best: Latent
    loss: Scalar

    def seen(self, loss: Scalar) -> _Descent:
        """The descent after L' at `z` is known."""
        better = loss < self.loss
        return self._replace(
            best=jnp.where(better, self.z, self.best), loss=jnp.where(better, loss, self.loss)
        )


def _descend(
    terms_at: Callable[[Latent], SearchTerms],
    start: Latent,
    optimizer: optax.GradientTransformationExtraArgs,
    search: SearchConfig,
) -> SearchResult:
    """One restart."""

    def loss_at(z: Latent) -> Scalar:
        return terms_at(z).total

    def loss_and_terms_at(z: Latent) -> tuple[Scalar, SearchTerms]:
        terms = terms_at(z)
        return terms.total, terms

    def update(now: _Descent, _: None) -> tuple[_Descent, SearchTerms | None]:
        (loss, terms), gradient = jax.value_and_grad(loss_and_terms_at, has_aux=True)(now.z)
        now = now.seen(loss)
        step, state = optimizer.update(
            gradient, now.optimizer, now.z, value=loss, grad=gradient, value_fn=loss_at
        )
        z = project_to_hypersphere(optax.apply_updates(now.z, step))
        return now._replace(z=z, optimizer=state), terms if search.record_curve else None

    begin = _Descent(start, optimizer.init(start), start, jnp.asarray(jnp.inf))
    end, curve = lax.scan(update, begin, length=search.steps)
    last = terms_at(end.z)
    end = end.seen(last.total)
    if search.record_curve:
        curve = jax.tree.map(jnp.append, curve, last)
    return SearchResult(end.best, end.loss, curve)
