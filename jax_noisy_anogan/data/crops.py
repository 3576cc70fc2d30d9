"""What becomes of a training image: its crop, a pasted or simulated defect, random changes."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from jax_noisy_anogan.data.augment import DRAWS, paste_defect
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.preprocess import pad_to_tile
from jax_noisy_anogan.data.simulated import simulate_defects

DEFECT_POINTS = 64
# Of a tile's side: what of a defect lies at the border alone cannot be told from a flawless tile.
DEFECT_MARGIN = 0.2
DRAWN_TOGETHER = 256
# Separate uses of a position's random numbers.
_PLACES, _PASTES, _SIMULATES, _SOURCES, _DEFECTS = 1, 2, 3, 4, 5


Image = UInt8[np.ndarray, "height width channels"]


class Images(Protocol):
    """Images by position within a part; an array is one. They may differ in size."""

    def __getitem__(self, rows: Int[np.ndarray, " n"]) -> Sequence[Image]: ...


class Shown(NamedTuple):
    """A training image as a network is shown it.

    Attributes:
      mask: the defective share of every pixel, 0 (none) to 255 (all); empty where it is unknown.
    """

    image: UInt8[np.ndarray, "r r c"]
    mask: UInt8[np.ndarray, "r r"]


class Defects:
    """Where the images of a part are defective.

    Attributes:
      points: of every image up to `DEFECT_POINTS` defective pixels (y, x) as fractions of its
        sides. An image whose mask is unknown, or vanishes at its resolution, has none.
    """

    def __init__(self, dataset: Dataset, indices: Int[np.ndarray, " n"], side: int):
        self._source, self._indices = dataset.source(side), indices
        self.points: list[list[list[float]]] = []
        largest = dataset.source(dataset.resolution)
        for index in indices:
            covered = largest.mask(int(index))
            pixels = np.argwhere(covered >= 128)
            chosen = np.linspace(0, len(pixels) - 1, min(len(pixels), DEFECT_POINTS)).astype(int)
            self.points.append(((pixels[chosen] + 0.5) / covered.shape).tolist())

    def mask(self, row: int) -> UInt8[np.ndarray, "height width"]:
        """The defective share of every pixel, 0 to 255."""
        return self._source.mask(int(self._indices[row]))


def defects_of(
    dataset: Dataset, indices: Int[np.ndarray, " n"], side: int, with_masks: bool
) -> Defects | None:
    """None where masks are not known, or nobody asks for them."""
    cut_or_pasted = dataset.is_tiled or dataset.augmentation.paste_defects > 0
    wanted = with_masks or cut_or_pasted
    return Defects(dataset, indices, side) if wanted and dataset.has_masks else None


class Change:
    """Crops tiles and augments; the random choices of a record depend on its position alone.

    A tile of an abnormal image shows some of its defect where the mask is known: most tiles of it
    are flawless, and as known abnormal ones they would teach that flawless tiles are abnormal.

    Args:
      name: of the stream, each of which has random choices of its own.
      defects: of the images that are changed, where they are abnormal and have masks.
      backgrounds, background_count: normal images, which known defects are laid over and simulated
        ones are made of; None where the images that are changed are normal ones.
    """

    def __init__(
        self,
        dataset: Dataset,
        resolution: int,
        seed: int,
        name: str,
        *,
        defects: Defects | None = None,
        backgrounds: Images | None = None,
        background_count: int = 0,
    ):
        self._defects = defects
        self._backgrounds, self._background_count = backgrounds, background_count
        self._augmentation = augmentation = dataset.augmentation
        self._pasted = augmentation.paste_defects if defects is not None else 0.0
        self._simulated = augmentation.simulated_defects if backgrounds is not None else 0.0
        self._resolution, self._is_tiled = resolution, dataset.is_tiled
        self._key = [seed, zlib.crc32(name.encode())]
        self._block = functools.lru_cache(maxsize=16)(self._draw_block)

    @property
    def is_off(self) -> bool:
        """Whether a call would return every image as it is, without its mask."""
        idle = not (self._is_tiled or self._simulated) and self._augmentation.is_off
        return idle and self._defects is None

    def __call__(self, image: Image, row: int, position: int) -> Shown:
        """What is shown at a position of the stream.

        Args:
          row: of `image` among the images of `defects`.
        """
        draws = self._draws(position, kind=_PLACES, count=3 + DRAWS)[3:]
        if self._simulated and self._draws(position, kind=_SIMULATES, count=1)[0] < self._simulated:
            tile, mask = self._with_simulated_defects(position)
        else:
            tile, mask = self._tile(image, row, position)
        if self._augmentation.is_off:
            return Shown(tile, mask)
        moved = self._augmentation.move(mask[..., None], draws)
        return Shown(self._augmentation(tile, draws), moved[..., 0])

    def _tile(self, image: Image, row: int, position: int) -> Shown:
        """A crop of a training image; its defect is perhaps laid over another one."""
        top, left, point, *_ = self._draws(position, kind=_PLACES, count=3 + DRAWS)
        points = self._defects.points[row] if self._defects is not None else []
        if self._is_tiled and points:
            y, x = points[int(point * len(points))]
            top = self._around(y, top, image.shape[0])
            left = self._around(x, left, image.shape[1])
        tile, mask = self._crop(image, top, left), np.zeros((self._resolution,) * 2, np.uint8)
        if points:
            assert self._defects is not None
            mask = self._crop(self._defects.mask(row), top, left)
        if points and self._pasted:
            pasted, *background = self._draws(position, kind=_PASTES, count=4)
            if pasted < self._pasted:
                coverage = mask.astype(np.float32) / 255.0
                tile = paste_defect(tile, coverage, self._background(*background))
        return Shown(tile, mask)

    def _with_simulated_defects(self, position: int) -> Shown:
        draws = self._draws(position, kind=_SOURCES, count=6)
        sequence = np.random.SeedSequence([*self._key, _DEFECTS, position])
        rng = np.random.Generator(np.random.PCG64(sequence))
        found = simulate_defects(self._background(*draws[:3]), self._background(*draws[3:]), rng)
        return Shown(found.image, found.mask.astype(np.uint8) * np.uint8(255))

    def _background(self, which: float, top: float, left: float) -> UInt8[np.ndarray, "r r c"]:
        """A crop of a normal image."""
        assert self._backgrounds is not None
        chosen = np.array([int(which * self._background_count)])
        return self._crop(self._backgrounds[chosen][0], top, left)

    def _crop(
        self, image: UInt8[np.ndarray, "height width *c"], top: float, left: float
    ) -> UInt8[np.ndarray, "r r *c"]:
        """A tile that starts at these shares of the room: the same one at every resolution."""
        side = self._resolution
        image = pad_to_tile(image, side)
        y, x = (
            int(start * (size - side + 1))
            for start, size in zip((top, left), image.shape[:2], strict=True)
        )
        return image[y : y + side, x : x + side]

    def _draws(self, position: int, *, kind: int, count: int) -> list[float]:
        block, offset = divmod(position, DRAWN_TOGETHER)
        return self._block(kind, count, block)[offset]

    def _draw_block(self, kind: int, count: int, block: int) -> list[list[float]]:
        """The random numbers of many positions at once: a generator of each one's own is slow."""
        sequence = np.random.SeedSequence([*self._key, kind, block])
        rng = np.random.Generator(np.random.PCG64(sequence))
        return rng.random((DRAWN_TOGETHER, count)).tolist()

    def _around(self, point: float, share: float, size: int) -> float:
        """Where a crop starts along one axis, as a share of the room, with a point well inside.

        Args:
          point: as a fraction of the image's side, which has `size` pixels.
        """
        side = self._resolution / size
        if side >= 1:
            return share
        inside = DEFECT_MARGIN + (1 - 2 * DEFECT_MARGIN) * share
        return min(max((point - inside * side) / (1 - side), 0.0), 1.0 - 1e-9)
