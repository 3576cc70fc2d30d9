"""Any number of image files to one table, in bounded memory, able to go on after a kill.

Finished rows are appended to `rows-<process>.jsonl` at once; the table is made of them at the end.
A torn last line, which a kill can leave, is scored again, and so is a file that had an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jax_noisy_anogan import parallel, pictures
from jax_noisy_anogan.data import DataError
from jax_noisy_anogan.data.decode import SUFFIXES
from jax_noisy_anogan.data.source import digest
from jax_noisy_anogan.detector import Detection, Detector
from jax_noisy_anogan.evaluation import LOCAL
from jax_noisy_anogan.logs import ProgressLine
from jax_noisy_anogan.scoring import TERMS
from jax_noisy_anogan.workdir import WorkdirError, locked, write_text

_READERS = 4
_READ_AHEAD = 32
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        *((name, pa.float64()) for name in (*TERMS, LOCAL, "calibrated", "probability")),
        ("decision", pa.string()),
        *((f"box_{name}", pa.int32()) for name in ("x", "y", "width", "height")),
        ("time", pa.string()),
        ("error", pa.string()),
    ]
)


class ImageFile(NamedTuple):
    """One file to score.

    Attributes:
      path: where it lies.
      name: what the table calls it, and what its pictures are named after; unique. The path, with
        bytes that are no UTF-8 written as escapes.
    """

    path: Path
    name: str


def find_images(paths: Sequence[str | Path]) -> list[ImageFile]:
    """The image files among `paths` and, in name order, below the folders among them.

    A file that is named itself is taken whatever its ending; in folders, hidden files, other
    endings, pipes and links to folders are passed over.

    Raises:
      DataError: a path does not exist, is neither file nor folder, or cannot be listed, or nothing
        is found.
    """
    found: dict[str, ImageFile] = {}
    for text in paths:
        path = Path(text).expanduser()
        try:
            if path.is_dir():
                files: Iterable[Path] = _below(path)
            elif path.is_file():
                files = [path]
            else:
                kind = "is neither a file nor a folder" if path.exists() else "does not exist"
                raise DataError(f"--images {path} {kind}")
        except OSError as error:  # a name that is too long, a folder that cannot be entered
            raise DataError(f"--images {path}: {error.strerror}") from error
        for file in files:
            name = str(file).encode("utf-8", "backslashreplace").decode()
            found.setdefault(name, ImageFile(file, name))
    if not found:
        endings = " ".join(sorted(SUFFIXES))
        raise DataError(f"--images {' '.join(map(str, paths))}: no file ends in {endings}")
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for here, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(here) / name
            # Opening a pipe would wait forever; a broken link becomes a row with its error.
            if (
                not name.startswith(".")
                and path.suffix.lower() in SUFFIXES
                and (path.is_file() or not path.exists())
            ):
                yield path


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
        parallel.on_first_process(open_out)
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
        parallel.any_process(False)  # the rows of all are written
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


def _row(file: ImageFile, found: Detection) -> dict[str, Any]:
    box = {} if found.box is None else {f"box_{k}": int(v) for k, v in found.box._asdict().items()}
    return {
        "path": file.name,
        **found.terms,
        "calibrated": found.calibrated,
        "probability": found.probability,
        "decision": "abnormal" if found.is_abnormal else "normal",
        **box,
        "time": _now(),
    }


def _reason(error: DataError) -> str:
    return str(getattr(error, "reason", error))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class _Rows:
    """The finished rows of one process, on disk as soon as they are added.

    Attributes:
      done: names of all files that any process has finished without an error.
    """

    def __init__(self, out: Path, process_index: int):
        self._path = out / f"rows-{process_index}.jsonl"
        kept = _without_error(_read_rows(self._path))
        # Written anew, so that nothing is appended to a torn line.
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        # An earlier start may have had more processes.
        self.done = {
            row["path"]
            for path in out.glob("rows-*.jsonl")
            for row in _without_error(_read_rows(path))
        }
        self._file: IO[bytes] = open(self._path, "ab", buffering=0)  # noqa: SIM115

    def add(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row) + "\n").encode()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        # Without a buffer the last bytes before a full disk are written without an error.
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        with self._file:
            os.fsync(self._file.fileno())


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_row(row):
                rows[row["path"]] = row
    return list(rows.values())


def _is_row(row: Any) -> bool:
    """Whether a row is one that `_SCHEMA` can hold: bits may have flipped since it was written."""
    try:
        pa.RecordBatch.from_pylist([row], schema=_SCHEMA)
        return row.get("path") is not None
    except (ValueError, TypeError, AttributeError, OverflowError):  # Arrow's own are among them
        return False


def _without_error(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("error") is None]


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


def _write_tables(out: Path, files: Sequence[ImageFile]) -> str:
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob("rows-*.jsonl")):
        for row in _read_rows(path):
            # Another process may have scored what was an error to an earlier start.
            if row.get("error") is None or row["path"] not in rows:
                rows[row["path"]] = row
    ordered = [rows[file.name] for file in files if file.name in rows]
    table = pa.Table.from_pylist(ordered, schema=_SCHEMA)
    for name, write in (
        ("scores.csv", pyarrow.csv.write_csv),
        ("scores.parquet", pyarrow.parquet.write_table),
    ):
        partial = out / f"{name}.partial"
        write(table, partial)
        partial.replace(out / name)
    errors = sum(row.get("error") is not None for row in ordered)
    abnormal = sum(row.get("decision") == "abnormal" for row in ordered)
    return (
        f"{len(ordered):,} files: {abnormal:,} abnormal, {len(ordered) - abnormal - errors:,} "
        f"normal, {errors:,} with an error; {out / 'scores.csv'}"
    )
