"""Where an image is abnormal: pixel differences, calibrated maps, regions, and tiles.

The maps are `jax.numpy`, so that they can run on the device behind the search and be exported with
it; regions and tiles are NumPy on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped
from scipy import ndimage  # type: ignore[import-untyped]

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


def tile_positions(height: int, width: int, tile: int, overlap: int) -> Int[np.ndarray, "tiles 2"]:
    """Top and left of the tiles that cover an image, in reading order.

    As few as possible with neighbours sharing at least `overlap` pixels, evenly spread from edge to
    edge. A side shorter than `tile` gets one tile, for which `pad_to_tile` makes room.

    Raises:
      ValueError: a size is below 1, or `overlap` is not from 0 to below `tile`.
    """
    if min(height, width, tile) < 1 or not 0 <= overlap < tile:
        raise ValueError(
            f"{height} x {width} in tiles of {tile} with an overlap of {overlap}: expected sizes "
            "of at least 1 and an overlap from 0 to below the tile"
        )

    def starts(size: int) -> np.ndarray:
        room = max(size - tile, 0)
        count = 1 + -(-room // (tile - overlap))
        return np.linspace(0, room, count).round().astype(int)

    grid = np.meshgrid(starts(height), starts(width), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2)


def pad_to_tile(
    image: Shaped[np.ndarray, "height width *channels"], tile: int
) -> Shaped[np.ndarray, "padded_height padded_width *channels"]:
    """Continue sides shorter than `tile` at the bottom and right by reflection (edge not repeated).

    Sides that are long enough stay as they are.
    """
    missing = [(0, max(tile - size, 0)) for size in image.shape[:2]]
    return np.pad(image, missing + [(0, 0)] * (image.ndim - 2), mode="reflect")


def cut_tiles(
    image: Shaped[np.ndarray, "height width *channels"],
    positions: Int[np.ndarray, "tiles 2"],
    tile: int,
) -> Shaped[np.ndarray, "tiles tile tile *channels"]:
    """The tiles at `positions`, of an image that is padded first where it is too small."""
    padded = pad_to_tile(image, tile)
    return np.stack([padded[top : top + tile, left : left + tile] for top, left in positions])


def blend_tiles(
    tiles: Iterable[Float[np.ndarray, "tile tile *channels"]],
    positions: Int[np.ndarray, "tiles 2"],
    shape: tuple[int, int],
) -> Float[np.ndarray, "height width *channels"]:
    """Tiles (of images or maps) put back together, seamlessly.

    Each pixel is a weighted mean of the tiles that cover it. The weights fall as a squared sine
    from a tile's centre to its edges, where a tile knows least, and add up to 1 everywhere.

    Args:
      tiles: as many as positions, one after another.
      positions: of `tile_positions`.
      shape: height and width of the result; what was padded is cut off.

    Raises:
      ValueError: not as many tiles as positions, or a pixel that no tile covers.
    """
    total = weights = None
    for (top, left), tile in zip(positions, tiles, strict=True):
        side = len(tile)
        ramp = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
        window = np.outer(ramp, ramp)
        if total is None or weights is None:
            padded = [max(size, side) for size in shape]
            weights = np.zeros(padded)
            total = np.zeros((*padded, *tile.shape[2:]))
        place = slice(top, top + side), slice(left, left + side)
        weights[place] += window
        total[place] += tile * window.reshape(side, side, *[1] * (tile.ndim - 2))
    if total is None or weights is None or not weights.all():
        raise ValueError(f"the tiles leave pixels of an image of {shape} uncovered")
    blended = total / weights.reshape(*weights.shape, *[1] * (total.ndim - 2))
    return blended[: shape[0], : shape[1]].astype(np.float32)


@lru_cache(maxsize=8)
def _gaussian_matrix(size: int, sigma: float) -> Float[np.ndarray, "size size"]:
    """SciPy's filter along one axis as a matrix, its mirrored borders included."""
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0).astype(np.float32)
