"""Any number of image files to one table, in bounded memory, able to go on after a kill.

Finished rows are appended to `rows-<process>.jsonl` at once; the table is made of them at the end.
A torn last line, which a kill can leave, is scored again, and so is a file that had an error, and
one whose content is no longer that of its row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_noisy_anogan import pictures
from jax_noisy_anogan.data.decode import Pixels, decode_image
from jax_noisy_anogan.data.examples import BadImageError
from jax_noisy_anogan.data.folders import ImageFile
from jax_noisy_anogan.data.frame import shrunk
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime import processes
from jax_noisy_anogan.runtime.files import WorkdirError, digest, locked, write_text
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.scoring.calibration import DECISION
from jax_noisy_anogan.scoring.detector import MOST_PIXELS, Detection, Detector, Prepared
from jax_noisy_anogan.scoring.table import (
    Rows,
    Summary,
    content_of,
    error_row,
    row_of,
    write_tables,
)

_READERS = 4
_READ_AHEAD = 32


def score_files(
    detector: Detector,
    files: Sequence[ImageFile],
    out: Path,
    *,
    threshold: float = DECISION,
    heatmaps: str = "none",
    maps: bool = False,
    thumbnails: bool = False,
    progress: bool = True,
) -> Summary | None:
    """Score files and write `scores.csv`, `scores.parquet` and `regions.json` into `out`.

    Of several processes each takes every so many-th file; the first one merges.

    Args:
      threshold: the anomaly above which a file is abnormal; 0.5 is the run's threshold.
      heatmaps: "none", "abnormal" or "all": which images get an overlay in `out/heatmaps`.
      maps: also write every map into `out/maps`, and where it exceeds its threshold into
        `out/masks`.
      thumbnails: also write a small overlay of every image into `out/thumbnails`.

    Overlays, maps and masks are of the photograph's size. Those of a photograph of more than 16
    million pixels are smaller by a whole factor.

    Returns:
      What was found, which prints as one line; None in every process but the first.

    Raises:
      WorkdirError: `out` is in use, cannot be written, or holds results of other settings.
      LostProcessError: another process has ended.
      OSError: the disk is full; what was finished is kept, and the same command goes on with it.
    """
    index = jax.process_index()
    mine = files[index :: jax.process_count()]
    with contextlib.ExitStack() as held:

        def open_out() -> None:
            held.enter_context(_held(out))
            _settle(out, detector, threshold, heatmaps, maps, thumbnails)
            wanted = {"heatmaps": heatmaps != "none", "maps": maps, "masks": maps}
            wanted["thumbnails"] = thumbnails
            for folder in (name for name, is_wanted in wanted.items() if is_wanted):
                (out / folder).mkdir(exist_ok=True)

        # No process writes a row before the folder is known to be this command's.
        processes.on_first_process(open_out)
        with contextlib.closing(Rows(out, index)) as rows:
            missing = [file for file in mine if not _is_done(file, rows)]
            with ProgressLine(
                "score",
                total=len(mine),
                done=len(mine) - len(missing),
                unit="images",
                show=progress and index == 0,
            ) as line:
                _score_missing(
                    detector,
                    missing,
                    rows,
                    out,
                    threshold=threshold,
                    pictures_of=_PicturesOf(
                        Pixels.of(detector.config.data), heatmaps, maps, thumbnails
                    ),
                    done=len(mine) - len(missing),
                    line=line,
                )
        processes.any_process(False)  # the rows of all are written
        return write_tables(out, files) if index == 0 else None


def _is_done(file: ImageFile, rows: Rows) -> bool:
    """Whether a row was finished for this very content; another file may have come by its name."""
    return file.name in rows.done and rows.done[file.name] == content_of(file.path)


def _score_missing(
    detector: Detector,
    files: Sequence[ImageFile],
    rows: Rows,
    out: Path,
    *,
    threshold: float,
    pictures_of: _PicturesOf,
    done: int,
    line: ProgressLine,
) -> None:
    """Read ahead, score, write pictures, and only then the row: what has a row is complete.

    Args:
      done: how many files earlier starts have finished.
    """
    good: deque[tuple[ImageFile, str]] = deque()
    writing: deque[tuple[dict[str, Any], ImageFile, Future[None]]] = deque()

    def finish(row: dict[str, Any]) -> None:
        nonlocal done
        rows.add(row)
        done += 1
        line.update(done)

    def land() -> None:
        row, file, written = writing.popleft()
        try:
            written.result()
        except DataError as error:
            row = error_row(file, error)
        finish(row)

    def usable(pool: ThreadPoolExecutor) -> Iterator[Prepared]:
        for file, content, image in _read_ahead(detector, files, pool):
            if isinstance(image, DataError):
                finish(error_row(file, image))
            else:
                good.append((file, content))
                yield image

    with ThreadPoolExecutor(_READERS) as pool:
        for found in detector.stream(usable(pool), threshold=threshold):
            file, content = good.popleft()
            writing.append(
                (row_of(file, content, found), file, pool.submit(pictures_of, out, file, found))
            )
            while writing and (len(writing) > _READ_AHEAD or writing[0][2].done()):
                land()
        while writing:
            land()


_Read = tuple[ImageFile, str, Prepared | DataError]


def _read_ahead(
    detector: Detector, files: Sequence[ImageFile], pool: ThreadPoolExecutor
) -> Iterator[_Read]:
    """Every file with the hash of its content and its picture, or why it has none."""

    def read(file: ImageFile) -> _Read:
        content = content_of(file.path)
        try:
            return file, content, detector.prepare(file.path)
        except DataError as error:
            return file, content, error

    reading: deque[Future[_Read]] = deque()
    for file in files:
        reading.append(pool.submit(read, file))
        if len(reading) >= _READ_AHEAD:
            yield reading.popleft().result()
    for future in reading:
        yield future.result()


@dataclasses.dataclass(frozen=True)
class _PicturesOf:
    """Which pictures of a photograph are written, and how its file is read."""

    pixels: Pixels
    heatmaps: str
    maps: bool
    thumbnails: bool

    def __call__(self, out: Path, file: ImageFile, found: Detection) -> None:
        """Write the pictures of a file.

        Raises:
          BadImageError: the file is not what it was when it was scored.
        """
        name, step = safe_name(file.name), found.frame.step(MOST_PIXELS)
        if self.maps:
            map = found.frame.place(found.heat, step=step)
            pictures.save_float_tiff(out / "maps" / f"{name}.tiff", map)
            mask = (map > found.map_threshold).astype(np.uint8) * np.uint8(255)
            pictures.save_png(out / "masks" / f"{name}.png", mask)
        large = self.heatmaps == "all" or (self.heatmaps == "abnormal" and found.is_abnormal)
        if not large and not self.thumbnails:
            return
        if not large:
            longest = max(found.frame.height, found.frame.width)
            step = max(step, longest // (2 * pictures.THUMBNAIL))
        overlay = self._overlay(file.path, found, step)
        if large:
            pictures.save_png(out / "heatmaps" / f"{name}.png", overlay)
        if self.thumbnails:
            pictures.save_thumbnail(out / "thumbnails" / f"{name}.jpg", overlay)

    def _overlay(self, path: Path, found: Detection, step: int) -> pictures.ColourPicture:
        # Read again: photographs that wait for their search would fill the memory.
        photograph = decode_image(path, self.pixels).image
        if photograph.shape[:2] != found.frame[:2]:
            raise BadImageError(str(path), "the file was changed while it was scored")
        high = max(found.map_threshold, 1.0)
        return pictures.overlay(
            shrunk(photograph, step),
            found.frame.place(found.heat, step=step),
            low=0.0,
            high=2 * high,
            contour_at=high,
        )


def safe_name(name: str) -> str:
    """A file name without ending for an image's pictures: readable, unique, inside its folder."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem)[:80]
    return f"{stem}-{digest(name)[:8]}"


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Create `out` and keep other commands from writing into it."""
    if (out / "config.json").exists():
        raise WorkdirError(
            f"--out {out} is the folder of a run, with its own scores.csv: use another"
        )
    with locked(out, flag="--out", user="command"):
        yield


def _settle(
    out: Path, detector: Detector, threshold: float, heatmaps: str, maps: bool, thumbnails: bool
) -> None:
    """Keep rows of different models, thresholds or pictures out of one table."""
    search = dataclasses.asdict(detector.config.search) | {"record_curve": False}
    stamp = digest("rows 3", detector.calibration, search, threshold, heatmaps, maps, thumbnails)
    path = out / "settings.json"
    try:
        earlier = json.loads(path.read_bytes())["stamp"] if path.exists() else stamp
    except (ValueError, KeyError, TypeError, RecursionError):
        earlier = None
    if earlier != stamp:
        raise WorkdirError(
            f"--out {out} holds results of another run, search, threshold or choice of heatmaps, "
            "maps and gallery: use another folder"
        )
    write_text(path, json.dumps({"stamp": stamp, "threshold": threshold}) + "\n")
