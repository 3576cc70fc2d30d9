"""l1-thresholding (Soltanolkotabi and Candès 2012): outliers need long combinations of others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_noisy_anogan.baselines.linear_algebra import (
    Coordinates,
    balance,
    in_double_precision,
    over_relaxed,
    principal_coordinates,
    shrink_columns,
    soft_threshold,
)
from jax_noisy_anogan.config import ConfigError


@in_double_precision
def score(
    features: Float[Array, "n features"],
    *,
    components: int | None = 50,
    miss_weight: float = 100.0,
    tolerance: float = 1e-4,
    max_steps: int = 2000,
) -> Float[Array, "n"]:
    """min |r|_1 + miss_weight |x_j - X r| with r_jj = 0, for each sample j.

    The penalty is exact: where the others can express x_j at bounded length this is basis pursuit,
    min |r|_1 subject to x_j = X r; a sample that they cannot express pays for the part that is
    missed.

    Args:
      components: principal directions kept. Basis pursuit needs clearly fewer directions than
        samples; flattened images have more.
      miss_weight: far above the lengths |r|_1 that inliers need.
      tolerance: of both residuals of the solver, relative.

    Raises:
      ConfigError: a setting is out of range.
      DataError: see `check_features`.
    """
    if miss_weight <= 0:
        raise ConfigError(f"l1-thresholding: miss_weight is {miss_weight}: expected a positive one")
    return pursue(principal_coordinates(features, components), miss_weight, tolerance, max_steps)


@jax.jit
def pursue(
    coordinates: Coordinates, miss_weight: float, tolerance: float, max_steps: int
) -> Float[Array, "n"]:
    """The optimal values, all columns together by ADMM.

    The unknowns are r and the weighted miss s, so that both count alike in the objective; they are
    projected onto X r + s / miss_weight = x_j with r_jj = 0. The normal equations are diagonal,
    because X has orthogonal rows, but for each column's own sample, which Sherman and Morrison's
    formula takes out. (With r_jj = 0 left to the other step the two sets of ADMM are nearly
    parallel for a sample that the others cannot express, and it oscillates.)
    """
    x, values = coordinates.columns, coordinates.singular_values[:, None]
    n = x.shape[1]
    others = 1.0 - jnp.eye(n)
    unit = 1.0 / miss_weight
    squares = values**2 + unit**2
    own = x / squares
    own = own / (1.0 - (x * own).sum(axis=0, keepdims=True))

    def step(state):
        (r, s), (scaled_r, scaled_s), penalty, k, _ = state
        want_r, want_s = r - scaled_r, s - scaled_s
        correction = (x @ want_r + want_s * unit - x) / squares
        correction = correction + own * (x * correction).sum(axis=0, keepdims=True)
        on_r, on_s = others * (want_r - x.T @ correction), want_s - correction * unit
        relaxed_r, relaxed_s = over_relaxed(on_r, r), over_relaxed(on_s, s)
        new_r = soft_threshold(relaxed_r + scaled_r, 1.0 / penalty)
        new_s = shrink_columns(relaxed_s + scaled_s, 1.0 / penalty)
        scaled_r, scaled_s = scaled_r + relaxed_r - new_r, scaled_s + relaxed_s - new_s
        size = _length(new_r, new_s)
        primal = _length(on_r - new_r, on_s - new_s) / size
        dual = _length(new_r - r, new_s - s) / size
        factor = balance(k, primal, dual)
        residual = jnp.maximum(primal, dual).max()
        scaled = (scaled_r / factor, scaled_s / factor)
        return (new_r, new_s), scaled, penalty * factor, k + 1, residual

    def unfinished(state):
        return (state[3] < max_steps) & (state[4] > tolerance)

    zero = (jnp.zeros((n, n)), jnp.zeros_like(x))
    state = jax.tree.map(jnp.asarray, (zero, zero, jnp.full((1, n), 30.0), 0, jnp.inf))
    (r, s), _, _, _, _ = lax.while_loop(unfinished, step, state)
    # The miss is the solver's own s: x - X r would weigh its rounding by `miss_weight`.
    return jnp.abs(r).sum(axis=0) + jnp.linalg.norm(s, axis=0)


def _length(r: Float[Array, "n n"], s: Float[Array, "rank n"]) -> Float[Array, "1 n"]:
    square = (r**2).sum(axis=0, keepdims=True) + (s**2).sum(axis=0, keepdims=True)
    return jnp.sqrt(jnp.maximum(square, 1e-12))
