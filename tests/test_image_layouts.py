"""Folders as people arrange them: names in any spelling, masks beside images, tables, links."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan.config import Config, ConfigError, DataConfig, validate
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.names import meaning
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.errors import DataError

_COUNTER = iter(range(10**6))


def _image(path, value=None):
    """An image that no other one equals; a mask where a value is given: its left half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if value is None:
        pixels = np.random.default_rng(next(_COUNTER)).integers(0, 256, (12, 16), np.uint8)
    else:
        pixels = np.zeros((12, 16), np.uint8)
        pixels[:, :8] = value
    Image.fromarray(pixels).save(path, "PNG")
    return path


def _images(folder, count):
    return [_image(folder / f"{k:03d}.png") for k in range(count)]


def _config(root, tmp_path, **changes):
    changes = {"known_abnormal_fraction": 0.5, **changes}
    return DataConfig(name="image_folder", root=str(root), cache_dir=str(tmp_path / "c"), **changes)


def _load(root, tmp_path, **changes):
    return load_dataset(_config(root, tmp_path, **changes), resolution=8, progress=False)


def _classes(dataset):
    """How many images every class has."""
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    return dict(zip(dataset.class_names, counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("good Good GOOD ok OK_2 o.k. i.O. defect-free No_Defect normal2 Normals", "normal"),
        ("ng NG n.i.O. nok bad Defects defective anomaly abnormal_3", "abnormal"),
        ("unlabeled Un-Labelled unknown", "unlabeled"),
        ("masks Ground-Truth ground_truth GT", "masks"),
        ("train Training", "train"),
        ("scratch good_scratch hole not okra", ""),
    ],
)
def test_a_name_means_the_same_in_any_spelling(names, expected):
    assert {meaning(name) for name in names.split()} == {expected}


@pytest.mark.parametrize(("trained", "tested"), [("good", "Good"), ("ok", "ok"), ("OK", "good_2")])
def test_flawless_test_images_of_an_mvtec_folder_are_no_defect(tmp_path, trained, tested):
    root = tmp_path / "data"
    _images(root / "Train" / trained, 12)
    _images(root / "test" / tested, 5)
    _images(root / "test/scratch", 6)
    for k in range(6):
        _image(root / f"Ground-Truth/scratch/{k:03d}_mask.PNG", 255)
    config = _config(root, tmp_path)
    dataset = load_dataset(config, resolution=8, progress=False)
    assert _classes(dataset) == {trained: 17, "scratch": 6}
    split = make_split(dataset, config)
    known = np.concatenate([split.train_known_abnormal, split.validation_known_abnormal])
    assert {dataset.class_names[dataset.labels[i]] for i in known} == {"scratch"}
    assert dataset.masks(known, 8)[:, :, :4].all()


def test_free_names_of_a_plain_folder_are_found_or_named_by_the_user(tmp_path):
    root = tmp_path / "data"
    _images(root / "OK", 8)
    _images(root / "NG", 3)
    _images(root / "NG/dent", 2)
    _image(root / "masks/dent/001_gt.png", 255)
    assert _classes(_load(root, tmp_path)) == {"OK": 8, "NG": 3, "dent": 2}
    _images(root / "glare", 4)
    with pytest.raises(DataError, match="glare: holds images but is no folder of this layout"):
        _load(root, tmp_path)
    named = _load(root, tmp_path, abnormal_dirs="NG, glare")
    assert _classes(named) == {"OK": 8, "NG": 3, "dent": 2, "glare": 4}
    only = _load(root, tmp_path, normal_dirs="OK,glare", abnormal_dirs="NG/dent")
    assert _classes(only) == {"OK": 12, "dent": 2}
    left_out = {item.file: item.reason for item in only.left_out}
    assert set(left_out.values()) == {"not among config.data.normal_dirs and abnormal_dirs"}
    assert set(left_out) == {str(root / f"NG/{k:03d}.png") for k in range(3)}
    for wrong in ("nowhere", "../data/OK"):
        with pytest.raises(DataError, match="has no such folder"):
            _load(root, tmp_path, normal_dirs=wrong)


def test_folders_that_nothing_is_known_about_are_named_instead_of_guessed(tmp_path):
    root = tmp_path / "data"
    _images(root / "gut", 8)
    _images(root / "kratzer", 2)
    with pytest.raises(DataError, match=r"images lie in gut, kratzer\): name the folders"):
        _load(root, tmp_path)
    assert _classes(_load(root, tmp_path, normal_dirs="gut", abnormal_dirs="kratzer")) == {
        "gut": 8,
        "kratzer": 2,
    }


def test_a_folder_around_a_layout_is_named(tmp_path):
    _images(tmp_path / "data/screw/train/good", 3)
    with pytest.raises(DataError, match=r"single folder screw: set config\.data\.root to it"):
        _load(tmp_path / "data", tmp_path)


def test_masks_beside_their_images_are_no_images(tmp_path):
    root = tmp_path / "data"
    _images(root / "normal", 8)
    for k, ending in enumerate(("_mask", "_label", "_gt", "_MASK")):
        image = _image(root / f"abnormal/Part{k}.png")
        _image(image.with_name(f"Part{k}{ending}.png"), 255)
    dataset = _load(root, tmp_path)
    assert _classes(dataset) == {"normal": 8, "abnormal": 4}
    assert dataset.masks(np.flatnonzero(dataset.labels), 8)[:, :, :4].all()
    assert dataset.left_out == ()


def _kolektor(root, parts=6, photographs=4):
    """Every part has photographs with masks beside them; the second one shows a crack."""
    for part in range(parts):
        for number in range(photographs):
            image = _image(root / f"kos{part:02d}/Part{number}.jpg")
            _image(image.with_name(f"Part{number}_label.png"), 255 * (number == 1))
    return root


def test_masks_alone_say_which_images_are_abnormal_and_a_pattern_keeps_parts_on_one_side(tmp_path):
    config = _config(_kolektor(tmp_path / "data"), tmp_path, group_pattern=r"(kos\d+)/")
    dataset = load_dataset(config, resolution=8, progress=False)
    assert _classes(dataset) == {"normal": 18, "abnormal": 6}
    assert dataset.has_mask.all()
    split = make_split(dataset, config)
    trained = np.concatenate([split.train_normal, split.train_known_abnormal])
    sides = [{dataset.ids[i].split("/")[0] for i in part} for part in (trained, split.test)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    with pytest.raises(DataError, match="group_pattern 'unit' matches no image, as kos00/Part0"):
        make_split(dataset, _config(tmp_path / "data", tmp_path, group_pattern="unit"))
    with pytest.raises(ConfigError, match=r"data\.group_pattern is '\['"):
        validate(Config(data=_config(tmp_path / "data", tmp_path, group_pattern="[")))


def test_an_image_without_a_mask_is_normal_only_where_no_mask_is_empty(tmp_path):
    root = _kolektor(tmp_path / "data", parts=2)
    _image(root / "kos00/Part9.png")
    with pytest.raises(DataError, match=r"Part9\.png: has no mask beside it"):
        _load(root, tmp_path)
    for mask in root.rglob("*_label.png"):
        if "Part1_" not in mask.name:
            mask.unlink()
    assert _classes(_load(root, tmp_path)) == {"normal": 7, "abnormal": 2}


def test_a_folder_of_good_images_only_is_divided_without_an_empty_part(tmp_path):
    root = tmp_path / "data"
    _images(root, 20)
    config = _config(root, tmp_path)
    split = make_split(_load(root, tmp_path), config)
    assert [len(split.part(name)) for name in ("train_known_abnormal", "test")] == [0, 6]
    assert not split.is_abnormal.any()
    _images(root / "more", 4)
    with pytest.raises(DataError, match=r"images lie in more\): name the folders"):
        _load(root, tmp_path)
    assert _classes(_load(root, tmp_path, layout="flat")) == {"normal": 24}
    _images(root / "defects", 4)
    with pytest.raises(DataError, match="defects: its name contradicts"):
        _load(root, tmp_path, layout="flat")


def test_links_to_files_and_folders_are_followed_but_not_in_circles(tmp_path):
    root = tmp_path / "data"
    _images(root / "normal/lot1", 6)
    _images(tmp_path / "elsewhere", 3)
    (root / "normal/lot2").symlink_to(tmp_path / "elsewhere")
    (root / "normal/lot1/again").symlink_to(root / "normal")
    (root / "abnormal").mkdir()
    (root / "abnormal/one.PNG").symlink_to(_image(tmp_path / "single.png"))
    dataset = _load(root, tmp_path)
    assert _classes(dataset) == {"normal": 9, "abnormal": 1}
    assert {"normal/lot2/000.png", "abnormal/one.PNG"} < set(dataset.ids)
    (circle,) = dataset.left_out
    assert circle.file.endswith("normal/lot1/again")
    assert circle.reason == "a link to a folder that holds it"


def test_results_of_this_program_inside_a_folder_are_no_images(tmp_path):
    root = tmp_path / "data"
    _images(root / "normal", 6)
    for name in ("config.json", "lock"):
        (root / "run").mkdir(exist_ok=True)
        (root / "run" / name).touch()
    _images(root / "run/samples", 2)
    (item,) = _load(root, tmp_path).left_out
    assert (item.file, item.reason) == (str(root / "run"), "results of this program")


def test_every_entry_that_is_not_taken_is_in_the_report(tmp_path):
    root = tmp_path / "data"
    _images(root / "normal", 3)
    for name in (".hidden.png", "Thumbs.db", "a.tga", "noending"):
        (root / "normal" / name).touch()
    reasons = [item.reason for item in _load(root, tmp_path).left_out]
    assert sorted(reasons) == [
        "a hidden or system file",
        "a hidden or system file",
        "not an image ending: .tga",
        "not an image ending: none",
    ]


@pytest.mark.parametrize("ending", ["JFIF", "jpe", "PNM", "Tif", "gif", "pbm", "dib", "JPEG"])
def test_usual_endings_are_taken_in_any_case(tmp_path, ending):
    root = tmp_path / "data"
    _images(root / "normal", 2)
    kind = {"jfif": "JPEG", "jpe": "JPEG", "pnm": "PPM", "tif": "TIFF", "pbm": "PPM"}
    name = kind.get(ending.lower(), ending.upper())
    path = root / "normal" / f"x.{ending}"
    with Image.open(_image(tmp_path / "x.png")) as picture:
        picture.convert("1" if ending == "pbm" else "L").save(path, name)
    assert len(_load(root, tmp_path)) == 3


def _table(root, rows, header="path,label,mask,group,split"):
    with open(root / "list.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def test_a_table_gives_labels_masks_groups_and_parts(tmp_path):
    root = tmp_path / "data"
    _images(root / "photos", 20)
    _image(root / "m/15.png", 255)
    rows = [[f"photos/{k:03d}.png", "OK", "", f"part {k // 2}", "train"] for k in range(10)]
    rows += [[f"photos/{k:03d}.png", "good", "", f"part {k // 2}", "Test"] for k in range(10, 14)]
    rows += [["photos/014.png", "dent", "", "part 7", "train"]]
    rows += [["photos/015.png", "dent", "m/15.png", "part 8", "test"]]
    rows += [["photos\\016.png", "1", "", "part 0", "test"]]
    rows += [["photos/017.png", "unlabelled", "", "", ""]]
    _table(root, rows)
    config = _config(root, tmp_path, table="list.csv", validation_fraction=0.2)
    dataset = load_dataset(config, resolution=8, progress=False)
    assert _classes(dataset) == {"normal": 14, "abnormal": 1, "dent": 2, "unlabeled": 1}
    left_out = {item.file: item.reason for item in dataset.left_out}
    assert left_out == {
        str(root / f"photos/{k:03d}.png"): "an image that the table does not name" for k in (18, 19)
    }
    split = make_split(dataset, config)
    named = {name: {dataset.ids[i] for i in split.part(name)} for name in ("test", "train_normal")}
    assert {dataset.ids[i] for i in split.train_known_abnormal} == {"photos/014.png"}
    # Image 16 shows part 0, which trains; 17 is unlabelled and trains.
    assert named["test"] == {f"photos/{k:03d}.png" for k in (10, 11, 12, 13, 15)}
    assert "photos/017.png" in named["train_normal"]
    # Nor is it tested where none is to be known.
    none = make_split(
        dataset, _config(root, tmp_path, table="list.csv", known_abnormal_fraction=0.0)
    )
    assert {dataset.ids[i] for i in none.test} == named["test"]
    assert len(none.train_known_abnormal) == 0
    assert dataset.masks([dataset.ids.index("photos/015.png")], 8)[0, :, :4].all()
    before = dataset.path
    rows[14][1] = "scratch"
    _table(root, rows)
    assert _load(root, tmp_path, table="list.csv").path != before


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([["a.png"]], "path", "has the columns path: expected path,label"),
        ([["a.png", "ok"]], "path,lable", "expected path,label"),
        ([["a.png", "ok", "x"]], "path,label", "line 2 has not as many values"),
        ([["a.png", ""]], "path,label", "line 2 has the label ''"),
        ([["a.png", "mask"]], "path,label", "line 2 has the label 'mask'"),
        ([["a.png", "ok"], ["a.png", "ng"]], "path,label", "line 3 names a.png a second time"),
        ([["../b.png", "ok"]], "path,label", "expected a path below"),
        ([["/etc/b.png", "ok"]], "path,label", "expected a path below"),
        ([["nope.png", "ok"]], "path,label", "nope.png: cannot be read"),
        ([["a.png", "ok", "val"]], "path,label,split", "split 'val': expected train, test"),
        ([["a.png", "ok", "train"], ["b.png", "ok", ""]], "path,label,split", "line 3 has no spli"),
        ([["a.png", "unknown", "test"]], "path,label,split", "tests an unlabeled image"),
        ([["a.png", "ng"]], "path,label", "no normal image found"),
    ],
)
def test_a_wrong_table_is_named_with_its_line(tmp_path, rows, header, message):
    _image(tmp_path / "a.png")
    _image(tmp_path / "b.png")
    _table(tmp_path, rows, header)
    with pytest.raises(DataError, match=message) as error:
        _load(tmp_path, tmp_path, table="list.csv")
    assert "\n" not in str(error.value)


def test_a_table_that_is_missing_or_no_text_is_named(tmp_path):
    _image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"list\.csv cannot be read: No such file"):
        _load(tmp_path, tmp_path, table="list.csv")
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe,ok\n")
    with pytest.raises(DataError, match=r"list\.csv is not UTF-8"):
        _load(tmp_path, tmp_path, table="list.csv")


def test_normal_and_abnormal_folders_of_one_name_are_two_classes(tmp_path):
    root = tmp_path / "data"
    _images(root / "good/images", 5)
    _images(root / "bad/images", 3)
    dataset = _load(root, tmp_path, normal_dirs="good/images", abnormal_dirs="bad/images")
    assert _classes(dataset) == {"good/images": 5, "bad/images": 3}
    other = tmp_path / "other"
    _images(other / "plain", 5)
    _images(other / "bad/plain", 3)
    _images(other / "bad/dent", 2)
    dataset = _load(other, tmp_path, normal_dirs="plain")
    assert _classes(dataset) == {"plain": 5, "bad/plain": 3, "dent": 2}
    assert set(dataset.normal_classes) == {"plain"}
    _images(other / "x/unlabeled", 4)
    dataset = _load(other, tmp_path, normal_dirs="plain", abnormal_dirs="x/unlabeled")
    assert _classes(dataset) == {"plain": 5, "x/unlabeled": 4}


@pytest.mark.parametrize(
    ("normal", "abnormal"), [("ok", "ok"), ("ok,ok", "ng"), ("ok", "unknown"), ("ng", "")]
)
def test_a_folder_of_two_meanings_is_named(tmp_path, normal, abnormal):
    for name in ("ok", "ng", "unknown"):
        _images(tmp_path / "data" / name, 3)
    with pytest.raises(DataError, match=r"data/(ok|ng|unknown) has two meanings"):
        _load(tmp_path / "data", tmp_path, normal_dirs=normal, abnormal_dirs=abnormal)


FLAT = {
    "one kind": (("ok", "abnormal/scratch"), "masks", {}),
    "two kinds": (("ok", "abnormal/scratch", "abnormal/dent"), "masks", {}),
    "named folders": (
        ("ok", "scratch", "dent"),
        "masks",
        {"normal_dirs": "ok", "abnormal_dirs": "scratch,dent"},
    ),
    "two folders": (("ok", "ng", "bad"), "masks", {}),
    "nested": (("ok", "ng/scratch/lot 1", "ng/scratch/lot 2"), "masks", {}),
    "as the images": (("ok", "ng/scratch", "ng/dent"), "masks/ng/scratch", {}),
    "mvtec": (("train/good", "test/good", "test/scratch"), "ground_truth", {}),
}


@pytest.mark.parametrize("kind", FLAT)
def test_masks_that_are_not_divided_into_kinds_are_paired_by_name(tmp_path, kind):
    folders, masks, settings = FLAT[kind]
    root = tmp_path / "data"
    for number, folder in enumerate(folders):
        for k in range(3):
            _image(root / folder / f"{number}{k}.png")
    number = 1 if kind == "as the images" else len(folders) - 1
    _image(root / masks / f"{number}1_mask.png", 255)
    dataset = _load(root, tmp_path, **settings)
    row = dataset.ids.index(f"{folders[number]}/{number}1.png")
    assert dataset.masks([row], 8)[0, :, :4].all()
    abnormal = [k for k, name in enumerate(dataset.ids) if not name.startswith(folders[:-1])]
    assert dataset.has_mask[abnormal].sum() == (kind != "as the images")
    assert dataset.left_out == ()


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ("masks/7_mask.png", "a mask without an image"),
        ("masks/0.png", "a mask of several images"),
        ("masks/scratch/7.png", "a mask without an image"),
        ("masks/dent/0_gt.png", "a second mask: of ng/dent/0.png, beside masks/dent/0.png"),
        ("masks/gouge/0.png", "masks of a defect that abnormal does not hold"),
        ("ng/scratch/0_mask_gt.png", "a second mask: of 0.png, beside 0_mask.png"),
        ("masks/scratch/0.png", "a second mask: of ng/scratch/0.png, beside ng/scratch/0_mask"),
    ],
)
def test_a_mask_that_no_image_takes_is_named(tmp_path, mask, reason):
    root = tmp_path / "data"
    _images(root / "ok", 3)
    for kind in ("scratch", "dent"):
        for k in (0, 1):
            _image(root / f"ng/{kind}/{k}.png")
    if mask == "masks/0.png":
        _image(root / "masks/scratch/1.png", 255)
    else:
        _image(root / "ng/scratch/0_mask.png", 255)
        _image(root / "masks/dent/0.png", 255)
    _image(root / mask, 255)
    with pytest.raises(DataError, match=reason):
        _load(root, tmp_path)
    dataset = _load(root, tmp_path, on_bad_image="skip")
    (item,) = dataset.left_out
    assert item.reason.startswith(reason)
    assert item.file in (str(root / mask), str((root / mask).parent))
    assert _classes(dataset) == {"ok": 3, "dent": 2, "scratch": 2}


def test_of_several_masks_beside_an_image_none_becomes_a_photograph(tmp_path):
    root = tmp_path / "data"
    _images(root / "normal", 3)
    _image(root / "abnormal/a.png")
    for ending in ("_gt", "_mask"):
        _image(root / f"abnormal/a{ending}.png", 255)
    with pytest.raises(DataError, match=r"a_mask\.png: a second mask: of a\.png, beside a_gt\.png"):
        _load(root, tmp_path)
    dataset = _load(root, tmp_path, on_bad_image="skip")
    assert _classes(dataset) == {"normal": 3, "abnormal": 1}
    assert dataset.has_mask.all()


def test_a_folder_that_may_not_be_entered_is_left_out(tmp_path, monkeypatch):
    root = tmp_path / "data"
    _images(root / "normal", 3)
    private = root / "normal/private"
    _images(private, 2)
    is_file, iterdir = Path.is_file, Path.iterdir

    def refused(path):
        if private in (path, path.parent):
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", lambda path: refused(path) or is_file(path))
    monkeypatch.setattr(Path, "iterdir", lambda path: refused(path) or iterdir(path))
    (item,) = _load(root, tmp_path, on_bad_image="skip").left_out
    assert (item.file, item.reason) == (str(private), "cannot be listed: Permission denied")
