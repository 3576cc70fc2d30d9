"""Simulated defects: exact masks, every kind, and their place in the training streams."""

import numpy as np
import pytest

from jax_noisy_anogan.config import (
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    SyntheticConfig,
    validate,
)
from jax_noisy_anogan.data import simulated
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.simulated import harmonic, simulate_defects
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.data.streams import TrainingStreams
from jax_noisy_anogan.errors import DataError

COUNT = 60


def _surfaces(side, channels=1, seed=0):
    """Two rough grey surfaces; their grain is about 11 levels."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(128, 10, (2, side, side, channels))
    return np.clip(noise, 0, 255).astype(np.uint8)


def _found(side, channels=1):
    image, source = _surfaces(side, channels)
    return image, [simulate_defects(image, source, np.random.default_rng(k)) for k in range(COUNT)]


@pytest.mark.parametrize(("side", "channels"), [(4, 1), (16, 3), (64, 1)])
def test_a_mask_covers_every_changed_pixel_and_little_else(side, channels):
    image, found = _found(side, channels)
    for result in found:
        changed = (result.image != image).any(axis=-1)
        assert result.image.dtype == np.uint8
        assert result.image.shape == image.shape
        assert result.mask.any()
        assert not (changed & ~result.mask).any()
        # What a defect encloses belongs to it, though it may have the normal image's value.
        assert changed.sum() >= 0.5 * result.mask.sum()


def test_what_a_mask_covers_is_visible_beside_the_grain_of_the_surface():
    image, found = _found(64)
    grain = np.abs(np.diff(image.astype(float), axis=0)).mean()
    for result in found:
        change = np.abs(result.image.astype(float) - image)[result.mask]
        assert change.max() > grain


def test_the_same_seed_gives_the_same_defects_and_another_one_others():
    found = _found(32)[1]
    again = _found(32)[1]
    for first, second in zip(found, again, strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.mask, second.mask)
    assert len({result.image.tobytes() for result in found}) == COUNT


def test_neither_image_is_written_to():
    image, source = _surfaces(32)
    image.flags.writeable = source.flags.writeable = False
    before = image.copy(), source.copy()
    for k in range(COUNT):
        simulate_defects(image, source, np.random.default_rng(k))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(source, before[1])


def test_defects_are_small_and_large_and_lie_everywhere():
    _, found = _found(64)
    shares = np.array([result.mask.mean() for result in found])
    assert np.quantile(shares, 0.25) < 0.01
    assert np.quantile(shares, 0.9) > 0.05
    covered = np.mean([result.mask for result in found], axis=0).reshape(4, 16, 4, 16)
    assert (covered.mean(axis=(1, 3)) > 0.01).all()


@pytest.mark.parametrize("level", [0, 100, 255])
def test_a_surface_without_any_grain_gets_a_defect_too(level):
    plain = np.full((16, 16, 1), level, np.uint8)
    for k in range(COUNT):
        result = simulate_defects(plain, plain, np.random.default_rng(k))
        assert (result.image[result.mask] != level).any()
        assert (result.image[~result.mask] == level).all()


def test_where_nothing_can_be_seen_one_pixel_turns_black_or_white(monkeypatch):
    monkeypatch.setattr(simulated, "_CONTENTS", (lambda below, *_: below,))
    image, source = _surfaces(16)
    result = simulate_defects(image, source, np.random.default_rng(0))
    assert result.mask.sum() == 1
    assert result.image[result.mask].item() in (0, 255)


@pytest.mark.parametrize("shape", simulated._SHAPES)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (64, 64), (40, 96)])
def test_a_shape_lies_inside_its_image_and_shows_somewhere(shape, height, width):
    for k in range(40):
        weight, top, left = shape(height, width, np.random.default_rng(k))
        assert 0 <= top <= top + weight.shape[0] <= height
        assert 0 <= left <= left + weight.shape[1] <= width
        assert weight.dtype == np.float32
        assert 0.0 <= weight.min() <= weight.max() <= 1.0
    found = [shape(height, width, np.random.default_rng(k))[0].max() for k in range(40)]
    assert np.mean(np.array(found) > 0.2) > 0.7


def test_a_harmonic_surface_keeps_its_border_and_is_the_mean_of_its_neighbours_inside():
    values = np.random.default_rng(0).normal(size=(9, 13, 2)).astype(np.float32)
    found = harmonic(values)
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        np.testing.assert_array_equal(found[border], values[border])
    around = found[:-2, 1:-1] + found[2:, 1:-1] + found[1:-1, :-2] + found[1:-1, 2:]
    np.testing.assert_allclose(found[1:-1, 1:-1], around / 4, atol=1e-5)


def test_a_patch_joins_what_lies_around_it_without_a_seam():
    # The image is a plain slope and the source plain: whatever is blended in must be the slope.
    slope = np.add.outer(np.arange(32.0), 2 * np.arange(32.0))[..., None].astype(np.float32)
    plain = np.full((64, 64, 1), 77, np.float32)
    for k in range(10):
        patch = simulated._patch(slope, plain, 0.0, np.random.default_rng(k))
        np.testing.assert_allclose(patch, slope, atol=1e-3)


# -- In the training streams ----------------------------------------------------------------------


def _open(tmp_path, **changes):
    config = DataConfig(
        name="synthetic",
        cache_dir=str(tmp_path),
        synthetic=SyntheticConfig(texture="speckle", images=20, abnormal_images=8),
        **{"known_abnormal_fraction": 0.5, "simulated_defects": 1.0, **changes},
    )
    dataset = load_dataset(config, resolution=32, progress=False)
    return dataset, make_split(dataset, config)


def _streams(dataset, split, **changes):
    settings = {"resolution": 32, "minibatch": 8, "seed": 0, "with_abnormal": True, **changes}
    return TrainingStreams(dataset, split, with_masks=True, **settings)


def _batches(streams, count):
    found = [next(streams) for _ in range(count)]
    streams.close()
    return (np.concatenate([getattr(batch, name) for batch in found]) for name in found[0]._fields)


def test_simulated_defects_need_no_known_one_and_lie_on_normal_training_images(tmp_path):
    dataset, split = _open(tmp_path, known_abnormal_fraction=0.0)
    assert len(split.train_known_abnormal) == 0
    normal = dataset.images(split.train_normal, 32)
    _, abnormal, masks = _batches(_streams(dataset, split), 3)
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    for image, mask in zip(abnormal, masks, strict=True):
        assert set(np.unique(mask)) == {0, 255}
        equal = ((normal == image) | (mask > 0)[..., None]).all(axis=(1, 2, 3))
        assert equal.sum() >= 1
        assert not (normal[equal] == image).all(axis=(1, 2, 3)).any()


def test_a_share_of_the_known_abnormal_images_is_simulated(tmp_path):
    dataset, split = _open(tmp_path, simulated_defects=0.5)
    known = dataset.images(split.train_known_abnormal, 32)
    source = dataset.source(32)
    coverage = np.stack([source.mask(int(index)) for index in split.train_known_abnormal])
    _, abnormal, masks = _batches(_streams(dataset, split), 8)
    is_known = (abnormal[:, None] == known).all(axis=(2, 3, 4))
    # Of 64 fair choices: five deviations on both sides.
    assert 12 <= is_known.any(axis=1).sum() <= 52
    for row in np.flatnonzero(is_known.any(axis=1)):
        np.testing.assert_array_equal(masks[row], coverage[is_known[row].argmax()])


def test_simulated_defects_resume_exactly_with_other_minibatches_and_processes(tmp_path):
    dataset, split = _open(tmp_path, simulated_defects=0.7)
    whole = list(_batches(_streams(dataset, split), 4))
    resumed = _streams(dataset, split, minibatch=4, process_index=1, process_count=2)
    resumed.restore({"normal": 16, "abnormal": 16})
    part = next(resumed)
    resumed.close()
    for all_rows, rows in zip(whole, part, strict=True):
        np.testing.assert_array_equal(rows, all_rows[18:20])


def test_masks_move_with_their_images(tmp_path):
    _, before, masks_before = _batches(_streams(*_open(tmp_path)), 2)
    moves = {"flip_horizontal": True, "quarter_turns": True}
    _, after, masks_after = _batches(_streams(*_open(tmp_path, **moves)), 2)
    turned = 0
    for k in range(len(after)):
        ways = [
            [np.rot90(view[:, ::step], turn) for view in (before[k], masks_before[k])]
            for step in (1, -1)
            for turn in range(4)
        ]
        same = [
            np.array_equal(image, after[k]) and np.array_equal(mask, masks_after[k])
            for image, mask in ways
        ]
        assert sum(same) == 1
        turned += same.index(True) > 0
    assert turned > len(after) / 2


def test_tiles_get_simulated_defects_of_their_own_size(tmp_path):
    dataset, split = _open(tmp_path, tile_image_resolution=128)
    _, abnormal, masks = _batches(_streams(dataset, split), 2)
    assert abnormal.shape == (16, 32, 32, 1)
    assert (masks.reshape(16, -1) > 0).any(axis=1).all()


def test_without_masks_asked_for_the_images_are_the_same(tmp_path):
    dataset, split = _open(tmp_path, simulated_defects=0.5)
    with_masks = next(_streams(dataset, split))
    without = next(
        TrainingStreams(dataset, split, resolution=32, minibatch=8, seed=0, with_abnormal=True)
    )
    assert without.masks is None
    np.testing.assert_array_equal(without.abnormal, with_masks.abnormal)


def test_without_known_and_simulated_defects_the_stream_says_what_to_set(tmp_path):
    dataset, split = _open(tmp_path, known_abnormal_fraction=0.0, simulated_defects=0.5)
    with pytest.raises(DataError, match="simulated_defects to 1"):
        _streams(dataset, split)


def test_gamma_below_1_needs_known_abnormal_images_or_simulated_defects():
    def config(share):
        data = DataConfig(known_abnormal_fraction=0.0, simulated_defects=share)
        return Config(data=data, loss=LossConfig(gamma=0.5))

    validate(config(1.0))
    with pytest.raises(ConfigError, match="simulated_defects"):
        validate(config(0.9))
