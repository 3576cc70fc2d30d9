"""Operating points, and what an evaluation says where every test image is normal."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import web
from PIL import Image

from jax_noisy_anogan import cli, experiment
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.evaluation.held_out import PARTS, Measured
from jax_noisy_anogan.evaluation.operating import RATES, operating_points, set_by
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring import thresholds


def _measured(normals, known):
    """Scores of one term, of which normal ones are 0, 1, 2, ... in deviations."""
    rng = np.random.default_rng(0)
    terms = [{"a": rng.normal(size=normals)}, {"a": rng.normal(4.0, 1.0, known)}]
    fitted = calibration_lib.fit(*terms, rule="best_f1", false_positive_rate=0.05)
    test = {"a": np.concatenate([rng.normal(size=30), rng.normal(4.0, 1.0, 10)])}
    scores = (fitted.normal, fitted.abnormal, fitted.calibration.calibrated(test))
    calibrated = dict(zip(PARTS, scores, strict=True))
    measured = Measured(
        maps=None, memory=None, scored={}, calibration=fitted.calibration, calibrated=calibrated
    )
    return measured, np.arange(40) >= 30


def test_each_point_flags_its_share_of_validation_normals_and_says_what_it_finds():
    measured, truth = _measured(1200, 25)
    normal, known, test = (measured.calibrated[part] for part in PARTS)
    points = operating_points(measured, truth)
    assert [point.false_alarms for point in points] == list(RATES)
    for point, allowed in zip(points, (1, 12, 60), strict=True):
        anomaly = measured.calibration.to_anomaly
        assert np.sum(anomaly(normal) > point.threshold) == allowed - 1
        assert point.validation_abnormal == (np.sum(anomaly(known) > point.threshold), 25)
        assert point.test_abnormal == (np.sum(anomaly(test)[truth] > point.threshold), 10)
        assert point.test_normal == (np.sum(anomaly(test)[~truth] > point.threshold), 30)


@pytest.mark.parametrize(("normals", "known"), [(18, 25), (19, 25), (99, 25), (998, 1)])
def test_a_rate_that_too_few_images_show_names_the_number_that_it_needs(normals, known):
    points = operating_points(*_measured(normals, known))
    assert [point.needs for point in points] == [999, 99, 19]
    for point in points:
        assert (point.threshold is None) == (normals < point.needs)
        if point.threshold is None:
            assert point.cells()[1] == f"needs {point.needs} normals, has {normals}"
        # A single known defect took part in the fit that judges it.
        assert point.validation_abnormal.images == (known if known > 1 else 0)


_IDS = tuple(f"{k}.png" for k in range(60))


def _odd(scores, groups, rule="quantile", known=0):
    """Calibrated scores of the validation normals 10.png, 11.png, ... and their split."""
    measured, _ = _measured(len(scores), known)
    fitted = calibration_lib.fit(
        {"a": scores}, {"a": np.full(known, 5.0)}, rule=rule, false_positive_rate=0.05
    )
    calibrated = {PARTS[0]: np.asarray(scores), PARTS[1]: np.zeros(known), PARTS[2]: np.zeros(0)}
    limits = thresholds.fit_thresholds(
        calibrated[PARTS[0]], np.full(known, 5.0), rule=rule, false_positive_rate=0.05
    )
    own = fitted.calibration
    own = dataclasses.replace(own, scale=2.0, thresholds=own.thresholds | {"calibrated": limits})
    split = SimpleNamespace(
        ids=_IDS, groups=groups, validation_normal=np.arange(10, 10 + len(scores))
    )
    return measured._replace(calibrated=calibrated, calibration=own), split


def test_a_part_that_sets_the_threshold_alone_is_named():
    scores = np.linspace(-3.0, 0.0, 30)
    odd = np.append(scores, [7.0, 9.0])
    # 40.png and 41.png show one part: without both, 0.0 is the highest of 30.
    parts = np.append(np.arange(40), np.full(20, 40))
    found = set_by(*_odd(odd, parts), 0.05)
    assert found[:2] == ("41.png", 2)
    assert found.threshold == pytest.approx(0.5 * (1 - 9 / (2 + 9)))
    assert "41.png and 1 more of the same part" in str(found)
    # Apart, the second takes the place of the first: one scale lower, which happens.
    assert set_by(*_odd(odd, None), 0.05) is None
    alone = set_by(*_odd(np.append(scores, 4.0), None), 0.05)
    assert alone[:2] == ("40.png", 1)
    assert "40.png sets the threshold alone" in str(alone)


@pytest.mark.parametrize(
    ("highest", "rule", "known"), [(3.9, "quantile", 0), (9.0, "best_f1", 3), (-1.0, "quantile", 0)]
)
def test_nothing_is_named_that_does_not_set_the_threshold_alone(highest, rule, known):
    scores = np.append(np.linspace(-3.0, 0.0, 30), highest)
    assert set_by(*_odd(scores, None, rule, known), 0.05) is None


def test_good_images_alone_end_with_what_can_be_known_and_no_figure_that_cannot(tmp_path, capsys):
    """A flat folder of photographs, from the first command to the report."""
    rng = np.random.default_rng(1)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for k in range(60):
        Image.fromarray(rng.integers(60, 190, (8, 8), np.uint8)).save(photographs / f"{k}.png")
    config = tiny.config(
        data=config_lib.DataConfig(
            name="image_folder", root=str(photographs), cache_dir=str(tmp_path / "cache")
        ),
        growth=config_lib.GrowthConfig(
            start_resolution=8, resolution=8, final_images=32, minibatch_default=32
        ),
        search=config_lib.SearchConfig(steps=2, batch_size=8),
        train=config_lib.TrainConfig(sample_images=4),
    )
    run = tmp_path / "run"
    cli.print_results(experiment.run(config, run, progress=False))
    printed = capsys.readouterr().out
    results = json.loads((run / "metrics.json").read_text())
    scores = ("score", "anomaly", "discriminator", "local")
    assert all(set(results[name]) == {"threshold"} for name in scores)
    flagged = results["operating_points"][0]["test_normal"]
    assert set(flagged) == {"flagged", "images"}
    alarms = results["about"]["test_false_alarms"]
    assert alarms["images"] == results["about"]["images"] > 0
    report = web.read(run / "report.html")
    assert "scores" not in report.texts
    for said in (printed, "".join(report.texts.values())):
        assert "nan" not in said.split()
        assert f"{alarms['flagged']} of {alarms['images']}" in said
