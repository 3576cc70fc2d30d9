"""Random changes of training images; all off unless the config asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from jax_noisy_anogan.config import DataConfig

# Random numbers that one image needs.
DRAWS = 6
# Width of the seam around a pasted defect, as a share of the side.
_SEAM = 1 / 64


@dataclass(frozen=True)
class Augmentation:
    """Which changes, and how strong; see the fields of the same names in `DataConfig`.

    `paste_defects` and `simulated_defects` need other images: they are left to the pipeline.
    """

    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    max_shift: float = 0.0
    brightness: float = 0.0
    paste_defects: float = 0.0
    simulated_defects: float = 0.0

    @classmethod
    def from_config(cls, config: DataConfig) -> Augmentation:
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})

    @property
    def is_off(self) -> bool:
        """Whether a call changes nothing."""
        return dataclasses.replace(self, paste_defects=0.0, simulated_defects=0.0) == Augmentation()

    def __call__(
        self,
        image: UInt8[np.ndarray, "side side channels"],
        draws: Sequence[float],
    ) -> UInt8[np.ndarray, "side side channels"]:
        """One random change of each enabled kind.

        Args:
          draws: `DRAWS` uniform numbers in [0, 1). Every kind has its own, so that enabling one
            leaves the random choices of the others alone.

        Returns:
          The changed image; a shift repeats the border pixels.
        """
        image = self.move(image, draws)
        if self.brightness:
            changed = image + 255 * self.brightness * (2 * draws[5] - 1)
            image = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        return image

    def move(
        self,
        image: UInt8[np.ndarray, "side side channels"],
        draws: Sequence[float],
    ) -> UInt8[np.ndarray, "side side channels"]:
        """What a call does to the place of every pixel: the mask of an image moves with it."""
        horizontal, vertical, turn, down, right, _ = draws
        if self.flip_horizontal and horizontal < 0.5:
            image = image[:, ::-1]
        if self.flip_vertical and vertical < 0.5:
            image = image[::-1]
        if self.quarter_turns:
            image = np.rot90(image, int(4 * turn))
        if self.max_shift:
            shift = (2 * np.array([down, right]) - 1) * self.max_shift * len(image)
            image = _shifted(image, np.rint(shift).astype(int))
        return image


def paste_defect(
    image: UInt8[np.ndarray, "side side channels"],
    coverage: Float[np.ndarray, "side side"],
    background: UInt8[np.ndarray, "side side channels"],
) -> UInt8[np.ndarray, "side side channels"]:
    """The defect of one image laid over a flawless one, with a soft seam around it.

    The defect keeps its contrast to what surrounded it: it is shifted by the difference of the two
    images' means outside of it.

    Args:
      coverage: the defective share of every pixel of `image`, 0 to 1.
    """
    soft = np.minimum(1.0, 2.0 * ndimage.gaussian_filter(coverage, _SEAM * len(image)))
    weight = soft[..., None]
    apart = ((1.0 - weight) * (background.astype(np.float32) - image)).sum(axis=(0, 1))
    shift = apart / max(float((1.0 - weight).sum()), 1.0)
    pasted = weight * (image + shift) + (1.0 - weight) * background
    return np.clip(np.rint(pasted), 0, 255).astype(np.uint8)


def _shifted(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    side = np.arange(len(image))
    rows, columns = (np.clip(side - offset, 0, len(image) - 1) for offset in shift)
    return image[rows][:, columns]
