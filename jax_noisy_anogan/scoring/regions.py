"""Connected regions of a map: where they lie, how large and how strong they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

# Pixels that touch at a corner belong to one region, as in the evaluation of MVTec AD.
_NEIGHBOURS = np.ones((3, 3), bool)
# Speckle has as many regions as pixels, of which nobody looks at more.
MOST_REGIONS = 100


class Box(NamedTuple):
    """A rectangle in pixels; x and y are those of its upper left pixel."""

    x: int
    y: int
    width: int
    height: int


class Region(NamedTuple):
    """A connected region of a map.

    Attributes:
      box: around it.
      area: its pixels.
      peak: the highest value of the map in it.
    """

    box: Box
    area: int
    peak: float


class Regions(NamedTuple):
    """The regions of a map.

    Attributes:
      total: how many there are.
      largest: at most `MOST_REGIONS` of them, the largest first.
    """

    total: int
    largest: tuple[Region, ...]

    def scaled(self, step: int, height: int, width: int) -> Regions:
        """Those of an image of this size whose map has one pixel for `step` x `step` of it."""
        if step == 1:
            return self
        return Regions(self.total, tuple(_scaled(r, step, height, width) for r in self.largest))


class Labelled(NamedTuple):
    """A mask's connected regions.

    Attributes:
      labels: the region of every pixel, from 1 on in reading order of their first pixels; 0 outside
        of the mask.
      areas: pixels of every label; those of label 0 are outside.
    """

    labels: Int[np.ndarray, "height width"]
    areas: Int[np.ndarray, " regions_and_rest"]


def labelled(mask: Bool[np.ndarray, "height width"]) -> Labelled:
    """Number the connected regions of a mask; pixels that touch at a corner are connected."""
    labels, count = ndimage.label(mask, _NEIGHBOURS)
    return Labelled(labels, np.bincount(labels.ravel(), minlength=count + 1))


def find_regions(map: Float[np.ndarray, "height width"], threshold: float) -> Regions:
    """The regions above the threshold; of equally large ones the first in reading order is first.

    Pixels that are nan belong to none.
    """
    labels, areas = labelled(np.asarray(map) > threshold)
    largest = np.argsort(-areas[1:], kind="stable")[:MOST_REGIONS] + 1
    rank = np.zeros(len(areas), np.int32)
    rank[largest] = np.arange(len(largest)) + 1
    ranks = rank[labels]
    places = ndimage.find_objects(ranks)
    peaks = ndimage.maximum(map, ranks, np.arange(len(places)) + 1) if places else ()
    return Regions(
        len(areas) - 1,
        tuple(
            Region(_box(*place), int(areas[label]), float(peak))
            for place, label, peak in zip(places, largest, peaks, strict=True)
        ),
    )


def _scaled(region: Region, step: int, height: int, width: int) -> Region:
    x, y, columns, rows = (step * length for length in region.box)
    box = Box(x, y, min(columns, width - x), min(rows, height - y))
    return Region(box, min(step**2 * region.area, box.width * box.height), region.peak)


def _box(rows: slice, columns: slice) -> Box:
    return Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
