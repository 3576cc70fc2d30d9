"""Images in overlapping tiles: cut, and put together again."""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from jax_noisy_anogan.data.preprocess import pad_to_tile


def blend_on_device(
    tiles: Float[Array, "tiles tile tile channels"], positions: np.ndarray, shape: tuple[int, int]
) -> Float[Array, "height width channels"]:
    """`blend_tiles` on the device."""
    size, channels = tiles.shape[1], tiles.shape[-1]
    height, width = shape
    padded = max(height, size), max(width, size)

    def add(whole: Array, item: tuple[Array, Array, Array]) -> tuple[Array, None]:
        tile, weight, (top, left) = item
        zero = jnp.zeros_like(top)
        place = lax.dynamic_slice(whole, (top, left, zero), (size, size, channels))
        place += tile * weight[..., None]
        return lax.dynamic_update_slice(whole, place, (top, left, zero)), None

    whole = jnp.zeros((*padded, channels))
    weights = jnp.asarray(_blend_weights(positions, size, padded))
    whole, _ = lax.scan(add, whole, (tiles, weights, jnp.asarray(positions, jnp.int32)))
    return whole[:height, :width]


def _blend_weights(
    positions: np.ndarray, size: int, shape: tuple[int, int]
) -> Float[np.ndarray, "tiles tile tile"]:
    """What every pixel of every tile counts for in `blend_tiles`."""
    window, total = _window(size), np.zeros(shape)
    places = [(slice(top, top + size), slice(left, left + size)) for top, left in positions]
    for place in places:
        total[place] += window
    return np.stack([window / total[place] for place in places]).astype(np.float32)


def _window(side: int) -> Float[np.ndarray, "side side"]:
    ramp = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    return np.outer(ramp, ramp)


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
        window = _window(side)
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
