"""Folders that say by their names what the images in them are; one reader for each layout.

In every layout a mask may lie beside its image, with `_mask`, `_label` or `_gt` after its name, and
folders may be nested. Which names mean normal, abnormal or unlabeled: `names.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.decode import decode_mask
from jax_noisy_anogan.data.examples import BadImageError
from jax_noisy_anogan.data.folders import MASK_ENDINGS, Listing, is_image, with_masks_beside
from jax_noisy_anogan.data.names import Meaning, meaning
from jax_noisy_anogan.errors import DataError

UNLABELED = "unlabeled"


@dataclass(frozen=True)
class Found:
    """One image before it is decoded.

    Attributes:
      mark: "train", "test", "unlabeled" or "".
      mask: of its defect; None where none is known.
      group: images of the same object share it.
    """

    path: Path
    class_name: str
    mark: str = ""
    mask: Path | None = None
    group: str = ""


@dataclass(frozen=True)
class Layout:
    """What a reader found, and the class that it takes for normal."""

    found: list[Found]
    normal: str


def read_mvtec(listing: Listing, _: DataConfig) -> Layout:
    root = listing.root
    trains, tests, truths = (_named(listing, what) for what in ("train", "test", "masks"))
    trained = [kind for train in trains for kind in listing.folders(train)]
    goods = [kind for kind in trained if meaning(kind.name) == "normal"]
    if not goods:
        raise DataError(f"{root} has no train/good: the mvtec layout keeps normal images there")
    listing.leave_out(root, [*trains, *tests, *truths])
    for train in trains:
        listing.leave_out(train, trained)
    for folder in trained:
        if folder not in goods:
            listing.reject(folder, "train may only hold the folder good")
    normal = goods[0].name
    found = [item for good in goods for item in _class(listing, good, normal, "train")]
    tested = [kind for test in tests for kind in listing.folders(test)]
    for test in tests:
        listing.leave_out(test, tested)
    for folder in tested:
        what = meaning(folder.name)
        if what in (UNLABELED, "masks", "train", "test"):
            listing.reject(
                folder, f"its name means {what}, but folders of test are good or a defect: move it"
            )
            continue
        masks = [truth / folder.name for truth in truths]
        is_normal = what == "normal"
        name = normal if is_normal else folder.name
        allowed: Meaning = "normal" if is_normal else "abnormal"
        found += _class(listing, folder, name, "test", masks=masks, allowed=allowed)
    for truth in truths:
        for folder in listing.folders(truth):
            if folder.name not in [kind.name for kind in tested]:
                listing.reject(folder, "masks of a defect that test does not hold")
    return Layout(found, normal)


def read_plain(listing: Listing, config: DataConfig) -> Layout:
    normals = _chosen(listing, config.normal_dirs, "normal_dirs", "normal")
    abnormals = _chosen(listing, config.abnormal_dirs, "abnormal_dirs", "abnormal")
    masks, unlabeled = _named(listing, "masks"), _named(listing, "unlabeled")
    taken = [*normals, *abnormals, *masks, *unlabeled]
    chosen = bool(config.normal_dirs and config.abnormal_dirs)
    listing.leave_out(listing.root, taken, chosen=chosen)
    if not normals:
        raise DataError(f"{listing.root} has no normal: the plain layout keeps normal images there")
    normal = normals[0].name
    inner = [*normals, *abnormals]
    found: list[Found] = []
    for folder in normals:
        found += _class(listing, folder, normal, inner=inner)
    for folder in abnormals:
        kinds = [kind for kind in listing.folders(folder) if kind not in inner]
        alone = len(abnormals) == 1
        found += _kinds(listing, folder, kinds, masks if alone else [], masks)
    for mask in masks:
        wanted = {kind.name for folder in abnormals for kind in listing.folders(folder)}
        for folder in listing.folders(mask):
            if folder.name not in wanted | {folder.name for folder in abnormals}:
                listing.reject(folder, "masks of a defect that abnormal does not hold")
    for folder in unlabeled:
        found += _class(listing, folder, UNLABELED, UNLABELED, allowed="unlabeled")
    return Layout(found, normal)


def _kinds(
    listing: Listing,
    folder: Path,
    kinds: list[Path],
    direct_masks: Sequence[Path],
    masks: Sequence[Path],
) -> list[Found]:
    """An abnormal folder: a class for each folder in it, and one for the images directly in it.

    Args:
      direct_masks: folders of masks of the images directly in it.
      masks: folders that hold a folder of masks for each class.
    """
    found: list[Found] = []
    for kind in kinds:
        if meaning(kind.name) not in ("", "abnormal"):
            listing.reject(
                kind, f"its name contradicts the folder around it, {folder.name}: move it"
            )
            continue
        below = [mask / kind.name for mask in masks]
        found += _class(listing, kind, kind.name, masks=below, allowed="abnormal")
    if any(map(is_image, listing.entries(folder))) or not kinds:
        below = [*direct_masks, *(mask / folder.name for mask in masks)]
        apart = [*kinds, folder]
        found += _class(listing, folder, folder.name, masks=below, allowed="abnormal", inner=apart)
    else:
        listing.leave_out(folder, kinds)
    return found


def _chosen(listing: Listing, names: str, setting: str, what: Meaning) -> list[Path]:
    """The folders that a setting names, or those of the root whose names mean `what`.

    Raises:
      DataError: a named folder does not exist or lies outside the root.
    """
    if not names:
        return _named(listing, what)
    folders = []
    for name in filter(None, map(str.strip, names.split(","))):
        folder = listing.root / name
        if not folder.is_relative_to(listing.root) or ".." in folder.parts or not folder.is_dir():
            raise DataError(
                f"config.data.{setting} names {name}: {listing.root} has no such folder"
            )
        folders.append(folder)
    return folders


def read_magnetic_tile(listing: Listing, _: DataConfig) -> Layout:
    if not (listing.root / "MT_Free").is_dir():
        raise DataError(
            f"{listing.root} has no MT_Free: the magnetic_tile layout keeps normal images there"
        )
    found: list[Found] = []
    folders = [f for f in listing.folders(listing.root) if f.name.startswith("MT_")]
    listing.leave_out(listing.root, folders)
    for folder in folders:
        if folder.name != "MT_Free" and meaning(folder.name.removeprefix("MT_")):
            listing.reject(folder, "its name is no kind of defect: move it")
            continue
        listing.leave_out(folder, [folder / "Imgs"])
        files = listing.images(folder / "Imgs")
        masks = _by_name(
            listing, folder / "Imgs", [path for path in files if path.suffix.lower() == ".png"]
        )
        images = [path for path in files if path.suffix.lower() != ".png"]
        found += _pair(listing, folder / "Imgs", images, masks, folder.name, "")
    return Layout(found, "MT_Free")


def read_pairs(listing: Listing, config: DataConfig) -> Layout:
    """Images whose masks say whether they are abnormal.

    Where no mask is empty, masks were drawn for defects alone, and images without one are normal.
    """
    images, masks = with_masks_beside(listing.images(listing.root))
    marked: dict[Path, bool | None] = {}
    for path, mask in masks.items():
        try:
            marked[path] = bool(decode_mask(mask, max_pixels=config.max_image_pixels).any())
        except BadImageError as error:
            listing.reject(mask, error.reason)
            marked[path] = None
    drawn_for_all = False in marked.values()
    found = []
    for path in listing.unique_stems(images):
        if path not in masks and drawn_for_all:
            listing.reject(path, "has no mask beside it, as other normal images do")
        elif marked.get(path, False) is not None:
            name = "abnormal" if marked.get(path) else "normal"
            found.append(Found(path, name, mask=masks.get(path)))
    return Layout(found, "normal")


def read_flat(listing: Listing, _: DataConfig) -> Layout:
    return Layout(_class(listing, listing.root, "normal"), "normal")


def _named(listing: Listing, what: Meaning) -> list[Path]:
    """The folders directly below the root whose names mean `what`."""
    return [folder for folder in listing.folders(listing.root) if meaning(folder.name) == what]


def _contradicts(*allowed: Meaning) -> Callable[[str], bool]:
    """Whether a folder's name means something else than `allowed`, or nothing at all."""
    return lambda name: meaning(name) not in ("", *allowed)


def _class(
    listing: Listing,
    folder: Path,
    class_name: str,
    mark: str = "",
    *,
    masks: Sequence[Path] = (),
    allowed: Meaning = "normal",
    inner: Sequence[Path] = (),
) -> list[Found]:
    """The images of one class, with masks from folders of their own or from beside them.

    Args:
      masks: folders, which need not exist, with masks in the same order of folders as the images.
      allowed: what the name of a folder inside may mean.
      inner: folders inside that are classes of their own.
    """
    files = listing.images(folder, unlike=_contradicts(allowed), apart=inner)
    images, beside = with_masks_beside(files)
    named: dict[str, Path] = {}
    for place in masks:
        if place.is_dir():
            apart = [place / kind.name for kind in inner]
            found = listing.images(place, apart=apart, empty_allowed=bool(inner))
            named |= _by_name(listing, place, found)
    return _pair(listing, folder, images, named, class_name, mark, beside)


def _key(path: Path, folder: Path) -> str:
    """The name of an image, and of its mask, below their folders."""
    relative = path.relative_to(folder)
    stem = relative.stem.lower()
    for ending in MASK_ENDINGS:
        stem = stem.removesuffix(ending)
    return (relative.parent / stem).as_posix().lower()


def _by_name(listing: Listing, folder: Path, masks: Iterable[Path]) -> dict[str, Path]:
    """Masks by the name of their image, `x.png` or `x_mask.png`."""
    named: dict[str, Path] = {}
    for path in masks:
        name = _key(path, folder)
        if name in named:
            listing.reject(path, f"a second mask: of {name}, beside {named[name].name}")
        else:
            named[name] = path
    return named


def _pair(
    listing: Listing,
    folder: Path,
    images: Iterable[Path],
    masks: dict[str, Path],
    class_name: str,
    mark: str,
    beside: dict[Path, Path] | None = None,
) -> list[Found]:
    unused, beside = dict(masks), beside or {}
    found = []
    for path in listing.unique_stems(images):
        own = unused.pop(path.relative_to(folder).with_suffix("").as_posix().lower(), None)
        if own is not None and path in beside:
            listing.reject(own, f"a second mask: of {path.name}, beside {beside[path].name}")
        found.append(Found(path, class_name, mark, beside.get(path, own)))
    for path in unused.values():
        listing.reject(path, f"a mask without an image: in {class_name}")
    return found
