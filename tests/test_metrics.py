"""Image and pixel metrics against scikit-learn, brute force and closed forms."""

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from jax_noisy_anogan import metrics


def _scores(seed=0, count=60):
    """Rounded, so that ties occur within and between the classes."""
    rng = np.random.default_rng(seed)
    is_abnormal = rng.random(count) < 0.4
    return (rng.normal(size=count) + is_abnormal).round(1), is_abnormal


def test_metrics_equal_their_definitions():
    scores, is_abnormal = _scores()
    found = metrics.image_metrics(scores, is_abnormal, threshold=0.5)
    pairs = scores[is_abnormal][:, None] - scores[~is_abnormal][None, :]
    assert found.auroc == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    f1s, gains, recall_before = [], 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = scores >= threshold
        hits = np.sum(called & is_abnormal)
        f1s.append(2 * hits / (called.sum() + is_abnormal.sum()))
        recall = hits / is_abnormal.sum()
        gains += (recall - recall_before) * hits / called.sum()
        recall_before = recall
    assert found.f1_best == pytest.approx(max(f1s))
    assert found.average_precision == pytest.approx(gains)
    called = scores > 0.5
    expected = 2 * np.sum(called & is_abnormal) / (called.sum() + is_abnormal.sum())
    assert found.f1_at_threshold == pytest.approx(expected)
    assert found.threshold == 0.5


def test_a_score_at_the_threshold_is_normal():
    assert metrics.decide(np.array([0.5, 0.6]), 0.5).tolist() == [False, True]
    found = metrics.image_metrics(np.array([0.5, 0.6]), np.array([False, True]), threshold=0.5)
    assert found.f1_at_threshold == 1.0
    found = metrics.image_metrics(np.array([0.5, 0.6]), np.array([False, True]), threshold=0.6)
    assert found.f1_at_threshold == 0.0


@pytest.mark.parametrize("abnormal", [True, False])
def test_one_class_alone_gives_nan(abnormal):
    scores, is_abnormal = np.arange(3.0), np.full(3, abnormal)
    found = metrics.image_metrics(scores, is_abnormal, threshold=1.0)
    assert np.isnan(found[:4]).all()
    assert found.threshold == 1.0
    assert np.isnan(metrics.image_intervals(scores, is_abnormal, threshold=1.0, seed=0)).all()


def test_useless_scores_reach_the_floor_of_f1():
    is_abnormal = np.arange(10) < 5
    found = metrics.image_metrics(np.zeros(10), is_abnormal, threshold=0.0)
    assert found.f1_best == pytest.approx(2 / 3)
    assert found.auroc == 0.5


def test_wrong_scores_are_refused():
    with pytest.raises(ValueError, match="1 scores are not finite"):
        metrics.image_metrics(np.array([0, np.nan]), np.array([True, False]), threshold=0.0)
    with pytest.raises(ValueError, match="equally long"):
        metrics.image_metrics(np.zeros(3), np.array([True, False]), threshold=0.0)
    with pytest.raises(ValueError, match="of bool"):
        metrics.image_metrics(np.zeros(2), np.array([0, 1]), threshold=0.0)


def test_each_class_is_judged_against_all_normal_images():
    scores = np.array([0.0, 1.0, 2.0, 3.0, 0.5])
    is_abnormal = np.array([False, False, True, True, True])
    names = ["good", "scratch", "scratch", "dent", "dent"]
    found = metrics.image_metrics_by_class(scores, is_abnormal, names, threshold=1.5)
    assert list(found) == ["dent", "scratch"]
    assert found["scratch"].auroc == 1.0
    assert found["dent"].auroc == 0.75
    assert found["dent"].f1_at_threshold == pytest.approx(2 / 3)


def test_image_intervals_are_those_of_the_plain_bootstrap():
    scores, is_abnormal = _scores()
    settings = {"seed": 3, "resamples": 60}
    found = metrics.image_intervals(scores, is_abnormal, threshold=0.5, **settings)
    plain = [
        lambda s, y: roc_auc_score(y, s),
        lambda s, y: average_precision_score(y, s),
        lambda s, y: max(f1_score(y, s > t) for t in (-np.inf, *np.unique(s)[:-1])),
        lambda s, y: f1_score(y, s > 0.5),
    ]
    for interval, statistic in zip(found, plain, strict=True):
        expected = metrics.bootstrap_interval(
            statistic, scores, is_abnormal, strata=is_abnormal, **settings
        )
        np.testing.assert_allclose(interval, expected, rtol=1e-12)


def test_the_bootstrap_of_a_mean_has_the_textbook_width():
    sample = np.random.default_rng(0).normal(size=400)
    low, high = metrics.bootstrap_interval(np.mean, sample, seed=1, resamples=4000, level=0.9)
    half = 1.645 * sample.std() / 20
    assert (low, high) == pytest.approx(
        (sample.mean() - half, sample.mean() + half), abs=0.06 * half
    )


def test_strata_keep_their_sizes():
    strata = np.array([0, 1, 1, 2])
    sizes = []
    metrics.bootstrap_interval(
        lambda s: sizes.append(np.bincount(s).tolist()) or 0.0,
        strata,
        strata=strata,
        seed=0,
        resamples=20,
    )
    assert sizes == [[1, 2, 1]] * 20


def test_a_thousand_resamples_of_ten_thousand_images_are_quick():
    scores, is_abnormal = _scores(count=10_000)
    started = time.process_time()
    metrics.image_intervals(scores, is_abnormal, threshold=0.5, seed=0)
    assert time.process_time() - started < 10
