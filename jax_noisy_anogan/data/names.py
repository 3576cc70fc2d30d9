"""What the name of a folder or a class says: normal, abnormal, unlabeled, or a part of a layout."""

from __future__ import annotations

import re
from typing import Literal

Meaning = Literal["normal", "abnormal", "unlabeled", "masks", "train", "test", ""]

_WORDS: dict[Meaning, str] = {
    "normal": "normal normals good goods ok okay io pass passed free clean flawless faultless "
    "healthy perfect defectfree nodefect nodefects anomalyfree nonanomalous nondefective",
    "abnormal": "abnormal abnormals bad ng nok notok nio notgood fail failed reject rejects "
    "rejected defect defects defective anomaly anomalies anomalous fault faults faulty",
    "unlabeled": "unlabeled unlabelled unlabel nolabel unknown unsorted unclassified",
    "masks": "mask masks gt groundtruth groundtruths label labels annotation annotations "
    "segmentation segmentations",
    "train": "train training",
    "test": "test tests testing",
}
_MEANINGS = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}


def meaning(name: str) -> Meaning:
    """What a name says in any spelling: `Good`, `OK_2` and `defect-free` are normal.

    Case, punctuation and numbers at the end do not count.
    """
    word = re.sub(r"[\W_]+", "", name.casefold())
    return _MEANINGS.get(word) or _MEANINGS.get(word.rstrip("0123456789"), "")
