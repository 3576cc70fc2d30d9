"""Calibration against brute force over all cuts, scikit-learn, and the conditions of an optimum."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring.calibration import (
    CALIBRATED,
    Calibration,
    CalibrationError,
    best_f1_threshold,
    fit,
    quantile_threshold,
    youden_threshold,
)

NONE = np.zeros(0)
# Few distinct values, so that most draws have ties within and between the classes.
SCORES = st.lists(st.integers(-3, 6).map(lambda k: k / 4), min_size=2, max_size=24).map(np.array)


def _fit(normal, abnormal=None, *, rule="best_f1", rate=0.05):
    normal = {f"t{k}": column for k, column in enumerate(np.atleast_2d(np.transpose(normal)))}
    if abnormal is None:
        abnormal = dict.fromkeys(normal, NONE)
    else:
        columns = np.atleast_2d(np.transpose(abnormal))
        abnormal = {f"t{k}": column for k, column in enumerate(columns)}
    return fit(normal, abnormal, rule=rule, false_positive_rate=rate), normal, abnormal


def _every_cut(normal, abnormal):
    """One decision for every way that a threshold, below the largest score, can divide them."""
    scores = np.unique(np.concatenate([normal, abnormal]))
    return [np.nextafter(scores[0], -9), *scores[:-1]]


@settings(deadline=None)
@given(SCORES, st.floats(0.001, 0.999))
def test_the_quantile_is_the_smallest_score_that_at_most_the_rate_exceeds(normal, rate):
    fits = [s for s in normal if np.count_nonzero(normal > s) <= rate * len(normal) + 1e-9]
    assert quantile_threshold(normal, rate) == min(fits)


def test_rates_that_floating_point_misses_are_counted_exactly():
    scores = np.random.default_rng(0).permutation(100) * 1.0
    for percent in range(1, 100):
        assert np.count_nonzero(scores > quantile_threshold(scores, percent / 100)) == percent


@settings(deadline=None)
@given(SCORES, SCORES)
def test_best_f1_and_youden_beat_or_equal_every_cut_and_flag_least_among_equals(normal, abnormal):
    truth = np.repeat([False, True], [len(normal), len(abnormal)])
    scores = np.concatenate([normal, abnormal])

    def f1(cut):
        return f1_score(truth, scores > cut, zero_division=0.0)

    def youden(cut):
        return np.mean(abnormal > cut) - np.mean(normal > cut)

    for quality, found in (
        (f1, best_f1_threshold(normal, abnormal)),
        (youden, youden_threshold(normal, abnormal)),
    ):
        values = {cut: quality(cut) for cut in _every_cut(normal, abnormal)}
        assert quality(found) == pytest.approx(max(values.values()))
        least = max(c for c, v in values.items() if v > max(values.values()) - 1e-9)
        np.testing.assert_array_equal(scores > found, scores > least)


def test_a_threshold_lies_in_the_lower_third_of_its_gap_even_between_neighbouring_numbers():
    assert best_f1_threshold(np.array([0.0, 1.0]), np.array([2.0, 5.0])) == pytest.approx(4 / 3)
    low = np.float64(1e17)
    high = np.nextafter(low, np.inf)
    for function in (best_f1_threshold, youden_threshold):
        cut = function(np.array([low, low]), np.array([high]))
        assert not low > cut
        assert high > cut
    assert best_f1_threshold(np.array([low]), np.array([low])) < low


def _logistic_data(seed=0):
    rng = np.random.default_rng(seed)
    mix = np.array([[1.0, 0.4, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]])
    return rng.normal(size=(90, 3)) @ mix, rng.normal(size=(25, 3)) @ mix + [1.2, 1.5, 0.9]


def test_weights_are_those_of_scikit_learn_where_its_optimum_is_positive():
    normal, abnormal = _logistic_data()
    found, *_ = _fit(normal, abnormal)
    mean, std = normal.mean(axis=0), normal.std(axis=0, ddof=1)
    x = (np.concatenate([normal, abnormal]) - mean) / std
    assert np.abs(x).max() < 10  # nothing is compressed for the fit
    y = np.repeat([0, 1], [len(normal), len(abnormal)])
    # Ours: balanced mean loss + ridge / 2 |w|^2; theirs: C * len(y) * the same mean + |w|^2 / 2.
    peer = LogisticRegression(
        C=len(abnormal) / len(y), class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(x, y)
    assert (peer.coef_ > 0).all()
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-12)
    np.testing.assert_allclose(found.weights, peer.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(found.intercept, peer.intercept_[0], rtol=1e-4)
    columns = {f"t{k}": column for k, column in enumerate(abnormal.T)}
    np.testing.assert_allclose(
        found.probability(columns), peer.predict_proba(x[len(normal) :])[:, 1], rtol=1e-4
    )


@pytest.mark.parametrize("expected", [(0, 0, 0, 0), (1, 1, 0, 0)])
def test_the_bounded_optimum_meets_the_conditions_of_karush_kuhn_and_tucker(expected):
    rng = np.random.default_rng(3)
    normal = rng.normal(size=(60, 4))
    # The second term is lower for abnormal images, the third says nothing, the fourth is far off.
    abnormal = rng.normal([0.8, -1.5, 0.0, 40.0], size=(20, 4))
    weights, intercept = calibration_lib._logistic_regression(normal, abnormal, np.array(expected))
    shrink = np.maximum(np.abs(np.concatenate([normal, abnormal])).max(axis=0) / 10, 1)
    x, w = np.concatenate([normal, abnormal]) / shrink, weights * shrink
    y = np.repeat([0.0, 1.0], [60, 20])
    share = np.repeat([0.5 / 60, 0.5 / 20], [60, 20])
    slope = share * (1 / (1 + np.exp(-(x @ w + intercept))) - y)
    gradient = slope @ x + (w - expected) / 20
    assert shrink[3] > 4
    assert (w[1] == 0) == (expected[1] == 0)
    assert (gradient[w == 0] > 0).all()
    assert (w[[0, 3]] > 0).all()
    np.testing.assert_allclose(gradient[w > 0], 0, atol=1e-6)
    np.testing.assert_allclose(slope.sum(), 0, atol=1e-6)


def test_few_abnormal_images_leave_the_weight_with_the_learned_term_and_many_do_not():
    rng = np.random.default_rng(4)
    normal = rng.normal(size=(400, 3))
    # The first term was learned and knows less than the second; the third says nothing.
    abnormal = rng.normal([0.5, 2.5, 0.0], size=(400, 3))

    def weights(count, learned):
        parts = ({f"t{k}": part[:, k] for k in range(3)} for part in (normal, abnormal[:count]))
        return fit(*parts, rule="quantile", false_positive_rate=0.05, learned=learned).weights

    few, many = weights(2, "t0"), weights(400, "t0")
    assert few[0] > 0.5 > weights(2, "")[0]
    assert max(few[1:]) < many[1]
    np.testing.assert_allclose(many, weights(400, ""), atol=0.05)


@pytest.mark.parametrize("rule", ["best_f1", "youden", "quantile"])
def test_without_abnormal_images_the_quantile_decides_and_one_half_lies_there(rule):
    normal = np.random.default_rng(1).gamma(2.0, size=(200, 3)) * [1, 50, 0.01]
    found, columns, _ = _fit(normal, rule=rule, rate=0.1)
    score = found.calibrated(columns)
    assert np.mean(found.is_abnormal(columns)) == pytest.approx(0.1)
    assert found.thresholds[CALIBRATED].chosen == pytest.approx(0.0, abs=1e-12)
    assert np.count_nonzero(np.abs(found.probability(columns) - 0.5) < 1e-9) == 1
    assert score.std(ddof=1) == pytest.approx(1.0)
    # All terms weigh the same in standard deviations.
    np.testing.assert_allclose(np.array(found.weights), found.weights[0])
    assert all(t.best_f1 is None and t.youden is None for t in found.thresholds.values())


@pytest.mark.parametrize("rule", ["best_f1", "youden"])
def test_useless_or_few_abnormal_images_never_flag_every_normal_one(rule):
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(50, 2))
    for abnormal in (rng.normal(size=(50, 2)), normal - 9.0, normal[:1] * 0 - 5.0):
        found, columns, _ = _fit(normal, abnormal, rule=rule)
        assert np.mean(found.is_abnormal(columns)) < 1
        assert np.ptp(found.calibrated(columns)) > 0
        for name, values in columns.items():
            assert np.mean(values > found.thresholds[name].chosen) < 1
    # The best F1 itself is still told.
    assert found.thresholds["t0"].best_f1 < normal[:, 0].min()


def test_probability_stays_in_0_to_1_and_rises_with_the_score():
    found, *_ = _fit(*_logistic_data())
    values = np.concatenate([[-1e300, -1e9], np.linspace(-60, 60, 997), [1e9, 1e300]])
    columns = dict.fromkeys(("t0", "t1", "t2"), values)
    with np.errstate(over="raise", invalid="raise"):
        p = found.probability(columns)
    assert p.min() >= 0
    assert p.max() <= 1
    assert (np.diff(p) >= 0).all()
    # Strictly, until 1 - p falls below what float64 resolves.
    inner = p[(p > 1e-200) & (p < 1 - 1e-12)]
    assert len(inner) > 100
    assert (np.diff(inner) > 0).all()
    np.testing.assert_array_equal(found.is_abnormal(columns, 0.25), p > 0.25)


def test_a_constant_term_does_not_divide_by_zero():
    normal = np.stack([np.full(20, 7.0), np.arange(20.0)], axis=1)
    found, columns, _ = _fit(normal, normal + np.array([1.0, 30.0]))
    assert np.isfinite(found.calibrated(columns)).all()


@pytest.mark.parametrize("with_abnormal", [False, True])
def test_json_keeps_every_figure(tmp_path, with_abnormal):
    normal, abnormal = _logistic_data()
    found, *_ = _fit(normal, abnormal if with_abnormal else None)
    found.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == found


def test_too_few_or_unusable_validation_images_are_one_clear_error():
    with pytest.raises(CalibrationError, match=r"1 normal .*config\.data\.validation_fraction"):
        _fit(np.ones((1, 2)))
    with pytest.raises(CalibrationError, match="not finite"):
        _fit(np.array([[1.0, np.nan], [2.0, 3.0]]))


def test_a_broken_file_names_itself_and_what_to_do(tmp_path):
    path = tmp_path / "calibration.json"
    values = asdict(_fit(*_logistic_data())[0])
    broken = [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        json.dumps(values)[:200].encode(),
        json.dumps(values | {"intercept": float("nan")}).encode(),
        json.dumps(values | {"mean": [1.0]}).encode(),
        json.dumps(values | {"weights": ["a", "b", "c"]}).encode(),
        json.dumps(values | {"thresholds": {}}).encode(),
        json.dumps({k: v for k, v in values.items() if k != "std"}).encode(),
    ]
    for content in (None, *broken):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(
            CalibrationError, match=r"calibration\.json .*evaluate --workdir"
        ) as error:
            Calibration.load(path)
        assert "\n" not in str(error.value)
