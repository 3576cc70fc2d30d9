"""How well maps show where a defect is: pixel AUROC and AUPRO, over any number of images."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.frame import enlarged
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.evaluation.held_out import Seen
from jax_noisy_anogan.evaluation.metrics import Interval, bootstrap_samples, percentiles
from jax_noisy_anogan.scoring.regions import labelled

# Bins of `PixelMetrics`: sign, exponent and this many further bits of the pixels' float32 value,
# once for the sums and once for the single images that are resampled.
_FINE_BITS, _COARSE_BITS = 10, 5

# Pixels of a mask that are looked at; a larger one is looked at in blocks.
_MOST_PIXELS = 2**24

Map = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]


class PixelResult(NamedTuple):
    """Pixel metrics; nan where there are no defective or no flawless pixels.

    Attributes:
      auroc: over all pixels of all images.
      aupro: per-region overlap (Bergmann et al. 2021, Eq. 2): the mean over all connected defect
        regions of the detected share of each, integrated over the false-positive rate from 0 to
        `max_fpr` and divided by `max_fpr`. A small defect counts as much as a large one.
      auroc_error, aupro_error: binning has moved the figures by at most this much.
      images, regions: how many were seen.
    """

    auroc: float
    aupro: float
    auroc_error: float
    aupro_error: float
    images: int
    regions: int


class PixelIntervals(NamedTuple):
    """An interval for each of `PixelResult`'s areas; images are resampled, not pixels."""

    auroc: Interval
    aupro: Interval


class PixelMetrics:
    """Pixel metrics of any number of images in bounded memory.

    Pixel values are counted in bins as wide as 1/1024 of their own size, whatever their range, so
    nothing needs to be known of the maps beforehand. Within a bin the order is unknown; the result
    states how far that can have moved it. An image adds a few kilobytes, kept for the bootstrap.
    """

    def __init__(self, *, max_fpr: float = 0.3):
        """Start empty.

        Raises:
          ValueError: `max_fpr` is not above 0 and at most 1.
        """
        if not 0.0 < max_fpr <= 1.0:
            raise ValueError(f"max_fpr={max_fpr}: expected above 0 and at most 1")
        self._max_fpr = max_fpr
        self._totals: dict[str, _Counts] = {}
        self._images: list[tuple[str, int, _Counts]] = []

    def update(self, map: Map, mask: Mask, defect: str = "", group: int | None = None) -> None:
        """Count one image.

        Args:
          map: larger where a pixel looks abnormal.
          mask: True at the defective pixels.
          defect: what kind of defect the image shows; empty for a normal image.
          group: number of the part that it shows; None: no other image shows it.

        Raises:
          ValueError: map and mask differ in size, or the map is not finite.
        """
        bins = 9 + _FINE_BITS
        counts = _count(_ordered_bits(_checked_map(map, mask)) >> (32 - bins), mask, 2**bins)
        known = self._totals.get(defect)
        self._totals[defect] = counts if known is None else _merged([known, counts])
        coarse = counts._replace(keys=counts.keys >> (_FINE_BITS - _COARSE_BITS))
        alone = 2**40 + len(self._images)  # the number of no group
        self._images.append((defect, alone if group is None else group, _merged([coarse])))

    def result(self) -> PixelResult:
        """Over all images so far."""
        return self._result(list(self._totals))

    def by_class(self) -> dict[str, PixelResult]:
        """For each kind of defect its images together with the normal ones, alphabetically."""
        return {name: self._result(["", name]) for name in sorted(set(self._totals) - {""})}

    def intervals(self, *, seed: int, resamples: int = 1000, level: float = 0.95) -> PixelIntervals:
        """Bootstrap intervals; parts, or images, are resampled within their kind of defect.

        Single images are kept in bins of 1/32 of a value's own size. What that alone moves the
        areas by is taken back.
        """
        if not self._images:
            return PixelIntervals(Interval(nan, nan), Interval(nan, nan))
        keys = np.unique(np.concatenate([counts.keys for _, _, counts in self._images]))
        flawless, defective, overlap = np.zeros((3, len(self._images), len(keys)))
        for row, (_, _, counts) in enumerate(self._images):
            columns = np.searchsorted(keys, counts.keys)
            flawless[row, columns] = counts.flawless
            defective[row, columns] = counts.defective
            overlap[row, columns] = counts.overlap
        strata = np.array([defect for defect, _, _ in self._images])
        groups = np.array([group for _, group, _ in self._images])

        def areas(weight: Float[np.ndarray, " images"]) -> tuple[float, float]:
            false = weight @ flawless
            auroc, _ = _area(false, weight @ defective, 1.0)
            return auroc, _area(false, weight @ overlap, self._max_fpr)[0]

        drawn = [
            areas(np.bincount(chosen, minlength=len(strata)).astype(float))
            for chosen in bootstrap_samples(strata, seed, resamples, groups)
        ]
        found = self.result()
        moved = np.array([found.auroc, found.aupro]) - areas(np.ones(len(strata)))
        shifted = np.clip(np.array(drawn) + moved, 0.0, 1.0).T
        return PixelIntervals(*(percentiles(column, level) for column in shifted))

    def _result(self, defects: list[str]) -> PixelResult:
        found = [self._totals[name] for name in defects if name in self._totals]
        if not found:
            return PixelResult(nan, nan, nan, nan, 0, 0)
        counts = _merged(found)
        auroc, auroc_error = _area(counts.flawless, counts.defective, 1.0)
        overlap, overlap_error = _area(counts.flawless, counts.overlap, self._max_fpr)
        return PixelResult(
            auroc=auroc,
            aupro=overlap,
            auroc_error=auroc_error,
            aupro_error=overlap_error,
            images=sum(defect in defects for defect, _, _ in self._images),
            regions=counts.regions,
        )


class MaskedPixels:
    """Pixel metrics of test images whose masks are known, at the masks' own resolution.

    Attributes:
      metrics: of the images so far.
      empty: ids of abnormal images that are left out, because their masks show no defect.
    """

    def __init__(self, dataset: Dataset, split: Split):
        self._dataset, self._split = dataset, split
        self.metrics, self.empty = PixelMetrics(), list[str]()

    def __call__(self, seen: Seen) -> None:
        """Count a test image."""
        self.add(seen.example, seen.map)

    def add(self, index: int, map: Map) -> None:
        """Count an image of the data set; a map of its frame may have any size."""
        dataset, groups = self._dataset, self._split.groups
        abnormal = bool(self._split.is_abnormal[index])
        if abnormal and not dataset.has_mask[index]:
            return
        mask = _bounded(dataset.own_mask(index))
        if abnormal and not mask.any():
            self.empty.append(dataset.ids[index])
            return
        name = dataset.class_names[dataset.labels[index]] if abnormal else ""
        group = None if groups is None else int(groups[index])
        self.metrics.update(enlarged(map, mask.shape), mask, name, group)


def _bounded(mask: Mask) -> Mask:
    """A mask of at most 16 million pixels: blocks of a larger one, defective where any pixel is."""
    block = int(np.ceil(np.sqrt(mask.size / _MOST_PIXELS)))
    if block <= 1:
        return mask
    missing = [(0, -size % block) for size in mask.shape]
    height, width = (size // block for size in np.add(mask.shape, [pad for _, pad in missing]))
    blocks = np.pad(mask, missing).reshape(height, block, width, block)
    return np.asarray(blocks.any(axis=(1, 3)))


class _Counts(NamedTuple):
    """Pixels per value, or bin of values, in ascending order; empty bins are left out.

    Attributes:
      flawless, defective: numbers of pixels.
      overlap: defective pixels, each divided by the size of its region.
    """

    keys: Int[np.ndarray, " bins"]
    flawless: Float[np.ndarray, " bins"]
    defective: Float[np.ndarray, " bins"]
    overlap: Float[np.ndarray, " bins"]
    regions: int


def _count(keys: Int[np.ndarray, "height width"], mask: Mask, bins: int) -> _Counts:
    labels, areas = labelled(mask)
    inside = labels[mask]
    share = 1.0 / np.maximum(areas, 1)
    every = np.bincount(keys.ravel(), minlength=bins)
    defective = np.bincount(keys[mask], minlength=bins)
    overlap = np.bincount(keys[mask], share[inside], minlength=bins)
    used = np.flatnonzero(every)
    return _Counts(
        used, (every - defective)[used] * 1.0, defective[used] * 1.0, overlap[used], len(areas) - 1
    )


def _merged(parts: Sequence[_Counts]) -> _Counts:
    keys, place = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
    flawless, defective, overlap = (
        np.bincount(place, np.concatenate(columns), minlength=len(keys))
        for columns in zip(*(part[1:4] for part in parts), strict=True)
    )
    return _Counts(keys, flawless, defective, overlap, sum(part.regions for part in parts))


def _area(
    flawless: Float[np.ndarray, " bins"], hits: Float[np.ndarray, " bins"], max_fpr: float
) -> tuple[float, float]:
    """Area under hits against false positives up to `max_fpr`, relative, and how far it can be off.

    The true curve rises monotonically from corner to corner of each bin's box, so that the straight
    line through it errs by less than the larger part of the box on either side of the line.
    """
    if flawless.sum() == 0 or hits.sum() == 0:
        return nan, nan
    false, true = (
        np.concatenate(([0.0], np.cumsum(counts[::-1]))) / counts.sum()
        for counts in (flawless, hits)
    )
    width, rise = np.diff(false), np.diff(true)
    kept = np.clip(max_fpr - false[:-1], 0.0, width)
    part = np.divide(kept, width, out=np.zeros_like(width), where=width > 0)
    area = np.sum(kept * (true[:-1] + part * rise / 2))
    error = np.sum(kept * rise * (1 - part / 2))
    return float(area / max_fpr), float(error / max_fpr)


def _ordered_bits(values: Map) -> Int[np.ndarray, "height width"]:
    """Integers in [0, 2**32) that are ordered as the values are, as float32."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    flip = np.where(bits >> 31 == 1, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return (bits ^ flip).astype(np.int64)


def _checked_map(map: Map, mask: Mask) -> Map:
    map, mask = np.asarray(map), np.asarray(mask)
    if mask.dtype != bool or map.shape != mask.shape:
        raise ValueError(
            f"a map of {map.shape} with a mask of {mask.shape} and {mask.dtype}: expected equal "
            "sizes and a mask of bool"
        )
    if not np.isfinite(map).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(map))} pixels of the map are not finite")
    return map
