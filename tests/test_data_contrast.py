"""Local contrast against the same equation over whole windows, and where models meet it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import ConfigError, DataConfig, SyntheticConfig
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.preprocess import local_contrast, prepared


def from_the_equation(image, deviation):
    """One pixel after the other, in float64, with two-dimensional windows."""
    side, _, channels = image.shape
    values = image / 255.0
    y, x = np.mgrid[:side, :side]

    def mean_around(values, row, column):
        window = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * deviation**2))
        return (window[..., None] * values).sum((0, 1)) / window.sum()

    means = np.array([[mean_around(values, i, j) for j in range(side)] for i in range(side)])
    apart = values - means
    squares = np.array([[mean_around(apart**2, i, j) for j in range(side)] for i in range(side)])
    assert squares.shape == (side, side, channels)
    return np.clip(128 + 127 * apart / (np.sqrt(squares) + 0.02) / 4, 0, 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_numpy_and_jax_do_what_the_equation_says(channels):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 20, channels), np.uint8)
    image[4:9, 3:7] //= 8
    wanted = from_the_equation(image, 0.15 * 20)
    found = local_contrast(image, 0.15)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, wanted, atol=0.501)
    compiled = jax.jit(lambda x: local_contrast(x, 0.15))(jnp.asarray(image))
    assert compiled.dtype == jnp.uint8
    # Where a value lies between two levels, the last bit decides.
    assert np.abs(np.asarray(compiled, int) - found).max() <= 1


def test_light_that_changes_slowly_is_taken_away_and_a_scratch_is_kept():
    y, x = np.mgrid[:64, :64]
    texture = np.random.default_rng(1).normal(0, 3, (64, 64))
    texture[30:32, 20:44] -= 30
    levels = [np.rint(base + texture)[..., None].astype(np.uint8) for base in (90, 60 + x + y / 2)]
    even, uneven = (local_contrast(image, 1 / 16).astype(float) for image in levels)
    inside = (slice(8, -8),) * 2
    assert np.corrcoef(even[inside].ravel(), uneven[inside].ravel())[0, 1] > 0.95
    one_deviation = 127 / 4
    assert uneven[30:32, 20:44].mean() < 128 - one_deviation


def test_a_plain_image_stays_plain_and_zero_changes_nothing():
    plain = np.full((16, 16, 1), 77, np.uint8)
    np.testing.assert_array_equal(local_contrast(plain, 0.1), np.full((16, 16, 1), 128))
    assert local_contrast(plain, 0.0) is plain


def test_records_hold_what_a_detector_prepares(tmp_path):
    config = DataConfig(
        name="synthetic",
        synthetic=SyntheticConfig(images=6, abnormal_images=2),
        cache_dir=str(tmp_path),
    )
    plain = load_dataset(config, resolution=32)
    changed = dataclasses.replace(config, local_contrast=0.1)
    normalised = load_dataset(changed, resolution=32)
    assert plain.path != normalised.path
    for index in range(len(plain)):
        image = plain.source(32)[index]
        np.testing.assert_array_equal(normalised.source(32)[index], prepared(image, 32, changed))
        masks = [dataset.masks([index], 32) for dataset in (plain, normalised)]
        np.testing.assert_array_equal(*masks)


def test_a_share_beyond_its_range_is_refused():
    with pytest.raises(ConfigError, match=r"data\.local_contrast"):
        config_lib.validate(config_lib.Config(data=DataConfig(local_contrast=0.6)))
