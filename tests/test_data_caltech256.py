"""Caltech-256 in its folder layout: names, order, and what is not part of it."""

import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.caltech256 import caltech256
from jax_noisy_anogan.errors import DataError

FOLDERS = {"257.clutter": 2, "002.american-flag": 11, "001.ak47": 3}


@pytest.fixture
def root(tmp_path):
    """Files are created in another order than that of their names."""
    for folder, count in FOLDERS.items():
        (tmp_path / "256_ObjectCategories" / folder).mkdir(parents=True)
        for number in np.random.default_rng(0).permutation(count) + 1:
            name = f"{folder[:3]}_{number:04d}.jpg"
            pixels = np.full((6, 8, 3), number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "256_ObjectCategories" / folder / name)
    return tmp_path


def test_images_come_by_category_and_number(root):
    source = caltech256(root, DataConfig(name="caltech256", channels=3))
    assert source.class_names == ("001.ak47", "002.american-flag", "257.clutter")
    expected = [
        (f"{folder}/{folder[:3]}_{number:04d}.jpg", label)
        for label, folder in enumerate(sorted(FOLDERS))
        for number in range(1, FOLDERS[folder] + 1)
    ]
    assert [(e.id, e.label) for e in source.examples] == expected
    assert source.examples[5].load().image.shape == (6, 8, 3)
    # The folder of categories itself is taken as well.
    inner = caltech256(root / "256_ObjectCategories", DataConfig(name="caltech256", channels=3))
    assert [e.id for e in inner.examples] == [name for name, _ in expected]


def test_other_folders_are_named_and_clutter_must_be_there(root):
    (root / "256_ObjectCategories" / "notes").mkdir()
    config = DataConfig(name="caltech256", on_bad_image="skip")
    ((place, reason),) = caltech256(root, config).rejected
    assert place.endswith("notes")
    assert "not a category folder" in reason
    (root / "256_ObjectCategories" / "257.clutter").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"has no 257\.clutter"):
        caltech256(root, config)
