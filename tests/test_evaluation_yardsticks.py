"""Yardsticks beside a run: read from its source, measured on its split, told first."""

import csv
import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from jax_noisy_anogan import cli
from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    NetworkConfig,
    SearchConfig,
)
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.evaluation import yardsticks
from jax_noisy_anogan.evaluation.results import evaluate
from jax_noisy_anogan.evaluation.yardsticks import YardstickResult, compare, lead, measure
from jax_noisy_anogan.model import DiscriminatorStatistics, Model
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import networks_of

SIDE = 128


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Speckled parts, half of them dark; the abnormal ones have a bright square and its mask."""
    root = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    for kind, count in (("normal", 40), ("abnormal", 20)):
        for k in range(count):
            image = rng.normal(100.0 + 40.0 * (k % 2), 10.0, (SIDE, SIDE))
            if kind == "abnormal":
                y, x = rng.integers(0, SIDE - 16, 2)
                image[y : y + 16, x : x + 16] += 80.0
                _save(root / "masks" / f"{k}.png", _square(y, x))
            _save(root / kind / f"{k}.png", np.clip(image, 0, 255))
    data = DataConfig(
        name="image_folder",
        root=str(root),
        cache_dir=str(root / "cache"),
        layout="plain",
        local_contrast=1 / 16,
        known_abnormal_fraction=0.4,
        validation_fraction=0.3,
    )
    dataset = load_dataset(data, resolution=16, progress=False)
    return data, dataset, make_split(dataset, data)


def _square(y, x):
    mask = np.zeros((SIDE, SIDE))
    mask[y : y + 16, x : x + 16] = 255
    return mask


def _save(path, image):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def measured(parts):
    return measure(*parts)


def test_defects_that_are_plain_to_see_are_found_and_located(measured):
    assert list(measured) == ["brightness", "PCA residual", "nearest patch", "known defects"]
    for name in ("nearest patch", "known defects"):
        found = measured[name]
        assert found.auroc == found.validation_auroc == found.average_precision == 1.0
        assert found.pixel_auroc > 0.95
        assert found.aupro > 0.8
    assert math.isnan(measured["brightness"].pixel_auroc)


def test_brightness_is_that_of_the_files_not_of_what_the_networks_are_shown(parts, measured):
    """Local contrast would have taken it away."""
    data, _, split = parts

    def level(index):
        with Image.open(f"{data.root}/{split.ids[index]}") as image:
            return np.asarray(image).mean()

    usual = np.array([level(k) for k in split.train_normal])
    scores = [abs(level(k) - usual.mean()) for k in split.test]
    assert measured["brightness"].auroc == roc_auc_score(split.is_abnormal[split.test], scores)


def test_without_known_masks_nothing_learns_from_them(parts, monkeypatch):
    data, dataset, split = parts
    none = np.zeros(0, np.int64)
    asked = []

    def unsupervised(normal, abnormal, test, *, seed, masks):
        asked.append((len(normal), len(abnormal), len(test), masks.shape))
        return yardsticks.Judged(np.arange(len(test), dtype=float), None)

    monkeypatch.setattr(yardsticks, "UNSUPERVISED", {"any": unsupervised})
    found = measure(data, dataset, dataclasses.replace(split, train_known_abnormal=none))
    held_out = len(split.test) + len(split.validation_normal) + len(split.validation_known_abnormal)
    assert list(found) == ["any"]
    assert asked == [(len(split.train_normal), 0, held_out, (0, SIDE, SIDE))]


def test_a_comparison_that_fails_costs_no_evaluation_and_is_told(parts):
    data, dataset, split = parts
    few = dataclasses.replace(split, train_normal=split.train_normal[:3])
    found, notice = compare(data, dataset, few, "calibrated", 0.5, 0.5)
    assert found == {}
    assert notice.startswith("No yardsticks beside this run: yardsticks: 3 normal training")


def _figures(auroc, validation):
    return YardstickResult(auroc, 0.5, 0.5, validation, math.nan, math.nan)


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ((0.9, 0.9), ""),
        ((0.8, 0.7), ""),  # as good is not better
        ((0.79, 0.9), "bright 0.800 on test images, where own has 0.790"),
        ((0.9, 0.69), "dim 0.700 on validation images, where own has 0.690"),
        ((math.nan, 0.9), ""),
        (
            (0.5, 0.5),
            "bright 0.800, dim 0.600 on test images, where own has 0.500; bright 0.650, dim 0.700 "
            "on validation images, where own has 0.500",
        ),
    ],
)
def test_the_first_line_names_what_beats_the_run(own, told):
    figures = {"bright": _figures(0.8, 0.65), "dim": _figures(0.6, 0.7)}
    line = lead(figures, "own", *own)
    assert line == (f"Simple yardsticks do better than this run: {told} (AUROC)." if told else "")


@pytest.mark.parametrize(
    ("auroc", "told"), [(0.0, True), (0.04, True), (0.06, False), (0.5, False), (0.96, True)]
)
def test_light_that_tells_the_kinds_apart_in_either_direction_is_named(auroc, told):
    """Flawless screws of the test part are brighter than those that train: AUROC 0, not 1."""
    line = lead({"brightness": _figures(auroc, 0.5)}, "own", 1.0, 1.0)
    assert line == (
        f"Brightness alone tells normal from abnormal test images (AUROC {auroc:.3f}): they differ "
        "in light, not only in defects."
        if told
        else ""
    )


def test_the_console_tells_it_before_the_table(capsys):
    metrics = {"auroc": 0.5, "average_precision": 0.5, "f1_best": 0.5, "f1_at_threshold": 0.5}
    cli.print_results(
        {
            "anomaly": {**metrics, "threshold": 0.5},
            "operating_points": [],
            "yardsticks": {"bright": _figures(0.8, 0.7)._asdict()},
            "notice": "Simple yardsticks do better [/b]",
            "about": {
                "images": 1,
                "abnormal": 1,
                "search_steps": 1,
                "search_seconds": 1.0,
                "device": "cpu",
                "false_positive_rate": [0.0, 0.1],
                "test_false_alarms": {"flagged": 0, "images": 0},
            },
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Simple yardsticks do better [/b]"
    (row,) = [line for line in lines if "bright" in line]
    assert "0.8000" in row
    assert "0.7000" in row


def test_an_evaluation_puts_them_beside_its_own_figures(parts, measured, tmp_path, monkeypatch):
    """Networks without any training are beaten."""
    data, dataset, split = parts
    monkeypatch.setattr(yardsticks, "measure", lambda *case, trained, show: measured)
    config = Config(
        data=data,
        network=NetworkConfig(fmap_base=32, fmap_max=4, latent_size=4),
        growth=GrowthConfig(resolution=16, start_resolution=16),
        search=SearchConfig(steps=0),
    )
    networks = networks_of(config, make_schedule(config.growth).phases[-1])
    reference = DiscriminatorStatistics(*np.float32([1.0, 0.4, 1.0, -1.0]))
    model = Model(networks, networks.init(jax.random.key(0)), reference)
    evaluate(config, tmp_path, dataset, split, model, progress=False)
    results = json.loads((tmp_path / "metrics.json").read_text())
    report = (tmp_path / "report.html").read_text()
    assert results["yardsticks"]["nearest patch"] == measured["nearest patch"]._asdict()
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    own = []
    for chosen in (
        [row for row in rows if row["part"] == "test"],
        [row for row in rows if row["part"] != "test"],
    ):
        truth = [int(row["is_abnormal"]) for row in chosen]
        own.append(roc_auc_score(truth, [float(row["calibrated"]) for row in chosen]))
    assert own[0] < 1.0  # else the case shows nothing
    assert results["notice"] == lead(measured, "anomaly", *own)
    assert report.index(results["notice"]) < report.index("<h1>")
    assert "<h2>Yardsticks</h2>" in report
