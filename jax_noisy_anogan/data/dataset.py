"""Prepared records: writing them once, restartable, and reading them back at random.

A data set lies in `cache_dir/NAME-FINGERPRINT/`. The fingerprint covers the source files and every
setting that changes a pixel, so other settings or changed files never read stale records.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import pyramid
from jax_noisy_anogan.data.augment import Augmentation
from jax_noisy_anogan.data.catalog import open_source
from jax_noisy_anogan.data.examples import Source
from jax_noisy_anogan.data.writing import (
    _HEADER,
    FORMAT,
    _exclusive,
    _part_name,
    _read_json,
    _write,
)
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import digest

if TYPE_CHECKING:
    pass


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
      cells: class of each cell of a puzzle image, or None.
      resolution: largest prepared resolution.
      tiles_per_side: how many of the model's tiles span one image; 1 unless the model is tiled.
      augmentation: of training images, as the config asks.
      left_out: files that were skipped, with reasons.
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
    cells: Int[np.ndarray, "n rows columns"] | None
    resolution: int
    channels: int
    has_masks: bool
    tiles_per_side: int
    augmentation: Augmentation
    left_out: tuple[LeftOut, ...]
    path: Path
    _parts: tuple[tuple[Path, int], ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The prepared resolutions, largest first."""
        return pyramid.levels(self.resolution)

    def write_report(self) -> Path:
        """Write `left_out` as lines of `file: reason` beside the records, and return the path."""
        report = self.path / "left_out.txt"
        report.write_text("".join(f"{item.file}: {item.reason}\n" for item in self.left_out))
        return report

    def source(self, resolution: int) -> LevelSource:
        """Random access to the images of one resolution, each uint8 [r, r, channels] in 0..255.

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
        """The images at `indices`, in their order, 0..255.

        Raises:
          DataError: the resolution was not prepared, or a record is damaged.
        """
        source = self.source(resolution)
        images = np.empty((len(indices), resolution, resolution, self.channels), np.uint8)
        for row, index in enumerate(indices):
            images[row] = source[int(index)]
        return images

    def masks(
        self, indices: Sequence[int] | Int[np.ndarray, " n"], resolution: int
    ) -> Bool[np.ndarray, "n resolution resolution"] | None:
        """True where at least half of a pixel's area is anomalous; None without any masks.

        An example whose mask is unknown (`has_mask` is False) gets an empty one: leave it out of
        pixel metrics. Defects smaller than half a pixel vanish at low resolutions.
        """
        coverage = self.mask_coverage(indices, resolution)
        return None if coverage is None else coverage >= 128

    def mask_coverage(
        self, indices: Sequence[int] | Int[np.ndarray, " n"], resolution: int
    ) -> UInt8[np.ndarray, "n resolution resolution"] | None:
        """Anomalous share of every pixel's area, 0 (none) to 255 (all); None without any masks."""
        if not self.has_masks:
            return None
        source = self.source(resolution)
        masks = np.empty((len(indices), resolution, resolution), np.uint8)
        for row, index in enumerate(indices):
            masks[row] = source.mask(int(index))
        return masks


class LevelSource:
    """Random access to one resolution of prepared records; picklable and thread-safe."""

    def __init__(self, parts: tuple[tuple[Path, int], ...], resolution: int):
        self._parts = parts
        self._resolution = resolution
        self._starts = np.cumsum([0, *(count for _, count in parts)])
        self._opened: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "r r channels"]:
        """The image of record `index`; `DataError` where the record is damaged."""
        return self._decode(index, "image")

    def mask(self, index: int) -> UInt8[np.ndarray, "r r"]:
        """Covered share of each pixel of record `index`, 0..255."""
        return self._decode(index, "mask")[..., 0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def _record(self, part: int, row: int) -> Any:
        if part in self._opened:
            return self._opened[part][row]
        with _FIRST_USE:
            opened = self._opened.get(part) or _open_part(self._parts[part][0], self._resolution)
            record = opened[row]
            self._opened[part] = opened
            return record

    def _decode(self, index: int, feature: str) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            record = self._record(part, index - int(self._starts[part]))
            return pyramid.decode_png(record[feature])
        except (OSError, ValueError, SyntaxError, RuntimeError) as error:
            raise DataError(
                f"{self._parts[part][0]}: record {index} is damaged ({error}): delete the folder "
                "and prepare again"
            ) from error


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
      resolution: the model's largest resolution, a power of two from 4 to 1024.
      progress: show a progress bar on standard error while writing.

    Raises:
      DataError: the source is missing or, with `on_bad_image = "raise"`, holds an unusable file.
    """
    model_resolution = resolution
    resolution = image_resolution(config, model_resolution)
    source = open_source(config, resolution=resolution)
    folder = prepared_folder(config, source, resolution=resolution)
    if not (folder / _HEADER).exists():
        with _exclusive(folder):
            if not (folder / _HEADER).exists():
                _write(config, source, folder, resolution, progress)
    return _open(config, folder, model_resolution, source.rejected)


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
        config.fit,
        config.local_contrast,
        config.max_image_pixels,
        config.on_bad_image,
    )
    return Path(config.cache_dir).expanduser().resolve() / f"{config.name}-{stamp}"


def _open(
    config: DataConfig, folder: Path, model_resolution: int, rejected: Sequence[tuple[str, str]]
) -> Dataset:
    header = _read_json(folder / _HEADER)
    parts = [_read_json(folder / f"{_part_name(n)}.json") for n in range(header["parts"])]

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
        cells=np.asarray(column("cells"), np.int64) if column("cells") else None,
        resolution=header["resolution"],
        channels=header["channels"],
        has_masks=header["has_masks"],
        tiles_per_side=header["resolution"] // model_resolution,
        augmentation=Augmentation.from_config(config),
        left_out=tuple(LeftOut(*item) for item in [*rejected, *column("left_out")]),
        path=folder,
        _parts=tuple((folder / part["path"], len(part["ids"])) for part in parts if part["ids"]),
    )
