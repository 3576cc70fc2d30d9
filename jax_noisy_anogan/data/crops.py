"""What becomes of a training image: its crop, a pasted defect, random changes."""

from __future__ import annotations

import functools
import zlib
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from jax_noisy_anogan.data.augment import DRAWS, Augmentation, paste_defect
from jax_noisy_anogan.data.dataset import Dataset

DEFECT_POINTS = 64
# Of a tile's side: what of a defect lies at the border alone cannot be told from a flawless tile.
DEFECT_MARGIN = 0.2
DRAWN_TOGETHER = 256


class _Images(Protocol):
    """Images by position within a part; an array is one."""

    def __getitem__(self, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n r r c"]: ...


class _Defects:
    """Where the images of a part are defective.

    Attributes:
      points: of every image up to `DEFECT_POINTS` defective pixels (y, x) as fractions of its side.
        An image whose mask is unknown, or vanishes at its resolution, has none.
    """

    def __init__(self, dataset: Dataset, indices: Int[np.ndarray, " n"], side: int):
        self._source, self._indices = dataset.source(side), indices
        self.points: list[list[list[float]]] = []
        for index in indices:
            masks = dataset.masks([int(index)], dataset.resolution)
            assert masks is not None
            pixels = np.argwhere(masks[0])
            chosen = np.linspace(0, len(pixels) - 1, min(len(pixels), DEFECT_POINTS)).astype(int)
            self.points.append(((pixels[chosen] + 0.5) / dataset.resolution).tolist())

    def coverage(self, row: int) -> Float[np.ndarray, "side side"]:
        """The defective share of every pixel."""
        return self._source.mask(int(self._indices[row])).astype(np.float32) / 255.0


def _defects(dataset: Dataset, indices: Int[np.ndarray, " n"], side: int) -> _Defects | None:
    """None where masks are not known, or nobody asks for them."""
    wanted = dataset.tiles_per_side > 1 or dataset.augmentation.paste_defects > 0
    return _Defects(dataset, indices, side) if wanted and dataset.has_masks else None


class _Change:
    """Crops tiles and augments; the random choices of a record depend on its position alone.

    A tile of an abnormal image shows some of its defect where the mask is known: most tiles of it
    are flawless, and as known abnormal ones they would teach that flawless tiles are abnormal.

    Args:
      defects: of the images that are changed, where they are abnormal and have masks.
      backgrounds, background_count: normal images that defects are laid over.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        resolution: int,
        tiles_per_side: int,
        seed: int,
        name: str,
        defects: _Defects | None,
        backgrounds: _Images,
        background_count: int,
    ):
        self._defects = defects
        self._backgrounds, self._background_count = backgrounds, background_count
        self._augmentation = augmentation
        self._pasted = augmentation.paste_defects if defects is not None else 0.0
        self._resolution = resolution
        self._room = resolution * (tiles_per_side - 1)
        self._key = [seed, zlib.crc32(name.encode())]
        self._block = functools.lru_cache(maxsize=16)(self._draw_block)

    @property
    def is_off(self) -> bool:
        return self._room == 0 and not self._pasted and self._augmentation.is_off

    def __call__(
        self, image: UInt8[np.ndarray, "height width c"], row: int, position: int
    ) -> UInt8[np.ndarray, "r r c"]:
        top, left, point, *draws = self._draws(position, kind=1, count=3 + DRAWS)
        points = self._defects.points[row] if self._defects is not None else []
        if self._room and points:
            top, left = self._around(points, point, top, left)
        crop = self._crop(top, left)
        tile = image[crop]
        if points and self._pasted:
            assert self._defects is not None
            pasted, which, top, left = self._draws(position, kind=2, count=4)
            if pasted < self._pasted:
                chosen = np.array([int(which * self._background_count)])
                background = self._backgrounds[chosen][0][self._crop(top, left)]
                tile = paste_defect(tile, self._defects.coverage(row)[crop], background)
        return tile if self._augmentation.is_off else self._augmentation(tile, draws)

    def _crop(self, top: float, left: float) -> tuple[slice, slice]:
        """A tile that starts at these shares of the room: the same one at every resolution."""
        starts = (int(start * (self._room + 1)) for start in (top, left))
        down, right = (slice(start, start + self._resolution) for start in starts)
        return down, right

    def _draws(self, position: int, *, kind: int, count: int) -> list[float]:
        block, offset = divmod(position, DRAWN_TOGETHER)
        return self._block(kind, count, block)[offset]

    def _draw_block(self, kind: int, count: int, block: int) -> list[list[float]]:
        """The random numbers of many positions at once: a generator of each one's own is slow."""
        sequence = np.random.SeedSequence([*self._key, kind, block])
        rng = np.random.Generator(np.random.PCG64(sequence))
        return rng.random((DRAWN_TOGETHER, count)).tolist()

    def _around(
        self, points: list[list[float]], point: float, top: float, left: float
    ) -> tuple[float, float]:
        """A crop's start, as a share of the room, that has one of the points well inside."""
        side = self._resolution / (self._resolution + self._room)
        y, x = points[int(point * len(points))]
        down, right = (DEFECT_MARGIN + (1 - 2 * DEFECT_MARGIN) * share for share in (top, left))
        starts = ((y - down * side) / (1 - side), (x - right * side) / (1 - side))
        down, right = (min(max(start, 0.0), 1.0 - 1e-9) for start in starts)
        return down, right
