"""Cross-validation inside the training part: its images divided again, so that no test image does.

What is compared this way may then be measured on the test part once.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from jaxtyping import Int

from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import PARTS, Split
from jax_noisy_anogan.errors import DataError


def folds(dataset: Dataset, split: Split, count: int) -> list[Split]:
    """Divide the training part of a split `count` times, so that every image validates once.

    Training and validation images are joined first. Normal and known abnormal images are spread
    evenly, and what the split keeps together stays together. Unlabelled and contaminating images
    validate in no fold, as in the split itself. The test part of every fold is empty.

    Raises:
      DataError: a fold would train or validate without a known defect, or with fewer than two
        normal images.
    """
    normal = np.union1d(split.train_normal, split.validation_normal)
    known = np.union1d(split.train_known_abnormal, split.validation_known_abnormal)
    if len(known) == 0:
        raise DataError(
            "no defect is known in the training part: settings are compared by how well they find "
            "known defects, so put some into PHOTOS/abnormal, or raise "
            "config.data.known_abnormal_fraction or known_abnormal_count"
        )
    marks = np.array(dataset.marks or ("",) * len(dataset))
    hidden = np.union1d(normal[marks[normal] == "unlabeled"], split.contaminating)
    normal = np.setdiff1d(normal, hidden)
    pool = np.concatenate([normal, known])
    groups = np.arange(len(dataset)) if split.groups is None else split.groups
    return [
        _fold(split, pool[held], pool, hidden, groups, f"fold {number} of {count}")
        for number, held in enumerate(_held(split, pool, groups, count), 1)
    ]


def _held(
    split: Split, pool: Int[np.ndarray, " n"], groups: Int[np.ndarray, " all"], count: int
) -> list[Int[np.ndarray, " m"]]:
    """Positions in `pool` that validate, fold by fold."""
    from sklearn.model_selection import StratifiedGroupKFold  # takes seconds to import

    if count > len(np.unique(groups[pool])):
        raise DataError(
            f"{count} folds of {len(np.unique(groups[pool]))} groups of images that stay together: "
            "ask for fewer folds"
        )
    divide = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # Fewer defects than folds: `_fold` says so with numbers.
        warnings.simplefilter("ignore", UserWarning)
        divided = divide.split(pool, split.is_abnormal[pool], groups[pool])
        return [held for _, held in divided]


def _fold(
    split: Split,
    held: Int[np.ndarray, " m"],
    pool: Int[np.ndarray, " n"],
    hidden: Int[np.ndarray, " h"],
    groups: Int[np.ndarray, " all"],
    name: str,
) -> Split:
    """The split that validates with `held` and trains with what is unlike it."""
    rest = np.setdiff1d(np.union1d(pool, hidden), held)
    rest = rest[~np.isin(groups[rest], groups[held])]
    known = rest[np.isin(rest, pool) & split.is_abnormal[rest]]
    abnormal = split.is_abnormal[held]
    found = dataclasses.replace(
        split,
        protocol=f"{split.protocol}; {name} of the training part",
        train_normal=np.setdiff1d(rest, known),
        train_known_abnormal=known,
        validation_normal=np.sort(held[~abnormal]),
        validation_known_abnormal=np.sort(held[abnormal]),
        test=np.zeros(0, np.int64),
        transductive=False,
    )
    counts = {part: len(found.part(part)) for part in PARTS if part != "test"}
    if min(counts.values()) == 0 or counts["validation_normal"] < 2:
        told = ", ".join(f"{part} {number}" for part, number in counts.items())
        if split.groups is not None:
            told += "; images of one part stay together"
        raise DataError(
            f"{name} of the training part is too small ({told}): give more images or known "
            "defects, or ask for fewer folds"
        )
    return found
