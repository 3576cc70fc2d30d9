"""Rows of a score table, on disk as soon as they are finished."""

from __future__ import annotations

import datetime
import errno
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jax_noisy_anogan.data import DataError
from jax_noisy_anogan.data.folders import ImageFile
from jax_noisy_anogan.runtime.files import write_text
from jax_noisy_anogan.scoring.detector import Detection
from jax_noisy_anogan.scoring.scorer import LOCAL, TERMS

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
