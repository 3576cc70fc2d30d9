"""Who trains, who validates, who is tested: pure functions of labels, settings and a seed.

Nothing here opens a file. Each random choice has its own generator, keyed by the seed, the purpose
and the class, so that changing one setting does not reshuffle the choices of another.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.errors import DataError
from jax_noisy_anogan.data.records import Dataset

PARTS = (
    "train_normal",
    "train_known_abnormal",
    "validation_normal",
    "validation_known_abnormal",
    "test",
)


@dataclass(frozen=True)
class Split:
    """A division of a data set; the five parts never share an example.

    Attributes:
      protocol: one line that says how the division was made.
      ids: of all examples of the data set.
      is_abnormal: ground truth of all examples.
      train_normal: unlabelled training images; abnormal ones among them are the contamination.
    """

    protocol: str
    ids: tuple[str, ...]
    is_abnormal: Bool[np.ndarray, " n"]
    train_normal: Int[np.ndarray, " a"]
    train_known_abnormal: Int[np.ndarray, " b"]
    validation_normal: Int[np.ndarray, " c"]
    validation_known_abnormal: Int[np.ndarray, " d"]
    test: Int[np.ndarray, " e"]

    def part(self, name: str) -> Int[np.ndarray, " n"]:
        """The indices of one of `PARTS`."""
        return getattr(self, name)

    @property
    def contaminating(self) -> Int[np.ndarray, " n"]:
        """The abnormal images that hide among `train_normal`."""
        return self.train_normal[self.is_abnormal[self.train_normal]]

    def to_json(self) -> dict[str, Any]:
        """Example ids of every part, ready for `json.dumps`."""
        parts = {name: [self.ids[i] for i in self.part(name)] for name in PARTS}
        return {
            "protocol": self.protocol,
            "counts": {name: len(ids) for name, ids in parts.items()},
            "parts": parts,
            "contaminating": [self.ids[i] for i in self.contaminating],
            "abnormal_in_test": [self.ids[i] for i in self.test if self.is_abnormal[i]],
        }

    def write(self, path: Path) -> None:
        """Write `to_json` to a file."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def make_split(dataset: Dataset, config: DataConfig) -> Split:
    """Divide `dataset` by the protocol of its name.

    Raises:
      DataError: a part that must not be empty would be, or a class is unknown.
    """
    split = one_class(dataset.labels, config.digit, config)
    return dataclasses.replace(split, ids=dataset.ids)


def one_class(labels: Int[np.ndarray, " n"], normal: int, config: DataConfig) -> Split:
    """MNIST of the paper: one class is normal, every other one abnormal.

    `train_fraction` of the normal class and `known_abnormal_fraction` of every other class train
    (validation is carved out of both); all the rest is the test part.
    """
    seed = config.split_seed
    is_abnormal = labels != normal
    shares = {
        int(label): _shuffled(np.flatnonzero(labels == label), seed, "train", int(label))
        for label in np.unique(labels)
    }
    if normal not in shares:
        raise DataError(f"class {normal} has no example: it cannot be the normal class")
    train = {
        label: _head(
            indices, config.train_fraction if label == normal else config.known_abnormal_fraction
        )
        for label, indices in shares.items()
    }
    rest = [indices[len(train[label]) :] for label, indices in shares.items()]
    held = {label: _head(indices, config.validation_fraction) for label, indices in train.items()}
    kept = {label: indices[len(held[label]) :] for label, indices in train.items()}
    abnormal = [label for label in shares if label != normal]
    return Split(
        protocol=f"one class: {normal} is normal, split seed {seed}",
        ids=(),
        is_abnormal=is_abnormal,
        train_normal=np.sort(kept[normal]),
        train_known_abnormal=_joined(kept[label] for label in abnormal),
        validation_normal=np.sort(held[normal]),
        validation_known_abnormal=_joined(held[label] for label in abnormal),
        test=_limit_test(_joined(rest), labels, is_abnormal, config),
    )


def _limit_test(
    test: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " all"],
    is_abnormal: Bool[np.ndarray, " all"],
    config: DataConfig,
) -> Int[np.ndarray, " m"]:
    """At most `max_test_images`: half normal, half abnormal spread evenly over the classes."""
    limit = config.max_test_images
    if not 0 < limit < len(test):
        return test
    normal, abnormal = test[~is_abnormal[test]], test[is_abnormal[test]]
    from_normal = min(len(normal), max(limit // 2, limit - len(abnormal)))
    chosen = [_shuffled(normal, config.split_seed, "test", -1)[:from_normal]]
    return _joined([*chosen, *_evenly(abnormal, labels, limit - from_normal, config, "test")])


def _evenly(
    indices: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " all"],
    count: int,
    config: DataConfig,
    purpose: str,
) -> list[Int[np.ndarray, " m"]]:
    """`count` of `indices`, as evenly over their classes as the classes' sizes allow."""
    pools = [
        _shuffled(indices[labels[indices] == label], config.split_seed, purpose, int(label))
        for label in np.unique(labels[indices])
    ]
    quotas = [0] * len(pools)
    remaining = min(count, len(indices))
    while remaining:
        for k, pool in enumerate(pools):
            if remaining and quotas[k] < len(pool):
                quotas[k] += 1
                remaining -= 1
    return [pool[:quota] for pool, quota in zip(pools, quotas, strict=True)]


def _shuffled(
    indices: Int[np.ndarray, " n"], seed: int, purpose: str, label: int
) -> Int[np.ndarray, " n"]:
    key = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), label + 1])
    return np.random.Generator(np.random.PCG64(key)).permutation(indices)


def _head(indices: Int[np.ndarray, " n"], fraction: float) -> Int[np.ndarray, " m"]:
    return indices[: round(fraction * len(indices))]


def _joined(parts: Any) -> Int[np.ndarray, " n"]:
    return np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))
