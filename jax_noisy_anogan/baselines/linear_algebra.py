"""What the subspace methods share: coordinates, proximal steps, precision.

Their literature writes samples as columns; so do the solvers, on the columns of `Coordinates`. The
public functions of the package take rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_noisy_anogan.baselines.features import check_features
from jax_noisy_anogan.config import ConfigError

Columns = Float[Array, "rank n"]
Scalar = Float[Array, ""]

_BALANCE_EVERY = 10
_BALANCE_RATIO = 5.0
_OVER_RELAXATION = 1.6


class Coordinates(NamedTuple):
    """Unit samples in the basis of their own principal directions.

    Attributes:
      columns: one sample per column; the rows are orthogonal.
      singular_values: lengths of the rows, descending.
    """

    columns: Columns
    singular_values: Float[Array, "rank"]


def in_double_precision(
    score: Callable[..., Float[Array, "n"]],
) -> Callable[..., Float[Array, "n"]]:
    """Check the features of a scoring function and run it in float64, whatever JAX's default is.

    Weights of 1/residual and the multipliers of the constrained problems span more than the seven
    digits of float32, in which the solvers stall before they converge. Scores come back as float32.
    """

    @functools.wraps(score)
    def wrapped(features, **settings):
        rows = check_features(features)
        with jax.enable_x64(True):
            scores = np.asarray(score(jnp.asarray(rows, jnp.float64), **settings))
        return jnp.asarray(scores, jnp.float32)

    return wrapped


def unit_rows(features: Float[Array, "n features"]) -> Float[Array, "n features"]:
    """Rows scaled to length 1; a row of zeros stays as it is."""
    length = jnp.linalg.norm(features, axis=1, keepdims=True)
    return features / jnp.where(length > 0, length, 1.0)


def principal_coordinates(
    features: Float[Array, "n features"], components: int | None
) -> Coordinates:
    """Unit rows in the basis of their principal directions, without centring.

    Up to the rank this is a change of basis: inner products, and so every method here, stay as they
    were. With fewer `components` than the rank it is a projection.

    Args:
      features: float64.
      components: keep at most so many directions; None keeps all.

    Raises:
      ConfigError: `components` is not positive.
    """
    if components is not None and components < 1:
        raise ConfigError(f"components is {components}: expected a positive number or None")
    columns, values = _all_coordinates(features)
    # The singular values come from a Gram matrix: below 1e-6 of the largest they are rounding.
    rank = max(1, int((values > 1e-6 * values[0]).sum()))
    rank = rank if components is None else min(rank, components)
    return Coordinates(columns[:rank], values[:rank])


@jax.jit
def _all_coordinates(features: Float[Array, "n features"]) -> Coordinates:
    x = unit_rows(features)
    wide = x.shape[0] < x.shape[1]
    squares, vectors = jnp.linalg.eigh(x @ x.T if wide else x.T @ x)
    values = jnp.sqrt(jnp.maximum(squares[::-1], 0.0))
    vectors = vectors[:, ::-1].T
    return Coordinates(values[:, None] * vectors if wide else vectors @ x.T, values)


def soft_threshold(x: Array, amount: Array | float) -> Array:
    """Proximal step of `amount` |x|_1."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - amount, 0.0)


def shrink_columns(x: Float[Array, "m n"], amount: Array | float) -> Float[Array, "m n"]:
    """Proximal step of `amount` times the sum of the columns' lengths."""
    length = jnp.linalg.norm(x, axis=0, keepdims=True)
    return x * jnp.maximum(1.0 - amount / jnp.maximum(length, 1e-300), 0.0)


def shrink_singular_values(x: Columns, amount: Array | float) -> Columns:
    """Proximal step of `amount` times the nuclear norm."""
    squares, vectors = jnp.linalg.eigh(x @ x.T)
    values = jnp.sqrt(jnp.maximum(squares, 1e-300))
    return (vectors * jnp.maximum(1.0 - amount / values, 0.0)[None]) @ (vectors.T @ x)


def over_relaxed(updated: Array, previous: Array) -> Array:
    """Where ADMM goes on from: a little beyond its first half-step (Boyd et al. 2011, 3.4.3)."""
    return _OVER_RELAXATION * updated + (1.0 - _OVER_RELAXATION) * previous


def balance(step: Array, primal: Array, dual: Array) -> Array:
    """Factor for an ADMM penalty that keeps both residuals alike (Boyd et al. 2011, 3.4.1).

    A penalty is corrected only every few steps, so that the iteration can settle in between.
    """
    factor = jnp.where(
        primal > _BALANCE_RATIO * dual, 2.0, jnp.where(dual > _BALANCE_RATIO * primal, 0.5, 1.0)
    )
    return jnp.where(step % _BALANCE_EVERY == _BALANCE_EVERY - 1, factor, 1.0)
