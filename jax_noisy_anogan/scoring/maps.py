"""Where an image is abnormal: pixel differences, attributions, and calibrated maps.

Maps are `jax.numpy`, so that they can run on the device behind the search and be exported with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy import ndimage

from jax_noisy_anogan.runtime.files import UNREADABLE, load_npz, save_npz
from jax_noisy_anogan.scoring.calibration import CalibrationError


def save_maps(path: Path, maps: MapCalibration) -> None:
    """Write the statistics of normal maps."""
    save_npz(path, **{name: np.asarray(value) for name, value in maps._asdict().items()})


def load_maps(path: Path) -> MapCalibration:
    """Read what `save_maps` wrote.

    Raises:
      CalibrationError: the file is missing or damaged.
    """
    try:
        mean, std = load_npz(path, MapCalibration._fields)
        check_maps(mean, std)
        return MapCalibration(mean, std)
    except UNREADABLE as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}): run `python -m jax_noisy_anogan.evaluate --workdir "
            f"{path.parent}` first"
        ) from error


def check_maps(mean: np.ndarray, std: np.ndarray) -> None:
    """Refuse statistics of maps that no fit gives.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, or no deviation.
    """
    if mean.shape != std.shape or mean.ndim not in (0, 2):
        raise ValueError(f"a mean of shape {mean.shape} and a deviation of {std.shape} do not fit")
    if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in (mean, std)):
        raise ValueError("expected finite float32 arrays")
    if not (std > 0).all():
        raise ValueError("a deviation that is not positive")


Map = Float[np.ndarray, "height width"]

# Added to the spread of every pixel, relative to that of all pixels: a pixel that happened to be
# constant in a few validation images must not turn every later change into an alarm.
_FLOOR = 0.1


class MapCalibration(NamedTuple):
    """What smoothed maps of normal images look like.

    Attributes:
      mean, std: per pixel, `[height, width]`; or one value for all pixels, `[]`.
    """

    mean: Float[Array, "*pixels"]
    std: Float[Array, "*pixels"]


def pixel_difference(
    x: Float[Array, "*batch height width channels"],
    reconstruction: Float[Array, "*batch height width channels"],
) -> Float[Array, "*batch height width"]:
    """The paper's localisation: |x - G(z_hat)|, averaged over channels.

    In [0, 2] for images in [-1, 1].
    """
    return jnp.mean(jnp.abs(x - reconstruction), axis=-1)


def attribution(
    logit: Callable[[Float[Array, "height width channels"]], Float[Array, ""]],
    x: Float[Array, "height width channels"],
    reconstruction: Float[Array, "height width channels"],
    *,
    steps: int = 8,
) -> Float[Array, "height width"]:
    """The pixel difference weighed by what it does to D's logit, >= 0, summed over channels.

    |a| with a = (x - G(z_hat)) times the mean gradient of D's logit between G(z_hat) and x:
    integrated gradients (Sundararajan et al. 2017), whose sum over the pixels is
    D(x) - D(G(z_hat)) in logits. A difference that D takes for normal counts for little.

    Args:
      logit: D of a single image.
      steps: of the midpoint rule along the straight line between the two.
    """
    change = x - reconstruction

    def add(total: Array, share: Array) -> tuple[Array, None]:
        return total + jax.grad(logit)(reconstruction + share * change), None

    shares = (jnp.arange(steps) + 0.5) / steps
    total, _ = lax.scan(add, jnp.zeros_like(x), shares)
    return jnp.abs(change * total / steps).sum(axis=-1)


def smooth(
    maps: Float[Any, "*batch height width"], *, sigma: float
) -> Float[Any, "*batch height width"]:
    """Gaussian filter of `sigma` pixels, borders mirrored; 0 leaves the maps as they are.

    Maps of NumPy are filtered on the host: where maps differ in size, a program for each of them
    would have to be compiled.
    """
    if sigma == 0:
        return maps
    if isinstance(maps, np.ndarray):
        return ndimage.gaussian_filter(maps, sigma, axes=(-2, -1))
    rows, columns = (_gaussian_matrix(size, sigma) for size in maps.shape[-2:])
    return jnp.einsum("ij,...jk,lk->...il", rows, maps, columns, precision="highest")


class MapMoments:
    """Statistics of the smoothed maps of normal validation images, also without some of them.

    Args:
      sigma: of the smoothing of each map, and of the variances per pixel once more, because a
        few images alone estimate them poorly.
      per_pixel: False gives one mean and deviation for all pixels; for textures, where a place in
        the image means nothing, for few images, and for images that differ in size.
    """

    def __init__(self, *, sigma: float, per_pixel: bool = True):
        self._sigma, self._per_pixel = sigma, per_pixel
        self._count, self._mean, self._squares = 0, np.zeros(()), np.zeros(())

    def add(self, map: Map) -> None:
        """Count one map; never that of a test image, nor of one that the model was trained on.

        Raises:
          ValueError: with `per_pixel`, the map is not of the size of those before.
        """
        number, centre, spread = self._observed(map)
        if self._per_pixel and self._count and centre.shape != self._mean.shape:
            raise ValueError(
                f"a map is of size {centre.shape}, those before of {self._mean.shape}: statistics "
                "per pixel need equal sizes; use per_pixel=False"
            )
        # Moments of two samples together (Chan et al. 1983).
        gap, share = centre - self._mean, number / (self._count + number)
        self._mean = self._mean + gap * share
        self._squares = self._squares + number * spread + gap**2 * self._count * share
        self._count += number

    def of(self, *maps: Map) -> MapMoments:
        """Those of other maps, smoothed alike."""
        found = MapMoments(sigma=self._sigma, per_pixel=self._per_pixel)
        for map in maps:
            found.add(map)
        return found

    def calibration(self, without: MapMoments | None = None) -> MapCalibration:
        """The statistics of all maps, or of all but those that `without` has counted too.

        Raises:
          ValueError: no map is left, or those that are left never differ.
        """
        count, mean, squares = self._count, self._mean, self._squares
        if without is not None and count:
            number, rest = without._count, count - without._count
            gap = without._mean - mean
            squares = squares - without._squares - gap**2 * number * count / max(rest, 1)
            count, mean = rest, mean - gap * number / max(rest, 1)
        if count == 0:
            raise ValueError("no map to calibrate with: expected at least one normal image")
        # The rounding of a pixel that never changes can fall below zero.
        variance = np.maximum(squares / count, 0.0)
        overall = float(np.mean(variance))
        if not overall > 1e-12 * float(np.mean(np.square(mean))):
            raise ValueError("no pixel ever changes between the maps: expected maps that differ")
        if self._per_pixel:
            # Not the mean: at a sharp edge of the object a blurred mean is many deviations off.
            variance = np.asarray(smooth(jnp.asarray(variance), sigma=self._sigma))
        std = np.sqrt(variance + _FLOOR**2 * overall)
        return MapCalibration(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))

    def _observed(self, map: Map) -> tuple[int, np.ndarray, np.ndarray]:
        """Number of observations in a map, their mean and variance."""
        if not self._per_pixel:
            values = smooth(np.asarray(map, np.float32), sigma=self._sigma).astype(np.float64)
            return values.size, values.mean(), values.var()
        values = np.asarray(smooth(jnp.asarray(map), sigma=self._sigma), np.float64)
        return 1, values, np.zeros(())


def calibrated_map(
    map: Float[Any, "*batch height width"], calibration: MapCalibration, *, sigma: float
) -> Float[Any, "*batch height width"]:
    """The smoothed map in standard deviations above what is usual for normal images.

    Args:
      sigma: the one that the calibration was fitted with.

    Raises:
      ValueError: the calibration is per pixel, and of another size.
    """
    mean, std = calibration
    if mean.ndim and mean.shape != map.shape[-2:]:
        raise ValueError(
            f"a map of {map.shape[-2:]} with a calibration per pixel of {mean.shape}: "
            "expected equal sizes"
        )
    if mean.ndim == 0 and isinstance(map, np.ndarray):
        return (smooth(map, sigma=sigma) - np.asarray(mean)) / np.asarray(std)
    return _standardised(map, mean, std, sigma)


@functools.partial(jax.jit, static_argnames="sigma")
def _standardised(
    map: Float[Array, "*batch h w"], mean: Any, std: Any, sigma: float
) -> Float[Array, "*batch h w"]:
    smoothed = smooth(map, sigma=sigma)
    mean, std = (jnp.broadcast_to(s, smoothed.shape) for s in (mean, std))
    return (smoothed - mean) / std


@functools.lru_cache(maxsize=8)
def _gaussian_matrix(size: int, sigma: float) -> Float[np.ndarray, "size size"]:
    """SciPy's filter along one axis as a matrix, its mirrored borders included."""
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0).astype(np.float32)
