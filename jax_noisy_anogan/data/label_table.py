"""A CSV file that says what every image of a folder is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.folders import Listing
from jax_noisy_anogan.data.layouts import UNLABELED, Found, Layout
from jax_noisy_anogan.data.names import meaning
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import user_path

_COLUMNS = ("path", "label", "mask", "group", "split")


def read_table(listing: Listing, config: DataConfig) -> Layout:
    """`path,label[,mask][,group][,split]`, paths below the root.

    Raises:
      DataError: the file cannot be read, or a row is wrong; names its line.
    """
    if not config.table:
        raise DataError("config.data.table is not set: the table layout needs a CSV file")
    path = listing.root / user_path(config.table, "config.data.table")
    try:
        text = path.read_text(encoding="utf-8-sig")
        listing.stamp(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: save it as CSV in UTF-8") from error
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is no CSV ({error})") from error
    missing = [name for name in _COLUMNS[:2] if name not in columns]
    unknown = [name for name in columns if name not in _COLUMNS]
    if missing or unknown:
        raise DataError(
            f"{path} has the columns {', '.join(columns) or 'none'}: expected path,label and, if "
            "known, mask,group,split"
        )
    found: dict[Path, Found] = {}
    divided = any((row.get("split") or "").strip() for _, row in rows)
    for line, row in rows:
        if divided and meaning(row.get("label") or "") != UNLABELED and not row.get("split"):
            raise DataError(f"{path}: line {line} has no split, although others have one")
        item = _row(listing, f"{path}: line {line}", row)
        if item is None:
            continue
        if item.path in found:
            raise DataError(f"{path}: line {line} names {row['path']} a second time")
        found[item.path] = item
    named = {*found, *(item.mask for item in found.values())}
    for entry in Listing(listing.root, skip=True).images(listing.root):
        if entry not in named:
            listing.note(entry, "an image that the table does not name")
    return Layout([found[path] for path in sorted(found)], "normal")


def _row(listing: Listing, where: str, row: dict[str, str]) -> Found | None:
    """One row of a table.

    Raises:
      DataError: a value is missing or not among those expected.
    """
    if None in row or None in row.values():
        raise DataError(f"{where} has not as many values as the first line has names")
    values = {name: value.strip() for name, value in row.items()}
    if not values["path"]:
        raise DataError(f"{where} has no path")
    label, split = values["label"], values.get("split", "").lower()
    what: str = meaning(label) if label not in ("0", "1") else ("normal", "abnormal")[int(label)]
    if not label or what in ("masks", "train", "test"):
        raise DataError(
            f"{where} has the label {label!r}: expected normal, unlabeled or a kind of defect"
        )
    mark: str = meaning(split)
    if split and mark not in ("train", "test"):
        raise DataError(
            f"{where} has the split {split!r}: expected train, test or nothing (validation images "
            "are held back from those that train, config.data.validation_fraction)"
        )
    image, mask = (_below_root(listing, where, values.get(key, "")) for key in ("path", "mask"))
    assert image is not None
    if what == UNLABELED:
        if mark == "test":
            raise DataError(f"{where} tests an unlabeled image: expected a label, or train")
        mark, name = "unlabeled", UNLABELED
    else:
        name = label if what == "" else what
    if not listing.usable(image) or (mask is not None and not listing.usable(mask)):
        return None
    return Found(image, name, mark, mask, values.get("group", ""))


def _below_root(listing: Listing, where: str, text: str) -> Path | None:
    if not text:
        return None
    path = Path(text.replace("\\", "/"))
    if path.is_absolute() and path.is_relative_to(listing.root):
        path = path.relative_to(listing.root)
    if path.is_absolute() or ".." in path.parts or "\0" in text:
        raise DataError(f"{where} names {text!r}: expected a path below {listing.root}")
    return listing.root / path
