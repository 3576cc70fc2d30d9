"""Image and pixel metrics against scikit-learn, brute force and closed forms."""

import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from jax_noisy_anogan.evaluation import metrics, pixel_metrics
from jax_noisy_anogan.scoring.thresholds import decide


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
    assert decide(np.array([0.5, 0.6]), 0.5).tolist() == [False, True]
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


def _bootstrap_interval(statistic, *arrays, strata, seed, resamples, level=0.95):
    """Percentile bootstrap of any statistic, one resample after another."""
    drawn = metrics.bootstrap_samples(strata, seed, resamples)
    values = [statistic(*(array[chosen] for array in arrays)) for chosen in drawn]
    return metrics.percentiles(values, level)


def test_image_intervals_are_those_of_the_plain_bootstrap():
    scores, is_abnormal = _scores()
    settings = {"seed": 3, "resamples": 30}
    found = metrics.image_intervals(scores, is_abnormal, threshold=0.5, **settings)
    plain = [
        lambda s, y: average_precision_score(y, s),
        lambda s, y: max(f1_score(y, s > t) for t in (-np.inf, *np.unique(s)[:-1])),
        lambda s, y: f1_score(y, s > 0.5),
    ]
    for interval, statistic in zip(found[1:], plain, strict=True):
        expected = _bootstrap_interval(
            statistic, scores, is_abnormal, strata=is_abnormal, **settings
        )
        np.testing.assert_allclose(interval, expected, rtol=1e-12)


@pytest.mark.parametrize(("auroc", "abnormal", "normal"), [(0.9, 12, 40), (0.5, 5, 5), (1.0, 4, 9)])
def test_the_interval_of_an_auroc_ends_where_hanley_and_mcneil_are_1_96_deviations_off(
    auroc, abnormal, normal
):
    found = metrics.auroc_interval(auroc, abnormal, normal)
    mean = (abnormal + normal) / 2
    assert found.low < auroc
    assert found.high > auroc or auroc == found.high == 1.0
    for theta in found:
        first, second = theta / (2 - theta), 2 * theta**2 / (1 + theta)
        variance = theta * (1 - theta) + (mean - 1) * (first + second - 2 * theta**2)
        deviation = np.sqrt(max(variance, 0.0) / (abnormal * normal))
        assert abs(theta - auroc) == pytest.approx(1.959964 * deviation, abs=1e-6)


@pytest.mark.parametrize(("abnormal", "normal", "truth"), [(5, 20, 0.95), (10, 30, 0.8)])
def test_nineteen_of_twenty_intervals_hold_the_auroc(abnormal, normal, truth):
    rng = np.random.default_rng(0)
    shift = np.sqrt(2) * special.ndtri(truth)
    held = []
    for _ in range(1000):
        one, other = rng.normal(shift, size=abnormal), rng.normal(size=normal)
        low, high = metrics.auroc_interval(np.mean(one[:, None] > other), abnormal, normal)
        held.append(low <= truth <= high)
    # The bootstrap's hold it 76 times of 100 in the first case.
    assert np.mean(held) > 0.93


def test_of_several_photographs_of_a_part_parts_are_drawn_and_counted():
    scores, is_abnormal = _scores()
    settings = {"threshold": 0.5, "seed": 3, "resamples": 30}
    alone = metrics.image_intervals(scores, is_abnormal, **settings)
    part = np.arange(len(scores))
    copies = np.repeat(part, 4)
    found = metrics.image_intervals(
        np.repeat(scores, 4), np.repeat(is_abnormal, 4), groups=copies, **settings
    )
    np.testing.assert_allclose(found, alone, rtol=1e-9)


def test_the_bootstrap_of_a_mean_has_the_textbook_width():
    sample = np.random.default_rng(0).normal(size=400)
    low, high = _bootstrap_interval(
        np.mean, sample, strata=np.zeros(len(sample)), seed=1, resamples=4000, level=0.9
    )
    half = 1.645 * sample.std() / 20
    assert (low, high) == pytest.approx(
        (sample.mean() - half, sample.mean() + half), abs=0.06 * half
    )


def test_strata_keep_their_sizes():
    strata = np.array([0, 1, 1, 2])
    sizes = []
    _bootstrap_interval(
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


def _pixel_auroc(maps, masks):
    return roc_auc_score(np.ravel(masks), np.ravel(maps))


def _aupro(maps, masks, max_fpr=0.3):
    """Per-region overlap by its definition, over all thresholds."""
    return _brute_aupro(np.asarray(maps), np.asarray(masks), max_fpr)


def _maps(seed=0, count=6, side=24, digits=1):
    """Noise that is higher inside random rectangles, with ties; the first two images are normal."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, side, side), bool)
    for number in range(2, count):
        for _ in range(rng.integers(1, 4)):
            top, left = rng.integers(0, side - 6, 2)
            masks[number, top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = True
    masks[2:, [0, 1], [side - 2, side - 1]] = True  # one region that hangs together at a corner
    maps = (rng.normal(size=masks.shape) + 1.5 * masks).round(digits)
    return maps, masks


def _regions(mask):
    """Connected regions by flood fill over the eight neighbours."""
    left, regions = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        region, stack = [], [left.pop()]
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
        regions.append(tuple(np.array(region).T))
    return regions


def _brute_aupro(maps, masks, max_fpr):
    regions = [(m, region) for m, mask in enumerate(masks) for region in _regions(mask)]
    fprs, pros = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        called = maps >= threshold
        fprs.append(called[~masks].mean())
        pros.append(np.mean([called[m][region].mean() for m, region in regions]))
    grid = np.union1d(fprs, [max_fpr])
    grid = grid[grid <= max_fpr]
    # Where several thresholds share a rate, the curve is vertical: both of its ends are needed.
    fprs, pros = np.array(fprs), np.array(pros)
    area = 0.0
    for low, high in pairwise(grid):
        start = pros[fprs <= low].max()
        after = np.flatnonzero(fprs > low)[0]
        slope = (pros[after] - start) / (fprs[after] - low) if fprs[after] > low else 0.0
        area += (high - low) * (2 * start + slope * (high - low)) / 2
    return area / max_fpr


@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_pixel_metrics_of_few_distinct_values_equal_their_definitions(max_fpr):
    maps, masks = _maps(digits=0)
    assert sum(len(_regions(mask)) for mask in masks) > 4
    found = _counted(maps, masks, max_fpr=max_fpr).result()
    assert found.aupro == pytest.approx(_brute_aupro(maps, masks, max_fpr), rel=1e-12)
    assert found.auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), rel=1e-12)


def _counted(maps, masks, **settings):
    counted = pixel_metrics.PixelMetrics(**settings)
    for map, mask in zip(maps, masks, strict=True):
        counted.update(map, mask, "block" if mask.any() else "")
    return counted


def test_a_perfect_map_has_area_one_and_a_reversed_one_zero():
    _, masks = _maps()
    for sign, area in ((1.0, 1.0), (-1.0, 0.0)):
        maps = sign * masks + np.linspace(0, 0.5, masks.size).reshape(masks.shape)
        found = _counted(maps, masks).result()
        assert found.auroc == pytest.approx(area, abs=found.auroc_error + 1e-9)
        assert found.aupro == pytest.approx(area, abs=found.aupro_error + 1e-9)


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.zeros((1, 20, 20), bool)
    mask[0, :10, :10] = mask[0, 15, 15] = True
    maps = np.zeros((1, 20, 20))
    maps[0, :10, :10] = 1.0
    # The large region is found at no false positive; the small one only with everything.
    assert _counted(maps, mask).result().aupro == pytest.approx(0.5 + 0.5 * 0.3 / 2)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_binned_pixel_metrics_are_within_their_stated_error(scale):
    maps, masks = _maps(digits=9)
    maps = maps * scale
    counted = pixel_metrics.PixelMetrics()
    for map, mask in zip(maps, masks, strict=True):
        counted.update(map, mask, "block" if mask.any() else "")
    found = counted.result()
    exact = _pixel_auroc(maps, masks), _aupro(maps, masks)
    assert 0 < abs(found.auroc - exact[0]) <= found.auroc_error < 1e-3
    assert 0 < abs(found.aupro - exact[1]) <= found.aupro_error < 1e-2
    assert found.images == 6
    assert found.regions == sum(len(_regions(mask)) for mask in masks)


def test_values_of_one_bin_are_ties_of_which_the_error_tells():
    counted = pixel_metrics.PixelMetrics()
    mask = np.array([[False, False], [True, True]])
    counted.update(np.float32([[1.0, 1.0001], [1.0002, 1.0003]]), mask, "spot")
    assert counted.result()[:4] == (0.5, 0.15, 0.5, 0.3 * 0.85 / 0.3)


def test_each_kind_of_defect_is_judged_with_the_normal_images():
    maps, masks = _maps(digits=0)
    names = ["", "", "dent", "scratch", "dent", "scratch"]
    counted = pixel_metrics.PixelMetrics()
    for map, mask, name in zip(maps, masks, names, strict=True):
        counted.update(map, mask, name)
    found = counted.by_class()
    assert list(found) == ["dent", "scratch"]
    chosen = [0, 1, 3, 5]
    assert found["scratch"].images == 4
    assert found["scratch"].auroc == pytest.approx(
        _pixel_auroc(maps[chosen], masks[chosen]), rel=1e-12
    )
    assert found["scratch"].aupro == pytest.approx(_aupro(maps[chosen], masks[chosen]), rel=1e-12)


def test_pixel_intervals_are_those_of_the_bootstrap_over_images():
    maps, masks = _maps(count=8, digits=0)
    counted = pixel_metrics.PixelMetrics()
    for map, mask in zip(maps, masks, strict=True):
        counted.update(map, mask, "block" if mask.any() else "")
    found = counted.intervals(seed=1, resamples=50)
    for interval, statistic in zip(found, (_pixel_auroc, _aupro), strict=True):
        expected = _bootstrap_interval(
            statistic, maps, masks, strata=masks.any(axis=(1, 2)), seed=1, resamples=50
        )
        np.testing.assert_allclose(interval, expected, rtol=1e-9)
        assert interval.low < interval.high


def test_pixel_intervals_do_not_depend_on_a_shift_of_all_maps():
    rng = np.random.default_rng(2)
    masks = np.zeros((12, 32, 32), bool)
    masks[6:, 8:12, 8:12] = True
    maps = rng.normal(size=masks.shape) + 2 * masks
    found = []
    for shift in (0.0, 40.0):
        counted = pixel_metrics.PixelMetrics()
        for map, mask in zip(maps + shift, masks, strict=True):
            counted.update(map, mask, "block" if mask.any() else "")
        found.append(counted.intervals(seed=1, resamples=100))
    np.testing.assert_allclose(found[0], found[1], atol=0.02)


def test_pixel_metrics_without_defects_are_nan():
    counted = pixel_metrics.PixelMetrics()
    assert np.isnan(counted.result()[:4]).all()
    counted.update(np.zeros((4, 4)), np.zeros((4, 4), bool))
    assert np.isnan(counted.result()[:4]).all()
    assert np.isnan(counted.intervals(seed=0, resamples=2)).all()
    assert counted.by_class() == {}


def test_wrong_maps_are_refused():
    counted = pixel_metrics.PixelMetrics()
    with pytest.raises(ValueError, match="equal sizes"):
        counted.update(np.zeros((4, 4)), np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match="1 pixels of the map are not finite"):
        counted.update(np.array([[np.inf, 0.0]]), np.zeros((1, 2), bool))
    with pytest.raises(ValueError, match="max_fpr"):
        pixel_metrics.PixelMetrics(max_fpr=0.0)


def test_memory_stays_flat_over_large_images():
    rng = np.random.default_rng(0)
    heat, mask = np.abs(rng.normal(size=(1024, 1024))), np.zeros((1024, 1024), bool)
    mask[100:110, 100:110] = True
    counted = pixel_metrics.PixelMetrics()
    tracemalloc.start()
    counted.update(heat, mask, "spot")
    first, _ = tracemalloc.get_traced_memory()
    for _ in range(4):
        counted.update(heat * rng.uniform(0.5, 2), mask, "spot")
    last, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last - first < 1e6
    assert first < 3e6
