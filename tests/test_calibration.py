"""Calibration against brute force over all cuts, scikit-learn, and the conditions of an optimum."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring import maps as maps_lib
from jax_noisy_anogan.scoring.calibration import (
    CALIBRATED,
    DECISION,
    FEWEST_NORMALS,
    Calibration,
    CalibrationError,
    fit,
)
from jax_noisy_anogan.scoring.thresholds import (
    best_f1_threshold,
    decide,
    fit_thresholds,
    quantile_threshold,
    rate_interval,
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
    found = fit(normal, abnormal, rule=rule, false_positive_rate=rate)
    return found.calibration, normal, abnormal


def _every_cut(normal, abnormal):
    """One decision for every way that a threshold, below the largest score, can divide them."""
    scores = np.unique(np.concatenate([normal, abnormal]))
    return [np.nextafter(scores[0], -9), *scores[:-1]]


@settings(deadline=None)
@given(SCORES, st.floats(0.001, 0.999))
def test_the_quantile_is_the_lowest_score_that_a_further_image_exceeds_at_most_at_the_rate(
    normal, rate
):
    found = quantile_threshold(normal, rate)
    # Among n + 1 exchangeable scores the new one is above s with the chance of one more than are.
    above = [np.count_nonzero(normal > s) for s in normal]
    limit = rate * (len(normal) + 1) + 1e-9
    fits = [s for s, count in zip(normal, above, strict=True) if count + 1 <= limit]
    if fits:
        assert found == min(fits)
    else:
        assert found >= normal.max()


def test_rates_that_floating_point_misses_are_counted_exactly():
    scores = np.random.default_rng(0).permutation(99) * 1.0
    for percent in range(1, 100):
        found = quantile_threshold(scores, percent / 100)
        assert np.count_nonzero(scores >= found) == percent


@pytest.mark.parametrize("count", [4, 9, 18, 19, 40, 52, 200])
def test_fresh_scores_exceed_the_quantile_as_often_as_asked_for_however_few_set_it(count):
    """Exponential tails exactly below 19 images, any below 5 % from there on, within 4 errors."""
    rng = np.random.default_rng(count)
    rates = [
        stats.expon.sf(quantile_threshold(rng.exponential(size=count), 0.05)) for _ in range(2000)
    ]
    error = 4 * np.std(rates) / np.sqrt(len(rates))
    expected = 0.05 if count < 19 else int(0.05 * (count + 1)) / (count + 1)
    assert np.mean(rates) == pytest.approx(expected, abs=error)
    # Lighter tails than the exponential one: fewer, never more.
    rates = [stats.norm.sf(quantile_threshold(rng.normal(size=count), 0.05)) for _ in range(2000)]
    assert 0.01 < np.mean(rates) < 0.05 + error


def test_the_interval_of_a_rate_is_that_of_clopper_and_pearson():
    assert rate_interval(0, 9) == pytest.approx((0.0, 1 - 0.025 ** (1 / 9)))
    assert rate_interval(9, 9) == pytest.approx((0.025 ** (1 / 9), 1.0))
    low, high = rate_interval(3, 52)
    assert stats.binom.sf(2, 52, low) == pytest.approx(0.025)
    assert stats.binom.cdf(3, 52, high) == pytest.approx(0.025)
    found = fit_thresholds(np.arange(40.0), np.zeros(0), rule="quantile", false_positive_rate=0.1)
    flagged = np.count_nonzero(np.arange(40.0) > found.chosen)
    assert (found.rate_low, found.rate_high) == rate_interval(flagged, 40)


def test_one_abnormal_image_decides_no_threshold():
    normal = np.arange(30.0)
    found = fit_thresholds(normal, np.array([100.0]), rule="best_f1", false_positive_rate=0.05)
    assert found.chosen == found.quantile
    assert found.best_f1 is None
    two = fit_thresholds(normal, np.array([99.0, 100.0]), rule="best_f1", false_positive_rate=0.05)
    assert two.chosen == two.best_f1 == 29 + 70 / 3


def _world(rng, count):
    """Maps and two further terms of normal images: loud and quiet pixels, exponential tails."""
    loud = np.where(np.arange(12) < 6, 0.2, 1.0)
    maps = loud * rng.gamma(2.0, 0.3, (count, 12, 12))
    return maps.astype(np.float32), rng.gumbel(size=count), rng.normal(5.0, 2.0, size=count)


def _terms_by_maps(moments, maps, *columns, own=False):
    heights = [
        float(
            maps_lib.calibrated_map(
                m, moments.calibration(moments.of(m) if own else None), sigma=1.0
            ).max()
        )
        for m in maps
    ]
    return {"local": np.array(heights), "a": columns[0], "b": columns[1]}


@pytest.mark.parametrize("count", [9, 20, 40])
def test_fresh_normal_images_are_flagged_as_often_as_asked_for(count):
    """From maps to decisions, on images that nothing was fitted to; 5 % nominal."""
    rates = {name: [] for name in (CALIBRATED, "local")}
    for seed in range(24):
        rng = np.random.default_rng((count, seed))
        moments = maps_lib.MapMoments(sigma=1.0)
        seen, fresh = _world(rng, count), _world(rng, 60)
        for one in seen[0]:
            moments.add(one)
        terms = _terms_by_maps(moments, *seen, own=True)
        found = fit(
            terms, dict.fromkeys(terms, NONE), rule="quantile", false_positive_rate=0.05
        ).calibration
        new = _terms_by_maps(moments, *fresh)
        for name, scores in {**new, CALIBRATED: found.calibrated(new)}.items():
            if name in rates:
                rates[name].append(np.mean(scores > found.thresholds[name].chosen))
    for name, values in rates.items():
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        # Without cross-fitting `local` is at 0.75 with 9 images and at 0.2 with 40.
        assert np.mean(values) < 0.05 + 3 * error, name
        assert np.mean(values) > 0.005, name


def test_scores_of_validation_images_come_from_fits_that_have_not_seen_them():
    rng = np.random.default_rng(5)
    normal = {name: rng.normal(size=12) for name in "ab"}
    none = dict.fromkeys(normal, NONE)
    settings = {"rule": "quantile", "false_positive_rate": 0.05}
    found = fit(normal, none, **settings)
    # An outlier is judged by the others alone: its distance from them does not blow up the scale.
    far = {name: np.append(values, 1e3) for name, values in normal.items()}
    outlier = fit(far, none, **settings)
    assert outlier.normal[-1] - np.median(outlier.normal[:-1]) > 100
    assert outlier.calibration.calibrated({k: v[-1:] for k, v in far.items()})[0] < 5
    assert len(found.normal) == 12


def test_images_of_the_same_part_are_judged_by_a_fit_to_other_parts():
    normal, abnormal = (
        {f"t{k}": column for k, column in enumerate(values.T)} for values in _logistic_data()
    )
    # Of 15 parts two have no normal image.
    groups = np.arange(90) % 13, np.arange(25) % 15
    settings = {"rule": "quantile", "false_positive_rate": 0.05}
    found = fit(normal, abnormal, groups=groups, **settings)
    for part in (0, 7, 14):
        held_normal, held_abnormal = (numbers == part for numbers in groups)
        rest = fit(
            {name: values[~held_normal] for name, values in normal.items()},
            {name: values[~held_abnormal] for name, values in abnormal.items()},
            **settings,
        ).calibration
        for ours, terms, held in (
            (found.normal, normal, held_normal),
            (found.abnormal, abnormal, held_abnormal),
        ):
            alone = rest.calibrated({name: values[held] for name, values in terms.items()})
            np.testing.assert_allclose(ours[held], alone, rtol=1e-4, atol=1e-4)
    # As many draws as parts, and not as images: 5 of 90 are flagged.
    flagged = np.sum(found.normal > found.calibration.thresholds[CALIBRATED].chosen)
    own = found.calibration.thresholds[CALIBRATED]
    assert (own.rate_low, own.rate_high) == rate_interval(flagged * 13 / 90, 13)


def test_defects_of_a_single_part_are_not_left_out():
    normal, abnormal = (
        {f"t{k}": column for k, column in enumerate(values.T)} for values in _logistic_data()
    )
    groups = np.arange(90) % 13, np.zeros(25, int)
    found = fit(normal, abnormal, groups=groups, rule="quantile", false_positive_rate=0.05)
    whole = found.calibration.calibrated(abnormal)
    # Without the seven normal images of that part, and with the defects.
    np.testing.assert_allclose(found.abnormal, whole, atol=0.5)


def test_two_terms_that_cancel_in_a_few_images_do_not_make_the_scale_explode():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        first = rng.normal(size=4)
        found, *_ = _fit(np.stack([first, -first + 1e-9 * rng.normal(size=4)], axis=1))
        # The mean of two terms counts as if it deviated by half of what independent ones do.
        np.testing.assert_allclose(found.weights, 0.5 / (0.5 / np.sqrt(2)), rtol=1e-6)


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
    assert np.abs(x).max() < 10  # nothing is clipped for the fit
    y = np.repeat([0, 1], [len(normal), len(abnormal)])
    # Ours: balanced mean loss + ridge / 2 |w|^2; theirs: C * len(y) * the same mean + |w|^2 / 2.
    peer = LogisticRegression(
        C=len(abnormal) / len(y) / 10, class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(x, y)
    assert (peer.coef_ > 0).all()
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-12)
    np.testing.assert_allclose(found.weights, peer.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(found.intercept, peer.intercept_[0], rtol=1e-4)
    columns = {f"t{k}": column for k, column in enumerate(abnormal.T)}
    np.testing.assert_allclose(
        1 / (1 + np.exp(-found.calibrated(columns))),
        peer.predict_proba(x[len(normal) :])[:, 1],
        rtol=1e-4,
    )


@pytest.mark.parametrize("expected", [(0, 0, 0, 0), (1, 1, 0, 0)])
def test_the_bounded_optimum_meets_the_conditions_of_karush_kuhn_and_tucker(expected):
    rng = np.random.default_rng(3)
    normal = rng.normal(size=(60, 4))
    # The second term is lower for abnormal images, the third says nothing, the fourth is far off.
    abnormal = rng.normal([0.8, -1.5, 0.0, 40.0], size=(20, 4))
    weights, intercept = calibration_lib._logistic_regression(normal, abnormal, np.array(expected))
    x, w = np.clip(np.concatenate([normal, abnormal]), -10, 10), weights
    y = np.repeat([0.0, 1.0], [60, 20])
    share = np.repeat([0.5 / 60, 0.5 / 20], [60, 20])
    slope = share * (1 / (1 + np.exp(-(x @ w + intercept))) - y)
    gradient = slope @ x + 10 * (w - expected) / 20
    assert (x[60:, 3] == 10).all()
    assert (w[1] == 0) == (expected[1] == 0)
    assert (gradient[w == 0] > 0).all()
    assert (w[[0, 3]] > 0).all()
    np.testing.assert_allclose(gradient[w > 0], 0, atol=1e-6)
    np.testing.assert_allclose(slope.sum(), 0, atol=1e-6)


def test_few_abnormal_images_leave_half_the_weight_with_the_learned_term_and_many_do_not():
    rng = np.random.default_rng(4)
    normal = rng.normal(size=(4_000, 3))
    # The first term was learned and knows less than the second; the third says nothing.
    abnormal = rng.normal([0.5, 2.5, 0.0], size=(4_000, 3))

    def weights(count, learned, trusted=()):
        parts = ({f"t{k}": part[:, k] for k in range(3)} for part in (normal, abnormal[:count]))
        asked = {"learned": learned, "trusted": trusted}
        found = fit(*parts, rule="quantile", false_positive_rate=0.05, **asked)
        return np.array(found.calibration.weights)

    few, many = weights(2, "t0"), weights(4_000, "t0")
    np.testing.assert_allclose(few, [0.5, 0.25, 0.25], atol=0.12)
    assert max(weights(2, "")) < 0.3
    assert max(few[1:]) < many[1]
    np.testing.assert_allclose(many, weights(4_000, ""), atol=0.05)
    # It counts as much as each trusted term.
    shared = weights(2, "t0", ("t2",))
    np.testing.assert_allclose(shared, [0.5, 0, 0.5], atol=0.12)
    np.testing.assert_allclose(weights(2, "t0", ("t1", "t2")), 1 / 3, atol=0.12)
    np.testing.assert_allclose(weights(4_000, "t0", ("t2",)), many, atol=0.05)


def test_one_known_kind_that_every_term_finds_does_not_silence_the_terms_of_the_search():
    rng = np.random.default_rng(8)

    def terms(count, *means):
        return {f"t{k}": rng.normal(mean, size=count) for k, mean in enumerate(means)}

    normal, known, unknown = terms(100, 0, 0, 0), terms(60, 6, 6, 6), terms(500, 0, 4, 4)
    found = fit(normal, known, rule="best_f1", false_positive_rate=0.05, learned="t0").calibration
    assert found.weights[0] > max(found.weights[1:])
    scores = np.concatenate([found.anomaly(normal), found.anomaly(unknown)])
    assert roc_auc_score(np.arange(600) >= 100, scores) > 0.95  # by the learned term alone 0.5


@pytest.mark.parametrize("rule", ["best_f1", "youden", "quantile"])
def test_without_abnormal_images_the_quantile_decides_and_one_half_lies_there(rule):
    normal = np.random.default_rng(1).gamma(2.0, size=(200, 3)) * [1, 50, 0.01]
    found, columns, _ = _fit(normal, rule=rule, rate=0.1)
    score = found.calibrated(columns)
    assert np.mean(decide(found.anomaly(columns), DECISION)) == pytest.approx(0.1, abs=0.02)
    assert found.thresholds[CALIBRATED].chosen == pytest.approx(0.0, abs=1e-12)
    assert score.std(ddof=1) == pytest.approx(1.0)
    # All terms weigh the same in standard deviations.
    np.testing.assert_allclose(np.array(found.weights), found.weights[0])
    assert all(t.best_f1 is None and t.youden is None for t in found.thresholds.values())


def test_trusted_terms_decide_alone_until_defects_are_known():
    rng = np.random.default_rng(6)
    normal = {name: rng.normal(size=40) for name in "abc"}
    known = {name: rng.normal(3.0, size=30) for name in "abc"}
    asked = {"rule": "quantile", "false_positive_rate": 0.05}
    without = fit(normal, dict.fromkeys(normal, NONE), trusted=("b", "c"), **asked)
    first, second, third = without.calibration.weights
    assert first == 0.0 < second == third
    mean = np.mean([(normal[n] - normal[n].mean()) / normal[n].std(ddof=1) for n in "bc"], axis=0)
    wanted = mean / mean.std(ddof=1) + without.calibration.intercept
    np.testing.assert_allclose(without.calibration.calibrated(normal), wanted)
    with_known = fit(normal, known, trusted=("b",), **asked)
    assert min(with_known.calibration.weights) > 0.0


def test_a_single_trusted_term_decides_at_its_own_threshold_whatever_one_normal_image_is():
    values = np.random.default_rng(7).normal(size=13)
    values[4] = 15.0
    normal = {"a": values, "b": np.zeros(13)}
    none = {"a": NONE, "b": NONE}
    asked = {"rule": "quantile", "false_positive_rate": 0.05}
    found = fit(normal, none, trusted=("a",), **asked).calibration
    limit = found.thresholds["a"].chosen
    assert 15.0 < limit < 25.0  # one further image in 14 lies above the largest
    around = {"a": limit + np.array([-1e-6, 1e-6]), "b": np.zeros(2)}
    assert decide(found.anomaly(around), DECISION).tolist() == [False, True]


@pytest.mark.parametrize("rule", ["best_f1", "youden"])
def test_useless_or_few_abnormal_images_never_flag_every_normal_one(rule):
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(50, 2))
    for abnormal in (rng.normal(size=(50, 2)), normal - 9.0, normal[:1] * 0 - 5.0):
        found, columns, _ = _fit(normal, abnormal, rule=rule)
        assert np.mean(decide(found.anomaly(columns), DECISION)) < 1
        assert np.ptp(found.calibrated(columns)) > 0
        for name, values in columns.items():
            assert np.mean(values > found.thresholds[name].chosen) < 1
    # Terms that say nothing, of which some fits learn nothing and others next to nothing.
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found, columns, _ = _fit(rng.normal(size=(60, 2)), rng.normal(size=(8, 2)), rule=rule)
        assert np.mean(decide(found.anomaly(columns), DECISION)) < 1
    # The best F1 itself is still told.
    found, *_ = _fit(normal, normal - 9.0, rule=rule)
    assert found.thresholds["t0"].best_f1 < normal[:, 0].min()


def test_anomaly_is_one_half_at_the_threshold_and_rises_with_the_score():
    found, *_ = _fit(*_logistic_data())
    chosen = found.thresholds[CALIBRATED].chosen
    around = np.array([np.nextafter(chosen, -np.inf), chosen, np.nextafter(chosen, np.inf)])
    assert found.to_anomaly(around)[1] == 0.5
    assert (found.to_anomaly(around) > 0.5).tolist() == [False, False, True]
    # By hand: one, nine and ninety-nine times the scale above the threshold, and three below.
    steps = np.array([1.0, 9.0, 99.0, -3.0])
    wanted = [0.75, 0.95, 0.995, 0.125]
    np.testing.assert_allclose(found.to_anomaly(chosen + steps * found.scale), wanted, rtol=1e-9)
    values = np.concatenate([[-1e300, -1e9], np.linspace(-60, 60, 997), [1e9, 1e300]])
    columns = dict.fromkeys(("t0", "t1", "t2"), values)
    with np.errstate(over="raise", invalid="raise"):
        p = found.anomaly(columns)
    assert p.min() >= 0
    assert p.max() <= 1
    assert (np.diff(p) >= 0).all()
    assert (np.diff(p[1:-1]) > 0).all()
    strong = found.to_anomaly(chosen + np.arange(10.0, 101.0, 10.0) * found.scale)
    assert len(np.unique(strong.round(4))) == 10
    np.testing.assert_array_equal(decide(found.anomaly(columns), 0.25), p > 0.25)
    np.testing.assert_array_equal(
        decide(found.anomaly(columns), DECISION), found.calibrated(columns) > chosen
    )


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.0])
def test_the_scale_of_anomaly_never_vanishes(spread):
    """Normal images that all but agree: those at the median are not at anomaly 0."""
    normal = 5.0 + spread * np.random.default_rng(3).normal(size=(30, 2))
    found, columns, _ = _fit(normal, np.array([[9.0, 9.0], [10.0, 11.0]]))
    chosen, middle = found.thresholds[CALIBRATED].chosen, np.median(found.calibrated(columns))
    assert found.scale >= 0.099 * abs(chosen - middle)
    assert 0.04 < np.median(found.anomaly(columns)) < 0.5


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
    few = FEWEST_NORMALS - 1
    with pytest.raises(
        CalibrationError, match=rf"{few} normal .*config\.data\.validation_fraction"
    ):
        _fit(np.ones((few, 2)))
    with pytest.raises(CalibrationError, match="not finite"):
        _fit(np.array([[1.0, np.nan], [2.0, 3.0], [2.0, 4.0], [3.0, 1.0]]))


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
        json.dumps(values | {"scale": 0.0}).encode(),
        json.dumps(values | {"std": [0.0, *values["std"][1:]]}).encode(),
    ]
    for content in (None, *broken):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(
            CalibrationError, match=r"calibration\.json .*evaluate --workdir"
        ) as error:
            Calibration.load(path)
        assert "\n" not in str(error.value)


def test_a_calibration_without_the_scale_of_anomaly_asks_for_an_evaluation(tmp_path):
    values = asdict(_fit(*_logistic_data())[0])
    del values["scale"]
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(values))
    with pytest.raises(CalibrationError, match=r"scale is missing.*evaluate --workdir"):
        Calibration.load(path)
