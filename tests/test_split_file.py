"""A run's split stays what it was, whatever becomes of the folder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import Config, DataConfig
from jax_noisy_anogan.data import split_file
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import PARTS, make_split
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime import workdir


def _save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)).save(path)


@pytest.fixture
def run(tmp_path):
    """The config, the photographs and the folder of a run that has trained, and its split."""
    root, folder = tmp_path / "data", tmp_path / "run"
    for k in range(20):
        _save(root / f"normal/{k:03d}.png", k)
    for k in range(10):
        _save(root / f"abnormal/{k:03d}.png", 100 + k)
    data = DataConfig(
        name="image_folder",
        root=str(root),
        cache_dir=str(tmp_path / "cache"),
        known_abnormal_fraction=0.4,
        max_test_images=6,
    )
    config = Config(data=data)
    folder.mkdir()
    split = experiment.split_of(config, folder, _load(config))
    (folder / "checkpoints/10").mkdir(parents=True)
    return config, root, folder, split


def _load(config):
    return load_dataset(config.data, resolution=8, progress=False)


def _parts(split):
    return {name: [split.ids[i] for i in split.part(name)] for name in PARTS}


def test_photographs_of_the_same_part_are_kept_with_the_split(run):
    config, root, folder, before = run
    assert split_file.read(folder / "split.json", _load(config)).groups is None
    groups = np.arange(len(before.ids))
    groups[[3, 7, 12]], groups[[5, 6]] = 3, 5
    split = dataclasses.replace(before, groups=groups)
    split_file.write(folder / "split.json", split, _load(config))
    _save(root / "normal/a_new.png", 200)
    dataset = _load(config)
    after = split_file.read(folder / "split.json", dataset)

    def together(ids, numbers):
        return {frozenset(np.array(ids)[numbers == number]) for number in numbers}

    new = {frozenset({"normal/a_new.png"})}
    assert together(dataset.ids, after.groups) == together(before.ids, groups) | new


def test_new_images_are_named_and_left_alone(run, caplog):
    config, root, folder, before = run
    assert _parts(experiment.split_of(config, folder, _load(config))) == _parts(before)
    assert not caplog.records
    for k in range(7):
        _save(root / f"normal/a_new{k}.png", 200 + k)
    _save(root / "abnormal/dent/new.png", 300)
    dataset = _load(config)
    after = experiment.split_of(config, folder, dataset)
    assert _parts(after) == _parts(before)
    abnormal = {before.ids[i] for i in np.flatnonzero(before.is_abnormal)}
    assert {dataset.ids[i] for i in np.flatnonzero(after.is_abnormal)} == abnormal
    assert "8 images are not in the split of this run and left alone: normal/a_new0" in caplog.text
    assert "and 3 more" in caplog.text
    # A division of its own would mix them.
    assert _parts(make_split(dataset, config.data)) != _parts(before)


@pytest.mark.parametrize("part", ["train_normal", "train_known_abnormal", "test"])
def test_a_missing_image_of_the_split_is_named(run, part):
    config, root, folder, split = run
    gone = split.ids[split.part(part)[0]]
    (root / gone).unlink()
    with pytest.raises(
        DataError, match=rf"1 of the images .* are missing .*: {gone}; put"
    ) as error:
        experiment.split_of(config, folder, _load(config))
    assert "\n" not in str(error.value)


def test_an_image_that_no_part_uses_may_go(run):
    config, root, folder, split = run
    unused = set(split.ids) - {id_ for ids in _parts(split).values() for id_ in ids}
    assert len(unused) == 6
    for id_ in unused:
        (root / id_).unlink()
    assert _parts(experiment.split_of(config, folder, _load(config))) == _parts(split)


def test_an_image_of_the_split_that_became_another_is_named(run):
    config, root, folder, split = run
    changed = split.ids[split.test[0]]
    _save(root / changed, 999)
    with pytest.raises(DataError, match=f"have another content or class .*: {changed};"):
        experiment.split_of(config, folder, _load(config))


def test_before_its_first_checkpoint_a_run_divides_anew(run):
    config, root, folder, before = run
    (folder / "checkpoints/10").rmdir()
    _save(root / "normal/a_new.png", 200)
    after = experiment.split_of(config, folder, _load(config))
    assert "normal/a_new.png" in after.ids
    assert json.loads((folder / "split.json").read_text())["counts"] == {
        name: len(ids) for name, ids in _parts(after).items()
    }
    assert len(after.ids) == len(before.ids) + 1


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"parts": {}}', "[" * 10**5])
def test_a_damaged_split_is_named(run, text):
    config, _, folder, _ = run
    path = folder / "split.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=r"split\.json cannot be read") as error:
        split_file.read(path, _load(config))
    assert "\n" not in str(error.value)


def test_settings_that_are_left_to_the_data_are_chosen_once_and_kept(tmp_path, run, capsys):
    config, root, folder, _ = run
    (folder / "checkpoints/10").rmdir()
    with experiment.opened(config, folder) as chosen:
        assert (chosen.data.channels, chosen.data.white_level) == (1, 65_535)
        assert chosen.loss.gamma == config.loss.gamma
    assert "data.channels = 1" in capsys.readouterr().err
    kept = json.loads((folder / "config.json").read_text())
    assert kept["data"]["channels"] == 1
    (folder / "checkpoints/10").mkdir()
    Image.fromarray(np.zeros((12, 12, 3), np.uint8) + np.uint8([1, 2, 3])).save(
        root / "normal/c.png"
    )
    # The same command goes on with what was chosen; colour has come to the folder since.
    with experiment.opened(config, folder) as again:
        assert again == chosen


def test_without_known_abnormal_images_gamma_is_one_and_said_to_be(tmp_path, capsys):
    for k in range(20):
        _save(tmp_path / f"data/{k:03d}.png", k)
    data = DataConfig(
        name="image_folder", root=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")
    )
    with experiment.opened(Config(data=data), tmp_path / "run") as config:
        assert config.loss.gamma == 1.0
        assert len(experiment.split_of(config, tmp_path / "run", _load(config)).train_normal) == 12
    assert "no abnormal image is known: loss.gamma = 1" in capsys.readouterr().err
    data.simulated_defects = 1.0
    with experiment.opened(Config(data=data), tmp_path / "simulated") as config:
        assert config.loss.gamma == Config().loss.gamma < 1.0


def test_a_folder_with_other_images_changes_nothing_of_a_run(run, tmp_path):
    """`evaluate --set data.root=OTHER` is refused, and the run stays as it was."""
    config, _, folder, _ = run
    workdir.settle_config(folder, config)
    (folder / "calibration.json").write_text("thresholds")
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    other = tmp_path / "other"
    for k in range(30):
        _save(other / f"{'ab' * (k % 3 == 0)}normal/{k:03d}.png", 400 + k)
    changes = [f"data.root={other}", "search.steps=3"]
    moved = config_lib.changed(config_lib.load(folder), changes)
    with (
        pytest.raises(DataError, match="of the images that"),
        experiment.opened(moved, folder) as opened,
    ):
        experiment.split_of(opened, folder, _load(opened))
    kept["lock"] = b""
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == kept
    # The same images elsewhere are the same run.
    shutil.copytree(config.data.root, tmp_path / "moved")
    changes = [f"data.root={tmp_path / 'moved'}"]
    moved = config_lib.changed(config_lib.load(folder), changes)
    with experiment.opened(moved, folder) as opened:
        experiment.split_of(opened, folder, _load(opened))
    assert config_lib.load(folder).data.root == str(tmp_path / "moved")
    assert (folder / "calibration.json").read_text() == "thresholds"
