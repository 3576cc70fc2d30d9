"""Where an image is abnormal: pixel differences, calibrated maps, regions, and tiles.

The maps are `jax.numpy`, so that they can run on the device behind the search and be exported with
it; regions and tiles are NumPy on the host.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy import ndimage  # type: ignore[import-untyped]

from jax_noisy_anogan.runtime.files import _save_npz
from jax_noisy_anogan.scoring.calibration import CalibrationError

# What NumPy raises on an archive that is missing, empty, cut off or of another kind.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)

Map = Float[np.ndarray, "height width"]

_NEIGHBOURS = np.ones((3, 3), bool)
# Added to the spread of every pixel, relative to that of all pixels: a pixel that happened to be
# constant in a few validation images must not turn every later change into an alarm.
_FLOOR = 0.1


class MapCalibration(NamedTuple):
    """What smoothed difference maps of normal images look like.

    Attributes:
      mean, std: per pixel, `[height, width]`; or one value for all pixels, `[]`.
    """

    mean: Float[Array, "*pixels"]
    std: Float[Array, "*pixels"]


class Box(NamedTuple):
    """A rectangle in pixels; x and y are those of its upper left pixel."""

    x: int
    y: int
    width: int
    height: int


def pixel_difference(
    x: Float[Array, "*batch height width channels"],
    drawn: Float[Array, "*batch height width channels"],
) -> Float[Array, "*batch height width"]:
    """The paper's localisation: |x - G(z_hat)|, averaged over channels.

    In [0, 2] for images in [-1, 1].
    """
    return jnp.mean(jnp.abs(x - drawn), axis=-1)


def evidence(
    logit: Callable[[Float[Array, "height width channels"]], Float[Array, ""]],
    x: Float[Array, "height width channels"],
    drawn: Float[Array, "height width channels"],
    *,
    steps: int = 8,
) -> Float[Array, "height width"]:
    """The pixel difference weighed by what it does to D's verdict, >= 0, summed over channels.

    |a| with a = (x - G(z_hat)) times the mean gradient of D's logit between G(z_hat) and x:
    integrated gradients (Sundararajan et al. 2017), whose sum over the pixels is
    D(x) - D(G(z_hat)) in logits. A difference that D takes for normal counts for little.

    Args:
      logit: D of a single image.
      steps: of the midpoint rule along the straight line between the two.
    """
    change = x - drawn

    def add(total: Array, share: Array) -> tuple[Array, None]:
        return total + jax.grad(logit)(drawn + share * change), None

    shares = (jnp.arange(steps) + 0.5) / steps
    total, _ = lax.scan(add, jnp.zeros_like(x), shares)
    return jnp.abs(change * total / steps).sum(axis=-1)


def smooth(
    maps: Float[Array, "*batch height width"], *, sigma: float
) -> Float[Array, "*batch height width"]:
    """Gaussian filter of `sigma` pixels, borders mirrored; 0 leaves the maps as they are."""
    if sigma == 0:
        return jnp.asarray(maps)
    rows, columns = (_gaussian_matrix(size, sigma) for size in maps.shape[-2:])
    return jnp.einsum("ij,...jk,lk->...il", rows, maps, columns, precision="highest")


def fit_map_calibration(
    differences: Iterable[Float[np.ndarray, "height width"]],
    *,
    sigma: float,
    per_pixel: bool = True,
) -> MapCalibration:
    """Mean and standard deviation of the smoothed difference maps of normal validation images.

    Args:
      differences: one map after another (an array `[n, height, width]` serves), so that any number
        of large ones fits in memory. Never of test images, nor of those the model was trained on.
      sigma: of the smoothing of each map, and of the variances per pixel once more, because a
        few images alone estimate them poorly.
      per_pixel: False gives one mean and deviation for all pixels; for textures, where a place in
        the image means nothing, for few images, and for images that differ in size.

    Raises:
      ValueError: no map, maps of different sizes with `per_pixel`, or maps that never differ.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for difference in differences:
        values = np.asarray(smooth(jnp.asarray(difference), sigma=sigma), np.float64)
        if per_pixel and count and values.shape != mean.shape:
            raise ValueError(
                f"map {count} is of size {values.shape}, those before of {mean.shape}: statistics "
                "per pixel need equal sizes; use per_pixel=False"
            )
        # Either every map or every pixel of it is an observation (Chan et al. 1983: moments of two
        # samples together).
        number, centre, spread = (
            (1, values, 0.0) if per_pixel else (values.size, values.mean(), values.var())
        )
        gap, share = centre - mean, number / (count + number)
        mean = mean + gap * share
        squares = squares + number * spread + gap**2 * count * share
        count += number
    if count == 0:
        raise ValueError("no map to calibrate with: expected at least one normal validation image")
    variance = squares / count
    overall = float(np.mean(variance))
    if not overall > 0:
        raise ValueError("no pixel ever changes between the maps: expected maps that differ")
    if per_pixel:
        # Not the mean: at a sharp edge of the object a blurred mean is many deviations off.
        variance = np.asarray(smooth(jnp.asarray(variance), sigma=sigma))
    std = np.sqrt(variance + _FLOOR**2 * overall)
    return MapCalibration(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))


def calibrated_map(
    difference: Float[Array, "*batch height width"],
    calibration: MapCalibration,
    *,
    sigma: float,
) -> Float[Array, "*batch height width"]:
    """The smoothed difference in standard deviations above what is usual for normal images.

    Args:
      sigma: the one that the calibration was fitted with.

    Raises:
      ValueError: the calibration is per pixel, and of another size.
    """
    mean, std = calibration
    if mean.ndim and mean.shape != difference.shape[-2:]:
        raise ValueError(
            f"a map of {difference.shape[-2:]} with a calibration per pixel of {mean.shape}: "
            "expected equal sizes"
        )
    smoothed = smooth(difference, sigma=sigma)
    mean, std = (jnp.broadcast_to(s, smoothed.shape) for s in (mean, std))
    return (smoothed - mean) / std


def largest_region(map: Map, threshold: float) -> Box | None:
    """The box around the largest connected region above the threshold; None if there is none.

    Pixels that touch at a corner are connected. Of equally large regions the first in reading order
    is returned.
    """
    labels, regions = ndimage.label(np.asarray(map) > threshold, _NEIGHBOURS)
    if regions == 0:
        return None
    largest = int(np.argmax(np.bincount(labels.ravel())[1:]))
    rows, columns = ndimage.find_objects(labels)[largest]
    return Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


@lru_cache(maxsize=8)
def _gaussian_matrix(size: int, sigma: float) -> Float[np.ndarray, "size size"]:
    """SciPy's filter along one axis as a matrix, its mirrored borders included."""
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0).astype(np.float32)


def save_maps(path: Path, maps: MapCalibration) -> None:
    """Write the statistics of normal difference maps."""
    _save_npz(path, mean=np.asarray(maps.mean), std=np.asarray(maps.std))


def load_maps(path: Path) -> MapCalibration:
    """Read what `save_maps` wrote.

    Raises:
      CalibrationError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as values:
            return MapCalibration(values["mean"], values["std"])
    except (*_UNREADABLE, KeyError) as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}): run `python -m jax_noisy_anogan.evaluate --workdir "
            f"{path.parent}` first"
        ) from error
