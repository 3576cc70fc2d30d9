"""`split.json`: a run's division of its images, which later changes of the folder leave alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import PARTS, Split
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import write_text

_NAMED = 5


def write(path: Path, split: Split, dataset: Dataset) -> None:
    """Keep a split: ids of every part, and of image folders the class and content of each file."""
    used = np.concatenate([split.part(name) for name in PARTS])
    unused = np.setdiff1d(np.arange(len(dataset)), used)
    document = split.to_json() | {
        "unused": [dataset.ids[i] for i in unused],
        "abnormal": [dataset.ids[i] for i in np.flatnonzero(split.is_abnormal)],
    }
    if dataset.name == "image_folder":
        document["files"] = _files(dataset)
    write_text(path, json.dumps(document, indent=1) + "\n")


def read(path: Path, dataset: Dataset) -> Split:
    """The split of a run that has trained, whatever has come to the folder since.

    Images that are not in it are named in a warning and left alone.

    Raises:
      DataError: an image of it is missing, or is another one by now; or the file is unreadable.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        parts = {name: list(document["parts"][name]) for name in PARTS}
        unused, abnormal = set(document["unused"]), set(document["abnormal"])
        files: dict[str, list[str]] = document.get("files", {})
        together = [list(ids) for ids in document.get("together", [])]
        protocol, transductive = str(document["protocol"]), bool(document["transductive"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read, and says which images trained this run: put it back, or use "
            "another --workdir"
        ) from error
    row = {id_: index for index, id_ in enumerate(dataset.ids)}
    used = list(dict.fromkeys(id_ for ids in parts.values() for id_ in ids))
    _refuse(
        path,
        [id_ for id_ in used if id_ not in row],
        "are missing from the data set, or cannot be used",
    )
    now = _files(dataset) if files else {}
    changed = [id_ for id_ in used if files and now[id_] != files.get(id_)]
    _refuse(path, changed, "have another content or class than when the run began")
    known = unused.union(used)
    new = [id_ for id_ in dataset.ids if id_ not in known]
    if new:
        logging.warning(
            "%s not in the split of this run and left alone: %s; another --workdir trains with "
            "them",
            "1 image is" if len(new) == 1 else f"{len(new):,} images are",
            _shown(new),
        )

    def indices(ids: Sequence[str]) -> Int[np.ndarray, " n"]:
        return np.array([row[id_] for id_ in ids], np.int64)

    groups = np.arange(len(dataset))
    for ids in together:
        # Of images that no part holds some may be gone.
        there = [row[id_] for id_ in ids if id_ in row]
        groups[there] = there[:1] or 0
    return Split(
        protocol=protocol,
        ids=dataset.ids,
        is_abnormal=np.array([id_ in abnormal for id_ in dataset.ids], bool),
        transductive=transductive,
        groups=groups if together else None,
        **{name: indices(ids) for name, ids in parts.items()},
    )


def _files(dataset: Dataset) -> dict[str, list[str]]:
    names = (dataset.class_names[label] for label in dataset.labels)
    rows = zip(dataset.ids, names, dataset.contents, strict=True)
    return {id_: [name, content] for id_, name, content in rows}


def _refuse(path: Path, ids: list[str], reason: str) -> None:
    if ids:
        raise DataError(
            f"{len(ids):,} of the images that {path} divides {reason}: {_shown(ids)}; put them "
            "back, or use another --workdir"
        )


def _shown(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
