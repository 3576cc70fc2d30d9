"""Images of the same part: found, and kept on one side of a split."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jax_noisy_anogan.config import Config, ConfigError, DataConfig, changed, validate
from jax_noisy_anogan.data import near_duplicates, summary
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import PARTS as PARTS_OF_A_SPLIT
from jax_noisy_anogan.data.splits import Examples, layout, make_split

PARTS, SHOTS = 12, 5


@pytest.fixture(scope="module")
def photographed(tmp_path_factory):
    """Twelve textures, each photographed five times: shifted by a pixel, under other light."""
    root = tmp_path_factory.mktemp("photographed")
    rng = np.random.default_rng(0)
    for name, first in (("normal", 0), ("abnormal", 100)):
        (root / name).mkdir()
        for part in range(PARTS):
            texture = ndimage.gaussian_filter(rng.normal(size=(70, 70)), 3)
            texture /= texture.std()
            for shot in range(SHOTS):
                top, left = rng.integers(0, 2, 2)
                light = np.linspace(*rng.uniform(0.4, 1.0, 2), 64)
                image = (120 + 25 * texture[top : top + 64, left : left + 64]) * light
                image = np.clip(image + rng.normal(size=image.shape), 0, 255)
                Image.fromarray(image.astype(np.uint8)).save(
                    root / name / f"{first + part}_{shot}.png"
                )
    return DataConfig(name="image_folder", root=str(root), cache_dir=str(root / "cache"))


@pytest.fixture(scope="module")
def dataset(photographed):
    return load_dataset(photographed, resolution=64, progress=False)


def _parts_of(dataset, indices):
    return {dataset.ids[i].split("/")[1].split("_")[0] for i in indices}


def test_groups_are_the_photographs_of_one_part(dataset):
    found = near_duplicates.groups(
        near_duplicates.thumbnails(dataset, np.arange(len(dataset))), near_duplicates.SAME
    )
    names = np.array([id_.split("/")[1].split("_")[0] for id_ in dataset.ids])
    assert len(np.unique(found)) == 2 * PARTS
    assert all(len(np.unique(found[names == name])) == 1 for name in names)


def test_correlations_are_those_of_numpy(dataset):
    rows = near_duplicates.thumbnails(dataset, np.array([0, 1, 7, 30]))
    np.testing.assert_allclose(rows @ rows.T, np.corrcoef(rows), atol=1e-5)


def test_groups_join_through_others():
    angles = np.array([0.0, 0.5, 1.0, 3.0])
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert len(set(near_duplicates.groups(images, np.cos(0.6))[:3])) == 1
    assert len(set(near_duplicates.groups(images, np.cos(0.4)))) == 4
    assert near_duplicates.groups(images[:0], 0.8).shape == (0,)


def test_seen_marks_what_one_training_image_resembles():
    images = np.eye(3, dtype=np.float32)
    found = near_duplicates.seen(images, images[1:2], 0.8)
    assert found.tolist() == [False, True, False]
    assert not near_duplicates.seen(images, images[:0], 0.8).any()


@pytest.mark.parametrize("seed", range(5))
def test_no_part_is_on_two_sides_of_a_split_that_keeps_them_together(photographed, dataset, seed):
    config = changed(
        Config(data=photographed),
        [f"data.split_seed={seed}", "data.keep_together=0.8", "data.known_abnormal_fraction=0.3"],
    ).data
    split = make_split(dataset, config)
    sides = [
        _parts_of(dataset, split.part(name))
        for name in ("train_normal", "train_known_abnormal", "validation_normal", "test")
    ]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))
    # 0.7 of 60 normal images, less 0.15 of them; whole fives.
    assert len(split.train_normal) + len(split.validation_normal) in (40, 45)
    trained = np.concatenate([split.train_normal, split.train_known_abnormal])
    pictures = [near_duplicates.thumbnails(dataset, part) for part in (split.test, trained)]
    assert not near_duplicates.seen(*pictures, 0.8).any()
    assert "0.8 together" in split.protocol


def test_a_split_image_by_image_tests_parts_that_it_trained_on(photographed, dataset):
    split = make_split(dataset, photographed)
    assert _parts_of(dataset, split.train_normal) & _parts_of(dataset, split.test)


@pytest.mark.parametrize("together", [0.0, 0.8])
def test_describe_counts_tested_images_that_training_has_seen(photographed, dataset, together):
    config = dataclasses.replace(photographed, keep_together=together)
    split = make_split(dataset, config)
    trained = _parts_of(dataset, [*split.train_normal, *split.train_known_abnormal])
    seen = sum(bool(_parts_of(dataset, [index]) & trained) for index in split.test)
    assert (seen == 0) == bool(together)
    expected = f"{seen:,} of {len(split.test):,} correlate 0.8 or more"
    assert summary._seen(dataset, split) == expected


def test_groups_across_classes_and_official_parts_leave_the_held_out_ones():
    names = ("good", "bad")
    labels = np.repeat([0, 1], [20, 10])
    marks = ("train",) * 12 + ("test",) * 18
    groups = np.arange(30)
    groups[12], groups[20] = groups[0], groups[1]
    ids = tuple(map(str, range(30)))
    config = DataConfig(keep_together=0.8, known_abnormal_count=2)
    split = layout(Examples(ids, labels, names, marks, ("good",), groups), config)
    # What shares a group with a training or validation image is not tested.
    assert not np.isin([12, 20], split.test).any()
    assert set(range(13, 20)) <= set(split.test)


def test_objects_with_and_without_a_defect_are_on_one_side_with_all_their_photographs():
    objects, photographs = 50, 8
    groups = np.repeat(np.arange(objects), photographs)
    labels = np.tile([1] + [0] * (photographs - 1), objects)
    ids = tuple(map(str, range(len(labels))))
    examples = Examples(ids, labels, ("normal", "crack"), (), ("normal",), groups)
    config = DataConfig(known_abnormal_fraction=0.5)
    split = layout(examples, config)
    assert min(len(split.part(name)) for name in PARTS_OF_A_SPLIT) > 0
    sides = [
        set(groups[np.concatenate([split.part(name) for name in names])])
        for names in (
            ("train_normal", "train_known_abnormal"),
            ("validation_normal", "validation_known_abnormal"),
            ("test",),
        )
    ]
    assert sum(map(len, sides)) == len(set.union(*sides))
    # 0.7 of 50 objects, 0.15 of those to validate, and none lost to another side.
    assert (len(sides[0]), len(sides[1])) == (30, 5)
    assert len(split.train_normal) == 30 * (photographs - 1)


@pytest.mark.parametrize(
    "settings", [["data.keep_together=1.5"], ["data.name=mnist5k", "data.keep_together=0.8"]]
)
def test_a_setting_that_makes_no_sense_is_refused(photographed, settings):
    with pytest.raises(ConfigError, match="keep_together"):
        validate(changed(Config(data=photographed), settings))


@pytest.fixture(scope="module", params=[0.3, 0.0], ids=["differ a little", "equal but for noise"])
def aligned(request, tmp_path_factory):
    """Parts in one fixture: the same picture everywhere, of which every part shows a variation.

    Every part is photographed twice.
    """
    root = tmp_path_factory.mktemp("aligned")
    rng = np.random.default_rng(0)
    shape = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 3)
    shape /= shape.std()
    for name, parts in (("normal", 20), ("abnormal", 5)):
        (root / name).mkdir()
        for part in range(parts):
            own = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 3)
            texture = shape + request.param * own / own.std()
            for shot in range(2):
                image = np.clip(120 + 25 * texture + rng.normal(size=(64, 64)), 0, 255)
                Image.fromarray(image.astype(np.uint8)).save(root / name / f"{part}_{shot}.png")
    config = DataConfig(name="image_folder", root=str(root), cache_dir=str(root / "cache"))
    return dataclasses.replace(config, known_abnormal_fraction=0.5), request.param


def test_aligned_parts_are_divided_although_all_of_them_correlate(aligned, caplog):
    config, variation = aligned
    data = load_dataset(config, resolution=64, progress=False)
    images = near_duplicates.thumbnails(data, np.arange(len(data)))
    assert len(np.unique(near_duplicates.groups(images, 0.8))) == 1
    split = make_split(data, dataclasses.replace(config, keep_together=0.8))
    parts = [split.part(name) for name in ("train_normal", "validation_normal", "test")]
    assert all(map(len, parts))
    trained = np.concatenate([split.train_normal, split.train_known_abnormal])
    if variation:
        assert "those that correlate 0.9" in caplog.text
        assert "images that correlate 0.9" in split.protocol
        assert not {data.ids[i][:-5] for i in trained} & {data.ids[i][:-5] for i in split.test}
    else:
        assert "config.data.keep_together has no effect" in caplog.text
        assert "together" not in split.protocol


def test_groups_of_a_table_are_never_dropped(aligned):
    config, _ = aligned
    data = load_dataset(config, resolution=64, progress=False)
    settings = {"keep_together": 0.8, "group_pattern": r"\d+_"}
    split = make_split(data, dataclasses.replace(config, **settings))
    trained = np.concatenate([split.train_normal, split.train_known_abnormal])
    sides = [
        {data.ids[i].split("/")[1].split("_")[0] for i in part} for part in (trained, split.test)
    ]
    assert not sides[0] & sides[1]
    assert "images of one object together" in split.protocol
