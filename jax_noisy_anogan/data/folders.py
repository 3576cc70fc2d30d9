"""Listing folders of images: nothing taken twice, nothing passed over without a word."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jax_noisy_anogan.data.decode import SUFFIXES
from jax_noisy_anogan.data.examples import BadImageError
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import user_path

_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))
OTHER_ENDING = "not an image ending"
MASK_ENDINGS = ("_mask", "_label", "_gt")
# Where `score` puts pictures below --out.
RESULT_FOLDERS = ("heatmaps", "maps", "masks", "thumbnails")
# Control characters, line separators, and what stands for bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass
class Listing:
    """Lists below one root; what it refuses is raised or, when skipping, kept with its reason.

    Links are followed. The reason of everything left out is kept; what follows a colon in it
    belongs to that one file.

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

    def folders(self, path: Path) -> list[Path]:
        """Sorted folders directly in `path`; none where `path` does not exist."""
        entries = self.entries(path) if _is_folder(path) else []
        return [entry for entry in entries if _is_folder(entry)]

    def leave_out(self, path: Path, taken: Collection[Path] = (), *, chosen: bool = False) -> None:
        """Leave out what lies in `path` and is not `taken`: images are refused, the rest is noted.

        A folder below which a taken one lies is looked into.

        Args:
          chosen: whether the user chose what is taken; images beside it are then noted too.
        """
        for entry in self.entries(path) if _is_folder(path) else []:
            if entry in taken:
                continue
            if any(folder.is_relative_to(entry) for folder in taken):
                self.leave_out(entry, taken, chosen=chosen)
            elif chosen and (is_image(entry) or _is_folder(entry)):
                self.note(entry, "not among config.data.normal_dirs and abnormal_dirs")
            elif not _is_folder(entry):
                if is_image(entry):
                    self.reject(entry, "an image outside the folders of this layout")
                else:
                    self.note(entry, "a file where folders are expected")
            elif is_ours(entry):
                self.note(entry, "results of this program")
            elif holds_images(entry):
                self.reject(
                    entry,
                    "holds images but is no folder of this layout; name it with "
                    "config.data.normal_dirs or abnormal_dirs, or move it",
                )
            else:
                self.note(entry, "not a folder of this layout")

    def images(
        self,
        path: Path,
        *,
        unlike: Callable[[str], bool] = lambda _: False,
        apart: Collection[Path] = (),
        empty_allowed: bool = False,
    ) -> list[Path]:
        """Sorted image files in `path` and in the folders below it.

        Files with another ending are kept in `rejected`, never raised: notes and thumbnails lie in
        many image folders.

        Args:
          unlike: whether a folder's name contradicts that of `path`; such folders are refused.
          apart: folders that are listed on their own.
        """
        images = list(self._below(path, unlike, apart, ()))
        if not images and not empty_allowed:
            self.reject(path, "holds no image")
        return images

    def _below(
        self,
        path: Path,
        unlike: Callable[[str], bool],
        apart: Collection[Path],
        above: tuple[Path, ...],
    ) -> Iterator[Path]:
        here = path.resolve()
        if here in above:
            self.note(path, "a link to a folder that holds it")
            return
        for entry in self.entries(path):
            if entry in apart:
                continue
            if _is_folder(entry):
                if unlike(entry.name):
                    self.reject(
                        entry, f"its name contradicts the folder around it, {path.name}: move it"
                    )
                elif is_ours(entry):
                    self.note(entry, "results of this program")
                else:
                    yield from self._below(entry, unlike, apart, (*above, here))
            elif not is_image(entry):
                self.note(entry, f"{OTHER_ENDING}: {entry.suffix or 'none'}")
            elif self.usable(entry):
                yield entry

    def id_of(self, path: Path) -> str:
        """Path below the root with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def unique_stems(self, images: Iterable[Path]) -> list[Path]:
        """Refuse images that differ in their ending only: their masks cannot be told apart."""
        seen: dict[str, Path] = {}
        unique = []
        for image in images:
            key = f"{image.parent}/{image.stem.lower()}"
            if key in seen:
                self.reject(image, f"has the same name as another image: {seen[key].name}")
            else:
                seen[key] = image
                unique.append(image)
        return unique

    def entries(self, path: Path) -> list[Path]:
        """Sorted entries of a folder; none, and a rejection, where it cannot be listed."""
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            self.reject(path, f"cannot be listed: {error.strerror}")
            return []
        listed = []
        for entry in entries:
            if is_hidden(entry.name):
                self.note(entry, "a hidden or system file")
            elif _UNPRINTABLE.search(entry.name):
                # Such a name breaks the report's lines, or cannot be written as UTF-8 at all.
                self.reject(entry, "its name is not printable UTF-8: rename it")
            else:
                listed.append(entry)
        return listed

    def stamp(self, path: Path) -> None:
        """Make the fingerprint depend on a file that is not an image.

        Raises:
          OSError: it cannot be read.
        """
        stat = path.stat()
        self.stamps.append((str(path), stat.st_size, stat.st_mtime_ns))

    def usable(self, path: Path) -> bool:
        """Whether a file can be read; what cannot is refused."""
        try:
            stat = path.stat()
            if not path.is_file():
                self.note(path, "neither a file nor a folder")
                return False
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            self.reject(path, f"cannot be read: {error.strerror}")
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


def holds_images(folder: Path) -> bool:
    """Whether an image lies in a folder or below it."""
    listing = Listing(folder, skip=True)
    return bool(listing.images(folder, empty_allowed=True))


def is_image(path: Path) -> bool:
    """Whether a file's ending is that of an image, in any case of letters."""
    return path.suffix.lower() in SUFFIXES


def with_masks_beside(files: Iterable[Path]) -> tuple[list[Path], dict[Path, list[Path]]]:
    """Images, and those that have masks beside them with these; more than one is one too many."""
    by_stem: dict[tuple[Path, str], Path] = {}
    files = list(files)
    for path in files:
        by_stem.setdefault((path.parent, path.stem.lower()), path)
    image_of: dict[Path, Path] = {}
    for path in files:
        stem = path.stem.lower()
        for ending in MASK_ENDINGS:
            image = by_stem.get((path.parent, stem.removesuffix(ending)))
            if stem.endswith(ending) and image is not None:
                image_of[path] = image
    masks: dict[Path, list[Path]] = {}
    for mask, image in image_of.items():
        while image in image_of:  # `x_mask_gt.png` beside `x_mask.png`
            image = image_of[image]
        masks.setdefault(image, []).append(mask)
    return [path for path in files if path not in image_of], masks


def is_hidden(name: str) -> bool:
    """Whether a file is one that systems keep for themselves."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def is_ours(folder: Path) -> bool:
    """Whether a folder is a run or holds results of `score`: its pictures are not photographs."""
    try:
        is_run = (folder / "config.json").is_file() and (folder / "lock").is_file()
        return is_run or ((folder / "settings.json").is_file() and any(folder.glob("rows-*.jsonl")))
    except OSError:  # it may not be entered: whoever lists it says so
        return False


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


class FoundImages(NamedTuple):
    """Files to score, and how many entries of each kind were passed over on the way."""

    files: list[ImageFile]
    passed_over: dict[str, int]

    @property
    def remark(self) -> str:
        """One line about what was passed over; "" where nothing was."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.passed_over.items()))
        return f"passed over: {kinds}" if kinds else ""


def find_images(paths: Sequence[str | Path], *, out: Path | None = None) -> FoundImages:
    """The image files among `paths` and, in name order, below the folders among them.

    A file that is named itself is taken whatever its ending. In folders, links are followed, and
    hidden files, other endings, pipes, masks beside their images (`x_mask.png`, see
    `with_masks_beside`) and the results of this program are passed over.

    Args:
      out: where results go. What lies in the folders of pictures there (`RESULT_FOLDERS`) is
        passed over, and images beside them are taken.

    Raises:
      DataError: a path does not exist, is neither file nor folder, cannot be listed, or is a folder
        for pictures of `out`, or nothing is found.
    """
    walk = _Walk(out.resolve() if out is not None else None)
    found: dict[str, ImageFile] = {}
    for text in paths:
        path = user_path(text, "--images")
        try:
            if path.is_dir():
                if walk.is_for_pictures(path.resolve()):
                    raise DataError(
                        f"--images {path}: pictures of results go there; use another folder for "
                        f"--out than {out}"
                    )
                files: Iterable[Path] = walk.below(path)
            elif path.is_file():
                files = [path]
            else:
                kind = "is neither a file nor a folder" if path.exists() else "does not exist"
                raise DataError(f"--images {path} {kind}")
            for file in files:
                name = str(file).encode("utf-8", "backslashreplace").decode()
                found.setdefault(name, ImageFile(file, name))
        except OSError as error:  # a name that is too long, a folder that cannot be entered
            raise DataError(f"--images {path}: {error.strerror}") from error
    result = FoundImages(list(found.values()), dict(walk.passed_over))
    if not found:
        endings = " ".join(sorted(SUFFIXES))
        remark = f" ({result.remark})" if result.remark else ""
        raise DataError(f"--images {' '.join(map(str, paths))}: no file ends in {endings}{remark}")
    return result


class _Walk:
    """Image files below folders; counts everything else."""

    def __init__(self, out: Path | None):
        self.passed_over: Counter[str] = Counter()
        self._out = out
        self._seen: set[Path] = set()

    def is_for_pictures(self, folder: Path) -> bool:
        """Whether a folder is one that `score` writes pictures into, or lies in one."""
        return self._out is not None and any(
            folder.is_relative_to(self._out / name) for name in RESULT_FOLDERS
        )

    def below(self, folder: Path) -> Iterator[Path]:
        """Every folder is entered once, by whatever name it is met first."""
        try:
            here = folder.resolve()
            if self.is_for_pictures(here):
                self.passed_over["folder of these results"] += 1
                return
            if here in self._seen:
                self.passed_over["folder met before"] += 1
                return
            self._seen.add(here)
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
        images: list[Path] = []
        for entry in (entry for entry in entries if not _is_folder(entry)):
            if is_hidden(entry.name):
                self.passed_over["hidden or system file"] += 1
            elif not is_image(entry):
                ending = entry.suffix.lower() or "no ending"
                self.passed_over[f"file of another kind ({ending})"] += 1
            elif entry.is_file() or not entry.exists():
                images.append(entry)  # a broken link becomes a row with its error
            else:
                self.passed_over["neither file nor folder"] += 1  # a pipe would be waited for
        photographs, masks = with_masks_beside(images)
        if masks:
            self.passed_over["mask beside its image"] += len(images) - len(photographs)
        yield from photographs
        for entry in (entry for entry in entries if _is_folder(entry)):
            if is_hidden(entry.name):
                self.passed_over["hidden folder"] += 1
            elif is_ours(entry) and entry.resolve() != self._out:
                self.passed_over["folder with results of this program"] += 1
            else:
                yield from self.below(entry)
