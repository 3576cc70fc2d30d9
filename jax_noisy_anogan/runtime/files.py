"""Files that are whole or absent, folders that one command holds, and hashes of contents."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_noisy_anogan.errors import UserError


def _write_bytes(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def to_json(values: Any) -> str:
    """Indented JSON; a figure that does not exist (nan) becomes null."""
    return json.dumps(_without_nan(values), indent=2, allow_nan=False) + "\n"


def _without_nan(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    return None if isinstance(values, float) and math.isnan(values) else values


def _save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write through a neighbour and rename, so that a kill never leaves half a file."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class WorkdirError(UserError, RuntimeError):
    """The run's folder cannot be used, or belongs to something else."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Create `workdir` and hold it, so that two commands never train in one folder.

    Raises:
      WorkdirError: another process holds it, or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / "lock", "a")  # noqa: SIM115
    except OSError as error:
        raise WorkdirError(f"--workdir {workdir} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(
                f"--workdir {workdir} is in use by another training: wait for it, or use another "
                "folder"
            ) from error
        yield


def write_text(path: Path, text: str) -> None:
    """Write through a neighbour and rename, so that a kill never leaves half a file."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def checksum(tree: Any) -> int:
    """CRC-32 over the bytes of all arrays, in the tree's order."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(_host_value(leaf)).tobytes(), total)
    return total


def _host_value(leaf: Any) -> np.ndarray:
    # Replicated arrays of several processes are not addressable as a whole, but each copy is.
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf).reshape(-1)


def digest(*parts: object) -> str:
    """A short stable hash of the parts' text, for folder names."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
