"""What is left to the data: grey or colour, and the depth that a camera uses."""

import json

import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan.config import Config, ConfigError, DataConfig, validate
from jax_noisy_anogan.data.catalog import open_source
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.survey import measured
from jax_noisy_anogan.errors import DataError


def _noise(*shape, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape, dtype)


def _save(root, arrays, ending="png"):
    (root / "normal").mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(root / f"normal/{number}.{ending}")
    return root


def _measured(root, tmp_path, **changes):
    config = DataConfig(name="image_folder", root=str(root), cache_dir=str(tmp_path), **changes)
    found = measured(config, open_source(config, resolution=16), resolution=16)
    return found.config, "; ".join(found.remarks)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_grey_stays_grey_also_where_files_store_three_channels(tmp_path, ending):
    arrays = [np.repeat(_noise(12, 12, 1, seed=k), 3, axis=2) for k in range(3)]
    arrays.append(_noise(12, 12, seed=4))
    config, remarks = _measured(_save(tmp_path / "data", arrays, ending), tmp_path)
    assert config.channels == 1
    assert "data.channels = 1: the images have no colour" in remarks


def test_one_image_with_a_colour_makes_three_channels(tmp_path):
    arrays = [np.repeat(_noise(12, 12, 1, seed=k), 3, axis=2) for k in range(70)]
    arrays[66][3, 3, 0] ^= 1
    root = _save(tmp_path / "data", arrays)
    config, remarks = _measured(root, tmp_path)
    assert config.channels == 3
    assert "data.channels = 3: the images have colour" in remarks
    grey, remarks = _measured(root, tmp_path, channels=1)
    assert grey.channels == 1
    assert "the images have colour, which data.channels = 1 takes away" in remarks


@pytest.mark.parametrize(
    ("highest", "white"),
    [(200, 255), (700, 1023), (1023, 1023), (1024, 4095), (9000, 16_383), (40_000, 65_535)],
)
def test_the_depth_that_a_camera_uses_is_measured_over_all_images(tmp_path, highest, white):
    arrays = [_noise(12, 12, high=highest // 2, dtype=np.uint16, seed=k) for k in range(3)]
    arrays[1][5, 5] = highest
    root = _save(tmp_path / "data", arrays)
    config, remarks = _measured(root, tmp_path)
    assert config.white_level == white
    assert f"data.white_level = {white}" in remarks
    settled = DataConfig(name="image_folder", root=str(root), cache_dir=str(tmp_path))
    dataset = load_dataset(settled, resolution=16, progress=False)
    stored = dataset.images([1], 16).astype(int)
    # The largest value as a share of the depth; resizing to 16 x 16 spreads it over a few pixels.
    assert 0.5 * 255 * highest / white < stored.max() <= np.ceil(255 * highest / white)


def test_twelve_bits_keep_all_shades_that_eight_can_hold(tmp_path):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    root = _save(tmp_path / "data", [ramp])
    config = DataConfig(name="image_folder", root=str(root), cache_dir=str(tmp_path))
    dataset = load_dataset(config, resolution=64, progress=False)
    assert len(np.unique(dataset.images([0], 64))) == 256
    np.testing.assert_array_equal(
        dataset.images([0], 64)[0, ..., 0], np.floor(ramp.astype(float) * 255 / 4095 + 0.5)
    )


def test_few_shades_are_named_with_the_settings_that_keep_more(tmp_path):
    values = 29_000 + _noise(12, 12, high=1001, dtype=np.uint16)
    values[0, :2] = 29_000, 30_000
    root = _save(tmp_path / "data", [values])
    _, remarks = _measured(root, tmp_path)
    assert "4 of 256 levels" in remarks  # 255 * 1000 / 65535
    assert "--config.data.black_level=29000 --config.data.white_level=30000" in remarks
    _, remarks = _measured(root, tmp_path, black_level=29_000, white_level=30_000)
    assert "levels" not in remarks
    with pytest.raises(ConfigError, match=r"data\.white_level is 9: expected"):
        validate(Config(data=DataConfig(black_level=10, white_level=9)))


def _sixteen_bit_colour(path, high):
    """A PNG of 16 bits per channel, of which Pillow reads the upper eight only."""
    import struct
    import zlib

    pixels = np.random.default_rng(0).integers(0, high, (8, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("high", "said"), [(4096, True), (65_536, False)])
def test_colours_of_sixteen_bits_that_lose_their_shades_are_named(tmp_path, high, said):
    _sixteen_bit_colour(tmp_path / "data/normal/a.png", high)
    _, remarks = _measured(tmp_path / "data", tmp_path)
    assert ("are read in 16 levels" in remarks) == said


def test_a_look_at_the_files_is_kept_until_they_change(tmp_path, monkeypatch):
    from jax_noisy_anogan.data import survey

    root = _save(tmp_path / "data", [_noise(12, 12)])
    _measured(root, tmp_path)
    monkeypatch.setattr(survey, "_look", lambda *_: pytest.fail("looked again"))
    _measured(root, tmp_path)
    (kept,) = (tmp_path / "contents").glob("*/contents.json")
    assert json.loads(kept.read_text())["content"]["has_colour"] is False
    monkeypatch.undo()
    _save(root, [_noise(12, 12, 3)])
    assert _measured(root, tmp_path)[0].channels == 3


def test_data_sets_without_files_are_grey():
    config = DataConfig(name="mnist5k")
    found = measured(config, open_source(config, resolution=32), resolution=32)
    assert (found.config.channels, found.config.white_level, found.remarks) == (1, 65_535, ())


@pytest.mark.parametrize("black", [700, 1023, 2000])
def test_a_black_level_above_all_values_is_named_with_their_range(tmp_path, black):
    values = 100 + _noise(12, 12, high=600, dtype=np.uint16)
    values[0, :2] = 100, 700
    root = _save(tmp_path / "data", [values])
    message = rf"config\.data\.black_level is {black}, but .* reach from 100 to 700: expected less"
    with pytest.raises(DataError, match=message):
        _measured(root, tmp_path, black_level=black)
    assert _measured(root, tmp_path, black_level=699)[0].white_level == 1023
    config, _ = _measured(root, tmp_path, black_level=black, white_level=4095)
    assert config.white_level == 4095


def test_black_images_of_sixteen_bits_need_no_black_level(tmp_path):
    root = _save(tmp_path / "data", [np.zeros((12, 12), np.uint16)])
    assert _measured(root, tmp_path)[0].white_level == 255
    with pytest.raises(DataError, match="reach from 0 to 0"):
        _measured(root, tmp_path, black_level=300)
