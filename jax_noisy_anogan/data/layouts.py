"""Folders that say by their names what the images in them are; one reader for each layout.

In every layout a mask may lie beside its image, with `_mask`, `_label` or `_gt` after its name, and
folders may be nested. Which names mean normal, abnormal or unlabeled: `names.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
    shown: list[Found] = []
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
        is_normal = what == "normal"
        name = normal if is_normal else folder.name
        allowed: Meaning = "normal" if is_normal else "abnormal"
        shown += _class(listing, folder, name, "test", allowed=allowed)
    return Layout(found + _with_masks(listing, shown, truths, "test"), normal)


def read_plain(listing: Listing, config: DataConfig) -> Layout:
    normals = _chosen(listing, config.normal_dirs, "normal_dirs", "normal")
    abnormals = _chosen(listing, config.abnormal_dirs, "abnormal_dirs", "abnormal")
    masks, unlabeled = _named(listing, "masks"), _named(listing, "unlabeled")
    taken = [*normals, *abnormals, *masks, *unlabeled]
    for folder in taken:
        if taken.count(folder) > 1:
            raise DataError(
                f"{folder} has two meanings: name it once in config.data.normal_dirs and "
                "abnormal_dirs; if its own name means masks or unlabeled, rename it"
            )
    chosen = bool(config.normal_dirs and config.abnormal_dirs)
    listing.leave_out(listing.root, taken, chosen=chosen)
    if not normals:
        raise DataError(f"{listing.root} has no normal: the plain layout keeps normal images there")
    inner = [*normals, *abnormals]
    kinds = {
        folder: [kind for kind in listing.folders(folder) if kind not in inner]
        for folder in abnormals
    }
    defects = {kind.name for folder in abnormals for kind in (folder, *kinds[folder])}
    # Of good/images and bad/images the last part of the path says nothing.
    doubtful = {UNLABELED, *({normals[0].name} & defects)}

    def name_of(folder: Path) -> str:
        return listing.id_of(folder) if folder.name in doubtful else folder.name

    normal = name_of(normals[0])
    abnormal: list[Found] = []
    for folder in abnormals:
        for kind in kinds[folder]:
            if meaning(kind.name) not in ("", "abnormal"):
                listing.reject(
                    kind, f"its name contradicts the folder around it, {folder.name}: move it"
                )
                continue
            abnormal += _class(listing, kind, name_of(kind), allowed="abnormal", inner=inner)
        if any(map(is_image, listing.entries(folder))) or not kinds[folder]:
            apart = [*kinds[folder], *inner]
            abnormal += _class(listing, folder, name_of(folder), allowed="abnormal", inner=apart)
        else:
            listing.leave_out(folder, [*kinds[folder], *inner])
    found = [item for f in normals for item in _class(listing, f, normal, inner=inner)]
    found += _with_masks(listing, abnormal, masks, "abnormal")
    for folder in unlabeled:
        found += _class(listing, folder, UNLABELED, UNLABELED, allowed="unlabeled")
    return Layout(found, normal)


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
        masks = [
            (path, _key(path, folder / "Imgs")) for path in files if path.suffix.lower() == ".png"
        ]
        images = listing.unique_stems(path for path in files if path.suffix.lower() != ".png")
        found += _paired(listing, [Found(path, folder.name) for path in images], masks)
    return Layout(found, "MT_Free")


def read_pairs(listing: Listing, config: DataConfig) -> Layout:
    """Images whose masks say whether they are abnormal.

    Where no mask is empty, masks were drawn for defects alone, and images without one are normal.
    """
    images, masks = _beside(listing, listing.images(listing.root))
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
    allowed: Meaning = "normal",
    inner: Sequence[Path] = (),
) -> list[Found]:
    """The images of one class, with the masks that lie beside them.

    Args:
      allowed: what the name of a folder inside may mean.
      inner: folders inside that are classes of their own.
    """
    files = listing.images(folder, unlike=_contradicts(allowed), apart=inner)
    images, masks = _beside(listing, files)
    return [Found(path, class_name, mark, masks.get(path)) for path in listing.unique_stems(images)]


def _beside(listing: Listing, files: Iterable[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Images, and those that have a mask beside them with it; further masks are refused."""
    images, masks = with_masks_beside(files)
    for image, (first, *others) in masks.items():
        for other in others:
            listing.reject(other, f"a second mask: of {image.name}, beside {first.name}")
    return images, {image: first for image, (first, *_) in masks.items()}


def _key(path: Path, folder: Path) -> str:
    """The name of an image, and of its mask, below their folders."""
    relative = path.relative_to(folder)
    stem = relative.stem.lower()
    for ending in MASK_ENDINGS:
        stem = stem.removesuffix(ending)
    return (relative.parent / stem).as_posix().lower()


def _with_masks(
    listing: Listing, found: Sequence[Found], places: Sequence[Path], around: str
) -> list[Found]:
    """Images with masks from folders of their own, divided as the images are or not at all.

    Args:
      places: folders of masks.
      around: the folder of the images, for reasons.
    """
    parents = {part for item in found for part in _parts(listing, item.path)[:-1]}
    masks: list[tuple[Path, str]] = []
    for place in places:
        strange = [kind for kind in listing.folders(place) if kind.name.lower() not in parents]
        for folder in strange:
            listing.reject(folder, f"masks of a defect that {around} does not hold")
        files = listing.images(place, apart=strange, empty_allowed=True)
        masks += [(path, _key(path, place)) for path in files]
    return _paired(listing, found, masks)


def _paired(
    listing: Listing, found: Sequence[Found], masks: Iterable[tuple[Path, str]]
) -> list[Found]:
    """Images with their masks: a mask is of the only image whose path ends with its key.

    Args:
      masks: files with their keys, see `_key`.
    """
    by_ending = defaultdict[str, list[int]](list)
    for number, item in enumerate(found):
        parts = _parts(listing, item.path)
        for start in range(len(parts)):
            by_ending["/".join(parts[start:])].append(number)
    paired = list(found)
    # A longer key says more: `scratch/x` leaves `x` to an image elsewhere.
    for mask, key in sorted(masks, key=lambda item: -item[1].count("/")):
        images = by_ending.get(key, [])
        free = [number for number in images if paired[number].mask is None]
        if len(free) == 1:
            paired[free[0]] = replace(paired[free[0]], mask=mask)
        elif free:
            names = ", ".join(listing.id_of(paired[number].path) for number in free[:3])
            listing.reject(mask, f"a mask of several images, use folders named as theirs: {names}")
        elif images:
            first = paired[images[0]]
            assert first.mask is not None
            image, other = listing.id_of(first.path), listing.id_of(first.mask)
            listing.reject(mask, f"a second mask: of {image}, beside {other}")
        else:
            listing.reject(mask, "a mask without an image")
    return paired


def _parts(listing: Listing, image: Path) -> list[str]:
    """What a key may hold of an image: its folders below the root, and its name."""
    return Path(listing.id_of(image)).with_suffix("").as_posix().lower().split("/")
