"""Random changes of training images; all off unless the config asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from jax_noisy_anogan.config import DataConfig

# Random numbers that one image needs.
DRAWS = 6


@dataclass(frozen=True)
class Augmentation:
    """Which changes, and how strong; see the fields of the same names in `DataConfig`."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    max_shift: float = 0.0
    brightness: float = 0.0

    @classmethod
    def from_config(cls, config: DataConfig) -> Augmentation:
        return cls(
            flip_horizontal=config.flip_horizontal,
            flip_vertical=config.flip_vertical,
            quarter_turns=config.quarter_turns,
            max_shift=config.max_shift,
            brightness=config.brightness,
        )

    @property
    def is_off(self) -> bool:
        return self == Augmentation()

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
        horizontal, vertical, turn, down, right, brighter = draws
        if self.flip_horizontal and horizontal < 0.5:
            image = image[:, ::-1]
        if self.flip_vertical and vertical < 0.5:
            image = image[::-1]
        if self.quarter_turns:
            image = np.rot90(image, int(4 * turn))
        if self.max_shift:
            shift = (2 * np.array([down, right]) - 1) * self.max_shift * len(image)
            image = _shifted(image, np.rint(shift).astype(int))
        if self.brightness:
            changed = image + 255 * self.brightness * (2 * brighter - 1)
            image = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        return image


def _shifted(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    side = np.arange(len(image))
    rows, columns = (np.clip(side - offset, 0, len(image) - 1) for offset in shift)
    return image[rows][:, columns]
