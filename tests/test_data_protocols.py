"""Splits: who trains, who is known, who is tested."""

import itertools
import json

import numpy as np
import pytest

from jax_noisy_anogan.config import Caltech256Config, DataConfig
from jax_noisy_anogan.data.splits import PARTS, Examples, caltech, layout, one_class
from jax_noisy_anogan.errors import DataError

# LeCun, Cortes, Burges: digits of the 60,000 training and 10,000 test images together.
MNIST_COUNTS = (6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958)


def _examples(counts, names=None, **changes):
    labels = np.repeat(np.arange(len(counts)), counts)
    names = names or tuple(str(k) for k in range(len(counts)))
    return Examples(tuple(f"id{i}" for i in range(len(labels))), labels, names, **changes)


def _caltech_examples(clutter=827):
    names = (*(f"{k:03d}.thing" for k in range(1, 257)), "257.clutter")
    return _examples([80 + k % 120 for k in range(256)] + [clutter], names)


def _folder_examples():
    names = ("good", "scratch", "dent", "unlabeled")
    counts = (100, 40, 20, 30)
    marks = ("",) * 160 + ("unlabeled",) * 30
    return _examples(counts, names, marks=marks, normal_classes=("good",))


def _puzzle_examples():
    marks = ("train",) * 200 + ("test",) * 90
    names = ("normal", "abnormal")
    return _examples((200, 90), names, marks=marks, normal_classes=("normal",))


def _splits():
    for digit, contamination in itertools.product((0, 7), (0.0, 0.1)):
        config = DataConfig(digit=digit, contamination=contamination, max_test_images=500)
        yield f"mnist {digit} {contamination}", one_class(_examples(MNIST_COUNTS), config)
    for held_out, repeat, contamination in itertools.product((True, False), range(3), (0.0, 0.05)):
        config = DataConfig(
            caltech256=Caltech256Config(categories=3, repeat=repeat, held_out=held_out),
            known_abnormal_count=50,
            contamination=contamination,
        )
        name = f"caltech {'held out' if held_out else 'transductive'} {repeat} {contamination}"
        yield name, caltech(_caltech_examples(), config)
    for contamination in (0.0, 0.1):
        config = DataConfig(contamination=contamination, known_abnormal_count=20)
        yield f"puzzles {contamination}", layout(_puzzle_examples(), config)
    for contamination in (0.0, 0.1):
        config = DataConfig(contamination=contamination, known_abnormal_ratio=0.05)
        yield f"folder {contamination}", layout(_folder_examples(), config)


SPLITS = dict(_splits())


@pytest.mark.parametrize("name", [name for name in SPLITS if "transductive" not in name])
def test_no_id_is_in_two_parts(name):
    parts = SPLITS[name].to_json()["parts"]
    ids = [id_ for part in PARTS for id_ in parts[part]]
    assert len(ids) == len(set(ids)) > 0
    assert not SPLITS[name].transductive


@pytest.mark.parametrize("name", [name for name in SPLITS if "transductive" in name])
def test_a_transductive_split_tests_its_normal_training_images_and_shares_no_other(name):
    split = SPLITS[name]
    parts = {part: set(ids) for part, ids in split.to_json()["parts"].items()}
    tested = parts.pop("test")
    assert split.transductive
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))
    hidden = set(split.to_json()["contaminating"])
    assert (parts["train_normal"] | parts["validation_normal"]) - hidden <= tested
    assert not tested & (parts["train_known_abnormal"] | parts["validation_known_abnormal"])
    assert not tested & hidden


@pytest.mark.parametrize("name", SPLITS)
def test_known_parts_are_abnormal_and_validation_normal_is_clean(name):
    split = SPLITS[name]
    assert split.is_abnormal[split.train_known_abnormal].all()
    assert split.is_abnormal[split.validation_known_abnormal].all()
    assert not split.is_abnormal[split.validation_normal].any()


@pytest.mark.parametrize("digit", range(10))
def test_mnist_counts_follow_the_paper(digit):
    split = one_class(_examples(MNIST_COUNTS), DataConfig(digit=digit, validation_fraction=0.15))
    normal = round(0.7 * MNIST_COUNTS[digit])
    known = sum(round(0.1 * n) for k, n in enumerate(MNIST_COUNTS) if k != digit)
    assert len(split.train_normal) + len(split.validation_normal) == normal
    assert len(split.train_known_abnormal) + len(split.validation_known_abnormal) == known
    assert len(split.test) == 70_000 - normal - known
    assert len(split.validation_normal) == round(0.15 * normal)


def test_validation_comes_out_of_the_training_share_only():
    examples = _examples(MNIST_COUNTS)
    small = one_class(examples, DataConfig(validation_fraction=0.05))
    large = one_class(examples, DataConfig(validation_fraction=0.4))
    np.testing.assert_array_equal(small.test, large.test)


def test_a_split_depends_on_its_seed_alone():
    examples = _examples(MNIST_COUNTS)
    first, again, other = (
        one_class(examples, DataConfig(split_seed=seed)).train_normal for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_limited_test_part_is_half_normal_and_even_over_classes():
    examples = _examples(MNIST_COUNTS)
    split = one_class(examples, DataConfig(digit=4, max_test_images=180))
    counts = np.bincount(examples.labels[split.test], minlength=10)
    assert counts.tolist() == [10, 10, 10, 10, 90, 10, 10, 10, 10, 10]


def test_contamination_is_a_share_of_the_unlabelled_images():
    split = one_class(_examples(MNIST_COUNTS), DataConfig(contamination=0.1))
    share = split.is_abnormal[split.train_normal].mean()
    assert share == pytest.approx(0.1, abs=1e-3)
    assert len(split.to_json()["contaminating"]) == split.is_abnormal[split.train_normal].sum()


PROTOCOLS = {
    "mnist": (one_class, _examples(MNIST_COUNTS), "1", {}),
    "caltech held out": (caltech, _caltech_examples(), "113.thing", True),
    "caltech transductive": (caltech, _caltech_examples(), "113.thing", False),
    "caltech, little clutter": (caltech, _caltech_examples(clutter=300), "257.clutter", False),
    "folder": (layout, _folder_examples(), "scratch", False),
    "puzzles": (layout, _puzzle_examples(), "abnormal", False),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("contamination", [0.0, 0.06])
@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.1])
def test_shares_of_known_and_hidden_images_are_those_of_deep_sad(protocol, contamination, ratio):
    divide, examples, known_class, held_out = PROTOCOLS[protocol]
    config = DataConfig(
        caltech256=Caltech256Config(categories=4, held_out=held_out),
        known_abnormal_ratio=ratio,
        known_abnormal_classes=(known_class,),
        contamination=contamination,
    )
    split = divide(examples, config)
    known, unlabelled = len(split.train_known_abnormal), len(split.train_normal)
    # One image more or less is the best that whole images allow.
    assert known == pytest.approx(ratio * (known + unlabelled), abs=1)
    assert len(split.contaminating) == pytest.approx(contamination * unlabelled, abs=1)
    names = {examples.class_names[label] for label in examples.labels[split.train_known_abnormal]}
    assert names == ({known_class} if known else set())


@pytest.mark.parametrize("categories", [1, 3, 5])
@pytest.mark.parametrize("repeat", range(3))
@pytest.mark.parametrize("held_out", [False, True])
def test_caltech_tests_exactly_half_outliers_from_clutter(categories, repeat, held_out):
    examples = _caltech_examples()
    config = DataConfig(
        caltech256=Caltech256Config(categories=categories, repeat=repeat, held_out=held_out),
        known_abnormal_count=50,
    )
    split = caltech(examples, config)
    tested = examples.labels[split.test]
    assert split.is_abnormal[split.test].mean() == 0.5
    assert set(tested[split.is_abnormal[split.test]]) == {256}
    assert len(set(tested)) == categories + 1
    assert np.bincount(tested)[:256].max() <= 150


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("clutter", [827, 300])
def test_caltech_takes_the_first_images_of_its_categories(held_out, clutter):
    examples = _caltech_examples(clutter)
    config = DataConfig(
        known_abnormal_count=50, caltech256=Caltech256Config(categories=5, held_out=held_out)
    )
    split = caltech(examples, config)
    parts = [split.train_normal, split.validation_normal, split.test]
    normal = np.unique(np.concatenate(parts))
    normal = normal[~split.is_abnormal[normal]]
    for label in np.unique(examples.labels[normal]):
        members = np.flatnonzero(examples.labels == label)
        chosen = normal[examples.labels[normal] == label]
        assert chosen.max() < members[0] + min(150, len(members))
        # Clutter that is too small limits the images tested, not their order.
        if not held_out:
            assert chosen.tolist() == members[: len(chosen)].tolist()
    assert np.bincount(examples.labels)[:256].max() > 150  # the last ones would be others


def test_caltech_known_images_leave_the_test_pool():
    config = DataConfig(known_abnormal_count=50)
    split = caltech(_caltech_examples(), config)
    known = np.concatenate([split.train_known_abnormal, split.validation_known_abnormal])
    assert len(known) == 50
    assert not np.isin(known, split.test).any()


def test_caltech_transductive_tests_its_training_images_and_says_so():
    split = caltech(_caltech_examples(), DataConfig(known_abnormal_count=50))
    assert split.transductive
    assert np.isin(split.train_normal, split.test).all()


def test_caltech_repeats_choose_other_categories():
    examples = _caltech_examples()
    configs = [DataConfig(caltech256=Caltech256Config(repeat=repeat)) for repeat in range(3)]
    chosen = {
        tuple(np.unique(examples.labels[caltech(examples, config).train_normal]))
        for config in configs
    }
    assert len(chosen) == 3


def test_caltech_with_little_clutter_stays_at_half():
    split = caltech(
        _caltech_examples(clutter=300), DataConfig(caltech256=Caltech256Config(categories=5))
    )
    assert split.is_abnormal[split.test].mean() == 0.5


def test_an_official_test_part_is_respected():
    marks = ("train",) * 60 + ("test",) * 40 + ("test",) * 40
    examples = _examples((100, 40), ("good", "bad"), marks=marks, normal_classes=("good",))
    split = layout(examples, DataConfig(known_abnormal_fraction=0.25))
    train = np.concatenate([split.train_normal, split.validation_normal])
    assert sorted(train) == list(range(60))
    assert set(range(60, 100)) <= set(split.test)
    assert len(split.test) == 40 + 30


def test_unlabeled_images_train_and_are_never_tested():
    examples = _folder_examples()
    split = layout(examples, DataConfig())
    unlabeled = np.arange(160, 190)
    assert np.isin(unlabeled, split.train_normal).all()
    assert not np.isin(unlabeled, split.test).any()
    assert not split.is_abnormal[unlabeled].any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(known_abnormal_classes=("eleven",)), "eleven"),
        (DataConfig(known_abnormal_count=10**6), "known_abnormal_count"),
        (DataConfig(digit=9), "too few"),
        (DataConfig(contamination=0.9), "contamination"),
    ],
)
def test_impossible_settings_name_themselves(config, message):
    with pytest.raises(DataError, match=message):
        one_class(_examples((100, 50, 50)), config)


def test_a_split_as_json_names_the_images_of_every_part():
    split = SPLITS["folder 0.1"]
    read = json.loads(json.dumps(split.to_json()))
    assert read["parts"]["test"] == [split.ids[i] for i in split.test]
