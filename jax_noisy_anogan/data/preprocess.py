"""From pixels of any size to what a model is shown: a square, or its local contrast."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.pyramid import fit_square

# Beside the deviation of a neighbourhood (of 0..1), so that noise on a plain one is not blown up.
FLOOR = 0.02
# Deviations that lie between the middle grey and white.
RANGE = 4.0


def prepared(
    image: UInt8[np.ndarray, "height width channels"], resolution: int, data: DataConfig
) -> UInt8[np.ndarray, "resolution resolution channels"]:
    """Bring an image to the form that a model is trained on, as `fit` and `local_contrast` say."""
    return local_contrast(fit_square(image, resolution, data.fit), data.local_contrast)


def local_contrast(image: Any, share: float) -> Any:
    """Divisive contrast normalisation with Gaussian neighbourhoods (Jarrett et al. 2009, sec. 2.1).

    Every pixel, from 0 to 1, minus the mean of its neighbourhood, over 0.02 plus the
    neighbourhood's deviation; 0 becomes 128, 4 becomes 255, and what lies further away is clipped.
    At borders the neighbourhood is what lies inside.

    Args:
      image: uint8 [side, side, channels], an array of NumPy or JAX.
      share: deviation of the Gaussian as a share of the side; 0 returns the image.

    Returns:
      An array of the same kind, shape and type.
    """
    if share == 0.0:
        return image
    xp = image.__array_namespace__()
    weights = xp.asarray(_gaussian_weights(image.shape[0], share * image.shape[0]))

    def blurred(planes: Any) -> Any:
        return weights @ planes @ weights.T

    planes = xp.moveaxis(image, -1, 0).astype(np.float32) / 255.0
    deviation = planes - blurred(planes)
    contrast = deviation / (xp.sqrt(blurred(xp.square(deviation))) + FLOOR)
    levels = xp.clip(xp.round(128.0 + 127.0 / RANGE * contrast), 0, 255)
    return xp.moveaxis(levels.astype(np.uint8), 0, -1)


@functools.lru_cache(maxsize=4)
def _gaussian_weights(side: int, deviation: float) -> Float[np.ndarray, "side side"]:
    """Row i weighs the pixels of a line in the neighbourhood of pixel i; sums to 1."""
    distance = np.arange(side)[:, None] - np.arange(side)
    weights = np.exp(-0.5 * np.square(distance / deviation))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
