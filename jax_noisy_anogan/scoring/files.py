"""Any number of image files to one table, in bounded memory, able to go on after a kill.

Finished rows are appended to `rows-<process>.jsonl` at once; the table is made of them at the end.
A torn last line, which a kill can leave, is scored again, and so is a file that had an error.
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
from jax_noisy_anogan.data import DataError
from jax_noisy_anogan.data.folders import ImageFile
from jax_noisy_anogan.runtime import processes
from jax_noisy_anogan.runtime.files import WorkdirError, digest, locked, write_text
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.scoring.detector import Detection, Detector
from jax_noisy_anogan.scoring.table import _now, _reason, _row, _Rows, _write_tables

_READERS = 4
_READ_AHEAD = 32


def score_files(
    detector: Detector,
    files: Sequence[ImageFile],
    out: Path,
    *,
    threshold: float | None = None,
    heatmaps: str = "none",
    maps: bool = False,
    progress: bool = True,
) -> str | None:
    """Score files and write `scores.csv` and `scores.parquet` into `out`.

    Of several processes each takes every so many-th file; the first one merges.

    Args:
      threshold: a probability that replaces the run's threshold.
      heatmaps: "none", "abnormal" or "all": which images get an overlay in `out/heatmaps`.
      maps: also write every map into `out/maps`.

    Returns:
      One line that says what was found; None in every process but the first.

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
            _settle(out, detector, threshold, heatmaps, maps)
            for wanted, folder in ((heatmaps != "none", "heatmaps"), (maps, "maps")):
                if wanted:
                    (out / folder).mkdir(exist_ok=True)

        # No process writes a row before the folder is known to be this command's.
        processes.on_first_process(open_out)
        with contextlib.closing(_Rows(out, index)) as rows:
            missing = [file for file in mine if file.name not in rows.done]
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
                    pictures_of=_PicturesOf(heatmaps, maps, max(detector.map_threshold, 1.0)),
                    count=len(mine),
                    line=line,
                )
        processes.any_process(False)  # the rows of all are written
        return _write_tables(out, files) if index == 0 else None


def _score_missing(
    detector: Detector,
    files: Sequence[ImageFile],
    rows: _Rows,
    out: Path,
    *,
    threshold: float | None,
    pictures_of: _PicturesOf,
    count: int,
    line: ProgressLine,
) -> None:
    """Read ahead, score, write pictures, and only then the row: what has a row is complete.

    Args:
      count: of all files, those of earlier starts included: it chooses the batch size, and with it
        the last bits of a score, which should not depend on how often the run was stopped.
    """
    done = count - len(files)
    good: deque[ImageFile] = deque()
    writing: deque[tuple[dict[str, Any], Future[None]]] = deque()

    def finish(row: dict[str, Any]) -> None:
        nonlocal done
        rows.add(row)
        done += 1
        line.update(done)

    def usable(pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        for file, image in _read_ahead(detector, files, pool):
            if isinstance(image, DataError):
                finish({"path": file.name, "error": _reason(image), "time": _now()})
            else:
                good.append(file)
                yield image

    with ThreadPoolExecutor(_READERS) as pool:
        for found in detector.stream(usable(pool), threshold=threshold, count=count):
            file = good.popleft()
            writing.append((_row(file, found), pool.submit(pictures_of, out, file, found)))
            while writing and (len(writing) > _READ_AHEAD or writing[0][1].done()):
                row, written = writing.popleft()
                written.result()
                finish(row)
        for row, written in writing:
            written.result()
            finish(row)


def _read_ahead(
    detector: Detector, files: Sequence[ImageFile], pool: ThreadPoolExecutor
) -> Iterator[tuple[ImageFile, np.ndarray | DataError]]:
    def read(file: ImageFile) -> np.ndarray | DataError:
        try:
            return detector.prepare(file.path)
        except DataError as error:
            return error

    reading: deque[tuple[ImageFile, Future[np.ndarray | DataError]]] = deque()
    for file in files:
        reading.append((file, pool.submit(read, file)))
        if len(reading) >= _READ_AHEAD:
            first, image = reading.popleft()
            yield first, image.result()
    for first, image in reading:
        yield first, image.result()


@dataclasses.dataclass(frozen=True)
class _PicturesOf:
    """Which pictures of an image are written, and on what scale."""

    heatmaps: str
    maps: bool
    high: float

    def __call__(self, out: Path, file: ImageFile, found: Detection) -> None:
        if self.heatmaps == "all" or (self.heatmaps == "abnormal" and found.is_abnormal):
            overlay = pictures.overlay(
                found.image, found.map, low=0.0, high=2 * self.high, contour_at=self.high
            )
            pictures.save_png(out / "heatmaps" / f"{safe_name(file.name)}.png", overlay)
        if self.maps:
            pictures.save_float_tiff(out / "maps" / f"{safe_name(file.name)}.tiff", found.map)


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
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except WorkdirError as error:
            reason = getattr(error.__cause__, "strerror", None)
            busy = isinstance(error.__cause__, BlockingIOError)
            raise WorkdirError(
                f"--out {out} is in use by another command: wait for it, or use another folder"
                if busy
                else f"--out {out} cannot be written: {reason}"
            ) from error
        yield


def _settle(
    out: Path, detector: Detector, threshold: float | None, heatmaps: str, maps: bool
) -> None:
    """Keep rows of different models, thresholds or pictures out of one table."""
    search = dataclasses.asdict(detector.config.search) | {"batch_size": 0, "record_curve": False}
    stamp = digest(detector.calibration, search, threshold, heatmaps, maps)
    path = out / "settings.json"
    try:
        earlier = json.loads(path.read_bytes())["stamp"] if path.exists() else stamp
    except (ValueError, KeyError, TypeError, RecursionError):
        earlier = None
    if earlier != stamp:
        raise WorkdirError(
            f"--out {out} holds results of another run, search, threshold or choice of heatmaps "
            "and maps: use another folder"
        )
    write_text(path, json.dumps({"stamp": stamp, "threshold": threshold}) + "\n")
