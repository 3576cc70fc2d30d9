"""Principal components of whole normal images: what they leave of an image is unusual.

A patch can be normal and yet be in the wrong place or company. Components of whole images know
that, and nothing of what is smaller than they can draw, of which a memory of patches knows most.

Scoring is `jax.numpy`, so that it can be compiled, batched and exported; fitting runs on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from jax_noisy_anogan.data import near_duplicates
from jax_noisy_anogan.data.preprocess import exact_matmul, local_contrast
from jax_noisy_anogan.data.pyramid import area_average
from jax_noisy_anogan.scoring.maps import MapCalibration, MapMoments, calibrated_map

Images = UInt8[np.ndarray, "n side side channels"]

# Settings: cross-validated inside the training parts of magnetic tiles and commutators.
_SIDE, _COMPONENTS, _SIGMA, _NEIGHBOURHOOD = 64, 100, 2.0, 1 / 8
FOLDS = 4
# What two images leave of each other is the same: it has no deviation.
_FEWEST = 3


class Components(NamedTuple):
    """Principal components of the local contrast of normal images, and what they usually leave.

    Attributes:
      centre: the mean image.
      axes: orthonormal, one a row.
      usual: mean and deviation, of every pixel, of the smoothed squared residuals of images that
        the axes were not fitted to.
    """

    centre: Float[Array, " pixels"]
    axes: Float[Array, "components pixels"]
    usual: MapCalibration


def thumbnail(image: Any, tile: int) -> UInt8[Any, "side side channels"]:
    """An image of any shape as a small square: every pixel is the mean of what it covers.

    Args:
      image: uint8 [height, width, channels], an array of NumPy or JAX; squares of a multiple of the
        side become `area_average`.
      tile: the model's resolution, which is the side, if it is not more than 64.
    """
    side = min(_SIDE, tile)
    height, width = image.shape[:2]
    if height == width and height % side == 0:
        return area_average(image, side)
    xp = image.__array_namespace__()
    down, across = (xp.asarray(_covered(size, side)) for size in (height, width))
    planes = xp.moveaxis(image, -1, 0).astype(np.float32)
    smaller = exact_matmul(exact_matmul(down, planes), across.T)
    return xp.moveaxis(xp.round(smaller), 0, -1).astype(np.uint8)


def _covered(size: int, side: int) -> Float[np.ndarray, "side size"]:
    """Row i holds the share of every one of `size` pixels in pixel i of `side`."""
    edges = np.arange(side + 1)[:, None] * (size / side)
    below = np.clip(edges - np.arange(size), 0.0, 1.0)
    return (np.diff(below, axis=0) * (side / size)).astype(np.float32)


def fit(images: Images, *, seed: int = 0) -> Components:
    """At most 100 components of normal training images at up to 64 x 64.

    What is usual comes from components that were fitted without the image or its near duplicates:
    what is left of the fitted images themselves is much too small.

    Args:
      seed: of the randomised decomposition.

    Raises:
      ValueError: fewer than three images, or images that are all the same.
    """
    if len(images) < _FEWEST:
        raise ValueError(f"components of {len(images)} images: at least {_FEWEST} are needed")
    if (images == images[0]).all():
        raise ValueError(f"{len(images)} images that are all the same have no components")
    small = area_average(images, min(_SIDE, images.shape[1]))
    x = np.stack([np.asarray(_contrast(image)) for image in small])
    moments = MapMoments(sigma=_SIGMA, per_pixel=True)
    for rest, fold in folds(images, min(FOLDS, len(images))):
        for left in np.asarray(_left(*_axes(x[rest], seed), jnp.asarray(x[fold]))):
            moments.add(left)
    return Components(*_axes(x, seed), moments.calibration())


def unusual(
    components: Components, images: UInt8[Array, "batch side side channels"]
) -> Float[Array, "batch s s"]:
    """What the components leave of images, smoothed, in deviations above what is usual."""
    small = area_average(images, min(_SIDE, images.shape[1]))

    def of_image(image: UInt8[Array, "s s channels"]) -> Float[Array, "s s"]:
        (left,) = _left(components.centre, components.axes, _contrast(image)[None])
        return calibrated_map(left, components.usual, sigma=_SIGMA)

    # One after another: a batch would be added up otherwise, by the place of an image in it.
    return lax.map(of_image, small)


def folds(
    images: Images, count: int = FOLDS
) -> Iterator[tuple[Int[np.ndarray, " rest"], Int[np.ndarray, " fold"]]]:
    """Indices of all other images, and of a fold of them; near duplicates share a fold.

    In two pictures of the same part what one of them taught is no surprise in the other.
    """
    small = near_duplicates.unit_rows(area_average(images, min(32, images.shape[1])))
    group = near_duplicates.groups(small, near_duplicates.SAME)
    # Where all look alike there is nothing to keep apart.
    for numbers in (group, np.arange(len(images))):
        _, group, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
        if len(sizes) >= count:
            break
    load, fold_of = np.zeros(count, np.int64), np.empty(len(sizes), np.int64)
    for index in np.argsort(-sizes, kind="stable"):
        fold_of[index] = np.argmin(load)
        load[fold_of[index]] += sizes[index]
    for fold in range(count):
        inside = fold_of[group] == fold
        yield np.flatnonzero(~inside), np.flatnonzero(inside)


def _contrast(image: Any) -> Any:
    """Local contrast around 0, from -1 to 1; an array of the same kind."""
    return (local_contrast(image, _NEIGHBOURHOOD).astype(np.float32) - 128.0) / 127.0


def _axes(
    x: Float[np.ndarray, "n s s c"], seed: int
) -> tuple[Float[Array, " pixels"], Float[Array, "components pixels"]]:
    flat = x.reshape(len(x), -1)
    components = min(_COMPONENTS, len(x) - 1, flat.shape[1])
    if components == 0:
        return jnp.asarray(flat[0]), jnp.zeros((0, flat.shape[1]))
    from sklearn.decomposition import PCA  # takes a second to import

    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(flat)
    return jnp.asarray(pca.mean_, jnp.float32), jnp.asarray(pca.components_, jnp.float32)


def _left(
    centre: Float[Array, " pixels"],
    axes: Float[Array, "components pixels"],
    x: Float[Array, "n s s c"],
) -> Float[Array, "n s s"]:
    """What the axes leave of every pixel, squared, averaged over channels."""
    flat = x.reshape(len(x), -1)
    apart = flat - jnp.broadcast_to(centre, flat.shape)
    shares = jnp.matmul(apart, axes.T, precision="highest")
    left = apart - jnp.matmul(shares, axes, precision="highest")
    return jnp.square(left).reshape(x.shape).mean(axis=-1)
