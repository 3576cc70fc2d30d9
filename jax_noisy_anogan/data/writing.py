"""Preparing a data set: decode once, write every resolution as records, go on after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import pyramid
from jax_noisy_anogan.data.examples import BadImageError, Example, Picture, Source
from jax_noisy_anogan.data.preprocess import fitted_mask, framed_mask, prepared
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime import files
from jax_noisy_anogan.runtime.progress import ProgressLine

if TYPE_CHECKING:
    from jax_noisy_anogan.data import builders

FORMAT = 4
PART_BYTES = 64 * 2**20
HEADER = "dataset.json"
OWN_MASKS = "own_masks.npz"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that processes of one run do not write the same records twice."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.try_lock(folder / "lock", wait=True):
            yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}): set config.data.cache_dir to a "
            "folder with room"
        ) from error


def write_records(
    config: DataConfig,
    source: Source,
    folder: Path,
    resolution: int,
    most_pixels: int,
    progress: bool,
) -> None:
    """Write all records of a source.

    Args:
      most_pixels: of an image at its largest resolution.
    """
    # TFDS writes into such a folder and renames it; a killed process leaves it behind.
    for stale in folder.rglob("incomplete.*"):
        shutil.rmtree(stale)
    per_part = max(1, PART_BYTES // (most_pixels * config.channels))
    starts = range(0, len(source.examples), per_part)
    parts: list[dict[str, Any]] = []
    # TFDS replaces Python's import while it is imported, which breaks the bar's own thread (seen
    # once): it has to be there before the bar is.
    importlib.import_module("jax_noisy_anogan.data.builders")
    with ProgressLine(
        f"preparing {config.name}", total=len(source.examples), unit="images", show=progress
    ) as line:
        encoder = _Encoder(config, source, resolution, line.advance)
        for number, start in enumerate(starts):
            examples = source.examples[start : start + per_part]
            parts.append(_write_part(encoder, folder, number, examples))
    if not any(part["ids"] for part in parts):
        raise DataError(f"{config.name}: no usable image in {config.root or 'the source'}")
    header = {
        "format": FORMAT,
        "resolution": resolution,
        "channels": config.channels,
        "class_names": source.class_names,
        "normal_classes": source.normal_classes,
        "has_masks": source.has_masks,
        "parts": len(parts),
    }
    files.write_text(folder / HEADER, json.dumps(header))


def _write_part(
    encoder: _Encoder, folder: Path, number: int, examples: Sequence[Example]
) -> dict[str, Any]:
    """Write one part, or recall it where an earlier, interrupted preparation finished it."""
    columns_path = folder / f"{part_name(number)}.json"
    if columns_path.exists():
        values = read_json(columns_path)
        encoder.recall(values)
        encoder.advance(len(examples))
        return values

    from jax_noisy_anogan.data import builders

    columns = _Columns()
    encoded = [item for item in (encoder(e, columns) for e in examples) if item is not None]
    values = {**dataclasses.asdict(columns), "path": ""}
    if encoded:
        part_config = builders.PartConfig(
            name=part_name(number),
            source=encoder.source,
            resolution=encoder.resolution,
            channels=encoder.config.channels,
            encode=lambda: encoded,
        )
        with _quiet():
            builder = builders.BUILDERS[encoder.source.builder](
                data_dir=str(folder), config=part_config
            )
            builder.download_and_prepare(file_format="array_record")
        own = {str(k): item.own_mask for k, item in enumerate(encoded) if item.own_mask}
        files.save_npz(
            Path(builder.data_path) / OWN_MASKS,
            **{row: np.frombuffer(png, np.uint8) for row, png in own.items()},
        )
        values["path"] = os.path.relpath(builder.data_path, folder)
    files.write_text(columns_path, json.dumps(values))
    return values


@dataclass
class _Columns:
    """What is kept of each example beside its pixels, one entry per record of a part."""

    ids: list[str] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    marks: list[str] = dataclasses.field(default_factory=list)
    has_mask: list[bool] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    modes: list[str] = dataclasses.field(default_factory=list)
    digests: list[str] = dataclasses.field(default_factory=list)
    groups: list[str] = dataclasses.field(default_factory=list)
    cells: list[list[list[int]]] = dataclasses.field(default_factory=list)
    left_out: list[tuple[str, str]] = dataclasses.field(default_factory=list)


class _Encoder:
    """Turns examples into PNG pyramids, in order, and decides about unusable and equal ones."""

    def __init__(
        self, config: DataConfig, source: Source, resolution: int, advance: Callable[[int], None]
    ):
        self.config = config
        self.source = source
        self.resolution = resolution
        self.advance = advance
        self._seen: dict[str, tuple[str, int, str]] = {}

    def recall(self, columns: dict[str, Any]) -> None:
        """Remember the contents of a part that was written earlier."""
        rows = zip(
            columns["digests"], columns["ids"], columns["labels"], columns["marks"], strict=True
        )
        self._seen.update((digest_, (id_, label, mark)) for digest_, id_, label, mark in rows)

    def __call__(self, example: Example, columns: _Columns) -> builders.Encoded | None:
        """Encode `example` and note it in `columns`; None where it is left out.

        Raises:
          BadImageError: it is unusable and `on_bad_image` is "raise".
        """
        self.advance(1)
        try:
            picture = example.load()
            content = self._checked_content(example, picture)
        except BadImageError as error:
            if self.config.on_bad_image == "raise":
                raise
            error.raise_if_unread()
            columns.left_out.append((error.file, error.reason))
            return None
        if content in self._seen:
            reason = f"same content, class and part as another: {self._seen[content][0]}"
            columns.left_out.append((example.id, reason))
            return None
        if self.source.check_duplicates:
            self._seen[content] = (example.id, example.label, example.mark)
        self._note(example, picture, content, columns)
        return self._encoded(example, picture)

    def _checked_content(self, example: Example, picture: Picture) -> str:
        content = hashlib.sha256(picture.image.tobytes() + bytes(str(picture.image.shape), "ascii"))
        key = content.hexdigest()[:32]
        earlier = self._seen.get(key)
        if earlier is not None and earlier[1:] != (example.label, example.mark):
            raise BadImageError(
                example.id, f"same content as one of another class or part: {earlier[0]}"
            )
        return key

    def _note(self, example: Example, picture: Picture, content: str, columns: _Columns) -> None:
        height, width = picture.image.shape[:2]
        columns.ids.append(example.id)
        columns.labels.append(example.label)
        columns.marks.append(example.mark)
        columns.has_mask.append(picture.mask is not None)
        columns.sizes.append(picture.size or (width, height))
        columns.modes.append(picture.mode)
        columns.digests.append(content)
        columns.groups.append(example.group)
        if example.cells is not None:
            columns.cells.append(example.cells.tolist())

    def _encoded(self, example: Example, picture: Picture) -> builders.Encoded:
        from jax_noisy_anogan.data.builders import Encoded

        image = picture.image
        if image.shape[-1] != self.config.channels:
            image = np.repeat(image[..., :1], self.config.channels, axis=-1)
        images = self._pyramid(prepared(image, self.resolution, self.config))
        masks: dict[int, bytes] = {}
        own = b""
        if self.source.has_masks:
            mask = np.zeros(image.shape[:2], bool) if picture.mask is None else picture.mask
            masks = self._pyramid(fitted_mask(mask, self.resolution, self.config))
            if mask.any():
                shown = framed_mask(mask, self.config.fit)
                own = pyramid.encode_bits(shown) if shown.any() else b""
        return Encoded(example, images, masks, own)

    def _pyramid(self, top: UInt8[np.ndarray, "rows columns c"]) -> dict[int, bytes]:
        return {
            r: pyramid.encode_png(pyramid.block_average(top, self.resolution // r))
            for r in pyramid.levels(self.resolution)
        }


def part_name(number: int) -> str:
    return f"part_{number:05d}"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise damage(str(path), error, path.parent) from error


def damage(what: str, error: BaseException, folder: Path) -> DataError:
    """Why records of `folder` cannot be read; where too many files are open, they may be whole."""
    cause: BaseException | None = error
    while cause is not None:
        if os.strerror(errno.EMFILE) in str(cause):
            return DataError(f"{what}: too many open files; raise the limit, see ulimit -n")
        cause = cause.__cause__ or cause.__context__
    return DataError(f"{what} is damaged ({error}): delete {folder} and prepare again")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS' own notices and bars off the screen; ours counts images, not TFDS' steps."""
    import tensorflow_datasets as tfds
    from absl import logging

    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
