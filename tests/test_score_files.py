"""Files to one table: every format, bad files, kills, hostile names, full disks, bounded memory."""

import csv
import dataclasses
import json
import os
import random
import re
import resource
import shutil
import time
from pathlib import Path

import commands
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan.data.folders import RESULT_FOLDERS, find_images, is_image
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import WorkdirError, locked
from jax_noisy_anogan.scoring import files as scoring_files
from jax_noisy_anogan.scoring import table as table_lib
from jax_noisy_anogan.scoring.detector import Detector
from jax_noisy_anogan.scoring.files import safe_name, score_files

COLUMNS = ["path", "score", "residual", "feature", "abnormality", "discriminator", "local"]
COLUMNS += ["calibrated", "anomaly", "decision", "box_x", "box_y", "box_width", "box_height"]
COLUMNS += ["width", "height", "region_count", "time", "error", "content"]


@pytest.fixture(scope="module")
def detector(finished_run):
    return jax_noisy_anogan.load(finished_run[1])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images in every format and size, two bad files, and files to pass over."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (root / "deeper" / "still").mkdir(parents=True)
    (root / ".hidden").mkdir()

    def draw(*shape, high=256, dtype=np.uint8):
        return Image.fromarray(rng.integers(0, high, shape, dtype))

    draw(28, 28).save(root / "grey.png")
    draw(40, 17, 3).save(root / "colour.JPG", format="JPEG")
    draw(9, 90, 3).save(root / "deeper" / "wide.bmp")
    draw(64, 64, high=65_536, dtype=np.uint16).save(root / "deeper" / "still" / "sixteen.tiff")
    draw(30, 30, 4).save(root / "transparent.png")
    for k in range(7):
        draw(28, 28).save(root / "deeper" / f"{k}.png")
    whole = (root / "grey.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "text.png").write_text("no image")
    (root / "notes.txt").write_text("passed over")
    draw(28, 28).save(root / ".hidden" / "image.png")
    os.mkfifo(root / "pipe.png")
    return root


def _rows(out, *, timed=False):
    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [] or list(rows[0]) == COLUMNS
    return rows if timed else [{k: v for k, v in row.items() if k != "time"} for row in rows]


def _score(detector, images, out, **settings):
    return score_files(detector, find_images([images]).files, out, progress=False, **settings)


@pytest.fixture(scope="module")
def table(detector, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    said = _score(detector, images, out)
    return out, said


def test_every_file_is_one_row_in_order_and_bad_ones_say_why(detector, images, table):
    out, said = table
    rows = _rows(out, timed=True)
    assert [row["path"] for row in rows] == [file.name for file in find_images([images]).files]
    names = [os.path.relpath(row["path"], images) for row in rows]
    assert len(names) == 14
    assert {"colour.JPG", "deeper/still/sixteen.tiff", "deeper/wide.bmp"} < set(names)
    assert not {"notes.txt", "pipe.png", ".hidden/image.png"} & set(names)
    errors = {name: row["error"] for name, row in zip(names, rows, strict=True) if row["error"]}
    assert sorted(errors) == ["cut.png", "text.png"]
    assert "not an image" in errors["text.png"]
    good = [row for row in rows if not row["error"]]
    for row, found in zip(good, detector.score([row["path"] for row in good]), strict=True):
        values = {**found.terms, "calibrated": found.calibrated, "anomaly": found.anomaly}
        for name, value in values.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert row["decision"] == ("abnormal" if found.is_abnormal else "normal")
        assert row["region_count"] == str(found.region_count)
        box = [row[f"box_{name}"] for name in ("x", "y", "width", "height")]
        assert box == ([""] * 4 if found.box is None else [str(v) for v in found.box])
        assert row["time"].startswith("20")
    abnormal = sum(row["decision"] == "abnormal" for row in rows)
    assert str(
        said
    ) == f"14 files: {abnormal} abnormal, {12 - abnormal} normal, 2 with an error; " + str(
        out / "scores.csv"
    )
    parquet = pyarrow.parquet.read_table(out / "scores.parquet").to_pylist()
    assert [row["path"] for row in parquet] == [row["path"] for row in rows]
    assert [row["score"] for row in parquet if not row["error"]] == [
        float(r["score"]) for r in good
    ]


@pytest.mark.parametrize("cut", [0, 1, 40, 700, 2500, 10**9])
def test_a_torn_file_of_rows_is_continued_to_the_same_table(detector, images, table, tmp_path, cut):
    out = tmp_path / "out"
    shutil.copytree(table[0], out)
    rows = out / "rows-0.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(whole[: len(whole) - cut] if cut < len(whole) else b"")
    (out / "scores.csv").unlink()
    kept = {json.loads(line)["path"] for line in rows.read_bytes().split(b"\n")[:-1]}
    prepared = []

    class Counting(Detector):
        def prepare(self, image):
            prepared.append(str(image))
            return super().prepare(image)

    counting = Counting.__new__(Counting)
    counting.__dict__ = detector.__dict__
    _score(counting, images, out)
    assert _rows(out) == _rows(table[0])
    lines = [json.loads(line)["path"] for line in rows.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 14
    # Nothing good is scored twice; files with an error are tried again.
    good = {row["path"] for row in _rows(out) if not row["error"]}
    assert len(prepared) == len(set(prepared))
    assert not kept & good & set(prepared)


def test_a_repaired_file_loses_its_error(detector, images, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    shutil.copy(images / "grey.png", folder / "a.png")
    shutil.copy(images / "cut.png", folder / "b.png")
    assert _score(detector, folder, out).errors == 1
    shutil.copy(images / "grey.png", folder / "b.png")
    assert _score(detector, folder, out).errors == 0
    a, b = _rows(out)
    assert {**a, "path": ""} == {**b, "path": ""}


def test_another_image_by_the_same_name_gets_its_own_row(detector, images, tmp_path, monkeypatch):
    camera, out = tmp_path / "camera", tmp_path / "out"
    camera.mkdir()
    shutil.copy(images / "deeper/0.png", camera / "current.png")
    stamp = (camera / "current.png").stat()
    _score(detector, camera, out)
    (first,) = _rows(out)
    shutil.copy(images / "deeper/1.png", camera / "current.png")
    os.utime(camera / "current.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    _score(detector, camera, out)
    (second,) = _rows(out)
    expected = detector.score([images / "deeper/1.png"])[0]
    assert float(second["score"]) == pytest.approx(expected.score, rel=1e-4)
    assert first["content"] != second["content"]
    assert first["score"] != second["score"]
    # Two folders with an image of the same relative name, and one folder for the results.
    for number in (2, 3):
        folder = tmp_path / f"folder{number}"
        folder.mkdir()
        shutil.copy(images / f"deeper/{number}.png", folder / "img.png")
        monkeypatch.chdir(folder)
        _score(detector, ".", tmp_path / "both")
    (row,) = _rows(tmp_path / "both")
    expected = detector.score([images / "deeper/3.png"])[0]
    assert float(row["score"]) == pytest.approx(expected.score, rel=1e-4)


def test_results_inside_the_folder_of_images_are_not_scored(detector, images, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(3):
        shutil.copy(images / f"deeper/{k}.png", photos)
    for name in ("scored", "scored again", "scored"):
        out = photos / name
        found = find_images([photos], out=out)
        assert [file.path.name for file in found.files] == ["0.png", "1.png", "2.png"]
        settings = {"heatmaps": "all", "maps": True, "thumbnails": True}
        score_files(detector, found.files, out, progress=False, **settings)
        assert len(list((out / "heatmaps").iterdir())) == 3
    pictures = {path.parent.name for path in out.rglob("*") if is_image(path)}
    assert pictures == set(RESULT_FOLDERS)
    assert found.passed_over["folder of these results"] == 4
    assert found.passed_over["folder with results of this program"] == 1
    with pytest.raises(DataError, match="4 folder of these results"):
        find_images([out], out=out)
    with pytest.raises(DataError, match=r"--images .*/masks: pictures of results go there"):
        find_images([out / "masks"], out=out)


def test_images_below_the_folder_of_the_results_are_scored(detector, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/masks").mkdir(parents=True)
    shutil.copy(images / "deeper/0.png", "photos")
    shutil.copy(images / "deeper/1.png", "photos/masks")
    for folder in ("photos", "."):
        found = find_images([folder], out=Path())
        assert [file.path.name for file in found.files] == ["0.png", "1.png"]
        if folder == "photos":
            score_files(detector, found.files, Path(), heatmaps="all", maps=True, progress=False)


def test_what_is_passed_over_is_counted_by_kind_and_links_are_followed(images, tmp_path):
    photos, other = tmp_path / "photos", tmp_path / "other"
    photos.mkdir()
    other.mkdir()
    for name in ("a.png", "b.JFIF", "c.jpe", "d.gif", "e.pnm", "f.tga", "noending", ".hidden.png"):
        shutil.copy(images / "grey.png", photos / name)
    shutil.copy(images / "grey.png", other / "g.png")
    (photos / "linked").symlink_to(other)
    (photos / "linked again").symlink_to(other)
    (other / "circle").symlink_to(photos)
    (photos / ".cache").mkdir()
    os.mkfifo(photos / "pipe.png")
    found = find_images([photos])
    names = [os.path.relpath(file.name, photos) for file in found.files]
    assert names == ["a.png", "b.JFIF", "c.jpe", "d.gif", "e.pnm", "linked/g.png"]
    assert found.remark == (
        "passed over: 1 file of another kind (.tga), 1 file of another kind (no ending), "
        "2 folder met before, 1 hidden folder, 1 hidden or system file, 1 neither file nor folder"
    )


def test_masks_beside_their_images_are_no_photographs_unless_they_are_named(images, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    names = ("a.png", "a_label.png", "a_label_gt.png", "a_mask.png", "b.png", "b_GT.bmp")
    for name in (*names, "alone_mask.png"):
        shutil.copy(images / "grey.png", photos / name)
    found = find_images([photos])
    assert [file.path.name for file in found.files] == ["a.png", "alone_mask.png", "b.png"]
    assert found.remark == "passed over: 4 mask beside its image"
    assert len(find_images([photos / "a_label.png"]).files) == 1


def test_several_processes_make_one_table_and_fewer_may_go_on(detector, images, table, tmp_path):
    out, files = tmp_path / "out", find_images([images]).files
    mine = files[1::2]
    # What the second of two processes has left, when both are killed.
    rows = {row["path"]: row for row in table_lib._read_rows(table[0] / "rows-0.jsonl")}
    out.mkdir()
    lines = [json.dumps(rows[file.name]) for file in mine]
    (out / "rows-1.jsonl").write_text("\n".join(lines) + "\n")
    _score(detector, images, out)
    assert _rows(out) == _rows(table[0])
    own = {row["path"] for row in table_lib._read_rows(out / "rows-0.jsonl")}
    good = {row["path"] for row in _rows(out) if not row["error"]}
    assert not own & good & {file.name for file in mine}


def test_a_threshold_overrides_and_other_settings_are_refused(detector, images, table, tmp_path):
    out = tmp_path / "out"
    middle = sorted(float(row["anomaly"]) for row in _rows(table[0]) if not row["error"])[6]
    _score(detector, images, out, threshold=middle)
    for ours, theirs in zip(_rows(out), _rows(table[0]), strict=True):
        assert ours["anomaly"] == theirs["anomaly"]
        if not ours["error"]:
            high = float(ours["anomaly"]) > middle
            assert ours["decision"] == ("abnormal" if high else "normal")
    before = (out / "scores.csv").read_bytes()
    for changed in (
        {},
        {"threshold": middle / 2},
        {"threshold": middle, "maps": True},
        {"threshold": middle, "heatmaps": "all"},
    ):
        with pytest.raises(WorkdirError, match=r"--out .* another folder") as error:
            _score(detector, images, out, **changed)
        assert "\n" not in str(error.value)
    (out / "settings.json").write_text("{")
    with pytest.raises(WorkdirError, match="another folder"):
        _score(detector, images, out, threshold=middle)
    assert (out / "scores.csv").read_bytes() == before


def test_results_never_go_into_a_run_a_file_or_a_folder_in_use(
    detector, finished_run, images, tmp_path
):
    before = (finished_run[1] / "scores.csv").read_bytes()
    with pytest.raises(WorkdirError, match="the folder of a run"):
        _score(detector, images, finished_run[1])
    assert (finished_run[1] / "scores.csv").read_bytes() == before
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WorkdirError, match=r"--out .* cannot be written"):
            _score(detector, images, out)
    with (
        locked(tmp_path / "busy"),
        pytest.raises(WorkdirError, match=r"--out .* is in use by another command"),
    ):
        _score(detector, images, tmp_path / "busy")


HOSTILE = [
    "a..",
    "-rf",
    "a b.png",
    "new\nline",
    "quote\"', =1+1",
    "ünïcödé – 画像",
    "x" * 200,
    "$(touch pwned)",
]


def test_pictures_of_hostile_names_stay_in_their_folder_and_rows_stay_rows(
    detector, images, tmp_path
):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for name in HOSTILE:
        shutil.copy(images / "grey.png", folder / f"{name}.png")
    shutil.copy(images / "grey.png", os.fsencode(folder) + b"/bytes-\xff\xfe.png")
    _score(detector, folder, out, heatmaps="all", maps=True)
    rows = _rows(out)
    assert len(rows) == len(HOSTILE) + 1
    assert {row["error"] for row in rows} == {""}
    for name in HOSTILE:
        assert str(folder / f"{name}.png") in {row["path"] for row in rows}
    assert sum("bytes-" in row["path"] for row in rows) == 1
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    for row in rows:
        made.remove(f"heatmaps/{safe_name(row['path'])}.png")
        made.remove(f"maps/{safe_name(row['path'])}.tiff")
        made.remove(f"masks/{safe_name(row['path'])}.png")
    tables = {"rows-0.jsonl", "scores.csv", "scores.parquet", "regions.json"}
    assert made == {"lock", "settings.json", *tables}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]
    for name in ("../../etc/passwd", "..", "/", "", "a/../b", "\udcff"):
        assert "/" not in safe_name(name)
        assert safe_name(name).strip(".")
    assert safe_name("a/x.png") != safe_name("b/x.png")
    pyarrow.parquet.read_table(out / "scores.parquet")
    with Image.open(out / "maps" / f"{safe_name(rows[0]['path'])}.tiff") as picture:
        assert picture.mode == "F"
        assert picture.size == (28, 28)
        # Between the pixels of the networks' picture it is linear, so that it stays below.
        assert np.asarray(picture).max() <= float(rows[0]["local"])


def test_a_disk_that_fills_up_keeps_what_is_finished(detector, images, table, tmp_path):
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let any file grow further, in the middle of a row.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(OSError, match=r"rows-0\.jsonl"):
            _score(detector, images, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = (out / "rows-0.jsonl").read_bytes()
    assert len(left) == 1500
    assert not left.endswith(b"\n")
    assert not (out / "scores.csv").exists()
    _score(detector, images, out)
    assert _rows(out) == _rows(table[0])


def test_only_a_bounded_number_of_images_is_in_memory(detector, images, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for k in range(300):
        os.link(images / "grey.png", folder / f"{k:03d}.png")
    small = dataclasses.replace(
        detector.config, search=dataclasses.replace(detector.config.search, batch_size=1)
    )
    held = []

    class Watched(Detector):
        def prepare(self, image):
            finished = len(table_lib._read_rows(out / "rows-0.jsonl"))
            held.append(int(image.stem) - finished)
            return super().prepare(image)

    watched = Watched(detector._model, small, detector.calibration, detector._maps)
    _score(watched, folder, out)
    assert len(held) == len(_rows(out)) == 300
    # Read ahead, two batches each in search and measurement, pictures being written.
    assert max(held) <= 2 * scoring_files._READ_AHEAD + 4 * 8 + 2


def test_what_cannot_be_found_is_one_clear_line(tmp_path, images):
    (tmp_path / "empty").mkdir()
    for paths, text in (
        ([tmp_path / "nowhere"], "does not exist"),
        ([tmp_path / "empty"], "no file ends in"),
        ([images / "pipe.png"], "neither a file nor a folder"),
        (["x" * 5000], "too long"),
        (["null\0byte"], "does not exist"),
    ):
        with pytest.raises(DataError, match=text):
            find_images(paths)
    twice = find_images([images / "grey.png", images, images / "deeper"]).files
    assert len(twice) == len({file.name for file in twice}) == 14


def _command(run, images, out, *more):
    flags = [f"--workdir={run}", "--images", *map(str, images), "--out", str(out), *more]
    return ["-m", "jax_noisy_anogan.score", *flags]


# The devices that the tests themselves have.
DEVICES = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}


def _fails(command):
    done = commands.run(*command, **DEVICES)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_the_command_takes_a_list_and_answers_people_and_machines(finished_run, images, tmp_path):
    _, run = finished_run
    chosen = [images / name for name in ("grey.png", "text.png", "colour.JPG")]
    flags = ["--threshold=0", "--json", "--fail-on-abnormal"]
    done = commands.run(*_command(run, chosen, tmp_path / "out", *flags), **DEVICES)
    assert done.returncode == 3, done.stderr
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert [row["path"] for row in said["files"]] == [str(path) for path in chosen]
    assert [row.get("decision") for row in said["files"]] == ["abnormal", None, "abnormal"]
    assert (said["abnormal"], said["normal"], said["errors"]) == (2, 0, 1)
    rows = _rows(tmp_path / "out")
    assert [row["path"] for row in rows] == [str(path) for path in chosen]
    assert said["files"][0]["score"] == float(rows[0]["score"])
    page = (tmp_path / "out" / "gallery.html").read_text()
    for path in chosen:
        assert str(path) in page
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.jpg")} == {"thumbnails"}


def test_the_command_fails_where_no_file_can_be_used_and_a_limit_can_be_raised(
    finished_run, images, tmp_path
):
    _, run = finished_run

    def score(out, *arguments):
        command = _command(run, [images / "grey.png"], tmp_path / out, *arguments)
        return commands.run(*command, **DEVICES)

    done = score("a", "--set=data.max_image_pixels=100")
    assert done.returncode == 66
    assert "score: no file could be used, as" in done.stderr.splitlines()[-1]
    (row,) = _rows(tmp_path / "a")
    advice = re.search(r"--set (data\.max_image_pixels=\d+)", row["error"])[1]
    assert score("a", f"--set={advice}").returncode == 0
    done = score("b", "--set=search.steps=3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "score takes data.max_image_pixels" in done.stderr


def test_the_command_fails_with_one_line_and_code_2(finished_run, images, tmp_path):
    _, run = finished_run
    out, one = tmp_path / "out", [images / "grey.png"]
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in _fails(_command(run, [*one, nowhere], out))
    assert "--workdir" in _fails(_command(nowhere, one, out))
    assert not out.exists()


@pytest.mark.slow
def test_killed_three_times_the_command_ends_with_the_table_of_an_undisturbed_one(
    finished_run, images, tmp_path
):
    _, run = finished_run
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for k in range(400):
        pixels = rng.integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03d}.png")
    (folder / "bad.png").write_text("no image")

    def start(out):
        return commands.start(*_command(run, [folder], out, "--heatmaps=all"), **DEVICES)

    assert start(tmp_path / "whole").wait() == 0
    out, rows = tmp_path / "out", tmp_path / "out" / "rows-0.jsonl"
    chance = random.Random(1)
    for share in (0.1, 0.4, 0.7):
        process = start(out)
        least = share * (tmp_path / "whole" / "rows-0.jsonl").stat().st_size
        while process.returncode is None and (not rows.exists() or rows.stat().st_size < least):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.wait()
    assert not (out / "scores.csv").exists(), "the machine was too fast to be killed in time"
    assert start(out).wait() == 0
    assert _rows(out) == _rows(tmp_path / "whole")
    assert len(_rows(out)) == 401
    names = sorted(path.name for path in (out / "heatmaps").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole" / "heatmaps").iterdir())
    for name in names:
        with Image.open(out / "heatmaps" / name) as picture:
            picture.load()
