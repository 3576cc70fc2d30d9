"""Low-Rank Representation (Liu, Lin, Yu 2010): samples expressed by one another at low rank."""

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


class Representation(NamedTuple):
    """X = X Z + `error`, with Z = V `coefficients` and V the right singular vectors of X.

    `multiplier` belongs to the first constraint and is a dual certificate.
    """

    coefficients: Columns
    error: Columns
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
    """Length of each sample's error E in X = X Z + E.

    Args:
      weight: lambda; None takes the geometric mean of `weight_bounds`, between which neither Z
        nor E vanishes. The upper bound grows with 1 / the smallest singular value: choose a weight
        yourself where directions of mere noise are kept.
      components: principal directions kept. None is exact; the time then grows with the cube of
        the rank.
      tolerance: of both residuals of the solver, relative.

    Raises:
      ConfigError: a setting is out of range.
      DataError: see `check_features`.
    """
    if weight is not None and weight <= 0:
        raise ConfigError(f"LRR: weight is {weight}: expected a positive one or None")
    coordinates = principal_coordinates(features, components)
    if weight is None:
        low, high = weight_bounds(coordinates)
        weight = (low * high) ** 0.5
    return jnp.linalg.norm(represent(coordinates, weight, tolerance, max_steps).error, axis=0)


def weight_bounds(coordinates: Coordinates) -> tuple[float, float]:
    """Below the first lambda Z = 0 is optimal, above the second E = 0.

    With X = U S V^T they are 1 / |X|^2 and the length of the longest column of U S^-1 V^T: there
    the multipliers lambda X and U S^-1 V^T satisfy the optimality conditions of the two extremes.
    """
    x, s = coordinates
    return float(1.0 / s[0] ** 2), float(jnp.linalg.norm(x / s[:, None] ** 2, axis=0).max())


@jax.jit
def represent(
    coordinates: Coordinates, weight: float, tolerance: float, max_steps: int
) -> Representation:
    """argmin ||Z||_* + weight ||E||_{2,1} subject to X = X Z + E, by ADMM.

    Exact reduction: with X = S V^T, the optimal Z lies in the row space of X, Z = V W, so that
    X Z = S W with diagonal S, ||Z||_* = ||W||_*, and only W is unknown.
    """
    x, s = coordinates.columns, coordinates.singular_values[:, None]

    def step(state):
        low_rank, error, scaled_x, scaled_z, penalty, k, _ = state
        w = (s * (x - error + scaled_x) + low_rank - scaled_z) / (1.0 + s**2)
        new_low_rank = shrink_singular_values(w + scaled_z, 1.0 / penalty)
        new_error = shrink_columns(x - s * w + scaled_x, weight / penalty)
        gap_x, gap_z = x - s * w - new_error, w - new_low_rank
        scaled_x, scaled_z = scaled_x + gap_x, scaled_z + gap_z
        primal = jnp.hypot(jnp.linalg.norm(gap_x), jnp.linalg.norm(gap_z)) / jnp.linalg.norm(x)
        moved = jnp.linalg.norm(s * (new_error - error) - (new_low_rank - low_rank))
        dual = moved / jnp.linalg.norm(s * scaled_x)
        factor = balance(k, primal, dual)
        residual = jnp.maximum(primal, dual)
        return (
            new_low_rank,
            new_error,
            scaled_x / factor,
            scaled_z / factor,
            penalty * factor,
            k + 1,
            residual,
        )

    def unfinished(state):
        return (state[5] < max_steps) & (state[6] > tolerance)

    zero = jnp.zeros_like(x)
    state = jax.tree.map(jnp.asarray, (zero, zero, zero, zero, 1.0, 0, jnp.inf))
    low_rank, error, scaled_x, _, penalty, k, _ = lax.while_loop(unfinished, step, state)
    return Representation(low_rank, error, penalty * scaled_x, k)
