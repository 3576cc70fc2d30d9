"""Images that keep their shape: chosen, prepared, trained on in crops, scored in tiles, judged."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import experiment
from jax_noisy_anogan.baselines.yardsticks import Judged
from jax_noisy_anogan.config import ConfigError, DataConfig
from jax_noisy_anogan.data.catalog import open_source
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.preprocess import local_contrast
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.data.streams import TrainingStreams
from jax_noisy_anogan.data.survey import measured
from jax_noisy_anogan.evaluation import yardsticks
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.scoring import artefact
from jax_noisy_anogan.training import reconstruction

# Height and width of photographs; the last is lower than a tile at the scale below.
SIZES = [(60, 150), (57, 163), (150, 60), (66, 140), (28, 130)]
SIDE = 16


def _photograph(size, seed, *, defect=False):
    """A smooth surface; returns it with the mask of its defect."""
    rng = np.random.default_rng(seed)
    small = rng.integers(100, 150, (4, 4), np.uint8)
    image = np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BILINEAR)).copy()
    mask = np.zeros(size, bool)
    if defect:
        top, left = rng.integers(2, size[0] - 14), rng.integers(2, size[1] - 14)
        mask[top : top + 12, left : left + 12] = True
        image[mask] = 255
    return image, mask


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for kind, count in (("normal", 40), ("abnormal", 20)):
        (folder / kind).mkdir(parents=True)
        for k in range(count):
            defect = kind != "normal"
            image, mask = _photograph(SIZES[k % len(SIZES)], [k, defect], defect=defect)
            Image.fromarray(image).save(folder / kind / f"{kind[0]}{k:02}.png")
            if defect:
                (folder / "masks").mkdir(exist_ok=True)
                Image.fromarray(mask).save(folder / "masks" / f"{kind[0]}{k:02}.png")
    return folder


def _data(root, cache, **changes):
    values = {"fit": "scale", "scale": 2.0, "known_abnormal_fraction": 0.5} | changes
    return DataConfig(name="image_folder", root=str(root), cache_dir=str(cache), **values)


@pytest.fixture(scope="module")
def opened(root, tmp_path_factory):
    config = _data(root, tmp_path_factory.mktemp("cache"), split_seed=1)
    dataset = load_dataset(config, resolution=SIDE, progress=False)
    return dataset, make_split(dataset, config)


def _save(folder, sizes):
    (folder / "normal").mkdir(parents=True)
    for k, size in enumerate(sizes):
        Image.fromarray(_photograph(size, k)[0]).save(folder / "normal" / f"{k}.png")
    return folder


@pytest.mark.parametrize(
    ("sizes", "fit", "scale"),
    [
        ([(40, 50), (60, 45)], "stretch", 0.0),
        # Two tiles of 16 across a shorter side of 60 pixels.
        ([(60, 150), (140, 60), (60, 61)], "scale", 1.88),
        ([(20, 150), (150, 20)], "scale", 1.0),
    ],
)
def test_far_from_square_is_found_and_said(tmp_path, sizes, fit, scale):
    config = _data(_save(tmp_path / "images", sizes), tmp_path / "cache", fit="auto", scale=0.0)
    found = measured(config, open_source(config, resolution=SIDE), resolution=SIDE)
    assert (found.config.fit, found.config.scale) == (fit, scale)
    told = " ".join(found.remarks)
    assert (f"data.fit = scale, data.scale = {scale:g}" in told) == (fit == "scale")
    assert ("stretched to squares" in told) == (fit == "stretch")
    chosen = measured(found.config, open_source(config, resolution=SIDE), resolution=SIDE)
    assert "data.fit = scale, data.scale" not in " ".join(chosen.remarks)
    # Whoever gives a scale has it.
    given = dataclasses.replace(config, scale=3.0)
    found = measured(given, open_source(given, resolution=SIDE), resolution=SIDE).config
    assert (found.fit, found.scale) == ("scale", 3.0)


@pytest.mark.parametrize(
    ("side", "fit", "said"), [(63, "crop", False), (64, "crop", True), (64, "scale", False)]
)
def test_photographs_that_shrink_much_are_named(tmp_path, side, fit, said):
    folder = _save(tmp_path / "images", [(side, side), (side, 70), (300, side)])
    config = _data(folder, tmp_path / "cache", fit=fit, scale=2.0 if fit == "scale" else 0.0)
    told = " ".join(measured(config, open_source(config, resolution=SIDE), resolution=SIDE).remarks)
    assert ("4 pixels of an image, on a side, become one" in told) == said


def test_a_turned_photograph_counts_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images" / "normal").mkdir(parents=True)
    for k in range(2):
        image = Image.fromarray(_photograph((150, 60), k)[0])
        image.save(tmp_path / "images" / "normal" / f"{k}.png", exif=exif)
    config = _data(tmp_path / "images", tmp_path / "cache", scale=2.0)
    dataset = load_dataset(config, resolution=SIDE, progress=False)
    assert [dataset.shape(k) for k in range(2)] == [(30, 75)] * 2
    assert dataset.source(SIDE)[0].shape == (30, 75, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "mnist5k"},
        {"tile_image_resolution": 64},
        {"scale": 0.01},
        {"fit": "stretch", "scale": 2.0},
        {"fit": "pad", "scale": 2.0},
        {"fit": "auto", "scale": 2.0, "name": "mnist5k"},
    ],
)
def test_settings_that_contradict_are_refused(changes):
    data = DataConfig(**({"name": "image_folder", "root": "-", "fit": "scale"} | changes))
    with pytest.raises(ConfigError, match=r"config\.data\."):
        tiny.config(data=data)


def test_records_hold_every_shape_at_every_resolution(opened, root):
    dataset, _ = opened
    assert dataset.keeps_shape
    assert dataset.is_tiled
    for index in range(0, len(dataset), 7):
        width, height = dataset.sizes[index]
        own = np.asarray(Image.open(root / dataset.ids[index]))
        picture = dataset.source(SIDE)[index]
        assert picture.shape[:2] == dataset.shape(index)
        assert dataset.shape(index) == (round(height / 2), round(width / 2))
        if height % 2 == width % 2 == 0:
            means = own.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
            assert np.abs(picture[..., 0] - means).max() <= 1
        half = dataset.source(SIDE // 2)[index]
        rows, columns = dataset.shape(index)
        assert half.shape[:2] == (-(-rows // 2), -(-columns // 2))
        even = picture[: rows // 2 * 2, : columns // 2 * 2, 0].astype(float)
        means = even.reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
        assert np.abs(half[: rows // 2, : columns // 2, 0] - means).max() <= 0.5
        assert dataset.own_mask(index).shape == (height, width)
        assert dataset.source(SIDE).mask(index).shape == dataset.shape(index)


def test_local_contrast_of_any_shape_has_neighbourhoods_of_the_tile(opened):
    picture = opened[0].source(SIDE)[0]
    square = np.pad(picture, [(0, 0), (0, 0), (0, 0)])[:30, :30]
    assert picture.shape[:2] == (30, 75)
    whole = local_contrast(picture, 1 / 8, side=SIDE).astype(int)
    part = local_contrast(square, 1 / 8, side=SIDE).astype(int)
    # Away from the cut, which is a border for the part alone.
    assert np.abs(whole[:, :20] - part[:, :20]).max() <= 1
    assert np.abs(whole[:, 20:30] - part[:, 20:30]).max() > 1


def _streams(dataset, split, **settings):
    settings = {"resolution": SIDE, "minibatch": 8, "seed": 0, "with_abnormal": True} | settings
    return TrainingStreams(dataset, split, **settings)


def test_training_shows_crops_of_every_place_and_defects_of_known_images(opened):
    dataset, split = opened
    streams = _streams(dataset, split, with_masks=True)
    batches = [next(streams) for _ in range(25)]
    streams.close()
    source = dataset.source(SIDE)
    pictures = [source[int(index)][..., 0] for index in split.train_normal]
    windows = [
        np.lib.stride_tricks.sliding_window_view(picture, (SIDE, SIDE))
        for picture in pictures
        if min(picture.shape) >= SIDE
    ]
    found = 0
    for tile in batches[0].normal[..., 0]:
        found += any((each == tile).all(axis=(2, 3)).any() for each in windows)
    low = np.mean([min(picture.shape) < SIDE for picture in pictures])
    assert found >= 8 * (1 - low) - 4
    assert all(
        batch.normal.shape == batch.abnormal.shape == (8, SIDE, SIDE, 1) for batch in batches
    )
    assert all((batch.masks.max(axis=(1, 2)) > 127).all() for batch in batches)
    # Bright where the mask says so.
    for batch in batches[:3]:
        assert batch.abnormal[..., 0][batch.masks == 255].min() > 200


def test_streams_of_any_shape_resume_to_the_bit_also_from_records(opened):
    dataset, split = opened
    streams = _streams(dataset, split)
    batches = [next(streams) for _ in range(6)]
    streams.close()
    for memory_bytes in (0, 2**30):
        resumed = _streams(dataset, split, memory_bytes=memory_bytes)
        resumed.restore({"normal": 24, "abnormal": 24})
        for batch in batches[3:]:
            found = next(resumed)
            np.testing.assert_array_equal(found.normal, batch.normal)
            np.testing.assert_array_equal(found.abnormal, batch.abnormal)
        resumed.close()
    small = _streams(dataset, split, resolution=SIDE // 2)
    assert next(small).normal.shape == (8, SIDE // 2, SIDE // 2, 1)
    small.close()


def test_reconstruction_is_measured_on_tiles_of_all_images(opened):
    dataset, split = opened
    tiles = reconstruction._tiles(dataset, split.train_normal, SIDE, 60)
    assert 40 <= len(tiles) <= 60
    assert tiles.shape[1:] == (SIDE, SIDE, 1)
    source = dataset.source(SIDE)
    found = {source[int(index)][:SIDE, :SIDE].tobytes() for index in split.train_normal}
    assert sum(tile.tobytes() in found for tile in tiles) > 5


def test_yardsticks_are_measured_on_stretched_images_and_masks_of_any_shape(opened, root):
    dataset, split = opened
    line = ProgressLine("yardsticks", total=len(split.test), unit="images", show=False)
    read = yardsticks._Reader(_data(root, dataset.path), dataset, line)
    assert read.images(split.test).shape == (len(split.test), 128, 128, 1)
    abnormal = split.test[split.is_abnormal[split.test]]
    masks = read.masks(abnormal)
    assert masks.any(axis=(1, 2)).all()
    maps = np.stack([mask.reshape(32, 4, 32, 4).mean(axis=(1, 3)) for mask in masks])
    judged = Judged(np.arange(float(len(abnormal))), maps.astype(np.float32))
    tested, none = dataclasses.replace(split, test=abnormal), np.zeros(0, np.int64)
    found = yardsticks._result(judged, 0, none, dataset, tested)
    assert found.pixel_auroc > 0.95  # the masks themselves, at 32 x 32


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config(
        data=_data(root, folder / "cache", fit="auto", scale=0.0, pixel_std=0.0),
        growth=config_lib.GrowthConfig(
            start_resolution=SIDE, resolution=SIDE, final_images=32, minibatch_default=32
        ),
        search=config_lib.SearchConfig(steps=2, batch_size=8),
        score=config_lib.ScoreConfig(map_sigma=0.5, yardsticks=False),
        train=config_lib.TrainConfig(sample_images=4),
    )
    experiment.run(config, folder / "run", progress=False)
    return folder / "run"


def test_a_run_keeps_its_choice_and_evaluates_images_of_different_sizes(run, root):
    settings = json.loads((run / "config.json").read_text())
    assert settings["data"]["fit"] == "scale"
    assert settings["data"]["scale"] == 1.88  # a median shorter side of 60 pixels, over 2 x 16
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["pixel"]["images"] > 10
    assert 0 <= metrics["pixel"]["auroc"] <= 1
    assert (run / "report.html").exists()
    with np.load(run / "map_calibration.npz") as values:
        assert values["mean"].shape == ()  # a place means nothing where sizes differ
    with Image.open(run / "reconstructions.png") as picture:
        assert picture.width > 100


def test_what_is_kept_of_a_search_is_read_again(run, monkeypatch):
    from jax_noisy_anogan.scoring.scorer import Scorer

    before = (run / "metrics.json").read_text()
    config = config_lib.load(run)
    for name in ("search", "measure"):
        monkeypatch.setattr(Scorer, name, lambda *_: iter(()))
    experiment.run(config, run, progress=False)
    first, second = json.loads(before), json.loads((run / "metrics.json").read_text())
    assert {**first, "about": None} == {**second, "about": None}


def test_photographs_of_any_shape_are_scored_in_their_own_pixels(run):
    detector = jax_noisy_anogan.load(run)
    for size in [*SIZES, (9, 300), (400, 100)]:
        (found,) = detector.score(_photograph(size, 5)[0])
        rows, columns = (round(length / 1.88) for length in size)
        assert found.heat.shape == found.image.shape[:2] == (rows, columns)
        assert found.map.shape == size
        assert np.isfinite(found.map).all()


def test_an_export_asks_for_the_one_size_that_a_program_has(run, tmp_path):
    with pytest.raises(ConfigError, match="an exported program has one size"):
        artefact.export_detector(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
