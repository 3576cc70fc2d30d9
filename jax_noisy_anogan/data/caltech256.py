"""Caltech-256 (Griffin, Holub, Perona 2007) in its official folder layout."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.decode import Pixels, decode_image
from jax_noisy_anogan.data.examples import Example, Source
from jax_noisy_anogan.data.folders import Listing, open_root
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import digest

CLUTTER = "257.clutter"
_FOLDER = "256_ObjectCategories"
_CATEGORY = re.compile(r"\d{3}\..+")


def caltech256(root: Path, config: DataConfig) -> Source:
    """List `root/256_ObjectCategories/NNN.name/NNN_MMMM.jpg`; an incomplete copy will do.

    Raises:
      DataError: no such folders, or no clutter.
      BadImageError: something in them is unusable and `on_bad_image` is "raise".
    """
    root = open_root(root)
    top = root / _FOLDER if (root / _FOLDER).is_dir() else root
    if not (top / CLUTTER).is_dir():
        raise DataError(
            f"{top} has no {CLUTTER}: config.data.root must hold {_FOLDER} of Caltech-256"
        )
    listing = Listing(top, skip=config.on_bad_image == "skip")
    found: list[tuple[str, Path]] = []
    names = []
    listing.leave_out(top, listing.folders(top))
    for folder in listing.folders(top):
        if not _CATEGORY.fullmatch(folder.name):
            listing.reject(folder, "not a category folder NNN.name")
            continue
        names.append(folder.name)
        found += [(folder.name, path) for path in sorted(listing.images(folder))]
    label_of = {name: label for label, name in enumerate(names)}
    examples = [
        Example(
            listing.id_of(path),
            label_of[name],
            partial(decode_image, path, Pixels.of(config)),
            path=path,
        )
        for name, path in found
    ]
    return Source(
        builder="caltech256",
        class_names=tuple(names),
        examples=examples,
        fingerprint=digest("caltech256", top, *sorted(listing.stamps)),
        check_duplicates=True,
        rejected=tuple(listing.rejected.items()),
    )
