"""Files that are whole or absent, folders that one command holds, and hashes of contents."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import filelock
import jax
import numpy as np

from jax_noisy_anogan.errors import UserError

# What NumPy raises on an archive that is missing, empty, cut off or of another kind.
UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
# A small file can unpack to anything.
_LARGEST_ARCHIVE = 2**31


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


def to_json(values: Any) -> str:
    """Indented JSON; a figure that does not exist (nan) becomes null, a named tuple an object."""
    return json.dumps(_without_nan(values), indent=2, allow_nan=False) + "\n"


def _without_nan(values: Any) -> Any:
    if hasattr(values, "_asdict"):
        values = values._asdict()
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    return None if isinstance(values, float) and math.isnan(values) else values


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file for writing that appears as `path` when it is whole and on disk, or not at all.

    Every result file is written by this function. Whatever ends the program or the machine, the
    name holds the earlier file or the whole new one, and of two files written one after the other
    never only the second. The content goes into the neighbour `<name>.partial`, which is renamed;
    what a killed process leaves there, the next one replaces. Of several processes or threads that
    write the same file each waits for the one before it.

    Raises:
      OSError: with the name of the file; a full disk is one reason.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _alone(partial) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[IO[bytes]]:
    """An empty file that no other process or thread has from here before this one closes it."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "w+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                # Some file systems have no locks.
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                    raise
            # Whoever had it before has renamed or removed it.
            if not _is_at(file, path):
                continue
            file.truncate()
            yield file
            return


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Put the folder's list of names on disk: without it a rename may be lost or come late."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no such call: their servers do it unasked.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `written` does."""
    with written(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 as `written` does; bytes of a file name that are no text appear escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an `.npz` archive as `written` does."""
    with written(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_npz(path: Path, names: Sequence[str]) -> list[Any]:
    """Arrays of an `.npz` archive, which may come from anywhere, in the order of `names`.

    Raises:
      OSError, ValueError, ...: see `UNREADABLE`; also where it unpacks to more than 2 GiB, or an
        array is missing.
    """
    with zipfile.ZipFile(path) as archive:
        content = sum(item.file_size for item in archive.infolist())
    if content > _LARGEST_ARCHIVE:
        raise ValueError(f"{content} bytes, at most {_LARGEST_ARCHIVE} are read")
    with np.load(path, allow_pickle=False) as values:
        return [values[name] for name in names]


class WorkdirError(UserError, RuntimeError):
    """A folder cannot be used, or belongs to something else."""


@contextlib.contextmanager
def locked(folder: Path, *, flag: str = "--workdir", user: str = "training") -> Iterator[None]:
    """Create `folder` and hold it: only one process at a time does. A killed process lets it go.

    Args:
      flag: names the folder in errors.
      user: what else may hold it, for the error.

    Raises:
      WorkdirError: another process holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = held.enter_context(try_lock(folder / "lock"))
        except OSError as error:
            raise WorkdirError(f"{flag} {folder} cannot be written: {error.strerror}") from error
        if not free:
            raise WorkdirError(
                f"{flag} {folder} is in use by another {user}: wait for it, or use another folder"
            )
        yield


@contextlib.contextmanager
def try_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds the lock file, which stays; a killed process lets it go.

    Args:
      wait: until it is free, so that the result is always True.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def user_path(text: str | Path, name: str) -> Path:
    """A path that a user gave, with `~` replaced.

    Args:
      name: the flag or setting that it was given with.

    Raises:
      UserError: it is empty, or there is no home folder.
    """
    if not str(text):
        raise UserError(f"{name} is empty: expected a path (an unset variable of the shell is one)")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{name} is {text}: this user has no home folder for ~; set {name} to a full path"
        ) from error
