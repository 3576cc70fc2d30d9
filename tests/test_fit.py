"""Images that a program holds become a run: `gather`, `choose` and `fit`."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.data.decode import decode_mask
from jax_noisy_anogan.data.gathering import gather
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.training import choices
from jax_noisy_anogan.training.growth import make_schedule

GREY = np.zeros((9, 9), np.uint8)


def _photographs(count, seed, *, spot=False):
    """Grey noise around 120; a defective one has a white square."""
    rng = np.random.default_rng(seed)
    images = rng.normal(120, 12, (count, 24, 32)).clip(0, 255).astype(np.uint8)
    if spot:
        images[:, 8:14, 10:16] = 255
    return list(images)


def test_arrays_files_and_pictures_become_one_tree_that_the_same_call_does_not_touch(tmp_path):
    array, other = _photographs(2, 0)
    file = tmp_path / "photo.PNG"
    Image.fromarray(other).save(file, format="PNG")
    mask = np.zeros((24, 32), np.uint8)
    given = {"normal": [array, file], "abnormal": [Image.fromarray(other)], "masks": [mask]}
    root = gather(tmp_path / "images", **given)
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert found == {
        "normal/000000.png",
        "normal/000001.PNG",
        "abnormal/000000.png",
        "masks/000000.png",
    }
    np.testing.assert_array_equal(np.asarray(Image.open(root / "normal/000000.png")), array)
    assert (root / "normal/000001.PNG").resolve() == file
    times = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    gather(tmp_path / "images", **given)
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == times


def test_pictures_are_stored_as_a_file_of_them_would_be_read(tmp_path):
    (grey,) = _photographs(1, 0)
    turned = Image.fromarray(grey)
    turned.getexif()[0x0112] = 6
    depth = Image.fromarray(grey.astype(np.uint16) * 200)
    colour = Image.fromarray(np.stack([grey, 255 - grey, grey], -1))
    pictures = [turned, depth, depth.convert("I"), *map(colour.convert, ("CMYK", "P", "YCbCr"))]
    root = gather(tmp_path / "images", normal=pictures)
    stored = [np.asarray(Image.open(path)) for path in sorted((root / "normal").iterdir())]
    np.testing.assert_array_equal(stored[0], np.rot90(grey, -1))
    for found in stored[1:3]:
        np.testing.assert_array_equal(found, grey.astype(np.uint16) * 200)
    for picture, found in zip(pictures[3:], stored[3:], strict=True):
        np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))


def test_masks_of_arrays_and_pictures_are_white_wherever_they_are_above_zero(tmp_path):
    faulty = _photographs(1, 1, spot=True)[0]
    defect = faulty == 255
    drawn = Image.new("RGBA", (32, 24), (0, 0, 0, 255))
    drawn.paste((0, 0, 1, 255), (10, 8, 16, 14))
    masks = [
        *(defect * value for value in (np.uint8(1), np.uint8(25), np.uint16(1))),
        defect,
        defect[..., None],
        drawn,
        Image.fromarray(defect * np.uint8(25)),
    ]
    drawn_from = [np.roll(faulty, shift) for shift in range(len(masks))]
    root = gather(tmp_path / "images", normal=[faulty], abnormal=drawn_from, masks=masks)
    paths = sorted((root / "masks").iterdir())
    assert len(paths) == len(masks)
    square = np.zeros((24, 32), bool)
    square[8:14, 10:16] = True
    for path, expected in zip(paths, [defect] * 5 + [square, defect], strict=True):
        np.testing.assert_array_equal(decode_mask(path, max_pixels=10_000), expected)


@pytest.mark.parametrize("change", ["fewer", "other", "no defects", "no masks", "a folder"])
def test_other_images_never_take_the_place_of_those_of_before(tmp_path, change):
    normal, faulty = _photographs(3, 0), _photographs(2, 1, spot=True)
    masks = [image == 255 for image in faulty]
    gather(tmp_path / "images", normal=normal, abnormal=faulty, masks=masks)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert len(before) == 7
    (tmp_path / "good").mkdir()
    given = {"normal": normal, "abnormal": faulty, "masks": masks} | {
        "fewer": {"normal": normal[:2]},
        "other": {"normal": normal[::-1]},
        "no defects": {"abnormal": (), "masks": None},
        "no masks": {"masks": None},
        "a folder": {"normal": tmp_path / "good"},
    }[change]
    with pytest.raises(DataError, match="holds other images"):
        gather(tmp_path / "images", **given)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_a_longer_list_takes_no_place_either_once_a_run_has_trained(tmp_path):
    four = _photographs(4, 0)
    gather(tmp_path / "images", normal=four[:3])
    gather(tmp_path / "images", normal=four)  # an interrupted call goes on
    gather(tmp_path / "images", normal=four, complete=True)
    before = sorted(tmp_path.rglob("*.png"))
    with pytest.raises(DataError, match="holds other images"):
        gather(tmp_path / "images", normal=[*four, *four], complete=True)
    assert sorted(tmp_path.rglob("*.png")) == before


def test_images_are_never_written_into_a_folder_that_was_given(tmp_path):
    (tmp_path / "good").mkdir()
    gather(tmp_path / "images", normal=tmp_path / "good")
    with pytest.raises(DataError, match="holds other images"):
        gather(tmp_path / "images", normal=_photographs(2, 0))
    assert not list((tmp_path / "good").iterdir())


def test_a_folder_becomes_a_link(tmp_path):
    (tmp_path / "good").mkdir()
    root = gather(tmp_path / "images", normal=tmp_path / "good")
    assert (root / "normal").resolve() == tmp_path / "good"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"normal": []}, "normal holds no image"),
        ({"normal": "no/such/folder"}, "is no folder"),
        ({"normal": ["no-such-file.png"]}, "is no file"),
        ({"normal": [np.zeros((4, 4), complex)]}, "is no image"),
        ({"normal": [np.zeros((9, 9), np.uint8)], "masks": [np.zeros((9, 9), bool)]}, "1 masks of"),
        (
            {"normal": [GREY], "abnormal": [GREY], "masks": "folder"},
            "one of masks and abnormal is a folder",
        ),
        (
            {"normal": [GREY], "abnormal": "folder", "masks": [GREY]},
            "one of masks and abnormal is a folder",
        ),
        ({"normal": [Image.new("F", (9, 9))]}, "mode F: floating-point values"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, given, message):
    with pytest.raises(DataError, match=message) as error:
        gather(tmp_path / "images", **given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.png"))


def test_flips_are_safe_where_a_flipped_image_looks_like_the_others():
    rng = np.random.default_rng(0)

    def unit(images):
        flat = images.reshape(len(images), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).reshape(images.shape)

    textures = rng.normal(size=(40, 16, 16, 1))
    assert choices.flips_are_safe(unit(textures), 0)
    assert choices.flips_are_safe(unit(textures), 1)
    # A bright left half in every image: upside down it stays, mirrored it does not.
    aligned = textures.copy()
    aligned[:, :, :8] += 3.0
    assert choices.flips_are_safe(unit(aligned), 0)
    assert not choices.flips_are_safe(unit(aligned), 1)


@pytest.mark.parametrize(("spread", "contrast"), [(2.0, 0.0), (40.0, choices.LOCAL_CONTRAST)])
def test_local_contrast_is_taken_where_light_differs_by_more_than_images_show(
    tmp_path, spread, contrast
):
    rng = np.random.default_rng(0)
    lamp = rng.normal(120, spread, 40)
    images = lamp[:, None, None] + rng.normal(0, 10, (40, 64, 64))
    images = images.clip(0, 255).astype(np.uint8)
    light, shown = choices.light_and_detail(image[..., None] for image in images)
    assert light == pytest.approx(images.mean(axis=(1, 2)).std())
    # White noise, of which the mean over a neighbourhood of 4 pixels takes 1 / (4 pi 4^2) each.
    assert shown == pytest.approx(10.0, rel=0.05)
    config = config_lib.read_file(config_lib.find("folder"))
    config.data.root = str(gather(tmp_path / "images", normal=list(images)))
    config.data.cache_dir = str(tmp_path / "cache")
    chosen = choices.choose(config)
    assert chosen.values["data.local_contrast"] == (None, contrast)
    (line,) = (line for line in chosen.remarks if "local_contrast" in line)
    assert f"data.local_contrast = {contrast:g}" in line


@pytest.mark.parametrize("encoder", [False, True])
def test_twice_the_time_is_twice_the_images(monkeypatch, encoder):
    monkeypatch.setattr(choices, "convolution_rate", lambda network, resolution: 1e9)
    config = config_lib.read_file(config_lib.find("folder"))
    config.train.encoder = encoder

    def cost(seconds):
        lengths = choices.lengths_within(seconds, config)
        growth = dataclasses.replace(config.growth, **lengths)
        phases = make_schedule(growth).phases
        return sum(
            choices.multiply_adds(config.network, phase.resolution)
            * (phase.end_images - phase.start_images)
            for phase in phases
        )

    # Update after update as `multiply_adds` counts them, at the rate above.
    passes = choices._UPDATE + encoder * choices._ENCODER
    assert passes * cost(40_000.0) / 1e9 == pytest.approx(40_000.0, rel=0.05)
    assert cost(80_000.0) == pytest.approx(2 * cost(40_000.0), rel=0.01)


@pytest.mark.parametrize(("rate", "told"), [(1e3, "the fewest that are of use"), (1e13, "minutes")])
def test_time_is_promised_only_where_it_decides(tmp_path, monkeypatch, rate, told):
    monkeypatch.setattr(choices, "convolution_rate", lambda network, resolution: rate)
    root = gather(tmp_path / "images", normal=_photographs(12, 0))
    config = config_lib.read_file(config_lib.find("folder"))
    config.data.root, config.data.cache_dir = str(root), str(tmp_path / "cache")
    (line,) = [r for r in choices.choose(config).remarks if r.startswith("growth.final_images")]
    assert told in line


def test_a_detector_is_fitted_to_arrays_and_the_run_says_what_it_chose(tmp_path):
    changes = [
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.keep_together=0.0",
        "network.fmap_base=32",
        "network.fmap_max=8",
        "network.latent_size=8",
        "growth.start_resolution=8",
        "growth.resolution=8",
        "growth.minibatch_default=32",
        "growth.final_images=32",
        "search.steps=1",
        "search.batch_size=8",
    ]
    detector = jax_noisy_anogan.fit(
        _photographs(40, 1),
        _photographs(12, 2, spot=True),
        workdir=tmp_path / "run",
        changes=changes,
        progress=False,
    )
    run = config_lib.load(tmp_path / "run")
    assert run.data.channels == 1
    assert 0.001 <= run.data.pixel_std <= 1.0
    assert run.loss.gamma == 0.5
    assert (tmp_path / "run" / "report.html").exists()
    with pytest.raises(DataError, match="holds other images"):
        jax_noisy_anogan.fit(
            _photographs(41, 1), _photographs(12, 2, spot=True), workdir=tmp_path / "run"
        )
    found = detector.score(_photographs(1, 3))
    assert found[0].heat.shape == (8, 8)
