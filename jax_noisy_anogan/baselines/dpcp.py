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
from jax_noisy_anogan.settings import ConfigError

SOLVERS = ("irls", "psgm")


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
    solver: str = "irls",
) -> Float[Array, "n"]:
    """Distance |B^T x| of each sample from the subspace whose normals are the columns of B.

    Args:
      dimension: of the inliers' subspace; B has one normal for each further direction. The
        published comparisons do not state theirs.
      components: principal directions kept before; the public code recommends the reduction.
      solver: "irls", all normals at once, or "psgm", one after the other by projected subgradients.

    Raises:
      ConfigError: a setting is out of range.
      DataError: see `check_features`.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"DPCP: solver is {solver!r}: expected one of {', '.join(SOLVERS)}")
    x = principal_coordinates(features, components).columns
    if not 1 <= dimension < x.shape[0]:
        raise ConfigError(
            f"DPCP: dimension is {dimension}: expected 1 to {x.shape[0] - 1}, below the "
            f"{x.shape[0]} directions of the features"
        )
    find = normals_by_reweighting if solver == "irls" else normals_by_subgradients
    return jnp.linalg.norm(find(x, x.shape[0] - dimension).normals.T @ x, axis=0)


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


@jax.jit(static_argnames="count")
def normals_by_subgradients(
    x: Columns,
    count: int,
    first_step: float = 1e-2,
    sufficient: float = 1e-3,
    smallest_step: float = 1e-15,
    max_steps: int = 200,
) -> Normals:
    """argmin_b |X^T b|_1 with |b| = 1, `count` times, each normal orthogonal to those before.

    Projected subgradients b <- (b - mu X sign(X^T b)) / |.| from the direction of least variance;
    mu is halved until the step improves the objective enough.
    """
    rank = x.shape[0]

    def objective(b):
        return jnp.abs(x.T @ b).sum()

    def next_normal(normals, index):
        free = jnp.eye(rank) - normals @ normals.T
        # Directions already taken must not win as "least variance": lift them above all others.
        taken = jnp.trace(x @ x.T) * (jnp.eye(rank) - free)
        _, vectors = jnp.linalg.eigh(free @ (x @ x.T) @ free + taken)

        def descend(state):
            b, mu, k = state
            gradient = free @ (x @ jnp.sign(x.T @ b))
            tangent = gradient - b * (b @ gradient)
            moved = b - mu * gradient
            moved = moved / jnp.linalg.norm(moved)
            better = objective(moved) <= objective(b) - sufficient * mu * tangent @ tangent
            return jnp.where(better, moved, b), jnp.where(better, mu, mu / 2), k + better

        def unfinished(state):
            return (state[1] > smallest_step) & (state[2] < max_steps)

        start = (vectors[:, 0], jnp.asarray(first_step), jnp.asarray(0))
        b = lax.while_loop(unfinished, descend, start)[0]
        # Rounding errors along earlier normals would grow from one normal to the next.
        b = free @ b
        b = b / jnp.linalg.norm(b)
        return normals.at[:, index].set(b), objective(b)

    normals, objectives = lax.scan(next_normal, jnp.zeros((rank, count)), jnp.arange(count))
    return Normals(normals, objectives.sum())
