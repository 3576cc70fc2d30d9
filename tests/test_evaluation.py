"""Evaluation of held-out images: its files, what they hold, and what a kill leaves to do again."""

import csv
import dataclasses
import html.parser
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as peer

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    LossConfig,
    NetworkConfig,
    SearchConfig,
    validate,
)
from jax_noisy_anogan.data import load_dataset, make_split
from jax_noisy_anogan.evaluation import held_out
from jax_noisy_anogan.evaluation import results as results_lib
from jax_noisy_anogan.model import Model, Reference
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring.calibration import Calibration, CalibrationError
from jax_noisy_anogan.scoring.scorer import TERMS
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import load_model, networks_of

SCORES = ["score", "calibrated", "residual", "feature", "penalty", "discriminator", "local"]
FIGURES = ["auroc", "average_precision", "f1_best", "f1_at_threshold", "threshold"]
FILES = [
    "calibration.json",
    "map_calibration.npz",
    "metrics.json",
    "pixel_difference.png",
    "reconstructions.png",
    "report.html",
    "scores.csv",
]


def _read(folder):
    """`metrics.json`, strictly parsed, and the rows of `scores.csv`."""

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    results = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    with open(folder / "scores.csv", newline="") as file:
        return results, list(csv.DictReader(file))


def _assert_agree_with_scikit_learn(results, rows, calibration):
    """Every figure of `metrics.json`, from `scores.csv` and the stored thresholds alone."""
    assert [name for name in results if name in SCORES] == SCORES
    test = [row for row in rows if row["part"] == "test"]
    truth = np.array([int(row["is_abnormal"]) for row in test])
    for name in SCORES:
        assert list(results[name]) == FIGURES
        values = np.array([float(row[name]) for row in test])
        threshold = calibration.thresholds[name].chosen
        f1 = [peer.f1_score(truth, values > cut, zero_division=0) for cut in values]
        f1.append(peer.f1_score(truth, values > values.min() - 1, zero_division=0))
        wanted = (
            peer.roc_auc_score(truth, values),
            peer.average_precision_score(truth, values),
            max(f1),
            peer.f1_score(truth, values > threshold, zero_division=0),
            threshold,
        )
        assert results[name] == pytest.approx(dict(zip(FIGURES, wanted, strict=True)), rel=1e-9)


def _terms_of(rows, part):
    chosen = [row for row in rows if row["part"] == part]
    return {name: np.array([float(row[name]) for row in chosen]) for name in (*TERMS, "local")}


def _assert_rests_on_validation_images(rows, calibration, config):
    """The stored calibration is the fit to the validation rows, to the last bit."""
    again = calibration_lib.fit(
        _terms_of(rows, "validation_normal"),
        _terms_of(rows, "validation_known_abnormal"),
        rule=config.score.threshold_rule,
        false_positive_rate=config.score.false_positive_rate,
        learned="discriminator",
    )
    assert again == calibration


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.images = 0

    def handle_starttag(self, tag, attributes):
        self.images += tag == "img"


def test_a_run_leaves_every_file_and_they_agree(finished_run):
    config, folder = finished_run
    assert [name for name in FILES if not (folder / name).is_file()] == []
    results, rows = _read(folder)
    calibration = Calibration.load(folder / "calibration.json")
    parts = json.loads((folder / "split.json").read_text())["parts"]
    wanted = [(i, part) for part in held_out.PARTS for i in parts[part]]
    assert sorted((row["id"], row["part"]) for row in rows) == sorted(wanted)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert int(row["is_abnormal"]) == (row["class"] != str(config.data.digit))
    _assert_agree_with_scikit_learn(results, rows, calibration)
    _assert_rests_on_validation_images(rows, calibration, config)
    columns = {name: np.array([float(row[name]) for row in rows]) for name in (*TERMS, "local")}
    for name, values in (
        ("calibrated", calibration.calibrated(columns)),
        ("probability", calibration.probability(columns)),
    ):
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-12)
    decided = np.where(calibration.is_abnormal(columns), "abnormal", "normal")
    assert [row["decision"] for row in rows] == decided.tolist()
    for name in ("reconstructions.png", "pixel_difference.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
    page = _Page()
    page.feed((folder / "report.html").read_text())
    assert page.images > 10


def _tear(shards):
    """Three ways to lose a shard: gone, cut off, and with other contents."""
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-40])
    with np.load(shards[2]) as values:
        latents = values["latents"]
    np.savez(shards[2], latents=latents[:, :, :-1])


def test_lost_shards_are_searched_again_and_the_command_gives_the_same_numbers(
    finished_run, tmp_path
):
    _, folder = finished_run
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shards = sorted((again / "evaluation").glob("*/*.npz"))
    assert len(shards) == 3
    for name in ("metrics.json", "scores.csv", "report.html", "calibration.json"):
        (again / name).unlink()
    _tear(shards)
    done = subprocess.run(
        [sys.executable, "-m", "jax_noisy_anogan.evaluate", f"--workdir={again}"],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "AUROC" in done.stdout
    assert (again / "scores.csv").read_bytes() == (folder / "scores.csv").read_bytes()
    (ours, _), (theirs, _) = _read(again), _read(folder)
    for results in (ours, theirs):
        del results["about"]["search_seconds"]
    assert ours == theirs


def test_whole_shards_are_not_searched_again_even_with_other_batches(
    finished_run, tmp_path, monkeypatch
):
    config, folder = finished_run
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    shards = sorted((again / "evaluation").glob("*/*.npz"))
    shards[-1].unlink()
    searched = []
    search = held_out.Scorer.search

    def counted(self, images):
        return search(self, (searched.append(1) or image for image in images))

    monkeypatch.setattr(held_out.Scorer, "search", counted)
    config = dataclasses.replace(config, search=dataclasses.replace(config.search, batch_size=24))
    dataset = load_dataset(config.data, resolution=8)
    split = make_split(dataset, config.data)
    results = results_lib.evaluate(config, again, dataset, split, load_model(again), progress=False)
    with np.load(folder / shards[-1].relative_to(again)) as values:
        assert len(searched) == len(values["latents"])
    assert results["score"]["auroc"] == pytest.approx(_read(folder)[0]["score"]["auroc"], abs=1e-3)


def _untrained(config, tmp_path, seed=0):
    """Data set, split and a model with fresh parameters, of a config without a run."""
    config = validate(config)
    config.data.cache_dir = str(tmp_path / "cache")
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=False)
    networks = networks_of(config, make_schedule(config.growth).phases[-1])
    reference = Reference(*np.float32([1.0, 0.4, 1.0, -1.0]))
    model = Model(networks, networks.init(jax.random.key(seed)), reference)
    (tmp_path / "run").mkdir()
    return config, tmp_path / "run", dataset, make_split(dataset, config.data), model


def _config(**sections):
    return Config(
        data=sections.get("data", DataConfig()),
        network=NetworkConfig(fmap_base=32, fmap_max=4, latent_size=4),
        growth=GrowthConfig(resolution=8, start_resolution=8, minibatch={}),
        loss=sections.get("loss", LossConfig()),
        search=sections.get("search", SearchConfig(steps=2, batch_size=64)),
    )


def _surfaces(**changes):
    return DataConfig(
        name="synthetic",
        synthetic_images=30,
        synthetic_abnormal_images=20,
        known_abnormal_fraction=0.5,
        validation_fraction=0.3,
        **changes,
    )


def test_tiles_with_masks_and_a_recorded_curve(tmp_path):
    data = _surfaces(tile_image_resolution=32)
    search = SearchConfig(steps=3, batch_size=64, record_curve=True)
    case = _untrained(_config(data=data, search=search), tmp_path)
    config, folder, dataset, split, model = case
    returned = results_lib.evaluate(*case, progress=False)
    results, rows = _read(folder)
    assert results["pixel"] == pytest.approx(returned["pixel"])
    assert 0 <= results["pixel"]["auroc"] <= 1
    assert set(results["pixel_by_class"]) <= set(dataset.class_names)
    calibration = Calibration.load(folder / "calibration.json")
    _assert_agree_with_scikit_learn(results, rows, calibration)
    _assert_rests_on_validation_images(rows, calibration, config)
    with Image.open(folder / "reconstructions.png") as picture:
        # Input, G(z), difference and map of both kinds, then masks; 32 pixels as 64 with borders.
        assert picture.height == 9 * (64 + 4)
        shown = np.asarray(picture)[-66:-2:2, -66:-2:2, 0]
    masks = dataset.masks(split.test[split.is_abnormal[split.test]], 32)
    assert any(np.array_equal(shown == 255, mask) for mask in masks)

    with open(folder / "curve.csv", newline="") as file:
        curve = list(csv.DictReader(file))
    assert [int(row["step"]) for row in curve] == [0, 1, 2, 3]
    score = {row["id"]: float(row["score"]) for row in rows}
    still = dataclasses.replace(search, steps=0, record_curve=False)
    starter = held_out.Scorer(model, dataclasses.replace(config, search=still))
    for name, parts in (
        ("validation_auroc", ("validation_normal", "validation_known_abnormal")),
        ("test_auroc", ("test",)),
    ):
        indices = np.concatenate([split.part(part) for part in parts])
        truth = split.is_abnormal[indices]
        # After all steps it is the scores of this run, after none those of a run without steps.
        ends = [score[dataset.ids[k]] for k in indices]
        images = [dataset.source(32)[int(k)] for k in indices]
        pairs = zip(images, (s.latents for s in starter.search(images)), strict=True)
        starts = [result.terms["score"] for result in starter.measure(pairs)]
        for row, values in ((curve[0], starts), (curve[-1], ends)):
            assert float(row[name]) == pytest.approx(peer.roc_auc_score(truth, values), abs=1e-6)
        assert (np.array(starts) > ends).any()


def test_gamma_1_with_no_known_abnormal_image_and_no_mask(tmp_path):
    data = DataConfig(max_test_images=40, known_abnormal_fraction=0.0)
    case = _untrained(_config(data=data, loss=LossConfig(gamma=1.0)), tmp_path)
    config, folder, _, split, _ = case
    (folder / "curve.csv").write_text("of an earlier evaluation")
    results_lib.evaluate(*case, progress=False)
    assert not (folder / "curve.csv").exists()
    results, rows = _read(folder)
    assert "pixel" not in results
    assert len(split.validation_known_abnormal) == 0
    calibration = Calibration.load(folder / "calibration.json")
    assert calibration.abnormals == 0
    _assert_agree_with_scikit_learn(results, rows, calibration)
    _assert_rests_on_validation_images(rows, calibration, config)
    flagged = [row["decision"] == "abnormal" for row in rows if row["part"] == "validation_normal"]
    assert np.mean(flagged) <= config.score.false_positive_rate


def test_a_wasserstein_critic_and_test_images_of_one_kind_give_valid_files(tmp_path):
    loss = LossConfig(objective="wgan_gp", penalty="gp")
    case = _untrained(_config(data=_surfaces(), loss=loss), tmp_path)
    config, folder, dataset, split, model = case
    results_lib.evaluate(*case, progress=False)
    results, rows = _read(folder)
    _assert_agree_with_scikit_learn(results, rows, Calibration.load(folder / "calibration.json"))

    normal = split.test[~split.is_abnormal[split.test]]
    one_kind = dataclasses.replace(split, test=normal)
    results_lib.evaluate(config, folder, dataset, one_kind, model, progress=False)
    results, again = _read(folder)
    assert results["score"]["auroc"] is None
    kept = [row for row in rows if row["part"] != "test" or row["is_abnormal"] == "0"]
    assert again == kept  # neither calibration nor scores knew of the other test images


def test_too_few_normals_and_diverged_networks_are_one_clear_error(tmp_path, monkeypatch):
    config, folder, dataset, split, model = _untrained(_config(data=_surfaces()), tmp_path)
    few = dataclasses.replace(split, validation_normal=split.validation_normal[:1])
    with monkeypatch.context() as patched:
        patched.setattr(results_lib, "Scorer", None)  # told before any search
        with pytest.raises(CalibrationError, match="1 normal"):
            results_lib.evaluate(config, folder, dataset, few, model)
    broken = model._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, model.params))
    with pytest.raises(CalibrationError, match="is nan: the networks have diverged") as error:
        results_lib.evaluate(config, folder, dataset, split, broken, progress=False)
    assert "\n" not in str(error.value)
