"""A finished run on a new labelled folder: judged, recalibrated, and left as it is."""

import csv
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.metrics import roc_auc_score

import jax_noisy_anogan
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.evaluation import new_data
from jax_noisy_anogan.runtime.files import WorkdirError
from jax_noisy_anogan.scoring.calibration import Calibration, CalibrationError


def _photographs(root, seed, *, normals=40, defects=12, names=("normal", "abnormal")):
    rng = np.random.default_rng(seed)
    for k in range(normals + 2 * defects):
        picture = rng.integers(90, 150, (8, 8), np.uint8)
        kind = names[0] if k < normals else f"{names[1]}/{('dent', 'scratch')[k % 2]}"
        if k >= normals:
            picture[2:5, 1:6] = 250
        (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / kind / f"{k:03}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on photographs of 8 x 8 pixels."""
    root = tmp_path_factory.mktemp("trained")
    config = tiny.config(
        data=config_lib.DataConfig(
            name="image_folder",
            root=str(_photographs(root / "photographs", 0, normals=80)),
            cache_dir=str(root / "cache"),
            known_abnormal_fraction=0.5,
            validation_fraction=0.5,
        ),
        growth=config_lib.GrowthConfig(
            start_resolution=8, resolution=8, final_images=32, minibatch_default=32
        ),
        search=config_lib.SearchConfig(steps=2, batch_size=8),
        score=config_lib.ScoreConfig(yardsticks=False, memory=True),
        train=config_lib.TrainConfig(sample_images=4),
    )
    experiment.run(config, root / "run", progress=False)
    return root / "run"


def _judge(run, data, out, *, recalibrate=False, changes=()):
    config = new_data.settings_for(config_lib.load(run), str(data), changes)
    return new_data.judge(run, config, out, recalibrate=recalibrate, progress=False)


def _hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _rows(out):
    with open(out / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_labelled_image_is_judged_by_the_thresholds_of_the_run_which_stays_as_it_is(
    run, tmp_path
):
    before = _hashes(run)
    data = _photographs(tmp_path / "new", 1, names=("ok", "ng"))
    changes = ("data.normal_dirs=ok", "data.abnormal_dirs=ng")
    results = _judge(run, data, tmp_path / "out", changes=changes)
    assert _hashes(run) == before
    rows = _rows(tmp_path / "out")
    assert len(rows) == 64
    assert {row["part"] for row in rows} == {"test"}
    files = [data / row["id"] for row in rows]
    found = jax_noisy_anogan.load(run).score(files)
    assert [float(row["anomaly"]) for row in rows] == pytest.approx([f.anomaly for f in found])
    assert [row["decision"] == "abnormal" for row in rows] == [f.is_abnormal for f in found]
    assert (results["about"]["images"], results["about"]["abnormal"]) == (64, 24)
    # Operating points rest on the validation images of the run.
    normals = json.loads((run / "split.json").read_text())["counts"]["validation_normal"]
    assert {point["has"] for point in results["operating_points"]} == {normals}
    assert not (tmp_path / "out" / "calibration.json").exists()
    for kind in ("dent", "scratch"):
        assert kind in (tmp_path / "out" / "report.html").read_text()


def _judge_beside_yardsticks(run, data, out):
    config = new_data.settings_for(config_lib.load(run), str(data), ())
    score = dataclasses.replace(config.score, yardsticks=True)
    return new_data.judge(
        run, dataclasses.replace(config, score=score), out, recalibrate=False, progress=False
    )


def test_yardsticks_learn_from_the_training_images_of_the_run(run, tmp_path):
    data = _photographs(tmp_path / "new", 7, normals=16, defects=4)
    results = _judge_beside_yardsticks(run, data, tmp_path / "out")
    assert list(results["yardsticks"]) == ["brightness", "PCA residual", "nearest patch"]

    def means(root, ids):
        return np.array([np.asarray(Image.open(root / id_)).mean() for id_ in ids])

    parts = json.loads((run / "split.json").read_text())["parts"]
    usual = means(run.parent / "photographs", parts["train_normal"]).mean()
    rows = _rows(tmp_path / "out")
    unusual = np.abs(means(data, [row["id"] for row in rows]) - usual)
    wanted = roc_auc_score([int(row["is_abnormal"]) for row in rows], unusual)
    assert results["yardsticks"]["brightness"]["auroc"] == pytest.approx(wanted)
    assert "Brightness alone tells normal from abnormal" in results["notice"]


def test_without_the_training_images_no_yardstick_stands_beside_and_the_report_says_so(
    run, tmp_path
):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["root"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(config))
    data = _photographs(tmp_path / "new", 7, normals=16, defects=4)
    results = _judge_beside_yardsticks(moved, data, tmp_path / "out")
    assert results["yardsticks"] == {}
    assert results["notice"].startswith("No yardsticks beside this run: ")
    assert str(tmp_path / "gone") in results["notice"]
    assert "auroc" in results["anomaly"]


def test_half_of_every_kind_recalibrates_and_only_the_rest_is_tested(run, tmp_path):
    before = _hashes(run)
    data, out = _photographs(tmp_path / "new", 2), tmp_path / "out"
    _judge(run, data, out, recalibrate=True, changes=("data.keep_together=0",))
    assert _hashes(run) == before
    split = json.loads((out / "split.json").read_text())
    counts = {"validation_normal": 20, "validation_known_abnormal": 12, "test": 32}
    assert {name: split["counts"][name] for name in counts} == counts
    parts = {row["id"]: row["part"] for row in _rows(out)}
    assert parts == {id_: part for part, ids in split["parts"].items() for id_ in ids}
    # The new thresholds judge in `score --calibration`, and not the run's own.
    own, new = jax_noisy_anogan.load(run), jax_noisy_anogan.load(run, calibration=out)
    assert new.calibration == Calibration.load(out / "calibration.json") != own.calibration
    tested = [row for row in _rows(out) if row["part"] == "test"]
    found = new.score([data / row["id"] for row in tested])
    assert [float(row["anomaly"]) for row in tested] == pytest.approx([f.anomaly for f in found])


def test_photographs_of_one_object_never_calibrate_and_test(run, tmp_path):
    data = tmp_path / "new"
    _photographs(data, 3, normals=40, defects=0)
    for path in (data / "normal").iterdir():
        path.rename(path.with_name(f"object{int(path.stem) // 4}_{path.name}"))
    changes = ("data.group_pattern=object[0-9]+",)
    _judge(run, data, tmp_path / "out", recalibrate=True, changes=changes)
    parts = json.loads((tmp_path / "out" / "split.json").read_text())["parts"]
    objects = [
        {id_.split("object")[1].split("_")[0] for id_ in parts[name]}
        for name in ("validation_normal", "test")
    ]
    assert objects[0].isdisjoint(objects[1])
    assert len(objects[0]) == len(objects[1]) == 5


def test_a_calibration_of_another_run_is_refused(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("calibration.json", "map_calibration.npz"):
        shutil.copy(run / name, out)
    with pytest.raises(CalibrationError, match=r"split\.json cannot be read.*test --recalibrate"):
        jax_noisy_anogan.load(run, calibration=out)
    (out / "split.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(CalibrationError, match="is a calibration of another run"):
        jax_noisy_anogan.load(run, calibration=out)


def test_a_calibration_is_refused_once_the_run_searches_otherwise(run, tmp_path):
    data = _photographs(tmp_path / "new", 5, normals=16, defects=4)
    _judge(run, data, tmp_path / "out", recalibrate=True)
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    assert jax_noisy_anogan.load(changed, calibration=tmp_path / "out")
    config = config_lib.changed(config_lib.load(run), ["search.learning_rate=0.03"])
    (changed / "config.json").write_text(config_lib.to_json(config))
    with pytest.raises(CalibrationError, match="or of other settings"):
        jax_noisy_anogan.load(changed, calibration=tmp_path / "out")


def test_what_would_change_the_run_or_cannot_calibrate_is_one_clear_line(
    run, finished_run, tmp_path
):
    data = _photographs(tmp_path / "new", 4, normals=7, defects=1)
    before = _hashes(run)
    with pytest.raises(WorkdirError, match="is the folder of a run"):
        _judge(run, data, run)
    with pytest.raises(WorkdirError, match="stays as it is"):
        _judge(run, data, run / "test")
    with pytest.raises(DataError, match="at least 8 normal images are needed"):
        _judge(run, data, tmp_path / "few", recalibrate=True)
    with pytest.raises(ConfigError, match=r"loss\.gamma=1: test takes data\.layout"):
        _judge(run, data, tmp_path / "other", changes=("loss.gamma=1",))
    with pytest.raises(ConfigError, match="trained on mnist5k"):
        _judge(finished_run[1], data, tmp_path / "digits")
    assert _hashes(run) == before
