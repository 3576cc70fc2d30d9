"""Who trains, who validates, who is tested: pure functions of labels, settings and a seed.

Only `make_split` opens a file, and only where look-alikes are to be kept together. Each random
choice has its own generator, keyed by the seed, the purpose and the class, so that changing one
setting does not reshuffle the choices of another.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import near_duplicates
from jax_noisy_anogan.data.caltech256 import CLUTTER
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.errors import DataError

_NONE = np.zeros(0, np.int64)


class EmptyPartError(DataError):
    """A division leaves no image to train on or to test."""


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
      transductive: the protocol tests its training images too: the normal training and validation
        images are then also in `test`, and only the other parts are disjoint.
      groups: a number per example; those that share it fall to one part. None: each on its own.
    """

    protocol: str
    ids: tuple[str, ...]
    is_abnormal: Bool[np.ndarray, " n"]
    train_normal: Int[np.ndarray, " a"]
    train_known_abnormal: Int[np.ndarray, " b"]
    validation_normal: Int[np.ndarray, " c"]
    validation_known_abnormal: Int[np.ndarray, " d"]
    test: Int[np.ndarray, " e"]
    transductive: bool = False
    groups: Int[np.ndarray, " n"] | None = None

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
        together: dict[int, list[str]] = {}
        for id_, number in zip(self.ids, () if self.groups is None else self.groups, strict=False):
            together.setdefault(int(number), []).append(id_)
        return {
            "protocol": self.protocol,
            "transductive": self.transductive,
            "counts": {name: len(ids) for name, ids in parts.items()},
            "parts": parts,
            "contaminating": [self.ids[i] for i in self.contaminating],
            "together": [ids for ids in together.values() if len(ids) > 1],
            "abnormal_in_test": [self.ids[i] for i in self.test if self.is_abnormal[i]],
        }


def make_split(dataset: Dataset, config: DataConfig) -> Split:
    """Divide `dataset` by the protocol of its name.

    Raises:
      DataError: a part that must not be empty would be, or a class is unknown.
    """
    examples = _examples(dataset)
    if config.name in ("mnist5k", "mnist"):
        return one_class(examples, config)
    if config.name == "caltech256":
        return caltech(examples, config)
    examples = _with_named_groups(examples, dataset, config)
    if not config.keep_together:
        return layout(examples, config)
    return _near_duplicates_together(dataset, examples, config)


def for_testing(dataset: Dataset, config: DataConfig, *, calibrate: bool) -> Split:
    """Of an image folder that no run was trained on: all labelled images are tested.

    Args:
      calibrate: half of every kind of image validates instead, look-alikes on one side.

    Raises:
      EmptyPartError: nothing is left to test.
    """
    examples = _examples(dataset)
    if calibrate:
        examples = _with_named_groups(examples, dataset, config)
        if config.keep_together:
            examples = _with_look_alikes(examples, _thumbnails(dataset), config.keep_together)
    named = np.array(examples.class_names)[examples.labels]
    unlabeled = examples.marked("unlabeled")
    is_abnormal = ~np.isin(named, examples.normal_classes) & ~unlabeled
    test, parts = np.flatnonzero(~unlabeled), {False: _NONE, True: _NONE}
    if calibrate:
        for label in np.unique(examples.labels[test]):
            kind = test[examples.labels[test] == label]
            half = _chosen(
                kind, len(kind) // 2, examples.groups, config.split_seed, "calibration", int(label)
            )
            abnormal = bool(is_abnormal[kind[0]])
            parts[abnormal] = _joined([parts[abnormal], half])
        calibrating = _joined(parts.values())
        test = np.setdiff1d(test, calibrating)
        if examples.groups is not None:
            test = _unlike(test, calibrating, examples.groups)
    if len(test) == 0:
        raise EmptyPartError("no labelled image is left to test: check --data and its folders")
    grouping = f"; {examples.grouping}" if calibrate and examples.grouping else ""
    return Split(
        protocol=(
            f"new images: half of every kind calibrates, the rest is tested{grouping}"
            if calibrate
            else "new images, judged by the thresholds of the run"
        ),
        ids=examples.ids,
        is_abnormal=is_abnormal,
        train_normal=_NONE,
        train_known_abnormal=_NONE,
        validation_normal=parts[False],
        validation_known_abnormal=parts[True],
        test=test,
        groups=examples.groups,
    )


def _examples(dataset: Dataset) -> Examples:
    return Examples(
        dataset.ids, dataset.labels, dataset.class_names, dataset.marks, dataset.normal_classes
    )


def _with_named_groups(examples: Examples, dataset: Dataset, config: DataConfig) -> Examples:
    named = _named_groups(dataset, config)
    if named is None:
        return examples
    return dataclasses.replace(examples, groups=named, grouping="images of one object together")


def _thumbnails(dataset: Dataset) -> Float[np.ndarray, "n pixels"]:
    return near_duplicates.thumbnails(dataset, np.arange(len(dataset)))


def _with_look_alikes(
    examples: Examples, images: Float[np.ndarray, "n pixels"], at_least: float
) -> Examples:
    """Also images that correlate at least so much together, unless most of them do."""
    groups = near_duplicates.groups(images, at_least)
    if np.max(np.bincount(groups)) > len(groups) / 2:
        return examples
    if examples.groups is not None:
        groups = near_duplicates.joined(groups, examples.groups)
    grouping = [examples.grouping, f"images that correlate {at_least:.4g} together"]
    return dataclasses.replace(examples, groups=groups, grouping="; ".join(filter(None, grouping)))


def _named_groups(dataset: Dataset, config: DataConfig) -> Int[np.ndarray, " n"] | None:
    """Groups that the table of the data set or `group_pattern` names; None where neither does.

    Raises:
      DataError: the pattern matches no image.
    """
    numberings = []
    if config.group_pattern:
        matches = [re.search(config.group_pattern, id_) for id_ in dataset.ids]
        if not any(matches):
            raise DataError(
                f"config.data.group_pattern {config.group_pattern!r} matches no image, as "
                f"{dataset.ids[0]}"
            )
        numberings.append(_numbers([match and match[match.re.groups and 1] for match in matches]))
    if any(dataset.groups):
        numberings.append(_numbers(dataset.groups))
    return near_duplicates.joined(*numberings) if numberings else None


def _numbers(names: Sequence[str | None]) -> Int[np.ndarray, " n"]:
    """A number per name; what has none is a group of its own."""
    numbers: dict[object, int] = {}
    keys = (name or (index,) for index, name in enumerate(names))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


# Each halves the distance to equal images.
_STRICTER = 4


def _near_duplicates_together(dataset: Dataset, examples: Examples, config: DataConfig) -> Split:
    """`layout` with near duplicates on one side, as far as they can be told from other images.

    Photographs of aligned parts correlate with each other however different the parts are. Where
    more than half of the images fall into one group, or a part stays empty, stricter correlations
    are tried, and in the end none.
    """
    images = _thumbnails(dataset)
    for halvings in range(_STRICTER):
        at_least = 1 - (1 - config.keep_together) / 2**halvings
        together = _with_look_alikes(examples, images, at_least)
        if together is examples:
            continue
        try:
            split = layout(together, config)
        except EmptyPartError:
            continue
        if halvings:
            logging.warning(
                "most images correlate %.4g with each other, as photographs of aligned parts do: "
                "those that correlate %.4g count as near duplicates",
                config.keep_together,
                at_least,
            )
        return split
    logging.warning(
        "images correlate with each other as photographs of aligned parts do: near duplicates "
        "cannot be told from them, and config.data.keep_together has no effect"
    )
    return layout(examples, config)


@dataclass(frozen=True)
class Examples:
    """What a protocol may know: no pixels.

    Attributes:
      marks: "train", "test", "unlabeled" or "" per example.
      normal_classes: names that the data set itself declares normal.
      groups: as of a split.
      grouping: what they have in common, in words.
    """

    ids: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    marks: tuple[str, ...] = ()
    normal_classes: tuple[str, ...] = ()
    groups: Int[np.ndarray, " n"] | None = None
    grouping: str = ""

    def marked(self, mark: str) -> Bool[np.ndarray, " n"]:
        """Which examples carry `mark`."""
        return np.array([m == mark for m in self.marks or ("",) * len(self.ids)], bool)


def one_class(examples: Examples, config: DataConfig) -> Split:
    """MNIST of the paper: the class `digit` is normal, every other one abnormal.

    `train_fraction` of it trains, `known_abnormal_fraction` of every other class is known; all the
    rest is the test part. The official train and test parts of MNIST are joined.
    """
    is_abnormal = examples.labels != config.digit
    normal = np.flatnonzero(~is_abnormal)
    train = _head(_shuffled(normal, config.split_seed, "train"), config.train_fraction)
    return _divide(
        f"one class: {config.digit} is normal",
        examples,
        is_abnormal,
        train=train,
        test_normal=np.setdiff1d(normal, train),
        test_abnormal=np.flatnonzero(is_abnormal),
        config=config,
    )


def layout(examples: Examples, config: DataConfig) -> Split:
    """Image folders, IR-MNIST and synthetic surfaces: the data set declares its normal classes.

    Without official parts, `train_fraction` of the normal images trains. Where normal images are
    marked "test", all those marked "train" train; where none is (IR-MNIST), `train_fraction` of
    them. Images marked "unlabeled" join the training images; whether they are abnormal is unknown.

    Abnormal images marked "train" are the known ones, and never tested.

    Look-alikes stay together: shares are met to within one group of them, and where classes or
    official parts divide a group, its images leave the held-out parts.
    """
    unlabeled = examples.marked("unlabeled")
    names = np.array(examples.class_names)[examples.labels]
    is_abnormal = ~np.isin(names, examples.normal_classes) & ~unlabeled
    normal = ~is_abnormal & ~unlabeled
    official = normal & examples.marked("train")
    if official.any() and (normal & examples.marked("test")).any():
        train = np.flatnonzero(official)
    else:
        pool = np.flatnonzero(normal)
        count = round(config.train_fraction * len(pool))
        train = _chosen(pool, count, examples.groups, config.split_seed, "train")
    return _divide(
        "the data set's own normal class: " + ", ".join(examples.normal_classes),
        examples,
        is_abnormal,
        train=train,
        test_normal=np.setdiff1d(np.flatnonzero(normal), train),
        test_abnormal=np.flatnonzero(is_abnormal & ~examples.marked("train")),
        known_only=np.flatnonzero(is_abnormal & examples.marked("train")),
        unlabeled=np.flatnonzero(unlabeled),
        config=config,
    )


CALTECH_SMALLEST = 80


def caltech(examples: Examples, config: DataConfig) -> Split:
    """Caltech-256 after Sabokrou et al. 2018: N normal categories, outliers from clutter.

    The first `images_per_category` images of `categories` random categories (choice number
    `repeat`) are normal; as many images of clutter make exactly half of the test part abnormal.
    Known abnormal images come from all other categories and clutter, and leave the test pool.
    Where clutter is too small, fewer images of every category are taken.

    The published protocol is transductive: it tests the images that it trains on. With `held_out`
    the tested normal images are kept out of training instead.
    """
    labels, seed = examples.labels, config.split_seed
    chosen = _choose_categories(examples, config)
    is_abnormal = ~np.isin(labels, chosen)
    known_pool = _known_pool(examples, np.flatnonzero(is_abnormal), config)
    inliers = [
        np.flatnonzero(labels == label)[: config.caltech256.images_per_category] for label in chosen
    ]
    all_clutter = np.flatnonzero(labels == examples.class_names.index(CLUTTER))

    def divide(known: Int[np.ndarray, " k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        clutter = np.setdiff1d(all_clutter, known)
        if config.caltech256.held_out:
            train = _joined(
                _head(
                    _shuffled(part, seed, "train", config.caltech256.repeat), config.train_fraction
                )
                for part in inliers
            )
            tested = np.setdiff1d(_joined(inliers), train)
            return (
                train,
                _shuffled(tested, seed, "test", config.caltech256.repeat)[: len(clutter)],
                clutter,
            )
        count = sum(map(len, inliers))
        each = len(clutter) // len(inliers) if count > len(clutter) else count
        train = _joined(part[:each] for part in inliers)
        return train, train, clutter

    # Known images leave the clutter, and the clutter limits the training images, of which a ratio
    # of known images is a share: two rounds settle both to within an image.
    known = _NONE
    for _ in range(2):
        train, _, _ = divide(known)
        known = _pick_known(known_pool, examples, _unlabelled_count(train, config), config)
    train, tested, clutter = divide(known)
    outliers = _shuffled(clutter, seed, "outliers", config.caltech256.repeat)[: len(tested)]
    protocol = "held out" if config.caltech256.held_out else "transductive"
    names = ", ".join(examples.class_names[label] for label in chosen)
    return _finish(
        f"Caltech-256, {protocol}: normal {names}",
        examples,
        is_abnormal,
        train=train,
        known=known,
        test=_joined([tested, outliers]),
        contaminants=np.setdiff1d(np.flatnonzero(is_abnormal), _joined([known, outliers])),
        config=config,
        transductive=not config.caltech256.held_out,
    )


def _choose_categories(examples: Examples, config: DataConfig) -> list[int]:
    counts = np.bincount(examples.labels, minlength=len(examples.class_names))
    if CLUTTER not in examples.class_names:
        raise DataError(
            f"the Caltech-256 protocol draws its outliers from {CLUTTER}: it is missing"
        )
    large = [
        label
        for label, name in enumerate(examples.class_names)
        if name != CLUTTER and counts[label] >= CALTECH_SMALLEST
    ]
    if len(large) < config.caltech256.categories:
        raise DataError(
            f"config.data.caltech256.categories is {config.caltech256.categories}: only "
            f"{len(large)} categories have {CALTECH_SMALLEST} images, as every category of the "
            "complete Caltech-256 has"
        )
    order = _shuffled(np.array(large), config.split_seed, "categories", config.caltech256.repeat)
    return sorted(int(label) for label in order[: config.caltech256.categories])


def _divide(
    protocol: str,
    examples: Examples,
    is_abnormal: Bool[np.ndarray, " n"],
    *,
    train: Int[np.ndarray, " a"],
    test_normal: Int[np.ndarray, " b"],
    test_abnormal: Int[np.ndarray, " c"],
    config: DataConfig,
    unlabeled: Int[np.ndarray, " d"] = _NONE,
    known_only: Int[np.ndarray, " e"] = _NONE,
) -> Split:
    """Known abnormal and contaminating images leave `test_abnormal`; the rest is tested.

    Args:
      known_only: abnormal images that may be known but not tested; where there are any, they are
        the only ones that may be known.
    """
    count = _unlabelled_count(train, config) + len(unlabeled)
    pool = _known_pool(examples, known_only if len(known_only) else test_abnormal, config)
    by_share = not (config.known_abnormal_count or config.known_abnormal_ratio)
    if len(known_only) and by_share and config.known_abnormal_fraction:
        known = pool
    else:
        known = _pick_known(pool, examples, count, config, train)
    return _finish(
        protocol,
        examples,
        is_abnormal,
        train=train,
        known=known,
        test=_joined([test_normal, np.setdiff1d(test_abnormal, known)]),
        contaminants=np.setdiff1d(test_abnormal, known),
        unlabeled=unlabeled,
        config=config,
    )


def _finish(
    protocol: str,
    examples: Examples,
    is_abnormal: Bool[np.ndarray, " n"],
    *,
    train: Int[np.ndarray, " a"],
    known: Int[np.ndarray, " b"],
    test: Int[np.ndarray, " c"],
    contaminants: Int[np.ndarray, " d"],
    config: DataConfig,
    unlabeled: Int[np.ndarray, " e"] = _NONE,
    transductive: bool = False,
) -> Split:
    """Carve validation out of the training shares, contaminate, and limit the test part."""
    seed, groups = config.split_seed, examples.groups
    held = _chosen(train, _validation_count(len(train), config), groups, seed, "validation")
    count = _validation_count(len(known), config)
    unlabelled = _joined([np.setdiff1d(train, held), unlabeled])
    if groups is None:
        held_known = _every_class(known, examples.labels, seed, count)
    else:
        # A defect of an object whose flawless photographs validate validates too.
        validates = _alike(known, held, groups)
        free = np.setdiff1d(known, _alike(known, _joined([held, unlabelled]), groups))
        further = _chosen(free, max(count - len(validates), 0), groups, seed, "validation")
        held_known = _joined([validates, further])
    hidden = _contamination(contaminants, len(unlabelled), config)
    unlabelled, test = _joined([unlabelled, hidden]), np.setdiff1d(test, hidden)
    training_known = np.setdiff1d(known, held_known)
    if groups is not None:
        training = _joined([unlabelled, training_known])
        held, held_known = (_unlike(part, training, groups) for part in (held, held_known))
        test = _unlike(test, _joined([training, held, held_known]), groups)
    test = _limit_test(test, examples.labels, is_abnormal, config)
    if len(unlabelled) == 0 or len(test) == 0:
        raise EmptyPartError(
            f"{protocol}: {len(unlabelled)} training and {len(test)} test images are too few; "
            "check the folder, config.data.train_fraction"
            + (f" and groups ({examples.grouping})" if examples.grouping else "")
        )
    return Split(
        protocol=f"{protocol}; split seed {seed}"
        + (f"; {examples.grouping}" if examples.grouping else ""),
        ids=examples.ids,
        is_abnormal=is_abnormal,
        train_normal=unlabelled,
        train_known_abnormal=training_known,
        validation_normal=np.sort(held),
        validation_known_abnormal=held_known,
        test=test,
        transductive=transductive,
        groups=groups,
    )


def _unlabelled_count(train: Int[np.ndarray, " n"], config: DataConfig) -> int:
    """How many of the normal images train, once validation images are held back."""
    return len(train) - _validation_count(len(train), config)


def _validation_count(count: int, config: DataConfig) -> int:
    """How many of `count` normal, or known abnormal, images validate."""
    share = round(config.validation_fraction * count)
    limit = config.max_validation_images // 2
    return min(share, limit) if limit else share


def _known_pool(
    examples: Examples, abnormal: Int[np.ndarray, " n"], config: DataConfig
) -> Int[np.ndarray, " m"]:
    """The abnormal images that `known_abnormal_classes` allows to be known."""
    names = config.known_abnormal_classes
    if not names:
        return abnormal
    present = {examples.class_names[label] for label in np.unique(examples.labels[abnormal])}
    for name in names:
        if name not in present:
            raise DataError(
                f"config.data.known_abnormal_classes names {name!r}: the abnormal classes are "
                + ", ".join(sorted(present))
            )
    return abnormal[np.isin(np.array(examples.class_names)[examples.labels[abnormal]], names)]


def _pick_known(
    pool: Int[np.ndarray, " n"],
    examples: Examples,
    unlabelled: int,
    config: DataConfig,
    train: Int[np.ndarray, " k"] = _NONE,
) -> Int[np.ndarray, " m"]:
    """Known abnormal images by number, by ratio (gamma_l of Deep SAD), or by share of a class.

    Args:
      unlabelled: how many normal and unlabelled images train, without contamination.
      train: normal training images; abnormal ones of their groups are taken first, since they
        cannot be tested.
    """
    seed, groups = config.split_seed, examples.groups

    def choose(pool: Int[np.ndarray, " n"], count: int, label: int) -> Int[np.ndarray, " m"]:
        alike = _NONE if groups is None else _alike(pool, train, groups)
        first = _chosen(alike, min(count, len(alike)), groups, seed, "known", label)
        others, left = np.setdiff1d(pool, alike), max(count - len(first), 0)
        return _joined([first, _chosen(others, left, groups, seed, "known", label)])

    count = config.known_abnormal_count
    if config.known_abnormal_ratio:
        # Contamination counts as unlabelled, and a share of the known images validates.
        ratio = config.known_abnormal_ratio
        trains = round(ratio / (1 - ratio) * unlabelled / (1 - config.contamination))
        total = round(trains / (1 - config.validation_fraction))
        count = trains + _validation_count(total, config)
    elif count == 0:
        labels = examples.labels[pool]
        return _joined(
            choose(
                pool[labels == label],
                round(config.known_abnormal_fraction * np.count_nonzero(labels == label)),
                int(label),
            )
            for label in np.unique(labels)
        )
    if count > len(pool):
        raise DataError(
            f"{count} known abnormal images are asked for, only {len(pool)} exist: lower "
            "config.data.known_abnormal_count or known_abnormal_ratio"
        )
    return choose(pool, count, config.caltech256.repeat)


def _contamination(
    pool: Int[np.ndarray, " n"], unlabelled: int, config: DataConfig
) -> Int[np.ndarray, " m"]:
    """Abnormal images that hide among the unlabelled ones (gamma_p of Deep SAD)."""
    share = config.contamination
    count = round(share / (1 - share) * unlabelled)
    if count > len(pool):
        raise DataError(
            f"config.data.contamination {share} needs {count} abnormal images, only {len(pool)} "
            "are left"
        )
    return np.sort(_shuffled(pool, config.split_seed, "contamination")[:count])


def _every_class(
    indices: Int[np.ndarray, " n"], labels: Int[np.ndarray, " all"], seed: int, count: int
) -> Int[np.ndarray, " m"]:
    """`count` of `indices`, spread over the classes in proportion."""
    shuffled = _shuffled(indices, seed, "validation")
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    steps = (np.arange(count) + 0.5) * len(indices) / max(count, 1)
    return np.sort(ordered[steps.astype(int)])


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
    chosen = [_shuffled(normal, config.split_seed, "test")[:from_normal]]
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
    indices: Int[np.ndarray, " n"], seed: int, purpose: str, label: int = -1
) -> Int[np.ndarray, " n"]:
    key = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), label + 1])
    return np.random.Generator(np.random.PCG64(key)).permutation(indices)


def _chosen(
    indices: Int[np.ndarray, " n"],
    count: int,
    groups: Int[np.ndarray, " all"] | None,
    seed: int,
    purpose: str,
    label: int = -1,
) -> Int[np.ndarray, " m"]:
    """`count` random ones of `indices`; of groups so many whole ones as come nearest to it.

    At least one group, if `count` is not 0.
    """
    if groups is None:
        return _shuffled(indices, seed, purpose, label)[:count]
    _, member = np.unique(groups[indices], return_inverse=True)
    sizes = np.bincount(member)
    order = _shuffled(np.arange(len(sizes)), seed, purpose, label)
    totals = np.cumsum([0, *sizes[order]])
    taken = max(int(np.argmin(np.abs(totals - count))), min(count, 1))
    return indices[np.isin(member, order[:taken])]


def _alike(
    images: Int[np.ndarray, " n"],
    others: Int[np.ndarray, " k"],
    groups: Int[np.ndarray, " all"],
) -> Int[np.ndarray, " m"]:
    """Those of `images` that share a group with `others`."""
    return images[np.isin(groups[images], groups[others])]


def _unlike(
    held_out: Int[np.ndarray, " n"],
    others: Int[np.ndarray, " k"],
    groups: Int[np.ndarray, " all"],
) -> Int[np.ndarray, " m"]:
    """Those of `held_out` that share no group with `others`."""
    return held_out[~np.isin(groups[held_out], groups[others])]


def _head(indices: Int[np.ndarray, " n"], fraction: float) -> Int[np.ndarray, " m"]:
    return indices[: round(fraction * len(indices))]


def _joined(parts: Iterable[Int[np.ndarray, " n"]]) -> Int[np.ndarray, " m"]:
    return np.sort(np.concatenate([_NONE, *parts]))
