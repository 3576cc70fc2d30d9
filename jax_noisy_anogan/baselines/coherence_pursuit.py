"""Coherence Pursuit (Rahmani and Atia 2017): inliers resemble many other samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_noisy_anogan.baselines.linear_algebra import in_double_precision, unit_rows
from jax_noisy_anogan.config import ConfigError


@in_double_precision
def score(features: Float[Array, "n features"], *, norm: int = 2) -> Float[Array, "n"]:
    """How little each sample resembles the others.

    With unit samples, G = X^T X without its diagonal, and g_i the norm of its i-th column, the
    score is -g_i / max g, from -1 to 0.

    Args:
      norm: 1 or 2 (the authors' choice).

    Raises:
      ConfigError: another norm.
      DataError: see `check_features`.
    """
    if norm not in (1, 2):
        raise ConfigError(f"Coherence Pursuit: norm is {norm!r}: expected 1 or 2")
    return -_coherence(features, norm)


@jax.jit(static_argnames="norm")
def _coherence(features: Float[Array, "n features"], norm: int) -> Float[Array, "n"]:
    x = unit_rows(features)
    gram = jnp.fill_diagonal(x @ x.T, 0.0, inplace=False)
    coherence = jnp.linalg.norm(gram, ord=norm, axis=0)
    return coherence / jnp.maximum(coherence.max(), 1e-300)
