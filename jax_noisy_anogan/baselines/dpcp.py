"""Dual Principal Component Pursuit (Tsakiris and Vidal 2015): normals of the inliers' subspace."""

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


class Normals(NamedTuple):
    """Orthonormal normals as columns, and the objective that they reach."""

    normals: Float[Array, "rank normals"]
    objective: Scalar


@in_double_precision
def score(
    features: Float[Array, "n features"],
    *,
    dimension: int = 10,
    components: int | None = 100,
) -> Float[Array, "n"]:
    """Distance |B^T x| of each sample from the subspace whose normals are the columns of B.

    Args:
      dimension: of the inliers' subspace; B has one normal for each further direction. The
        published comparisons do not state theirs.
      components: principal directions kept before; the public code recommends the reduction.

    Raises:
      ConfigError: a setting is out of range.
      DataError: see `check_features`.
    """
    x = principal_coordinates(features, components).columns
    if not 1 <= dimension < x.shape[0]:
        raise ConfigError(
            f"DPCP: dimension is {dimension}: expected 1 to {x.shape[0] - 1}, below the "
            f"{x.shape[0]} directions of the features"
        )
    return jnp.linalg.norm(normals_by_reweighting(x, x.shape[0] - dimension).normals.T @ x, axis=0)


@jax.jit(static_argnames="count")
def normals_by_reweighting(
    x: Columns,
    count: int,
    floor: float = 1e-9,
    tolerance: float = 1e-6,
    max_steps: int = 100,
) -> Normals:
    """argmin_B sum_i |B^T x_i| with orthonormal columns, by reweighted eigenvectors.

    Weights 1 / max(floor, |B^T x_i|); the defaults are those of the public code.
    """

    def step(state):
        _, distances, total, k, _ = state
        _, vectors = jnp.linalg.eigh((x / jnp.maximum(distances, floor)[None]) @ x.T)
        normals = vectors[:, :count]
        distances = jnp.linalg.norm(normals.T @ x, axis=0)
        change = jnp.abs(total - distances.sum()) / jnp.maximum(distances.sum(), 1e-300)
        return normals, distances, distances.sum(), k + 1, change

    def unfinished(state):
        return (state[3] < max_steps) & (state[4] > tolerance)

    rank, n = x.shape
    start = (jnp.zeros((rank, count)), jnp.ones(n), jnp.inf, 0, jnp.inf)
    state = jax.tree.map(jnp.asarray, start)
    normals, _, total, _, _ = lax.while_loop(unfinished, step, state)
    return Normals(normals, total)
