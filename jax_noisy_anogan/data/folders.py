"""Listing folders of images: nothing outside the root, nothing dropped without a word."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jax_noisy_anogan.data.decode import SUFFIXES
from jax_noisy_anogan.data.errors import DataError
from jax_noisy_anogan.data.source import BadImageError

_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))


@dataclass
class Listing:
    """Lists below one root; what it refuses is raised or, when skipping, kept with its reason.

    Attributes:
      stamps: (path, size, time of change) of every file listed, for the fingerprint.
    """

    root: Path
    skip: bool
    rejected: list[tuple[str, str]] = field(default_factory=list)
    stamps: list[tuple[str, int, int]] = field(default_factory=list)

    def reject(self, path: Path, reason: str) -> None:
        """Refuse a file or folder.

        Raises:
          BadImageError: unless files are skipped.
        """
        if not self.skip:
            raise BadImageError(str(path), reason)
        self.rejected.append((str(path), reason))

    def folders(self, path: Path) -> list[Path]:
        """Sorted folders directly in `path`; none where `path` does not exist."""
        return [p for p in self._entries(path) if p.is_dir()] if path.is_dir() else []

    def images(self, path: Path, *, folders_allowed: bool = False) -> list[Path]:
        """Sorted image files directly in `path`.

        Files with another ending are kept in `rejected`, never raised: notes and thumbnails lie in
        many image folders.
        """
        images = []
        for entry in self._entries(path):
            if entry.is_dir():
                if not folders_allowed:
                    self.reject(entry, "a folder where images are expected")
            elif entry.suffix.lower() not in SUFFIXES:
                self.rejected.append((str(entry), f"not an image ending: {entry.suffix or 'none'}"))
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
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            raise DataError(f"{path} cannot be listed: {error.strerror}") from error
        return [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_FILES
        ]

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
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: set config.data.root to the folder of the images")
    return root
