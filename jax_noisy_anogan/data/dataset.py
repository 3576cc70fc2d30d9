"""Prepared records: writing them once, restartable, and reading them back at random.

A data set lies in `cache_dir/NAME-FINGERPRINT/`. The fingerprint covers the source files and every
setting that changes a pixel, so other settings or changed files never read stale records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Int, UInt8

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import pyramid, survey
from jax_noisy_anogan.data.augment import Augmentation
from jax_noisy_anogan.data.catalog import open_source
from jax_noisy_anogan.data.examples import Source
from jax_noisy_anogan.data.frame import fit_square, scaled_size
from jax_noisy_anogan.data.preprocess import framed_mask
from jax_noisy_anogan.data.writing import (
    FORMAT,
    HEADER,
    OWN_MASKS,
    damage,
    exclusive,
    part_name,
    read_json,
    write_records,
)
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import UNREADABLE, digest, user_path, write_text


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the records, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Prepared records of a whole data set, before any protocol divides it.

    Attributes:
      name: as in `config.data.name`.
      ids: one unique text per example.
      labels: index into `class_names`.
      class_names: every class, also those without examples.
      normal_classes: those that the layout declares normal; empty where a protocol decides.
      marks: official part of each example: "train", "test", "unlabeled" or "".
      has_mask: whether the example's mask is known (normal examples have an empty one).
      sizes: width and height of the source file in pixels.
      modes: pixel format of the source file, in Pillow's names.
      contents: a hash of each example's pixels before they are prepared.
      groups: examples of the same object share a text; "" where nothing is known.
      cells: class of each cell of a puzzle image, or None.
      resolution: largest prepared resolution: the side of the images, which are squares; where they
        keep their shape (`keeps_shape`) that of the model's tiles.
      tiles_per_side: how many of the model's tiles span one square image; 1 unless it is tiled.
      augmentation: of training images, as the config asks.
      left_out: files that were skipped, with reasons.
      remarks: what was chosen from the files, and what the settings lose, in words.
      fit: how images became square, or "scale": then they differ in size.
      scale: with "scale", pixels of a file, on a side, per pixel of the largest resolution.
      path: folder of the records.
    """

    name: str
    ids: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    normal_classes: tuple[str, ...]
    marks: tuple[str, ...]
    has_mask: Bool[np.ndarray, " n"]
    sizes: Int[np.ndarray, "n 2"]
    modes: tuple[str, ...]
    contents: tuple[str, ...]
    groups: tuple[str, ...]
    cells: Int[np.ndarray, "n rows columns"] | None
    resolution: int
    channels: int
    has_masks: bool
    tiles_per_side: int
    augmentation: Augmentation
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...]
    fit: str
    scale: float
    path: Path
    _parts: tuple[tuple[Path, int], ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The prepared resolutions, largest first."""
        return pyramid.levels(self.resolution)

    @property
    def keeps_shape(self) -> bool:
        """Whether images keep the shape of their files, so that they differ in size."""
        return self.fit == "scale"

    @property
    def is_tiled(self) -> bool:
        """Whether the model looks at tiles of an image, instead of a whole one."""
        return self.keeps_shape or self.tiles_per_side > 1

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of an image at the largest resolution."""
        if not self.keeps_shape:
            return self.resolution, self.resolution
        width, height = self.sizes[index].tolist()
        return scaled_size(height, width, self.scale)

    def write_report(self) -> Path:
        """Write `left_out` as lines of `file: reason` beside the records, and return the path."""
        report = self.path / "left_out.txt"
        text = "".join(f"{item.file}: {item.reason}\n" for item in self.left_out)
        try:
            # Several processes may be here, and the folder may only be read.
            if not (report.exists() and report.read_text("utf-8", "replace") == text):
                write_text(report, text)
        except OSError as error:
            logging.warning("%s cannot be written: %s", report, error.strerror)
        return report

    def source(self, resolution: int) -> LevelSource:
        """Random access to the images of one resolution, each uint8 [r, r, channels] in 0..255.

        Images that keep their shape are [height, width, channels], so that a tile is [r, r].

        Raises:
          DataError: the resolution was not prepared.
        """
        if resolution not in self.resolutions:
            raise DataError(
                f"{self.name} is prepared at {self.resolutions}: resolution "
                f"{resolution} is not among them"
            )
        return LevelSource(self._parts, resolution)

    def images(
        self, indices: Sequence[int] | Int[np.ndarray, " n"], resolution: int
    ) -> UInt8[np.ndarray, "n resolution resolution channels"]:
        """The images at `indices`, in their order, 0..255; those that keep their shape stretched.

        Raises:
          DataError: the resolution was not prepared, or a record is damaged.
        """
        source = self.source(resolution)
        images = np.empty((len(indices), resolution, resolution, self.channels), np.uint8)
        for row, image in enumerate(source.each(indices)):
            images[row] = fit_square(image, resolution, "stretch")
        return images

    def masks(
        self, indices: Sequence[int] | Int[np.ndarray, " n"], resolution: int
    ) -> Bool[np.ndarray, "n resolution resolution"] | None:
        """True where at least half of a pixel's area is anomalous; None without any masks.

        An example whose mask is unknown (`has_mask` is False) gets an empty one: leave it out of
        pixel metrics. Defects smaller than half a pixel vanish at low resolutions; `own_mask` keeps
        them.
        """
        if not self.has_masks:
            return None
        source = self.source(resolution)
        masks = np.empty((len(indices), resolution, resolution), bool)
        for row, index in enumerate(indices):
            covered = source.mask(int(index))[..., None]
            masks[row] = fit_square(covered, resolution, "stretch")[..., 0] >= 128
        return masks

    def own_mask(self, index: int) -> Bool[np.ndarray, "height width"]:
        """The mask of an example in its source's own pixels, in the frame that `fit` shows.

        Empty where there is no defect in that frame, or the mask is unknown (`has_mask`).

        Raises:
          DataError: the masks are damaged.
        """
        part, row = self.source(self.resolution).place(index)
        path = self._parts[part][0] / OWN_MASKS
        try:
            with np.load(path, allow_pickle=False) as masks:
                if str(row) in masks.files:
                    return pyramid.decode_bits(masks[str(row)].tobytes())
        except (*UNREADABLE, SyntaxError) as error:
            raise damage(str(path), error, self.path) from error
        width, height = self.sizes[index]
        return framed_mask(np.zeros((height, width), bool), self.fit)


class LevelSource:
    """Random access to one resolution of prepared records; picklable and thread-safe."""

    def __init__(self, parts: tuple[tuple[Path, int], ...], resolution: int):
        self._parts = parts
        self._resolution = resolution
        self._starts = np.cumsum([0, *(count for _, count in parts)])
        self._known: dict[int, Any] = {}
        self._opened: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """The image of record `index`; `DataError` where the record is damaged."""
        return self._decode(index, "image")

    def mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """Covered share of each pixel of record `index`, 0..255."""
        return self._decode(index, "mask")[..., 0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}, "_opened": {}}

    def each(
        self, indices: Sequence[int] | Int[np.ndarray, " n"]
    ) -> Iterator[UInt8[np.ndarray, "height width channels"]]:
        """The images of many records, in their order; read together, in half the time.

        Raises:
          DataError: a record is damaged.
        """
        for start in range(0, len(indices), _READ_TOGETHER):
            some = [int(index) for index in indices[start : start + _READ_TOGETHER]]
            rows: dict[int, set[int]] = {}
            for part, row in map(self.place, some):
                rows.setdefault(part, set()).add(row)
            records: dict[tuple[int, int], Any] = {}
            for part, wanted in rows.items():
                # What cannot be read together is read alone, which names the damaged record.
                with contextlib.suppress(*_DAMAGES):
                    opened = self._part(part, min(wanted))
                    read = zip(wanted, opened.__getitems__(list(wanted)), strict=True)
                    records |= {(part, row): record for row, record in read}
            for index in some:
                yield self._decode(index, "image", records.get(self.place(index)))

    def _part(self, part: int, row: int) -> Any:
        """The records of a part, whose file reading `row` has opened."""
        opened = self._opened.get(part)
        if opened is not None:
            return opened
        with _FIRST_USE:
            if part not in self._known:
                self._known[part] = _open_part(self._parts[part][0], self._resolution)
            # Its file is opened by the first record, and closed when no thread reads it any more.
            opened = dataclasses.replace(self._known[part])
            opened[row]
            while len(self._opened) >= _MOST_OPEN:
                del self._opened[next(iter(self._opened))]
            self._opened[part] = opened
            return opened

    def place(self, index: int) -> tuple[int, int]:
        """The part that holds record `index`, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])

    def _decode(self, index: int, feature: str, record: Any = None) -> np.ndarray:
        part, row = self.place(index)
        try:
            record = self._part(part, row)[row] if record is None else record
            return pyramid.decode_png(record[feature])
        except _DAMAGES as error:
            path = self._parts[part][0]
            raise damage(f"{path}: record {index}", error, path.parents[2]) from error


_DAMAGES = (OSError, ValueError, SyntaxError, RuntimeError)
_READ_TOGETHER = 32  # of the largest images, some 60 MB
# Every open part holds a file of this process, which may have some hundreds.
_MOST_OPEN = 64
# TFDS imports itself piece by piece at first use: two threads that do so at once can wait for each
# other for ever.
_FIRST_USE = threading.Lock()


def _open_part(path: Path, resolution: int) -> Any:
    import tensorflow_datasets as tfds

    from jax_noisy_anogan.data.builders import level_split

    builder = tfds.builder_from_directory(path)
    skip = {name: tfds.decode.SkipDecoding() for name in ("image", "mask")}
    decoders = {name: skip[name] for name in builder.info.features if name in skip}
    return builder.as_data_source(split=level_split(resolution), decoders=decoders)


def load_dataset(config: DataConfig, *, resolution: int, progress: bool = True) -> Dataset:
    """Open the prepared records of `config`, writing them first where they are missing.

    Args:
      config: what it leaves to the data is chosen first, see `survey.measured`.
      resolution: the model's largest resolution, a power of two from 4 to 1024.
      progress: show a progress bar on standard error while writing.

    Raises:
      DataError: the source is missing or, with `on_bad_image = "raise"`, holds an unusable file.
    """
    model_resolution = resolution
    resolution = image_resolution(config, model_resolution)
    source = open_source(config, resolution=resolution)
    found = survey.measured(config, source, resolution=resolution)
    if found.config != config:
        config, source = found.config, open_source(found.config, resolution=resolution)
    folder = prepared_folder(config, source, resolution=resolution)
    if not (folder / HEADER).exists():
        with exclusive(folder):
            if not (folder / HEADER).exists():
                write_records(config, source, folder, resolution, found.most_pixels, progress)
    return _open(config, folder, model_resolution, source.rejected, found.remarks)


def image_resolution(config: DataConfig, resolution: int) -> int:
    """Largest resolution to prepare for a model of `resolution`: its own, or the tiled images'.

    Raises:
      DataError: `resolution` is no power of two from 4 to 1024, or tiles exceed their images.
    """
    if not (4 <= resolution <= 1024 and resolution & (resolution - 1) == 0):
        raise DataError(f"resolution {resolution}: expected a power of two from 4 to 1024")
    if config.tile_image_resolution == 0:
        return resolution
    if config.tile_image_resolution < resolution:
        raise DataError(
            f"config.data.tile_image_resolution is {config.tile_image_resolution}: expected at "
            f"least the model's resolution {resolution}"
        )
    return config.tile_image_resolution


def prepared_folder(config: DataConfig, source: Source, *, resolution: int) -> Path:
    """Where the records of a source and settings lie, whether they exist or not."""
    stamp = digest(
        FORMAT,
        source.fingerprint,
        resolution,
        config.channels,
        f"scale {config.scale}" if config.fit == "scale" else config.fit,
        config.local_contrast or 0.0,
        config.max_image_pixels,
        config.black_level,
        config.white_level,
        config.on_bad_image,
    )
    cache = user_path(config.cache_dir, "config.data.cache_dir").resolve()
    return cache / f"{config.name}-{stamp}"


def _open(
    config: DataConfig,
    folder: Path,
    model_resolution: int,
    rejected: Sequence[tuple[str, str]],
    remarks: tuple[str, ...],
) -> Dataset:
    header = read_json(folder / HEADER)
    parts = [read_json(folder / f"{part_name(n)}.json") for n in range(header["parts"])]

    def column(name: str) -> list[Any]:
        return [value for part in parts for value in part[name]]

    return Dataset(
        name=config.name,
        ids=tuple(column("ids")),
        labels=np.asarray(column("labels"), np.int64),
        class_names=tuple(header["class_names"]),
        normal_classes=tuple(header["normal_classes"]),
        marks=tuple(column("marks")),
        has_mask=np.asarray(column("has_mask"), bool),
        sizes=np.asarray(column("sizes"), np.int64).reshape(-1, 2),
        modes=tuple(column("modes")),
        contents=tuple(column("digests")),
        groups=tuple(column("groups")),
        cells=np.asarray(column("cells"), np.int64) if column("cells") else None,
        resolution=header["resolution"],
        channels=header["channels"],
        has_masks=header["has_masks"],
        tiles_per_side=header["resolution"] // model_resolution,
        augmentation=Augmentation.from_config(config),
        left_out=tuple(LeftOut(*item) for item in [*rejected, *column("left_out")]),
        remarks=remarks,
        fit=config.fit,
        scale=config.scale,
        path=folder,
        _parts=tuple((folder / part["path"], len(part["ids"])) for part in parts if part["ids"]),
    )
