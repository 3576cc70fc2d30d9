"""A user's own inspection images, arranged as people have them.

- mvtec: `train/good`, `test/good`, `test/<defect>`, `ground_truth/<defect>/<name>_mask.png`
- plain: folders of normal and of abnormal images (files, or one folder per kind), optional `masks/`
  of the same names and `unlabeled/`; `normal_dirs` and `abnormal_dirs` name other folders
- magnetic_tile: `MT_<class>/Imgs/<name>.jpg` with the mask `<name>.png` beside it
- pairs: images with their masks beside them; an image is abnormal where its mask marks something
- flat: normal images only
- table: a CSV file says what every image is (`data.table`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import layouts
from jax_noisy_anogan.data.decode import Pixels, decode_image, decode_mask
from jax_noisy_anogan.data.examples import BadImageError, Example, Picture, Source
from jax_noisy_anogan.data.folders import (
    Listing,
    holds_images,
    is_image,
    open_root,
    with_masks_beside,
)
from jax_noisy_anogan.data.label_table import read_table
from jax_noisy_anogan.data.layouts import UNLABELED, Found, Layout
from jax_noisy_anogan.data.names import meaning
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import digest

_READERS: dict[str, Callable[[Listing, DataConfig], Layout]] = {
    "mvtec": layouts.read_mvtec,
    "plain": layouts.read_plain,
    "magnetic_tile": layouts.read_magnetic_tile,
    "pairs": layouts.read_pairs,
    "flat": layouts.read_flat,
    "table": read_table,
}


def image_folder(root: Path, config: DataConfig) -> Source:
    """List a folder of images.

    Raises:
      DataError: no layout fits, or the folder has no normal images.
      BadImageError: something in it is unusable and `on_bad_image` is "raise".
    """
    root = open_root(root)
    name = config.layout
    if name == "auto":
        name = "table" if config.table else _detect(root, config)
    listing = Listing(root, skip=config.on_bad_image == "skip")
    layout = _READERS[name](listing, config)
    found, normal = layout.found, layout.normal
    if not any(item.class_name == normal for item in found):
        raise DataError(f"{root}: no normal image found; the {name} layout keeps them as {normal}")
    names = _class_names(found, normal)
    contents = [
        (listing.id_of(item.path), item.class_name, item.mark, item.mask, item.group)
        for item in found
    ]
    return Source(
        builder="image_folder",
        class_names=names,
        normal_classes=(normal,),
        examples=[_example(item, names, normal, listing, config) for item in found],
        fingerprint=digest(name, root, contents, *sorted(listing.stamps)),
        has_masks=any(item.mask for item in found),
        check_duplicates=True,
        rejected=tuple(listing.rejected.items()),
    )


def _detect(root: Path, config: DataConfig) -> str:
    """The layout that a folder has.

    Raises:
      DataError: it has none; says what to do.
    """
    listing = Listing(root, skip=True)
    folders = listing.folders(root)
    if config.normal_dirs or config.abnormal_dirs:
        return "plain"
    train = [folder for folder in folders if meaning(folder.name) == "train"]
    if any(meaning(kind.name) == "normal" for folder in train for kind in listing.folders(folder)):
        return "mvtec"
    if (root / "MT_Free").is_dir():
        return "magnetic_tile"
    if any(meaning(folder.name) == "normal" for folder in folders):
        return "plain"
    filled = [folder for folder in folders if holds_images(folder)]
    images = listing.images(root)
    if with_masks_beside(images)[1]:
        return "pairs"
    if not filled and images:
        return "flat"
    names = ", ".join(folder.name for folder in filled[:5])
    direct = any(map(is_image, listing.entries(root)))
    if len(filled) == 1 and not direct and _has_layout(filled[0], config):
        raise DataError(f"{root} holds the single folder {names}: set config.data.root to it")
    raise DataError(
        f"{root} has no layout that is known ("
        + (f"images lie in {names}" if filled else "it holds no image")
        + "): name the folders, as in --config.data.normal_dirs=ok --config.data.abnormal_dirs=ng, "
        "or set --config.data.layout=flat if all images are normal"
    )


def _has_layout(folder: Path, config: DataConfig) -> bool:
    try:
        return bool(_detect(folder, config))
    except DataError:
        return False


def _class_names(found: Iterable[Found], normal: str) -> tuple[str, ...]:
    others = sorted({item.class_name for item in found} - {normal, UNLABELED})
    unlabeled = [UNLABELED] if any(item.mark == UNLABELED for item in found) else []
    return (normal, *others, *unlabeled)


def _example(
    item: Found, names: tuple[str, ...], normal: str, listing: Listing, config: DataConfig
) -> Example:
    load = partial(_load, item, is_normal=item.class_name == normal, pixels=Pixels.of(config))
    return Example(
        id=listing.id_of(item.path),
        label=names.index(item.class_name),
        load=load,
        mark=item.mark,
        path=item.path,
        group=item.group,
    )


def _load(item: Found, *, is_normal: bool, pixels: Pixels) -> Picture:
    picture = decode_image(item.path, pixels)
    height, width = picture.image.shape[:2]
    if item.mask is None:
        empty = np.zeros((height, width), bool) if is_normal else None
        return replace(picture, mask=empty)
    mask = decode_mask(item.mask, max_pixels=pixels.max_pixels)
    if mask.shape != (height, width):
        raise BadImageError(
            str(item.mask),
            f"mask is {mask.shape[1]} x {mask.shape[0]}, its image {item.path.name} {width} x "
            f"{height} pixels",
        )
    if is_normal and mask.any():
        raise BadImageError(str(item.mask), f"marks a defect in the normal image {item.path.name}")
    return replace(picture, mask=mask)
