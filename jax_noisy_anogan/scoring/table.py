"""Rows of a score table, on disk as soon as they are finished."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jax_noisy_anogan.data.folders import ImageFile
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import write_text, written
from jax_noisy_anogan.scoring.calibration import ANOMALY, CALIBRATED
from jax_noisy_anogan.scoring.detector import Detection
from jax_noisy_anogan.scoring.regions import Box
from jax_noisy_anogan.scoring.scorer import LOCAL, REMEMBERED, TERMS

# In `scores.parquet` and, in another form, in `regions.json`: a CSV file holds no lists.
REGIONS = "regions"
_REGION = pa.struct(
    [*((name, pa.int32()) for name in (*Box._fields, "area")), ("peak", pa.float64())]
)
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        *((name, pa.float64()) for name in (*TERMS, LOCAL, *REMEMBERED)),
        *((name, pa.float64()) for name in (CALIBRATED, ANOMALY)),
        ("decision", pa.string()),
        *((f"box_{name}", pa.int32()) for name in Box._fields),
        *((name, pa.int32()) for name in ("width", "height", "region_count")),
        (REGIONS, pa.list_(_REGION)),
        ("time", pa.string()),
        ("error", pa.string()),
        ("content", pa.string()),
    ]
)


def row_of(file: ImageFile, content: str, found: Detection) -> dict[str, Any]:
    """The row of a file whose content is that of `content_of`."""
    regions = [
        {**region.box._asdict(), "area": region.area, "peak": region.peak}
        for region in found.regions
    ]
    box = {} if found.box is None else {f"box_{k}": v for k, v in found.box._asdict().items()}
    return {
        "path": file.name,
        **found.terms,
        CALIBRATED: found.calibrated,
        ANOMALY: found.anomaly,
        "decision": "abnormal" if found.is_abnormal else "normal",
        **box,
        "width": found.frame.width,
        "height": found.frame.height,
        "region_count": found.region_count,
        REGIONS: regions,
        "time": _now(),
        "content": content,
    }


def error_row(file: ImageFile, error: DataError) -> dict[str, Any]:
    """The row of a file that cannot be used."""
    return {"path": file.name, "error": str(getattr(error, "reason", error)), "time": _now()}


def content_of(path: Path) -> str:
    """A hash of a file's bytes; "" where it cannot be read, which decoding will report."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except (OSError, ValueError):
        return ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class Rows:
    """The finished rows of one process, on disk as soon as they are added.

    Attributes:
      done: contents of the files that any process has finished without an error, by name.
    """

    def __init__(self, out: Path, process_index: int):
        self._path = out / f"rows-{process_index}.jsonl"
        kept = _without_error(_read_rows(self._path))
        # Written anew, so that nothing is appended to a torn line.
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self.done = {row["path"]: row["content"] for row in _without_error(_newest_rows(out))}
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
        complete = row.get("error") is not None or row.get("content") is not None
        return complete and row.get("path") is not None and row.get("time") is not None
    except (ValueError, TypeError, AttributeError, OverflowError):  # Arrow's own are among them
        return False


def _without_error(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("error") is None]


def _newest_rows(out: Path) -> list[dict[str, Any]]:
    """The last row of every file: an earlier start may have had more processes."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob("rows-*.jsonl")):
        for row in _read_rows(path):
            if row["path"] not in rows or row["time"] >= rows[row["path"]]["time"]:
                rows[row["path"]] = row
    return list(rows.values())


def _write_regions(file: IO[bytes], rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object with a line for every file that was scored."""
    start = "{\n"
    for row in rows:
        if row.get("error") is None:
            value = {name: row[name] for name in ("width", "height", "region_count", REGIONS)}
            file.write(f"{start}{json.dumps(row['path'])}: {json.dumps(value)}".encode())
            start = ",\n"
    file.write(b"{}\n" if start == "{\n" else b"\n}\n")


class Summary(NamedTuple):
    """How many files were scored, and what became of them."""

    files: int
    abnormal: int
    errors: int
    first_error: str
    table: Path

    def __str__(self) -> str:
        normal = self.files - self.abnormal - self.errors
        return (
            f"{self.files:,} files: {self.abnormal:,} abnormal, {normal:,} normal, "
            f"{self.errors:,} with an error; {self.table}"
        )


def write_tables(out: Path, files: Sequence[ImageFile]) -> Summary:
    """Write the rows of `files`, in their order: `scores.csv`, `scores.parquet`, `regions.json`.

    The last one holds, by path, the photograph's width and height in pixels, the number of its
    regions, and the largest of them. The CSV file has only the box of the largest.
    """
    rows = {row["path"]: row for row in _newest_rows(out)}
    ordered = [rows[file.name] for file in files if file.name in rows]
    table = pa.Table.from_pylist(ordered, schema=_SCHEMA)
    # Of a run without a memory.
    unused = [name for name in REMEMBERED if table[name].null_count == len(ordered)]
    table = table.drop_columns(unused)
    with written(out / "scores.csv") as file:
        pyarrow.csv.write_csv(table.drop_columns([REGIONS]), file)
    with written(out / "scores.parquet") as file:
        pyarrow.parquet.write_table(table, file)
    with written(out / "regions.json") as file:
        _write_regions(file, ordered)
    failed = [row for row in ordered if row.get("error") is not None]
    return Summary(
        files=len(ordered),
        abnormal=sum(row.get("decision") == "abnormal" for row in ordered),
        errors=len(failed),
        first_error=f"{failed[0]['path']}: {failed[0]['error']}" if failed else "",
        table=out / "scores.csv",
    )
