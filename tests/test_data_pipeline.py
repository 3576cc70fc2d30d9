"""Augmentation, tiles, large images and several processes."""

import json
import os
import threading
import zlib
from pathlib import Path

import commands
import jax
import numpy as np
import pytest

from jax_noisy_anogan.config import DataConfig, SyntheticConfig
from jax_noisy_anogan.data.augment import DRAWS, Augmentation, paste_defect
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.data.streams import TrainingStreams
from jax_noisy_anogan.errors import DataError


def _config(cache, **changes):
    return DataConfig(
        name="synthetic",
        cache_dir=str(cache),
        known_abnormal_fraction=0.5,
        synthetic=SyntheticConfig(images=20, abnormal_images=8, texture="speckle"),
        **changes,
    )


def _open(config, resolution=32):
    dataset = load_dataset(config, resolution=resolution, progress=False)
    return dataset, make_split(dataset, config)


def _streams(dataset, split, **changes):
    settings = {"resolution": 16, "minibatch": 4, "seed": 0, "with_abnormal": False, **changes}
    return TrainingStreams(dataset, split, **settings)


IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def _outcomes(augmentation, count=200):
    return {
        augmentation(IMAGE, np.random.default_rng(seed).random(DRAWS)).tobytes()
        for seed in range(count)
    }


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        (Augmentation(), [IMAGE]),
        (Augmentation(flip_horizontal=True), [IMAGE, np.fliplr(IMAGE)]),
        (Augmentation(flip_vertical=True), [IMAGE, np.flipud(IMAGE)]),
        (Augmentation(quarter_turns=True), [np.rot90(IMAGE, k) for k in range(4)]),
    ],
)
def test_flips_and_turns_give_exactly_their_symmetries(augmentation, expected):
    assert _outcomes(augmentation) == {image.tobytes() for image in expected}


def test_a_shift_moves_the_picture_and_repeats_the_border():
    outcomes = _outcomes(Augmentation(max_shift=0.25))
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)), mode="edge")
    expected = {padded[y : y + 4, x : x + 4].tobytes() for y in range(3) for x in range(3)}
    assert outcomes == expected


def test_brightness_moves_all_pixels_alike_within_its_range():
    grey = np.full((4, 4, 1), 128, np.uint8)
    for seed in range(50):
        changed = Augmentation(brightness=0.1)(grey, np.random.default_rng(seed).random(DRAWS))
        assert len(np.unique(changed)) == 1
        assert abs(int(changed[0, 0, 0]) - 128) <= 26


def test_augmented_streams_resume_exactly(tmp_path):
    config = _config(tmp_path, flip_horizontal=True, max_shift=0.1, brightness=0.2)
    dataset, split = _open(config)
    plain, _ = _open(_config(tmp_path))
    streams = _streams(dataset, split)
    batches = [next(streams).normal for _ in range(6)]
    streams.close()
    resumed = _streams(dataset, split)
    resumed.restore({"normal": 12})
    np.testing.assert_array_equal(next(resumed).normal, batches[3])
    resumed.close()
    unchanged = _streams(plain, split)
    assert not np.array_equal(next(unchanged).normal, batches[0])
    unchanged.close()


def test_tiles_are_crops_of_the_larger_images(tmp_path):
    dataset, split = _open(_config(tmp_path, tile_image_resolution=128), resolution=32)
    assert (dataset.resolution, dataset.tiles_per_side) == (128, 4)
    images = dataset.images(split.train_normal, 64)[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(images, (16, 16), axis=(1, 2))
    streams = _streams(dataset, split, resolution=16)
    tiles = np.concatenate([next(streams).normal[..., 0] for _ in range(3)])
    streams.close()
    for tile in tiles:
        assert (windows == tile).all(axis=(-2, -1)).any()


def test_tiles_larger_than_their_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="tile_image_resolution"):
        _open(_config(tmp_path, tile_image_resolution=16), resolution=32)


def test_images_beyond_the_memory_limit_come_from_records_in_the_same_order(tmp_path):
    dataset, split = _open(_config(tmp_path))
    in_memory = _streams(dataset, split, with_abnormal=True, minibatch=2)
    expected = [next(in_memory) for _ in range(25)]
    in_memory.close()
    from_records = _streams(dataset, split, with_abnormal=True, minibatch=2, memory_bytes=0)
    for batch in expected:
        got = next(from_records)
        np.testing.assert_array_equal(got.normal, batch.normal)
        np.testing.assert_array_equal(got.abnormal, batch.abnormal)
    from_records.close()


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
def test_batches_are_on_the_device_ahead_of_their_turn_and_resume_exactly(tmp_path, memory_bytes):
    dataset, split = _open(_config(tmp_path))
    settings = {"minibatch": 2, "with_abnormal": True, "memory_bytes": memory_bytes}
    on_host = _streams(dataset, split, **settings)
    expected = [next(on_host) for _ in range(8)]
    on_host.close()
    put = threading.Semaphore(0)

    def to_device(batch):
        moved = jax.device_put(batch)
        put.release()
        return moved

    streams = _streams(dataset, split, to_device=to_device, **settings)
    for number in range(5):
        batch = next(streams)
        assert isinstance(batch.normal, jax.Array)
        np.testing.assert_array_equal(batch.normal, expected[number].normal)
        np.testing.assert_array_equal(batch.abnormal, expected[number].abnormal)
    # Five were handed out; more follow onto the device without being asked for.
    assert all(put.acquire(timeout=300) for _ in range(7))
    state = streams.state()
    streams.close()
    assert state == {"normal": 10, "abnormal": 10}

    resumed = _streams(dataset, split, to_device=jax.device_put, **settings)
    resumed.restore(state)
    np.testing.assert_array_equal(next(resumed).normal, expected[5].normal)
    resumed.close()


def test_a_resolution_off_the_list_is_refused(tmp_path):
    for resolution in (2, 48, 2048):
        with pytest.raises(DataError, match="power of two"):
            _open(_config(tmp_path), resolution=resolution)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' process table")
def test_memory_stays_flat_over_ten_thousand_batches(tmp_path):
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    dataset, split = _open(_config(tmp_path))
    streams = _streams(dataset, split, resolution=32, minibatch=16, with_abnormal=True)
    for _ in range(1_000):
        next(streams)
    before = resident_bytes()
    for _ in range(10_000):
        next(streams)
    # The batches shown hold 320 MB.
    assert resident_bytes() - before < 16 * 2**20
    streams.close()


WORKER = """
    import json, sys, zlib
    from jax_noisy_anogan.config import DataConfig, SyntheticConfig
    from jax_noisy_anogan.data.dataset import load_dataset
    from jax_noisy_anogan.data.splits import make_split
    from jax_noisy_anogan.data.streams import TrainingStreams

    cache, process, state, batches = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), 3
    config = DataConfig(
        name="synthetic", cache_dir=cache, known_abnormal_fraction=0.5, flip_vertical=True,
        synthetic=SyntheticConfig(images=20, abnormal_images=8, texture="speckle"),
    )
    dataset = load_dataset(config, resolution=32, progress=False)
    streams = TrainingStreams(
        dataset, make_split(dataset, config), resolution=16, minibatch=6, seed=0,
        with_abnormal=True, process_index=process, process_count=2, memory_bytes=0,
    )
    if state:
        streams.restore(state)
    seen = []
    for _ in range(batches):
        batch = next(streams)
        seen += [zlib.crc32(image.tobytes()) for image in (*batch.normal, *batch.abnormal)]
    print(json.dumps({"seen": seen, "state": streams.state()}))
    streams.close()
"""


def _two_processes(cache, state):
    """Run both processes at the same time, from an empty cache on: they also share its lock."""
    running = [commands.start("-c", WORKER, cache, p, json.dumps(state)) for p in range(2)]
    done = [process.outcome() for process in running]
    assert [one.returncode for one in done] == [0, 0], done
    return [json.loads(one.stdout.splitlines()[-1]) for one in done]


def test_two_processes_resume_exactly_in_mid_epoch_and_equal_one_process(tmp_path):
    first = _two_processes(tmp_path, {})
    second = _two_processes(tmp_path, first[0]["state"])
    assert first[0]["state"] == first[1]["state"] == {"normal": 18, "abnormal": 18}

    dataset, split = _open(_config(tmp_path, flip_vertical=True))
    single = _streams(dataset, split, minibatch=6, with_abnormal=True)
    for run in (first, second):
        for number in range(3):
            batch = next(single)
            for process in range(2):
                share = slice(3 * process, 3 * process + 3)
                images = (*batch.normal[share], *batch.abnormal[share])
                expected = [zlib.crc32(image.tobytes()) for image in images]
                assert run[process]["seen"][6 * number : 6 * number + 6] == expected
    single.close()


def test_tiles_of_known_abnormal_images_show_their_defect(tmp_path):
    # 4 x 4 tiles, a defect of less than 1 % of the image: a random tile shows it now and then only.
    config = _config(tmp_path, tile_image_resolution=128)
    dataset, split = _open(config)
    streams = _streams(dataset, split, resolution=32, minibatch=32, with_abnormal=True)
    batch = next(streams)
    streams.close()
    indices = split.train_known_abnormal
    defective = []
    for tile in batch.abnormal:
        for index in indices:
            found = _place(dataset.images([index], 128)[0], tile)
            if found is not None:
                top, left = found
                mask = dataset.masks([index], 128)[0]
                defective.append(mask[top : top + 32, left : left + 32].any())
    assert len(defective) == 32
    assert all(defective)


def test_a_pasted_defect_keeps_its_contrast_and_leaves_the_rest_of_the_background():
    rng = np.random.default_rng(0)
    background = rng.integers(140, 150, (64, 64, 1), np.uint8)
    image = rng.integers(60, 70, (64, 64, 1), np.uint8)
    image[20:40, 30:44] += 50
    coverage = np.zeros((64, 64), np.float32)
    coverage[20:40, 30:44] = 1
    pasted = paste_defect(image, coverage, background).astype(float)
    inside, outside = pasted[24:36, 34:40].mean(), background.mean()
    np.testing.assert_allclose(inside - outside, 50, atol=2)
    far = np.ones((64, 64), bool)
    far[12:48, 22:52] = False
    np.testing.assert_array_equal(pasted[far], background[far])
    empty = paste_defect(image, np.zeros((64, 64), np.float32), background)
    np.testing.assert_array_equal(empty, background)


@pytest.mark.parametrize("tile_image_resolution", [0, 128])
def test_pasted_defects_lie_on_normal_training_images_and_resume_exactly(
    tmp_path, tile_image_resolution
):
    config = _config(tmp_path, tile_image_resolution=tile_image_resolution, paste_defects=0.5)
    dataset, split = _open(config)
    side = dataset.resolution
    known = dataset.images(split.train_known_abnormal, side)
    normal = dataset.images(split.train_normal, side)
    streams = _streams(dataset, split, resolution=32, minibatch=16, with_abnormal=True)
    batches = [next(streams).abnormal for _ in range(3)]
    streams.close()

    def lies_in(tile, images):
        """Whether some row of the tile, away from a defect of few pixels, is one of an image."""
        windows = np.lib.stride_tricks.sliding_window_view(images[..., 0], 32, axis=2)
        return any((windows == row).all(axis=-1).any() for row in (tile[0, :, 0], tile[-1, :, 0]))

    tiles = np.concatenate(batches)
    own = np.array([lies_in(tile, known) for tile in tiles])
    others = np.array([lies_in(tile, normal) for tile in tiles])
    assert (own | others).mean() > 0.8
    assert 0.25 < others.mean() < 0.75
    resumed = _streams(dataset, split, resolution=32, minibatch=16, with_abnormal=True)
    resumed.restore({"normal": 32, "abnormal": 32})
    np.testing.assert_array_equal(next(resumed).abnormal, batches[2])
    resumed.close()


def _place(image, tile):
    windows = np.lib.stride_tricks.sliding_window_view(image[..., 0], tile.shape[:2])
    corner = windows[:, :, 0, :8] == tile[0, :8, 0]
    for top, left in np.argwhere(corner.all(axis=2)):
        if np.array_equal(windows[top, left], tile[..., 0]):
            return top, left
    return None
