"""Image files of every kind, good and bad, from folders to records."""

import errno
import io
import os
import random
import resource
import signal
import time
import zlib
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.decode import Pixels, decode_image, decode_mask, decode_picture
from jax_noisy_anogan.data.examples import BadImageError
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.errors import DataError

LIMIT = 10**6


def _noise(height=12, width=10, seed=0, channels=1):
    rng = np.random.default_rng(seed)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return rng.integers(0, 256, shape, np.uint8)


def _save(path, array, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **settings)
    return path


def _decode(path, channels=1):
    return decode_image(path, Pixels(channels, LIMIT)).image


def test_eight_bit_grey_is_unchanged(tmp_path):
    array = _noise()
    np.testing.assert_array_equal(_decode(_save(tmp_path / "a.png", array))[..., 0], array)


def test_sixteen_bits_keep_their_full_range(tmp_path):
    array = np.linspace(0, 65535, 64).reshape(8, 8).round().astype(np.uint16)
    decoded = _decode(_save(tmp_path / "a.png", array))[..., 0]
    np.testing.assert_array_equal(decoded, np.rint(array / 257))


def test_a_palette_gives_its_colours(tmp_path):
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "a.png")
    assert (_decode(tmp_path / "a.png", 3) == [10, 20, 30]).all()


def test_transparent_pixels_lie_over_black(tmp_path):
    array = np.full((8, 8, 4), 200, np.uint8)
    array[..., 3] = 0
    assert (_decode(_save(tmp_path / "a.png", array), 3) == 0).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    red = _decode(tmp_path / "a.tif", 3)[0, 0].astype(int)
    assert red[0] > 200
    assert red[1:].max() < 60


def test_one_bit_images_are_black_and_white(tmp_path):
    Image.fromarray(_noise() > 127).save(tmp_path / "a.png")
    assert set(np.unique(_decode(tmp_path / "a.png"))) == {0, 255}


def test_exif_rotation_is_applied(tmp_path):
    array = np.zeros((8, 16), np.uint8)
    array[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _save(tmp_path / "a.png", array, exif=exif)
    np.testing.assert_array_equal(_decode(path)[..., 0], np.rot90(array, -1))


def _bomb() -> bytes:
    """A valid small PNG header that claims 60,000 x 60,000 pixels."""
    data = bytearray(_png(_noise()))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def _png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(_noise(seed=s)) for s in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _float() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_noise().astype(np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


BAD = {
    "empty": (b"", "not an image"),
    "text": (b"this is text with an image's ending\n" * 50, "not an image"),
    "cut off": (_png(_noise(100, 100))[:3000], "damaged"),
    "bit flipped": (bytes(b ^ (i == 70) for i, b in enumerate(_png(_noise()))), "damaged"),
    "one pixel": (_png(_noise(1, 1)), "1 x 1 pixels"),
    "bomb": (_bomb(), "max_image_pixels"),
    "frames": (_gif(), "3 frames"),
    "float": (_float(), "floating-point"),
    # Pillow hands PostScript to a program of its own.
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_with_its_name_and_reason(tmp_path, kind):
    data, reason = BAD[kind]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(BadImageError, match=reason) as caught:
        _decode(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("folder", ["normal", "abnormal", "masks"])
def test_a_bad_file_in_a_folder_ends_the_preparation_or_is_listed(tmp_path, kind, folder):
    data, reason = BAD[kind]
    root = _plain(tmp_path / "data")
    bad = root / folder / "2.png"
    bad.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        _load(root, tmp_path)
    assert str(caught.value).count(str(bad)) == 1
    assert "\n" not in str(caught.value)
    dataset = _load(root, tmp_path, on_bad_image="skip")
    (item,) = dataset.left_out
    assert item.file == str(bad)
    assert reason in item.reason
    assert len(dataset) == 27


def test_sixteen_bit_palette_cmyk_alpha_and_rotated_files_are_prepared(tmp_path):
    root = _plain(tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "sixteen.png": (Image.fromarray(_noise().astype(np.uint16) * 257), {}),
        "palette.png": (Image.fromarray(_noise(seed=1)).convert("P"), {}),
        "cmyk.jpg": (Image.fromarray(_noise(seed=2, channels=3)).convert("CMYK"), {}),
        "alpha.png": (Image.fromarray(_noise(seed=3, channels=4)), {}),
        "rotated.jpg": (Image.fromarray(_noise(20, 10, seed=4)), {"exif": exif}),
    }
    for name, (image, settings) in files.items():
        image.save(root / "normal" / name, **settings)
    dataset = _load(root, tmp_path)
    row = {id_: number for number, id_ in enumerate(dataset.ids)}
    modes = {name: dataset.modes[row[f"normal/{name}"]] for name in files}
    assert modes == {
        "sixteen.png": "I;16",
        "palette.png": "P",
        "cmyk.jpg": "CMYK",
        "alpha.png": "RGBA",
        "rotated.jpg": "L",
    }
    assert dataset.sizes[row["normal/rotated.jpg"]].tolist() == [20, 10]
    assert dataset.left_out == ()


def test_a_mask_drawn_on_the_upright_picture_fits_a_rotated_file(tmp_path):
    root = _plain(tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "abnormal/2.png").unlink()
    _save(root / "abnormal/2.jpg", _noise(32, 16, 5), exif=exif)
    mask = np.zeros((16, 32), np.uint8)
    mask[:, :16] = 255
    _save(root / "masks/2.png", mask)
    dataset = _load(root, tmp_path)
    stored = dataset.masks([dataset.ids.index("abnormal/2.jpg")], 16)[0]
    assert stored[:, :8].all()
    assert not stored[:, 8:].any()


def test_grey_mask_values_split_at_half(tmp_path):
    array = np.array([[0, 100, 127, 128], [200, 255, 0, 0]] * 4, np.uint8)
    mask = decode_mask(_save(tmp_path / "m.png", array), max_pixels=LIMIT)
    np.testing.assert_array_equal(mask, array > 127)


def test_class_numbers_are_not_taken_for_an_empty_mask(tmp_path):
    path = _save(tmp_path / "m.png", np.eye(8, dtype=np.uint8))
    with pytest.raises(BadImageError, match="white"):
        decode_mask(path, max_pixels=LIMIT)


def _mvtec(root):
    for number in range(12):
        _save(root / f"train/good/{number:03d}.png", _noise(20, 30, number))
    for number in range(4):
        _save(root / f"test/good/{number:03d}.png", _noise(20, 30, 100 + number))
        _save(root / f"test/hole/{number:03d}.png", _noise(20, 30, 200 + number))
        mask = np.zeros((20, 30), np.uint8)
        mask[5:15, :15] = 255
        _save(root / f"ground_truth/hole/{number:03d}_mask.png", mask)
    return root


def _plain(root):
    for number in range(12):
        _save(root / f"normal/{number}.png", _noise(16, 16, number))
        _save(root / f"unlabeled/{number}.png", _noise(16, 16, 50 + number))
    for number in range(4):
        _save(root / f"abnormal/{number}.png", _noise(16, 16, 100 + number))
    mask = np.zeros((16, 16), np.uint8)
    mask[:8] = 255
    _save(root / "masks/2.png", mask)
    return root


def _config(root, tmp_path, **changes):
    settings = {"name": "image_folder", "root": str(root), "cache_dir": str(tmp_path / "cache")}
    return DataConfig(**{**settings, **changes})


def _load(root, tmp_path, **changes):
    return load_dataset(_config(root, tmp_path, **changes), resolution=16, progress=False)


def test_mvtec_classes_parts_and_masks(tmp_path):
    dataset = _load(_mvtec(tmp_path / "data"), tmp_path)
    assert dataset.class_names == ("good", "hole")
    assert [dataset.marks.count(m) for m in ("train", "test")] == [12, 8]
    holes = np.flatnonzero(dataset.labels == 1)
    expected = np.zeros((16, 16), bool)
    expected[4:12, :8] = True
    assert (dataset.masks(holes, 16) == expected).all()
    assert not dataset.masks(np.flatnonzero(dataset.labels == 0), 16).any()


@pytest.mark.parametrize(
    ("fit", "frame"), [("stretch", (40, 90)), ("crop", (40, 40)), ("pad", (90, 90))]
)
def test_a_mask_is_kept_in_its_own_pixels_though_it_vanishes_at_the_network_s(tmp_path, fit, frame):
    root = tmp_path / "data"
    for number in range(4):
        _save(root / f"normal/{number}.png", _noise(40, 90, number))
        _save(root / f"abnormal/{number}.png", _noise(40, 90, 10 + number))
    for number, place in enumerate([(17, 44), (3, 2), None, (39, 50)]):
        mask = np.zeros((40, 90), np.uint8)
        if place:
            mask[place] = 255
        _save(root / f"masks/{number}.png", mask)
    dataset = _load(root, tmp_path, fit=fit)
    abnormal = [dataset.ids.index(f"abnormal/{number}.png") for number in range(4)]
    assert not dataset.masks(abnormal, 16).any()
    top, left = {"stretch": (0, 0), "crop": (0, -25), "pad": (25, 0)}[fit]
    for index, place in zip(abnormal, [(17, 44), (3, 2), None, (39, 50)], strict=True):
        expected = np.zeros(frame, bool)
        if place and place[1] + left >= 0:
            expected[place[0] + top, place[1] + left] = True
        np.testing.assert_array_equal(dataset.own_mask(index), expected)
    assert dataset.own_mask(dataset.ids.index("normal/1.png")).shape == frame
    assert not dataset.own_mask(dataset.ids.index("normal/1.png")).any()


def test_plain_layout_pairs_masks_by_name_and_keeps_unlabeled_images_apart(tmp_path):
    config = _config(_plain(tmp_path / "data"), tmp_path)
    dataset = load_dataset(config, resolution=16, progress=False)
    named = dict(zip(dataset.ids, dataset.has_mask, strict=True))
    assert named["abnormal/2.png"]
    assert named["normal/0.png"]
    assert not named["abnormal/1.png"]
    assert dataset.marks.count("unlabeled") == 12
    tested = {dataset.ids[i].split("/")[0] for i in make_split(dataset, config).test}
    assert tested == {"normal", "abnormal"}


def test_magnetic_tile_masks_lie_beside_their_images(tmp_path):
    root = tmp_path / "data"
    for number in range(4):
        _save(root / f"MT_Free/Imgs/{number}.jpg", _noise(16, 16, number))
        _save(root / f"MT_Free/Imgs/{number}.png", np.zeros((16, 16), np.uint8))
        _save(root / f"MT_Crack/Imgs/{number}.jpg", _noise(16, 16, 9 + number))
        _save(root / f"MT_Crack/Imgs/{number}.png", np.full((16, 16), 255, np.uint8))
    dataset = _load(root, tmp_path)
    assert dataset.class_names == ("MT_Free", "MT_Crack")
    assert dataset.masks(np.flatnonzero(dataset.labels), 16).all()


def _folder_faults():
    def wrong_size(root):
        _save(root / "ground_truth/hole/001_mask.png", np.full((10, 10), 255, np.uint8))

    def orphan_mask(root):
        _save(root / "ground_truth/hole/777_mask.png", np.zeros((20, 30), np.uint8))

    def same_name(root):
        _save(root / "test/hole/001.bmp", _noise(20, 30, 999))

    def same_content(root):
        _save(root / "test/good/900.png", _noise(20, 30, 3))

    def empty_class(root):
        (root / "test/dent").mkdir()

    def broken_link(root):
        (root / "test/good/902.png").symlink_to(root / "nowhere.png")

    def defects_in_normal(root):
        _save(root / "train/good/Defect 2/903.png", _noise(20, 30, 993))

    def unlabeled_in_test(root):
        _save(root / "test/Unlabelled/907.png", _noise(20, 30, 992))

    def layout_in_test(root):
        _save(root / "test/ground-truth/908.png", _noise(20, 30, 991))

    def unknown_folder(root):
        _save(root / "rejects_of_may/909.png", _noise(20, 30, 990))

    def second_mask_beside(root):
        _save(root / "test/hole/001_label.png", np.zeros((20, 30), np.uint8))

    def defect_in_train(root):
        _save(root / "train/hole/000.png", _noise(20, 30, 997))

    def class_number_mask(root):
        _save(root / "ground_truth/hole/001_mask.png", np.full((20, 30), 3, np.uint8))

    def second_mask(root):
        _save(root / "ground_truth/hole/001.png", np.zeros((20, 30), np.uint8))

    def masks_of_nothing(root):
        _save(root / "ground_truth/dent/000_mask.png", np.zeros((20, 30), np.uint8))

    def defect_in_normal(root):
        _save(root / "ground_truth/good/001_mask.png", np.full((20, 30), 255, np.uint8))
        for number in (0, 2, 3):
            _save(root / f"ground_truth/good/{number:03d}_mask.png", np.zeros((20, 30), np.uint8))

    def stray_image(root):
        _save(root / "test/905.png", _noise(20, 30, 996))

    def line_break_in_name(root):
        _save(root / "test/good/90\n6.png", _noise(20, 30, 995))

    def name_not_utf8(root):
        _save(root / "test/good/906.png", _noise(20, 30, 994))
        (root / "test/good/906.png").rename(root / "test/good" / os.fsdecode(b"90\xff.png"))

    def same_content_in_other_class(root):
        _save(root / "test/hole/904.png", _noise(20, 30, 101))

    return [
        (wrong_size, "mask is 10 x 10", "001_mask.png"),
        (orphan_mask, "without an image", "777_mask.png"),
        (same_name, "same name", "001.png"),
        (same_content, "same content", "900.png"),
        (empty_class, "holds no image", "dent"),
        (broken_link, "cannot be read", "902.png"),
        (defects_in_normal, "contradicts the folder around it, good", "Defect 2"),
        (unlabeled_in_test, "means unlabeled", "Unlabelled"),
        (layout_in_test, "means masks", "ground-truth"),
        (unknown_folder, "holds images but is no folder of this layout", "rejects_of_may"),
        (second_mask_beside, "a second mask", "001_mask.png"),
        (defect_in_train, "only hold", "hole"),
        (class_number_mask, "must be white", "001_mask.png"),
        (second_mask, "a second mask", "001_mask.png"),
        (masks_of_nothing, "test does not hold", "dent"),
        (defect_in_normal, "marks a defect", "001_mask.png"),
        (stray_image, "outside the folders", "905.png"),
        (line_break_in_name, "rename it", r"90\n6.png"),
        (name_not_utf8, "rename it", r"90\udcff.png"),
        (same_content_in_other_class, "same content", "904.png"),
    ]


@pytest.mark.parametrize(
    ("fault", "reason", "name"), _folder_faults(), ids=lambda value: getattr(value, "__name__", "")
)
def test_a_folder_fault_is_raised_or_listed_with_its_file(tmp_path, fault, reason, name):
    root = _mvtec(tmp_path / "data")
    fault(root)
    with pytest.raises(DataError, match=reason) as caught:
        _load(root, tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    dataset = _load(root, tmp_path, on_bad_image="skip")
    listed = [item for item in dataset.left_out if name in item.file and reason in item.reason]
    assert len(listed) == 1
    lines = dataset.write_report().read_text().splitlines()
    assert f"{listed[0].file}: {listed[0].reason}" in lines
    assert len(lines) == len(dataset.left_out)


def test_equal_images_of_one_class_and_part_count_once(tmp_path):
    root = _mvtec(tmp_path / "data")
    _save(root / "train/good/099.png", _noise(20, 30, 3))
    dataset = _load(root, tmp_path)
    assert len(dataset) == 20
    assert [item.reason for item in dataset.left_out] == [
        "same content, class and part as another: train/good/003.png"
    ]


def test_other_endings_are_listed_but_end_nothing(tmp_path):
    root = _mvtec(tmp_path / "data")
    (root / "train/good/notes.txt").write_text("notes")
    dataset = _load(root, tmp_path)
    assert "not an image ending" in dataset.left_out[0].reason


def test_notes_and_unknown_folders_are_listed_but_end_nothing(tmp_path):
    root = _mvtec(tmp_path / "data")
    (root / "license.txt").write_text("free")
    (root / "drafts").mkdir()
    dataset = _load(root, tmp_path)
    assert {item.file: item.reason for item in dataset.left_out} == {
        str(root / "license.txt"): "a file where folders are expected",
        str(root / "drafts"): "not a folder of this layout",
    }
    (root / "notes.txt").write_text("written after the preparation")
    assert len(_load(root, tmp_path).left_out) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "not a folder"),
        (lambda root: root.mkdir(), "holds no image"),
        (lambda root: root.write_text("file"), "not a folder"),
        (lambda root: (root / "train/good").mkdir(parents=True), "holds no image"),
    ],
)
def test_an_unusable_root_is_named(tmp_path, make, message):
    root = tmp_path / "data"
    make(root)
    with pytest.raises(DataError, match=message) as caught:
        _load(root, tmp_path)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("folder", [".", "test/hole", "ground_truth/hole"])
def test_an_unreadable_folder_is_named_or_listed(tmp_path, monkeypatch, folder):
    root = _mvtec(tmp_path / "data")
    listed = Path.iterdir

    def refuse(self):
        if self == root / folder:
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DataError, match="cannot be listed: Permission denied") as caught:
        _load(root, tmp_path)
    assert str(root / folder) in str(caught.value)
    if folder != ".":
        dataset = _load(root, tmp_path, on_bad_image="skip")
        reasons = {item.file: item.reason for item in dataset.left_out}
        assert reasons[str(root / folder)] == "cannot be listed: Permission denied"


def test_mixed_sizes_and_modes_become_one_shape(tmp_path):
    root = tmp_path / "data"
    _save(root / "normal/a.png", _noise(7, 40))
    _save(root / "normal/b.jpg", _noise(64, 64, channels=3))
    _save(root / "abnormal/c.png", _noise(9, 9))
    dataset = _load(root, tmp_path, channels=3)
    assert dataset.images(range(3), 16).shape == (3, 16, 16, 3)
    assert sorted(map(tuple, dataset.sizes)) == [(9, 9), (40, 7), (64, 64)]


def test_padding_and_cropping_keep_the_proportions(tmp_path):
    root = tmp_path / "data"
    white = np.full((16, 32), 255, np.uint8)
    _save(root / "normal/a.png", white)
    padded = _load(root, tmp_path, fit="pad").images([0], 16)[0, ..., 0]
    cropped = _load(root, tmp_path, fit="crop").images([0], 16)[0, ..., 0]
    assert (padded[4:12] == 255).all()
    assert (padded[:4] == 0).all()
    assert (cropped == 255).all()


def test_an_interrupted_preparation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from jax_noisy_anogan.data import image_folder, writing

    root = _plain(tmp_path / "data")
    monkeypatch.setattr(writing, "PART_BYTES", 16 * 16 * 5)
    decode, decoded = image_folder.decode_image, []

    def interrupted(path, pixels):
        decoded.append(path)
        if len(decoded) == 13:
            raise KeyboardInterrupt
        return decode(path, pixels)

    monkeypatch.setattr(image_folder, "decode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _load(root, tmp_path)
    dataset = _load(root, tmp_path)
    assert len(dataset) == 28
    # Two parts of five were complete; the third is decoded again.
    assert len(decoded) == 13 + 28 - 10
    expected = {f"normal/{k}.png": _noise(16, 16, k) for k in range(12)}
    for index, id_ in enumerate(dataset.ids):
        if id_ in expected:
            np.testing.assert_array_equal(dataset.images([index], 16)[0, ..., 0], expected[id_])


KILLED = """
    import sys, time
    from jax_noisy_anogan.config import DataConfig
    from jax_noisy_anogan.data import builders, image_folder, writing
    from jax_noisy_anogan.data.dataset import load_dataset

    root, cache, slow = sys.argv[1:]
    writing.PART_BYTES = 16 * 16 * 5
    decode = image_folder.decode_image
    write = builders.ImageFolder._generate_examples

    def slow_decoding(path, pixels):
        time.sleep(0.05)
        return decode(path, pixels)

    def slow_writing(self, encoded, resolution):
        time.sleep(0.2)
        yield from write(self, encoded, resolution)

    if slow == "decoding":
        image_folder.decode_image = slow_decoding
    if slow == "writing":
        builders.ImageFolder._generate_examples = slow_writing
    config = DataConfig(name="image_folder", root=root, cache_dir=cache)
    load_dataset(config, resolution=16, progress=False)
"""


@pytest.mark.parametrize("during", ["decoding", "writing"])
def test_a_killed_preparation_goes_on_and_ends_like_an_undisturbed_one(tmp_path, during):
    root, cache = _plain(tmp_path / "data"), tmp_path / "cache"
    command = ["-c", KILLED, root, cache]
    process = commands.start(*command, during)
    awaited = "part_00001.json" if during == "decoding" else "*/part_00002/incomplete.*"
    deadline = time.monotonic() + 900
    while not list(cache.glob(f"*/{awaited}")):
        assert process.returncode is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (folder,) = cache.glob("image_folder-*")
    assert not (folder / "dataset.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("part_*.json")}
    assert len(finished) >= 2

    assert commands.run(*command, "").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not list(folder.rglob("*incomplete*"))
    resumed = _load(root, tmp_path)
    whole = _load(root, tmp_path / "other")
    assert resumed.ids == whole.ids
    everything = range(len(whole))
    np.testing.assert_array_equal(resumed.images(everything, 16), whole.images(everything, 16))
    np.testing.assert_array_equal(resumed.masks(everything, 4), whole.masks(everything, 4))


def test_changed_files_are_prepared_again(tmp_path):
    root = _plain(tmp_path / "data")
    first = _load(root, tmp_path)
    _save(root / "normal/new.png", _noise(16, 16, 77))
    assert len(_load(root, tmp_path)) == len(first) + 1


def _mutants(count=240):
    """Images of five formats: cut off, with flipped bits, with garbage, or of a wrong type."""
    rng = random.Random(0)
    formats = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
    for number in range(count):
        buffer = io.BytesIO()
        name = formats[number % len(formats)]
        Image.fromarray(_noise(24, 24, number)).save(buffer, name)
        data = bytearray(buffer.getvalue())
        kind = number // len(formats) % 4
        if kind == 0:
            data = data[: rng.randrange(len(data))]
        elif kind == 1:
            for _ in range(8):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            start = rng.randrange(min(64, len(data)))
            data[start : start + 16] = rng.randbytes(16)
        else:
            data = bytearray(
                rng.choice((b"", b"GIF89a", b"%PDF-1.7", b"PK\x03\x04", b"text\n" * 9))
            )
        yield f"{number:03d}.{name.lower().replace('jpeg', 'jpg').replace('tiff', 'tif')}", data


def test_every_mutated_file_is_in_the_records_or_in_the_report(tmp_path):
    root = _plain(tmp_path / "data")
    mutants = dict(_mutants())
    for name, data in mutants.items():
        (root / "abnormal" / name).write_bytes(data)
    dataset = _load(root, tmp_path, on_bad_image="skip")
    listed = {item.file.rsplit("/", 1)[-1] for item in dataset.left_out}
    kept = {id_.rsplit("/", 1)[-1] for id_ in dataset.ids}
    assert len(mutants) >= 200
    assert set(mutants) <= listed | kept
    assert not listed & kept & set(mutants)
    # Uncompressed formats carry no checksum: some of their flipped bits are just other pixels.
    assert len(listed) >= 150
    report = dataset.write_report().read_text().splitlines()
    assert len(report) == len(dataset.left_out)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_uncompressed_tiff_is_turned_upright_whole(tmp_path, mode, orientation):
    array = _noise(12, 20)
    picture = {
        "P": Image.fromarray(array).convert("P"),
        "I;16": Image.fromarray(array.astype(np.uint16) * 257),
    }.get(mode) or Image.fromarray(_noise(12, 20, channels=len(mode)), mode=mode)
    path = tmp_path / "a.tif"
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif, strip_size=10**6)
    picture.save(tmp_path / "packed.tif", exif=exif, compression="tiff_lzw")
    expected = _decode(tmp_path / "packed.tif", 3)
    assert expected.shape == (20, 12, 3)
    np.testing.assert_array_equal(_decode(path, 3), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(decode_picture(opened, Pixels(3, LIMIT)).image, expected)
        assert opened.filename == str(path)


@pytest.mark.parametrize("value", [1, 100, 128, 300, 32_767])
def test_class_numbers_of_sixteen_bits_are_not_taken_for_an_empty_mask(tmp_path, value):
    path = _save(tmp_path / "m.png", np.eye(8, dtype=np.uint16) * np.uint16(value))
    with pytest.raises(BadImageError, match=f"values reach {value} of 65535: .* white"):
        decode_mask(path, max_pixels=LIMIT)
    path = _save(tmp_path / "white.png", np.eye(8, dtype=np.uint16) * np.uint16(32_768))
    np.testing.assert_array_equal(decode_mask(path, max_pixels=LIMIT), np.eye(8, dtype=bool))


def test_class_numbers_of_one_colour_are_not_taken_for_an_empty_mask(tmp_path):
    array = np.zeros((8, 8, 3), np.uint8)
    array[2, 2, 2] = 1
    with pytest.raises(BadImageError, match="values reach 1 of 255"):
        decode_mask(_save(tmp_path / "m.png", array), max_pixels=LIMIT)


def _failing(monkeypatch, path, code):
    """Opening `path` fails as the system makes it fail."""
    from jax_noisy_anogan.data import decode

    def refuse(name, *settings):
        if name == path:
            raise OSError(code, os.strerror(code), str(path))
        return open(name, *settings)

    monkeypatch.setattr(decode, "open", refuse, raising=False)


@pytest.mark.parametrize("survey", [True, False])
def test_a_file_that_cannot_be_read_for_a_moment_is_not_left_out_for_good(
    tmp_path, monkeypatch, survey
):
    root = _plain(tmp_path / "data")
    settings = {"on_bad_image": "skip"}
    if not survey:
        _load(root, tmp_path, local_contrast=0.1, **settings)  # the look at the files is kept
    _failing(monkeypatch, root / "normal/3.png", errno.EIO)
    with pytest.raises(DataError, match=r"normal/3\.png: cannot be read: .*run again") as caught:
        _load(root, tmp_path, **settings)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert _load(root, tmp_path, **settings).left_out == ()


def test_a_file_without_permission_is_listed_until_it_has_one(tmp_path, monkeypatch):
    root = _plain(tmp_path / "data")
    access = os.access
    private = root / "normal/3.png"
    monkeypatch.setattr(os, "access", lambda path, mode: path != private and access(path, mode))
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        _load(root, tmp_path)
    (item,) = _load(root, tmp_path, on_bad_image="skip").left_out
    assert (item.file, item.reason) == (str(private), "cannot be read: Permission denied")
    monkeypatch.undo()
    assert _load(root, tmp_path, on_bad_image="skip").left_out == ()


def _open_files():
    return len(os.listdir("/proc/self/fd"))


def test_records_of_many_parts_hold_few_files_open(tmp_path, monkeypatch):
    from jax_noisy_anogan.data import dataset as dataset_lib
    from jax_noisy_anogan.data import writing

    root = _plain(tmp_path / "data")
    monkeypatch.setattr(writing, "PART_BYTES", 1)
    monkeypatch.setattr(dataset_lib, "_MOST_OPEN", 4)
    dataset = _load(root, tmp_path)
    source = dataset.source(16)
    before = _open_files()
    for _ in range(2):
        for index, id_ in enumerate(dataset.ids):
            if id_.startswith("normal/"):
                expected = _noise(16, 16, int(Path(id_).stem))
                np.testing.assert_array_equal(source[index][..., 0], expected)
    assert len(dataset) == 28
    assert _open_files() - before <= 4
    together = dataset.images(range(28), 16)
    np.testing.assert_array_equal(together, [source[index] for index in range(28)])
    assert _open_files() - before <= 4


def test_a_damaged_record_is_named_whether_read_alone_or_with_others(tmp_path):
    dataset = _load(_plain(tmp_path / "data"), tmp_path)
    (file,) = dataset.path.rglob("*r0016.array_record*")
    whole = dataset.images(range(28), 16)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)
    source = dataset.source(16)
    damaged = []
    for index in range(28):
        try:
            np.testing.assert_array_equal(source[index], whole[index])
        except DataError as error:
            damaged.append((index, str(error)))
    index, message = damaged[0]
    assert f"record {index} is damaged" in message
    assert "prepare again" in message
    with pytest.raises(DataError) as raised:
        dataset.images(range(28), 16)
    assert str(raised.value) == message


def test_too_many_open_files_are_no_damage(tmp_path, monkeypatch):
    from jax_noisy_anogan.data import writing

    monkeypatch.setattr(writing, "PART_BYTES", 1)
    source = _load(_plain(tmp_path / "data"), tmp_path).source(16)
    assert source[0].shape == (16, 16, 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_open_files() + 3, limits[1]))
    try:
        with pytest.raises(DataError, match="too many open files; raise the limit") as caught:
            list(map(source.__getitem__, range(len(source))))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "delete" not in str(caught.value)


def test_a_report_is_written_only_where_it_differs_and_may_fail(tmp_path, monkeypatch, caplog):
    from jax_noisy_anogan.data import dataset as dataset_lib

    root = _plain(tmp_path / "data")
    (root / "normal/notes.txt").touch()
    dataset = _load(root, tmp_path)

    def refuse(path, text):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(dataset_lib, "write_text", refuse)
    report = dataset.write_report()
    assert f"{report} cannot be written: Permission denied" in caplog.text
    monkeypatch.undo()
    assert "not an image ending" in dataset.write_report().read_text()
    monkeypatch.setattr(dataset_lib, "write_text", refuse)
    caplog.clear()
    dataset.write_report()
    assert not caplog.text


def test_a_padded_mask_of_a_long_image_stays_within_the_limit_of_padding(tmp_path):
    root = tmp_path / "data"
    for kind in ("normal", "abnormal"):
        _save(root / kind / "a.png", _noise(4, 40_000, len(kind)))
    mask = np.zeros((4, 40_000), np.uint8)
    mask[0, 20_001] = 255
    _save(root / "masks/a.png", mask)
    dataset = _load(root, tmp_path, fit="pad")
    marked = dataset.own_mask(dataset.ids.index("abnormal/a.png"))
    assert marked.shape == (8192, 8192)
    assert np.argwhere(marked).tolist() == [[4095, 20_001 * 8192 // 40_000]]
    empty = dataset.own_mask(dataset.ids.index("normal/a.png"))
    assert empty.shape == (8192, 8192)
    assert not empty.any()
