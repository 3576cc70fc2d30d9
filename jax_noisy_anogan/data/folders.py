"""Listing folders of images: nothing outside the root, nothing dropped without a word."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jax_noisy_anogan.data.decode import SUFFIXES
from jax_noisy_anogan.data.examples import BadImageError
from jax_noisy_anogan.errors import DataError

_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))
# Control characters, line separators, and what stands for bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass
class Listing:
    """Lists below one root; what it refuses is raised or, when skipping, kept with its reason.

    Attributes:
      rejected: file or folder, and why it is left out.
      stamps: (path, size, time of change) of every file listed, for the fingerprint.
    """

    root: Path
    skip: bool
    rejected: dict[str, str] = field(default_factory=dict)
    stamps: list[tuple[str, int, int]] = field(default_factory=list)

    def reject(self, path: Path, reason: str) -> None:
        """Refuse a file or folder.

        Raises:
          BadImageError: unless files are skipped.
        """
        if not self.skip:
            raise BadImageError(_shown(path), reason)
        self.note(path, reason)

    def note(self, path: Path, reason: str) -> None:
        """Keep something in `rejected` that never ends a preparation, such as a text file."""
        self.rejected.setdefault(_shown(path), reason)

    def folders(self, path: Path, *, files_allowed: bool = False) -> list[Path]:
        """Sorted folders directly in `path`; none where `path` does not exist."""
        entries = self._entries(path) if _is_folder(path) else []
        folders = [entry for entry in entries if _is_folder(entry)]
        if not files_allowed:
            self._leave_out([entry for entry in entries if entry not in folders])
        return folders

    def only(self, path: Path, names: Collection[str]) -> None:
        """Leave out what lies in `path` and is not among the `names` of the layout."""
        entries = self._entries(path) if _is_folder(path) else []
        self._leave_out([entry for entry in entries if entry.name not in names])

    def _leave_out(self, entries: list[Path]) -> None:
        for entry in entries:
            if _is_folder(entry):
                self.note(entry, "not a folder of this layout")
            elif entry.suffix.lower() in SUFFIXES:
                self.reject(entry, "an image outside the folders of this layout")
            else:
                self.note(entry, "a file where folders are expected")

    def images(self, path: Path, *, folders_allowed: bool = False) -> list[Path]:
        """Sorted image files directly in `path`.

        Files with another ending are kept in `rejected`, never raised: notes and thumbnails lie in
        many image folders.
        """
        images = []
        for entry in self._entries(path):
            if _is_folder(entry):
                if not folders_allowed:
                    self.reject(entry, "a folder where images are expected")
            elif entry.suffix.lower() not in SUFFIXES:
                self.note(entry, f"not an image ending: {entry.suffix or 'none'}")
            elif self._is_usable(entry):
                images.append(entry)
        if not images and not folders_allowed:
            self.reject(path, "holds no image")
        return images

    def id_of(self, path: Path) -> str:
        """Path below the root with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def unique_stems(self, images: list[Path]) -> list[Path]:
        """Refuse images that differ in their ending only: their masks cannot be told apart."""
        seen: dict[str, Path] = {}
        unique = []
        for image in images:
            key = f"{image.parent}/{image.stem.lower()}"
            if key in seen:
                self.reject(image, f"has the same name as {seen[key].name}")
            else:
                seen[key] = image
                unique.append(image)
        return unique

    def _entries(self, path: Path) -> list[Path]:
        """Sorted entries of a folder; none, and a rejection, where it cannot be listed."""
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            self.reject(path, f"cannot be listed: {error.strerror}")
            return []
        listed = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
                continue
            if _UNPRINTABLE.search(entry.name):
                # Such a name breaks the report's lines, or cannot be written as UTF-8 at all.
                self.reject(entry, "its name is not printable UTF-8: rename it")
            else:
                listed.append(entry)
        return listed

    def _is_usable(self, path: Path) -> bool:
        try:
            stat = path.stat()
            inside = path.resolve().is_relative_to(self.root)
        except OSError as error:
            self.reject(path, f"cannot be read: {error.strerror}")
            return False
        if not inside:
            self.reject(path, "a link out of config.data.root")
            return False
        self.stamps.append((self.id_of(path), stat.st_size, stat.st_mtime_ns))
        return True


def open_root(root: Path) -> Path:
    """Check that `root` is a folder that can be listed.

    Raises:
      DataError: it is not.
    """
    if not _is_folder(root):
        raise DataError(f"{root} is not a folder: set config.data.root to the folder of the images")
    try:
        next(root.iterdir(), None)
    except OSError as error:
        raise DataError(f"{root} cannot be listed: {error.strerror}") from error
    return root


def _is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False also where a parent folder forbids to look."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _shown(path: Path) -> str:
    """The path as one printable line."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], str(path))


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
