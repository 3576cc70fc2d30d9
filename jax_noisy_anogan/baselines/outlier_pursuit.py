"""Outlier Pursuit (Xu, Caramanis, Sanghavi 2010): low rank plus few corrupted columns."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_noisy_anogan.baselines.linear_algebra import (
    Columns,
    Coordinates,
    Scalar,
    balance,
    in_double_precision,
    principal_coordinates,
    shrink_columns,
    shrink_singular_values,
)
from jax_noisy_anogan.config import ConfigError


class Decomposition(NamedTuple):
    """X = `low_rank` + `corruption`; `multiplier` is the constraint's, a dual certificate."""

    low_rank: Columns
    corruption: Columns
    multiplier: Columns
    steps: Scalar


@in_double_precision
def score(
    features: Float[Array, "n features"],
    *,
    weight: float | None = None,
    components: int | None = 300,
    tolerance: float = 1e-6,
    max_steps: int = 1000,
) -> Float[Array, "n"]:
    """Length of each sample's corruption C in X = L + C.

    Args:
      weight: lambda; None takes the geometric mean of `weight_bounds`. The authors' theorem,
        3 / (7 sqrt(share * n)), is made for few outliers: for unit samples and a share above 9/49
        it lies below the lower bound, where every sample is called an outlier.
      components: principal directions kept. None is exact; the time then grows with the cube of
        the rank.
      tolerance: of both residuals of the solver, relative.

    Raises:
      ConfigError: a setting is out of range.
      DataError: see `check_features`.
    """
    if weight is not None and weight <= 0:
        raise ConfigError(f"Outlier Pursuit: weight is {weight}: expected a positive one or None")
    coordinates = principal_coordinates(features, components)
    if weight is None:
        low, high = weight_bounds(coordinates)
        weight = (low * high) ** 0.5
    found = decompose(coordinates.columns, weight, tolerance, max_steps)
    return jnp.linalg.norm(found.corruption, axis=0)


def weight_bounds(coordinates: Coordinates) -> tuple[float, float]:
    """Below the first lambda L = 0 is optimal, above the second C = 0.

    With X = U S V^T they are 1 / |X| and the length of the longest column of U V^T: there the
    multipliers lambda X and U V^T satisfy the optimality conditions of the two extremes.
    """
    x, s = coordinates
    leverage = jnp.linalg.norm(x / s[:, None], axis=0)
    return float(1.0 / s[0]), float(leverage.max())


@jax.jit
def decompose(x: Columns, weight: float, tolerance: float, max_steps: int) -> Decomposition:
    """argmin ||L||_* + weight ||C||_{2,1} subject to X = L + C, by ADMM with scaled multiplier."""

    def step(state):
        _, corruption, scaled, penalty, k, _ = state
        low_rank = shrink_singular_values(x - corruption + scaled, 1.0 / penalty)
        updated = shrink_columns(x - low_rank + scaled, weight / penalty)
        gap = x - low_rank - updated
        scaled = scaled + gap
        primal = jnp.linalg.norm(gap) / jnp.linalg.norm(x)
        dual = jnp.linalg.norm(updated - corruption) / jnp.linalg.norm(scaled)
        factor = balance(k, primal, dual)
        residual = jnp.maximum(primal, dual)
        return low_rank, updated, scaled / factor, penalty * factor, k + 1, residual

    def unfinished(state):
        return (state[4] < max_steps) & (state[5] > tolerance)

    start = (x, jnp.zeros_like(x), jnp.zeros_like(x), 1.0 / jnp.linalg.norm(x, ord=2), 0, jnp.inf)
    state = jax.tree.map(jnp.asarray, start)
    low_rank, corruption, scaled, penalty, k, _ = lax.while_loop(unfinished, step, state)
    return Decomposition(low_rank, corruption, penalty * scaled, k)
