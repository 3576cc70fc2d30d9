"""REAPER (Lerman, McCoy, Tropp, Zhang 2015): the subspace of least absolute distances, relaxed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_noisy_anogan.baselines.linear_algebra import (
    Columns,
    Scalar,
    in_double_precision,
    principal_coordinates,
)
from jax_noisy_anogan.config import ConfigError


class Reaper(NamedTuple):
    """The relaxed projector P and each sample's distance |x - P x|."""

    projector: Float[Array, "rank rank"]
    distances: Float[Array, "n"]
    steps: Scalar


@in_double_precision
def score(
    features: Float[Array, "n features"],
    *,
    dimension: int = 10,
    components: int | None = 100,
    floor: float = 1e-6,
    tolerance: float = 1e-9,
    max_steps: int = 100,
) -> Float[Array, "n"]:
    """Distance of each sample from the relaxed projector's image.

    Args:
      dimension: trace of the projector, the dimension of the inliers' subspace. The published
        comparisons do not state theirs.
      components: principal directions kept before: the method needs fewer directions than
        samples, and its authors recommend the reduction. With None it takes all of them.
      floor, tolerance, max_steps: of the reweighting; the defaults of the public code.

    Raises:
      ConfigError: `dimension` is not below the number of directions.
      DataError: see `check_features`.
    """
    x = principal_coordinates(features, components).columns
    if not 1 <= dimension < x.shape[0]:
        raise ConfigError(
            f"REAPER: dimension is {dimension}: expected 1 to {x.shape[0] - 1}, below the "
            f"{x.shape[0]} directions of the features"
        )
    return fit(x, dimension, floor, tolerance, max_steps).distances


@jax.jit(static_argnames="dimension")
def fit(x: Columns, dimension: int, floor: float, tolerance: float, max_steps: int) -> Reaper:
    """argmin_P sum_i |x_i - P x_i| with 0 <= P <= I and trace P = `dimension`.

    Iteratively reweighted least squares with weights 1 / max(floor, |x_i - P x_i|).
    """

    def step(state):
        _, distances, total, k, _ = state
        squares, vectors = jnp.linalg.eigh((x / jnp.maximum(distances, floor)[None]) @ x.T)
        shares = relaxed_shares(jnp.maximum(squares[::-1], 0.0), dimension)
        vectors = vectors[:, ::-1]
        projector = (vectors * shares[None]) @ vectors.T
        distances = jnp.linalg.norm(x - projector @ x, axis=0)
        change = jnp.abs(total - distances.sum()) / jnp.maximum(distances.sum(), 1e-300)
        return projector, distances, distances.sum(), k + 1, change

    def unfinished(state):
        return (state[3] < max_steps) & (state[4] > tolerance)

    rank, n = x.shape
    start = (jnp.zeros((rank, rank)), jnp.ones(n), jnp.inf, 0, jnp.inf)
    state = jax.tree.map(jnp.asarray, start)
    projector, distances, _, k, _ = lax.while_loop(unfinished, step, state)
    return Reaper(projector, distances, k)


def relaxed_shares(squares: Float[Array, "rank"], dimension: int) -> Float[Array, "rank"]:
    """Eigenvalues nu of the projector that minimises sum_k squares_k (1 - nu_k)^2.

    nu_k = max(0, 1 - theta / squares_k) with theta such that they add up to `dimension`; without
    weight beyond the first `dimension` directions, ones and zeros.

    Args:
      squares: eigenvalues of the weighted covariance, descending, not negative.
    """
    count = jnp.arange(1, len(squares) + 1)
    theta = (count - dimension) / jnp.cumsum(1.0 / squares)
    below = jnp.append(squares[1:], 0.0)
    fits = (count > dimension) & (squares > theta) & (theta >= below)
    level = jnp.where(fits.any(), theta[jnp.argmax(fits)], 0.0)
    shares = jnp.maximum(0.0, 1.0 - level / jnp.maximum(squares, 1e-300))
    return jnp.where(level > 0, shares, (count <= dimension).astype(shares.dtype))
