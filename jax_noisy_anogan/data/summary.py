"""A data set as text and as a picture: counts, sizes, the paper's Table 1, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw
from rich.table import Table

from jax_noisy_anogan import pictures
from jax_noisy_anogan.config import PUBLISHED_SPLITS
from jax_noisy_anogan.data import near_duplicates
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.folders import OTHER_ENDING
from jax_noisy_anogan.data.splits import PARTS, Split

# Table 1: name, images, classes.
PAPER_TABLE_1 = {
    "mnist5k": ("MNIST", 70_000, 10),
    "mnist": ("MNIST", 70_000, 10),
    "caltech256": ("Caltech-256", 30_607, 256),
    "ir_mnist": ("IR-MNIST", 6_051, 10),
}
_HEADINGS = ("train\nnormal", "train\nknown", "valid.\nnormal", "valid.\nknown", "test")
_MANY_CLASSES = 30
_COLUMNS = 8
_ROWS = 16
_THUMBNAIL = 96
_FEW_ROWS = 6
_CAPTION = 14
_RED = (255, 0, 0)


def table_1(dataset: Dataset) -> Table:
    """Table 1 of the paper: the row printed there, if any, and this copy of the data set."""
    table = Table("", "dataset name", "dataset size", "class", title="Table 1")
    name, images, classes = PAPER_TABLE_1.get(dataset.name, (dataset.name, None, None))
    if images is not None:
        table.add_row("paper", name, f"{images:,}", str(classes))
    present = len(np.unique(dataset.labels))
    found = len(dataset) + len(dataset.left_out)
    size = f"{len(dataset):,}" + (f" of {found:,} files" if dataset.left_out else "")
    table.add_row("here", name, size, str(present))
    return table


def properties(dataset: Dataset, split: Split) -> Table:
    """Sizes, pixel formats, official parts, masks."""
    table = Table("property", "value", title=dataset.name)
    width, height = dataset.sizes.T
    table.add_row("width", f"{width.min()} to {width.max()}, median {np.median(width):.0f}")
    table.add_row("height", f"{height.min()} to {height.max()}, median {np.median(height):.0f}")
    table.add_row("modes", _counted(dataset.modes))
    table.add_row("official parts", _counted(mark or "none" for mark in dataset.marks))
    known = f"{dataset.has_mask.sum():,} of {len(dataset):,}" if dataset.has_masks else "none"
    table.add_row("known masks", known)
    if dataset.cells is not None:
        labelled = (dataset.cells >= 0).all(axis=(1, 2))
        rows, columns = dataset.cells.shape[1:]
        table.add_row("cells", f"{rows} x {columns}, labelled in {labelled.sum():,} images")
    table.add_row("prepared at", ", ".join(map(str, dataset.resolutions)))
    mean, std = pixel_statistics(dataset, split.train_normal)
    scale = f"data.pixel_mean={mean:.3f} data.pixel_std={std:.3f}"
    table.add_row("normal training pixels", scale)
    if dataset.name not in PUBLISHED_SPLITS:
        table.add_row("tested images like a training one", _seen(dataset, split))
    table.add_row("left out", f"{len(dataset.left_out):,}")
    table.add_row("records", str(dataset.path))
    return table


def left_out_by_kind(dataset: Dataset) -> str:
    """How many files were left out, by the kind of their reason; what follows a colon is not."""
    kinds = (
        item.reason if item.reason.startswith(OTHER_ENDING) else item.reason.partition(": ")[0]
        for item in dataset.left_out
    )
    return f"{len(dataset.left_out):,}: {_counted(kinds)}"


def _seen(dataset: Dataset, split: Split) -> str:
    trained = np.concatenate([split.train_normal, split.train_known_abnormal])
    tested, training = (near_duplicates.thumbnails(dataset, part) for part in (split.test, trained))
    count = int(near_duplicates.seen(tested, training, near_duplicates.SAME).sum())
    return f"{count:,} of {len(split.test):,} correlate {near_duplicates.SAME} or more"


def pixel_statistics(dataset: Dataset, indices: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """Mean and standard deviation of up to 64 of the images, as shares of the full range."""
    chosen = indices[np.linspace(0, len(indices) - 1, min(len(indices), 64)).astype(int)]
    source = dataset.source(dataset.resolution)
    # One image at a time: many of a large resolution would not fit in memory.
    images = (source[int(index)].astype(np.float64) / 255.0 for index in chosen)
    moments = np.mean([(image.mean(), np.square(image).mean()) for image in images], axis=0)
    return float(moments[0]), float(max(moments[1] - moments[0] ** 2, 0.0) ** 0.5)


def split_counts(dataset: Dataset, split: Split) -> Table:
    """Images per class and part of the split.

    Of very many classes, those that are neither trained as normal nor tested share one row.
    """
    table = Table(title=split.protocol)
    table.add_column("class", overflow="fold")
    for heading in (*_HEADINGS, "unused", "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    counts = [_class_counts(dataset, split.part(part)) for part in PARTS]
    totals = _class_counts(dataset, np.arange(len(dataset)))
    used = np.zeros(len(dataset), bool)
    for part in PARTS:
        used[split.part(part)] = True
    unused = _class_counts(dataset, np.flatnonzero(~used))
    columns = np.stack([*counts, unused, totals])
    present = np.flatnonzero(totals)
    shown = present
    if len(present) > _MANY_CLASSES:
        shown = np.flatnonzero(counts[PARTS.index("train_normal")] + counts[PARTS.index("test")])
    for label in shown:
        table.add_row(dataset.class_names[label], *(f"{n:,}" for n in columns[:, label]))
    if len(shown) < len(present):
        others = columns[:, np.setdiff1d(present, shown)].sum(axis=1)
        table.add_row(f"{len(present) - len(shown)} others", *(f"{n:,}" for n in others))
    table.add_section()
    table.add_row("all", *(f"{n:,}" for n in columns.sum(axis=1)))
    if len(split.contaminating):
        table.caption = f"{len(split.contaminating)} abnormal images hide in the training images"
    return table


def contact_sheet(dataset: Dataset, path: Path) -> None:
    """Write a PNG with a row of examples per class (the 16 largest classes).

    The anomalous pixels of an image are outlined in red where the data set has masks.
    """
    counts = _class_counts(dataset, np.arange(len(dataset)))
    largest = sorted(np.flatnonzero(counts), key=lambda label: (-counts[label], label))[:_ROWS]
    rows = sorted(largest)
    side = 2 * _THUMBNAIL if len(rows) <= _FEW_ROWS else _THUMBNAIL
    cell = side + 4
    sheet = Image.new("RGB", (_COLUMNS * cell, len(rows) * (cell + _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(rows):
        top = row * (cell + _CAPTION)
        caption = f"{dataset.class_names[label]}: {counts[label]:,} images"
        draw.text((2, top), caption, fill="black")
        indices = np.flatnonzero(dataset.labels == label)
        shown = indices[np.linspace(0, len(indices) - 1, min(_COLUMNS, len(indices))).astype(int)]
        for column, thumbnail in enumerate(_thumbnails(dataset, shown, side)):
            sheet.paste(Image.fromarray(thumbnail), (column * cell + 2, top + _CAPTION))
    pictures.save_png(path, np.asarray(sheet))


def _thumbnails(
    dataset: Dataset, indices: np.ndarray, side: int
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Pictures whose longer side is `side`."""
    level = min((r for r in dataset.resolutions if r >= side), default=dataset.resolution)
    source, thumbnails = dataset.source(level), []
    for index in map(int, indices):
        image = source[index]
        picture = pictures.as_rgb(image)
        if dataset.has_masks:
            picture = pictures.outlined(image, source.mask(index) > 0, line=_RED, width=2)
        share = side / max(image.shape[:2])
        method = Image.Resampling.NEAREST if share > 1 else Image.Resampling.BOX
        width, height = (max(1, round(share * image.shape[axis])) for axis in (1, 0))
        thumbnails.append(np.asarray(Image.fromarray(picture).resize((width, height), method)))
    return thumbnails


def _class_counts(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    return np.bincount(dataset.labels[indices], minlength=len(dataset.class_names))


def _counted(values: Iterable[str]) -> str:
    return ", ".join(f"{value} {count:,}" for value, count in Counter(values).most_common())
