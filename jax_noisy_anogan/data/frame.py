"""From a photograph to the picture that networks see, and from its places back to the photograph.

An export holds a copy of this file, so that photographs are prepared and read there as here: it
needs NumPy and Pillow alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped, UInt8

_LARGEST_PADDED = 8192


class Frame(NamedTuple):
    """Which section of a photograph a picture shows.

    Attributes:
      height, width: of the photograph, in pixels.
      top, left, rows, columns: the section, in pixels of the photograph. It reaches beyond the
        photograph where that is padded, and leaves some of it out where that is cropped.
    """

    height: int
    width: int
    top: float
    left: float
    rows: float
    columns: float

    @classmethod
    def of(cls, height: int, width: int, fit: str) -> Frame:
        """What `fit_square`, or `scaled` for `fit="scale"`, shows of a photograph of this size."""
        if fit == "crop":
            side = min(height, width)
            return cls(height, width, (height - side) // 2, (width - side) // 2, side, side)
        if fit == "pad":
            # In pixels of the photograph as it is padded, which may be smaller.
            rows, columns = padded_size(height, width)
            side = max(rows, columns)
            down, right = height / rows, width / columns
            top, left = (side - rows) // 2, (side - columns) // 2
            return cls(height, width, -top * down, -left * right, side * down, side * right)
        return cls(height, width, 0, 0, height, width)

    def step(self, most_pixels: int) -> int:
        """The smallest step for `place` at which its result has about so many pixels at most."""
        return max(1, math.ceil(math.sqrt(self.height * self.width / most_pixels)))

    def place(
        self, map: Float[np.ndarray, "rows columns"], *, step: int = 1
    ) -> Float[np.ndarray, "height width"]:
        """A map of the picture in pixels of the photograph, between its own pixels linear.

        NaN where the picture shows nothing of the photograph, which `crop` has cut away. Pixels of
        the picture whose centres lie beside the photograph, where `pad` put zeros, are left out.

        Args:
          step: pixels of the photograph, on a side, for one pixel of the result; at the lower and
            right edges a pixel may stand for fewer.
        """
        placed = np.full((-(-self.height // step), -(-self.width // step)), np.nan, np.float32)
        places, sources, box = [], [], []
        for size, count, start, length, pixels in (
            (self.height, placed.shape[0], self.top, self.rows, map.shape[0]),
            (self.width, placed.shape[1], self.left, self.columns, map.shape[1]),
        ):
            first = math.ceil(max(start, 0) / step)
            end = count if start + length >= size else int((start + length) // step)
            places.append(slice(first, end))
            edges = ((edge * step - start) / length * pixels for edge in (first, end))
            box.append([min(max(edge, 0.0), float(pixels)) for edge in edges])
            # The nearest pixel of the photograph stands for one beside it.
            nearest, last = math.ceil(box[-1][0] - 0.5), math.ceil(box[-1][1] - 0.5) - 1
            nearest = min(nearest, pixels - 1)
            sources.append(np.clip(np.arange(pixels), nearest, max(last, nearest)))
        shape = tuple(place.stop - place.start for place in places)
        if min(shape) > 0:
            placed[places[0], places[1]] = enlarged(map[np.ix_(*sources)], shape, box=box)
        return placed


def enlarged(
    map: Float[np.ndarray, "rows columns"],
    shape: tuple[int, ...],
    *,
    box: list[list[float]] | None = None,
) -> Float[np.ndarray, "height width"]:
    """A map, or a section of it, at another size, between its pixels linear.

    Args:
      shape: height and width of the result.
      box: first and last row, and first and last column of the section, edges of pixels being whole
        numbers; None takes the whole map.
    """
    picture = Image.fromarray(np.asarray(map, np.float32))
    section = None if box is None else (box[1][0], box[0][0], box[1][1], box[0][1])
    size = (shape[1], shape[0])
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=section))


def fit_square(
    image: UInt8[np.ndarray, "height width channels"], resolution: int, fit: str
) -> UInt8[np.ndarray, "resolution resolution channels"]:
    """Bring an image of any size to a square.

    Args:
      fit: "stretch" (both axes on their own), "crop" (the largest central square) or "pad" (a
        square with zeros around the image).
    """
    if fit == "pad":
        # A strip of few pixels can have a square of terabytes around it.
        image = _resize(image, padded_size(*image.shape[:2]))
    return _resize(framed(image, fit), (resolution, resolution))


def scaled(
    image: UInt8[np.ndarray, "height width channels"], scale: float
) -> UInt8[np.ndarray, "rows columns channels"]:
    """Bring an image to a scale, with its proportions but for a half pixel of the result.

    Args:
      scale: pixels of the image, on a side, for one of the result.
    """
    height, width = image.shape[:2]
    return _resize(image, scaled_size(height, width, scale))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Rows and columns of what `scaled` makes of an image of this size."""
    return max(1, round(height / scale)), max(1, round(width / scale))


def framed(
    image: Shaped[np.ndarray, "height width *channels"], fit: str
) -> Shaped[np.ndarray, "framed_height framed_width *channels"]:
    """What `fit_square` or `scaled` shows of an image, in the image's own pixels."""
    height, width = image.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]
    if fit == "pad":
        side = max(height, width)
        square = np.zeros((side, side, *image.shape[2:]), image.dtype)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        return square
    return image


def shrunk(
    image: UInt8[np.ndarray, "height width channels"], step: int
) -> UInt8[np.ndarray, "rows columns channels"]:
    """The means of blocks of `step` x `step` pixels, as `Frame.place` counts them."""
    if step == 1:
        return image
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image).reduce(step)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of an image that is padded: the same proportions, within a limit."""
    scale = _LARGEST_PADDED / max(height, width, _LARGEST_PADDED)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == shape:
        return image
    # BOX is the exact area average when shrinking but repeats pixels when enlarging.
    shrinking = image.shape[0] >= shape[0] and image.shape[1] >= shape[1]
    method = Image.Resampling.BOX if shrinking else Image.Resampling.BILINEAR
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(picture.resize(shape[::-1], method)).reshape(*shape, channels)
