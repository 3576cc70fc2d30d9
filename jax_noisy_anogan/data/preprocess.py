"""From pixels of any size to what a model is shown: another size, or its local contrast."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.frame import fit_square, framed, padded_size, scaled

# Beside the deviation of a neighbourhood (of 0..1), so that noise on a plain one is not blown up.
FLOOR = 0.02
# Deviations that lie between the middle grey and white.
RANGE = 4.0


def prepared(
    image: UInt8[np.ndarray, "height width channels"], resolution: int, data: DataConfig
) -> UInt8[np.ndarray, "rows columns channels"]:
    """Bring an image to the form that a model is trained on, as `fit` and `local_contrast` say."""
    picture = fitted(image, resolution, data)
    return local_contrast(picture, data.local_contrast, side=resolution)


def fitted(
    image: UInt8[np.ndarray, "height width channels"], resolution: int, data: DataConfig
) -> UInt8[np.ndarray, "rows columns channels"]:
    """An image as large as `fit` and `scale` say; squares are of `resolution`."""
    if data.fit == "scale":
        return scaled(image, data.scale)
    return fit_square(image, resolution, data.fit)


def fitted_mask(
    mask: Bool[np.ndarray, "height width"], resolution: int, data: DataConfig
) -> UInt8[np.ndarray, "rows columns 1"]:
    """A mask as the covered share of every pixel of `fitted`, 0 (none) to 255 (all)."""
    return fitted(mask[..., None].astype(np.uint8) * np.uint8(255), resolution, data)


def framed_mask(
    mask: Bool[np.ndarray, "height width"], fit: str
) -> Bool[np.ndarray, "framed_height framed_width"]:
    """What `fitted` shows of a mask, in its own pixels; smaller where "pad" has a limit."""
    if fit == "pad":
        # A pixel of the smaller one is marked where any is that it stands for.
        rows, columns = padded_size(*mask.shape)
        small = np.zeros((rows, columns), bool)
        row, column = np.nonzero(mask)
        small[row * rows // mask.shape[0], column * columns // mask.shape[1]] = True
        mask = small
    return framed(mask, fit)


def pad_to_tile(
    image: Shaped[np.ndarray, "height width *channels"], tile: int
) -> Shaped[np.ndarray, "padded_height padded_width *channels"]:
    """Continue sides shorter than `tile` at the bottom and right by reflection (edge not repeated).

    Sides that are long enough stay as they are.
    """
    if min(image.shape[:2]) >= tile:
        return image
    missing = [(0, max(tile - size, 0)) for size in image.shape[:2]]
    return np.pad(image, missing + [(0, 0)] * (image.ndim - 2), mode="reflect")


def exact_matmul(a: Any, b: Any) -> Any:
    """A product of float32, of NumPy or JAX; accelerators round their own to fewer bits."""
    precision = {} if isinstance(b, np.ndarray) else {"precision": "highest"}
    return b.__array_namespace__().matmul(a, b, **precision)


def local_contrast(image: Any, share: float | None, *, side: int = 0) -> Any:
    """Divisive contrast normalisation with Gaussian neighbourhoods (Jarrett et al. 2009, sec. 2.1).

    Every pixel, from 0 to 1, minus the mean of its neighbourhood, over 0.02 plus the
    neighbourhood's deviation; 0 becomes 128, 4 becomes 255, and what lies further away is clipped.
    At borders the neighbourhood is what lies inside.

    Args:
      image: uint8 [height, width, channels], an array of NumPy or JAX.
      share: deviation of the Gaussian as a share of `side`; 0, or none, returns the image.
      side: in pixels; 0 takes the image's height.

    Returns:
      An array of the same kind, shape and type.
    """
    if not share:
        return image
    xp = image.__array_namespace__()
    deviation = share * (side or image.shape[0])
    down, across = (xp.asarray(_gaussian_weights(size, deviation)) for size in image.shape[:2])

    def blurred(planes: Any) -> Any:
        return exact_matmul(exact_matmul(down, planes), across.T)

    planes = xp.moveaxis(image, -1, 0).astype(np.float32) / 255.0
    apart = planes - blurred(planes)
    contrast = apart / (xp.sqrt(blurred(xp.square(apart))) + FLOOR)
    levels = xp.clip(xp.round(128.0 + 127.0 / RANGE * contrast), 0, 255)
    return xp.moveaxis(levels.astype(np.uint8), 0, -1)


@functools.lru_cache(maxsize=4)
def _gaussian_weights(side: int, deviation: float) -> Float[np.ndarray, "side side"]:
    """Row i weighs the pixels of a line in the neighbourhood of pixel i; sums to 1."""
    distance = np.arange(side)[:, None] - np.arange(side)
    weights = np.exp(-0.5 * np.square(distance / deviation))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
