"""A user's own inspection images, in one of three layouts.

- mvtec: `train/good`, `test/<defect>`, `ground_truth/<defect>/<name>_mask.png`
- plain: `normal/`, `abnormal/` (files, or one folder per kind), optional `masks/` of the same names
  and `unlabeled/`
- magnetic_tile: `MT_<class>/Imgs/<name>.jpg` with the mask `<name>.png` beside it
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.decode import decode_image, decode_mask
from jax_noisy_anogan.data.examples import BadImageError, Example, Picture, Source
from jax_noisy_anogan.data.folders import Listing, open_root
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import digest

_UNLABELED = "unlabeled"
_LANDMARKS = {"mvtec": "train/good", "magnetic_tile": "MT_Free", "plain": "normal"}


@dataclass(frozen=True)
class _Found:
    path: Path
    class_name: str
    mark: str = ""
    mask: Path | None = None


def image_folder(root: Path, config: DataConfig) -> Source:
    """List a folder of images.

    Raises:
      DataError: no layout fits, or the folder has no normal images.
      BadImageError: something in it is unusable and `on_bad_image` is "raise".
    """
    root = open_root(root)
    layout = config.layout if config.layout != "auto" else _detect(root)
    landmark = _LANDMARKS[layout]
    if not (root / landmark).is_dir():
        raise DataError(f"{root} has no {landmark}: the {layout} layout keeps normal images there")
    listing = Listing(root, skip=config.on_bad_image == "skip")
    read, normal = _LAYOUTS[layout]
    found = read(listing)
    names = _class_names(found, normal)
    if not any(item.class_name == normal for item in found):
        raise DataError(
            f"{root}: no normal image found; the {layout} layout keeps them as {normal}"
        )
    return Source(
        builder="image_folder",
        class_names=names,
        normal_classes=(normal,),
        examples=[_example(item, names, normal, listing, config) for item in found],
        fingerprint=digest(layout, root, *sorted(listing.stamps)),
        has_masks=any(item.mask for item in found),
        check_duplicates=True,
        rejected=tuple(listing.rejected.items()),
    )


def _detect(root: Path) -> str:
    for layout, landmark in _LANDMARKS.items():
        if (root / landmark).is_dir():
            return layout
    raise DataError(
        f"{root} has none of the folders train/good (layout mvtec), normal (plain) or MT_Free "
        "(magnetic_tile): arrange the images in one of these layouts"
    )


def _read_mvtec(listing: Listing) -> list[_Found]:
    root = listing.root
    listing.only(root, ("train", "test", "ground_truth"))
    for folder in listing.folders(root / "train"):
        if folder.name != "good":
            listing.reject(folder, "train may only hold the folder good")
    found = [
        _Found(path, "good", "train")
        for path in listing.unique_stems(listing.images(root / "train" / "good"))
    ]
    tested = listing.folders(root / "test")
    for folder in tested:
        masks = _masks_by_name(listing, root / "ground_truth" / folder.name)
        images = listing.unique_stems(listing.images(folder))
        found += _pair(listing, images, masks, folder.name, "test")
    for folder in listing.folders(root / "ground_truth"):
        if folder.name not in [kind.name for kind in tested]:
            listing.reject(folder, "masks of a defect that test does not hold")
    return found


def _read_plain(listing: Listing) -> list[_Found]:
    root = listing.root
    listing.only(root, ("normal", "abnormal", "masks", _UNLABELED))
    found = _pair(listing, listing.unique_stems(listing.images(root / "normal")), {}, "normal", "")
    kinds = listing.folders(root / "abnormal", files_allowed=True)
    if (root / "abnormal").is_dir():
        images = listing.images(root / "abnormal", folders_allowed=bool(kinds))
        # Flawless images share the folder masks/ only by accident of their names.
        masks = _masks_by_name(listing, root / "masks", folders_allowed=True)
        found += _pair(listing, listing.unique_stems(images), masks, "abnormal", "")
    for kind in kinds:
        images = listing.unique_stems(listing.images(kind))
        masks = _masks_by_name(listing, root / "masks" / kind.name)
        found += _pair(listing, images, masks, kind.name, "")
    for folder in listing.folders(root / "masks", files_allowed=True):
        if folder.name not in [kind.name for kind in kinds]:
            listing.reject(folder, "masks of a defect that abnormal does not hold")
    if (root / _UNLABELED).is_dir():
        images = listing.unique_stems(listing.images(root / _UNLABELED))
        found += _pair(listing, images, {}, _UNLABELED, _UNLABELED)
    return found


def _read_magnetic_tile(listing: Listing) -> list[_Found]:
    found: list[_Found] = []
    for folder in listing.folders(listing.root):
        if not folder.name.startswith("MT_"):
            listing.note(folder, "not a class folder MT_*")
            continue
        listing.only(folder, ("Imgs",))
        files = listing.images(folder / "Imgs")
        masks = _by_name(listing, [path for path in files if path.suffix.lower() == ".png"])
        images = [path for path in files if path.suffix.lower() != ".png"]
        found += _pair(listing, listing.unique_stems(images), masks, folder.name, "")
    return found


_LAYOUTS = {
    "mvtec": (_read_mvtec, "good"),
    "plain": (_read_plain, "normal"),
    "magnetic_tile": (_read_magnetic_tile, "MT_Free"),
}


def _masks_by_name(
    listing: Listing, folder: Path, *, folders_allowed: bool = False
) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return _by_name(listing, listing.images(folder, folders_allowed=folders_allowed))


def _by_name(listing: Listing, masks: Iterable[Path]) -> dict[str, Path]:
    """Masks by the name of their image, `x.png` or `x_mask.png`."""
    named: dict[str, Path] = {}
    for path in masks:
        name = path.stem.lower().removesuffix("_mask")
        if name in named:
            listing.reject(path, f"a second mask for {name}, beside {named[name].name}")
        else:
            named[name] = path
    return named


def _pair(
    listing: Listing, images: list[Path], masks: dict[str, Path], class_name: str, mark: str
) -> list[_Found]:
    unused = dict(masks)
    found = [_Found(path, class_name, mark, unused.pop(path.stem.lower(), None)) for path in images]
    for path in unused.values():
        listing.reject(path, f"a mask without an image in {class_name}")
    return found


def _class_names(found: Iterable[_Found], normal: str) -> tuple[str, ...]:
    others = sorted({item.class_name for item in found} - {normal, _UNLABELED})
    unlabeled = [_UNLABELED] if any(item.mark == _UNLABELED for item in found) else []
    return (normal, *others, *unlabeled)


def _example(
    item: _Found, names: tuple[str, ...], normal: str, listing: Listing, config: DataConfig
) -> Example:
    load = partial(
        _load,
        item,
        is_normal=item.class_name == normal,
        channels=config.channels,
        max_pixels=config.max_image_pixels,
    )
    return Example(listing.id_of(item.path), names.index(item.class_name), load, item.mark)


def _load(item: _Found, *, is_normal: bool, channels: int, max_pixels: int) -> Picture:
    picture = decode_image(item.path, channels=channels, max_pixels=max_pixels)
    height, width = picture.image.shape[:2]
    if item.mask is None:
        empty = np.zeros((height, width), bool) if is_normal else None
        return replace(picture, mask=empty)
    mask = decode_mask(item.mask, max_pixels=max_pixels)
    if mask.shape != (height, width):
        raise BadImageError(
            str(item.mask),
            f"mask is {mask.shape[1]} x {mask.shape[0]}, its image {item.path.name} {width} x "
            f"{height} pixels",
        )
    if is_normal and mask.any():
        raise BadImageError(str(item.mask), f"marks a defect in the normal image {item.path.name}")
    return replace(picture, mask=mask)
