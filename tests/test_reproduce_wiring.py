"""Which figure of which cell stands in which column, and which images a competitor is given.

Every cell gets figures of its own for every score and metric, so that no two entries of a table are
alike: a column that shows another one's figure is found.
"""

import dataclasses
import zlib
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from jax_noisy_anogan.baselines import SEMI_SUPERVISED, SUBSPACE, alocc
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.reproduction import (
    deep_sad_sweeps,
    figure1,
    figure3,
    figure4,
    figure5,
    figure6,
    mnist_table,
    objective_table,
    runs,
    table1,
    table2,
)
from jax_noisy_anogan.reproduction.cells import Bench, identity


@pytest.fixture
def bench(tmp_path):
    return Bench(
        out=tmp_path / "out",
        roots={"caltech256": "/none"},
        size="quick",
        options={"digits": [3, 8], "seeds": [0, 1]},
    )


def _fill(bench, cells, values):
    """Keep `values(cell)` as if it had been computed."""
    for cell in {cell.name: cell for cell in cells}.values():
        assert bench.compute(dataclasses.replace(cell, compute=lambda c=cell: values(c)))


def _figure(cell, metric, score):
    """A number that only this entry has."""
    return zlib.crc32(f"{cell}/{metric}/{score}".encode()) / 2**32


def _distinct(cell):
    names = (*runs.SCORES, *table2.COLUMNS, *deep_sad_sweeps.COMPETITORS)
    return {
        **{
            m: {name: _figure(cell.name, m, name) for name in names}
            for m in ("auroc", "f1", "validation_auroc")
        },
        "protocol": "Caltech-256, held out: normal 251.airplanes; split seed 0",
        "counts": {"test": 8, "test_abnormal": 3},
        "alocc": [len(cell.name), "held" in cell.name],
    }


def _over(cells, metric, score):
    """As a table shows a mean and deviation over cells."""
    values = [_figure(cell, metric, score) for cell in cells]
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


# --- Tables ---------------------------------------------------------------------------------------

TABLE_2 = {
    "CoP": ("competitors", "CoP"),
    "REAPER": ("competitors", "REAPER"),
    "LRR": ("competitors", "LRR"),
    "DPCP": ("competitors", "DPCP"),
    "R-graph": ("competitors", "R-graph"),
    "ALOCC": ("competitors", "ALOCC"),
    "AnoGAN": ("0", "score"),
    "Noisy-AnoGAN": ("1", "score"),
    "Outlier Pursuit": ("competitors", "Outlier Pursuit"),
    "l1-thresholding": ("competitors", "l1-thresholding"),
    "ALOCC D(x)": ("competitors", "ALOCC D(x)"),
    "Noisy-AnoGAN, calibrated": ("1", "calibrated"),
}


def test_every_entry_of_table_2_is_that_of_its_column(bench):
    _fill(bench, table2.cells(bench), _distinct)
    (table,) = table2.results(bench)
    assert tuple(table.columns[4:-1]) == table2.COLUMNS == tuple(TABLE_2)
    shown = {
        tuple(row[:4]): dict(zip(table.columns[4:-1], row[4:-1], strict=True)) for row in table.rows
    }
    for protocol, word in (("transductive", "trans"), ("held out", "held")):
        for count in (1, 3, 5):
            for metric in ("F1", "AUROC"):
                here = shown[count, protocol, metric, "here"]
                features = shown[count, protocol, metric, "here, D's features"]
                for column, (cell, score) in TABLE_2.items():
                    names = [f"caltech-{count}-{word}-{repeat}-{cell}" for repeat in (0, 1)]
                    assert here[column] == _over(names, metric.lower(), score)
                    on_features = [n.replace("competitors", "features") for n in names]
                    expected = _over(on_features, metric.lower(), score)
                    assert features[column] == (expected if column in SUBSPACE else None)


def test_table_2_says_how_far_alocc_trained_and_what_was_tested(bench):
    assert "no training done yet" in table2.results(bench)[0].markdown()
    _fill(bench, table2.cells(bench), _distinct)
    text = table2.results(bench)[0].markdown()
    # The stand-ins' numbers: the length of the cell's name, and ended by the rule if held out.
    short, long = len("caltech-1-held-0-competitors"), len("caltech-1-trans-0-competitors")
    assert f"{short} to {long} updates, ended by its own rule in 6 of 12 trainings" in text
    assert "5 normal and 3 clutter images tested; normal 251.airplanes" in text


def test_the_runs_of_table_2_have_the_settings_of_their_columns(bench):
    for count in (1, 5):
        for protocol, held_out in (("transductive", False), ("held out", True)):
            for method, gamma in ((runs.ANOGAN, 1.0), (runs.NOISY, 0.1)):
                config = table2._run(bench, count, protocol, 1, method).config
                data = config.data
                chosen = data.caltech256
                assert (chosen.categories, chosen.held_out, chosen.repeat) == (count, held_out, 1)
                assert config.loss.gamma == gamma
            cells = table2._cells(bench, count, protocol, 1)
            kinds = {cell.name.rsplit("-", 1)[1]: cell.settings for cell in cells}
            assert set(kinds) == {"0", "1", "competitors", "features"}
            assert [kinds[k]["loss"]["gamma"] for k in "01"] == [1.0, 0.1]
            assert kinds["competitors"]["data"] == kinds["0"]["data"] == kinds["1"]["data"]
            assert kinds["features"]["run"] == str(kinds["0"])


def test_another_feature_file_makes_other_cells_and_a_missing_one_is_named(bench, tmp_path):
    file = tmp_path / "features.npz"
    with_file = dataclasses.replace(bench, features=str(file))
    with pytest.raises(DataError, match=r"--features .*features.npz: no such feature file"):
        table2.cells(with_file)
    settings = []
    for dimensions in (2, 3):
        np.savez(file, features=np.ones((4, dimensions)))
        settings.append(table2._competitors(with_file, 1, "held out", 0).settings)
    assert settings[0] != settings[1]


def test_every_entry_of_the_mnist_table_is_that_of_its_column(bench):
    bench = dataclasses.replace(bench, size="full")  # with the third method and the supervised
    _fill(bench, mnist_table.cells(bench), _distinct)
    (table,) = mnist_table.results(bench)
    rows = {tuple(row[:2]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    methods = {"AnoGAN (gamma = 1)": 0, "Noisy-AnoGAN": 1, "Noisy-AnoGAN, Eq. 18": 2}
    assert len(rows) == 3 * len(methods)
    for method, number in methods.items():
        cells = {d: [f"mnist-{d}-{number}-{seed}" for seed in (0, 1)] for d in (3, 8)}
        for score in runs.SCORES:
            for digit in (3, 8):
                assert rows[digit, method][score] == _over(cells[digit], "auroc", score)
            means = [_figure(cell, "auroc", score) for d in (3, 8) for cell in cells[d]]
            assert rows["mean", method][score] == pytest.approx(np.mean(means))
        for name in ("Deep SAD", "Supervised CNN"):
            beside = {d: [f"mnist-{d}-{seed}-competitors" for seed in (0, 1)] for d in (3, 8)}
            for digit in (3, 8):
                assert rows[digit, method][name] == _over(beside[digit], "auroc", name)
            means = [_figure(cell, "auroc", name) for d in (3, 8) for cell in beside[d]]
            assert rows["mean", method][name] == pytest.approx(np.mean(means))
        run = mnist_table.run(bench, 8, 1, method)
        assert run.cell.name == f"mnist-8-{number}-1"
        data, loss = run.config.data, run.config.loss
        assert (data.digit, data.split_seed, run.config.train.seed) == (8, 1, 1)
        assert (loss.gamma, loss.objective) == (
            (1.0, loss.objective),
            (0.1, "equation_15"),
            (0.1, "equation_18"),
        )[number]
    # Printed by Ruff et al. 2018 for the digits 3 and 8.
    assert [rows[d, methods_row]["AnoGAN (quoted)"] for d in (3, 8) for methods_row in methods] == [
        0.887
    ] * 3 + [0.849] * 3
    assert rows["mean", runs.NOISY]["Deep SVDD (quoted)"] == pytest.approx((0.919 + 0.939) / 2)


def test_the_supervised_methods_have_the_splits_and_labels_of_the_mnist_runs(bench):
    assert not [cell for cell in mnist_table.cells(bench) if "competitors" in cell.name]
    night = dataclasses.replace(bench, size="night", options={})
    cells = {cell.name: cell.settings for cell in mnist_table.cells(night)}
    assert len(cells) == 10 * 3 * 3
    for digit in range(10):
        for seed in range(3):
            theirs = cells[f"mnist-{digit}-{seed}-competitors"]
            assert theirs["data"] == cells[f"mnist-{digit}-1-{seed}"]["data"]
            assert (theirs["data"]["digit"], theirs["data"]["split_seed"]) == (digit, seed)
            assert theirs["data"]["known_abnormal_fraction"] == 0.1
    text = mnist_table.results(night)[0].markdown()
    assert "Supervised CNN: the same in both rows of a digit" in text


PAIRS = [(digit, seed) for digit in (3, 8) for seed in (0, 1)]


def test_objectives_are_compared_on_validation_images_with_r1_as_strong_in_both(bench):
    _fill(bench, objective_table.cells(bench), _distinct)
    (table,) = objective_table.results(bench)
    rows = {tuple(row[:2]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    methods = {"Noisy-AnoGAN": 1, "Noisy-AnoGAN, Eq. 18": 2}
    assert len(rows) == 3 * len(methods) + 1
    for score in runs.SCORES:
        fifteen, eighteen = (
            np.array([_figure(f"mnist-{d}-{n}-{s}", "validation_auroc", score) for d, s in PAIRS])
            for n in (1, 2)
        )
        test = stats.ttest_rel(eighteen, fifteen)
        low, high = test.confidence_interval()
        shown = rows["difference", "Eq. 18 minus Eq. 15"][score]
        middle = np.mean(eighteen - fifteen)
        assert shown.startswith(f"{middle:+.3f} [{low:+.3f}, {high:+.3f}], p = ")
    for method, number in methods.items():
        cells = {d: [f"mnist-{d}-{number}-{seed}" for seed in (0, 1)] for d in (3, 8)}
        for score in runs.SCORES:
            for digit in (3, 8):
                expected = _over(cells[digit], "validation_auroc", score)
                assert rows[digit, method][score] == expected
            means = [_figure(cell, "validation_auroc", score) for d in (3, 8) for cell in cells[d]]
            assert rows["mean", method][score] == pytest.approx(np.mean(means))
        loss = mnist_table.run(bench, 3, 0, method).config.loss
        of_real = loss.gamma if loss.objective == "equation_15" else 1.0
        penalty_weight = 1.0 if loss.penalty_weight is None else loss.penalty_weight
        assert loss.gamma * penalty_weight == pytest.approx(of_real)


SWEEPS = {
    "Deep SAD": ("competitors", "Deep SAD"),
    "Supervised CNN": ("competitors", "Supervised CNN"),
    "AnoGAN: L'": ("0", "score"),
    "AnoGAN: calibrated": ("0", "calibrated"),
    "Noisy-AnoGAN: L'": ("1", "score"),
    "Noisy-AnoGAN: discriminator": ("1", "discriminator"),
    "Noisy-AnoGAN: calibrated": ("1", "calibrated"),
}
SHARES = (0.0, 0.01, 0.05, 0.1, 0.2)


def test_every_entry_of_the_sweeps_is_that_of_its_column(bench):
    _fill(bench, deep_sad_sweeps.cells(bench), _distinct)
    for table, sweep in zip(deep_sad_sweeps.results(bench), ("ratio", "pollution"), strict=True):
        assert tuple(table.columns) == (
            sweep,
            *SWEEPS,
            "calibrated - Deep SAD",
            "Deep SAD (quoted)",
            "Supervised (quoted)",
        )
        for row, share in zip(table.rows, SHARES, strict=True):
            shown = dict(zip(table.columns, row, strict=True))
            assert shown[sweep] == share
            for column, (kind, score) in SWEEPS.items():
                ratio, pollution = (share, 0.0) if sweep == "ratio" else (0.05, share)
                cell = kind
                if pollution == 0 and kind == "0":
                    ratio = 0.0  # AnoGAN knows no labels: one training serves the whole sweep
                if ratio == 0 and kind == "1":
                    cell = "0"  # without labels Noisy-AnoGAN is AnoGAN
                names = [
                    f"sad-{digit}-{(digit + 1) % 10}-{seed}-{ratio:g}-{pollution:g}-{cell}"
                    for seed in (0, 1)
                    for digit in (3, 8)
                ]
                expected = _over(names, "auroc", score)
                missing = column == "Supervised CNN" and ratio == 0
                assert shown[column] == (None if missing else expected), (sweep, share, column)


def test_the_paired_test_is_of_the_same_splits_of_both_methods(bench):
    bench = dataclasses.replace(bench, options={"digits": [0, 1, 2], "seeds": [0, 1]})
    _fill(bench, deep_sad_sweeps.cells(bench), _distinct)
    _, pollution = deep_sad_sweeps.results(bench)
    names = [f"sad-{digit}-{digit + 1}-{seed}-0.05-0.1" for seed in (0, 1) for digit in (0, 1, 2)]
    ours, theirs = (
        np.array([_figure(f"{name}-{cell}", "auroc", score) for name in names])
        for cell, score in (("1", "calibrated"), ("competitors", "Deep SAD"))
    )
    half = stats.t.ppf(0.975, 5) * (ours - theirs).std(ddof=1) / 6**0.5
    middle, p = (ours - theirs).mean(), stats.wilcoxon(ours, theirs).pvalue
    shown = pollution.rows[3][pollution.columns.index("calibrated - Deep SAD")]
    assert shown == f"{middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}], p = {p:.2g}"


def test_one_split_is_too_few_for_a_paired_test(bench):
    bench = dataclasses.replace(bench, options={"digits": [0], "seeds": [0]})
    _fill(bench, deep_sad_sweeps.cells(bench), _distinct)
    for table in deep_sad_sweeps.results(bench):
        at = table.columns.index("calibrated - Deep SAD")
        assert [row[at] for row in table.rows] == [None] * 5


def test_at_night_polluted_anogan_is_that_of_the_first_seed(bench):
    night = dataclasses.replace(bench, size="night", options={})
    names = [cell.name for cell in deep_sad_sweeps.cells(night)]
    polluted = [n for n in names if n.endswith(("-0.2-0", "-0.01-0")) and n.startswith("sad")]
    assert len(polluted) == 2 * 6
    assert {name.split("-")[3] for name in polluted} == {"0"}
    _fill(night, deep_sad_sweeps.cells(night), _distinct)
    ratio, pollution = deep_sad_sweeps.results(night)
    cells = {seed: [f"sad-{d}-{d + 1}-{seed}" for d in range(6)] for seed in range(3)}
    everyone = [name for seed in range(3) for name in cells[seed]]
    shown = dict(zip(pollution.columns, pollution.rows[4], strict=True))
    first = [f"{name}-0.05-0.2-0" for name in cells[0]]
    assert shown["AnoGAN: L'"] == _over(first, "auroc", "score")
    noisy = [f"{name}-0.05-0.2-1" for name in everyone]
    assert shown["Noisy-AnoGAN: L'"] == _over(noisy, "auroc", "score")
    assert "AnoGAN on polluted images: only of seeds [0]" in pollution.notes
    shown = dict(zip(ratio.columns, ratio.rows[4], strict=True))
    assert shown["AnoGAN: L'"] == _over([f"{name}-0-0-0" for name in everyone], "auroc", "score")


def test_the_runs_of_the_sweeps_have_the_settings_of_their_columns(bench):
    pair, point = deep_sad_sweeps.Pair(3, 4, 1), deep_sad_sweeps.Point(0.1, 0.05)
    columns = deep_sad_sweeps._columns(bench, pair, point)
    for column, gamma in (("AnoGAN: L'", 1.0), ("Noisy-AnoGAN: L'", 0.1)):
        settings = columns[column][0].settings
        assert settings["loss"]["gamma"] == gamma
        assert settings["data"] == columns["Deep SAD"][0].settings["data"]
        assert settings["data"]["known_abnormal_ratio"] == 0.1
        assert settings["data"]["contamination"] == 0.05


def test_every_row_of_table_1_is_that_of_its_data_set(bench):
    def values(cell):
        number = zlib.crc32(cell.name.encode())
        return {
            "name": f"name of {cell.name}",
            "images": number,
            "classes": number + 1,
            "left_out": number + 2,
        }

    _fill(bench, table1.cells(bench), values)
    (table,) = table1.results(bench)
    # The paper's Table 1.
    printed = {
        "MNIST": ("mnist", 70_000, 10),
        "Caltech-256": ("caltech256", 30_607, 256),
        "IR-MNIST": ("ir_mnist", 6_051, 10),
    }
    assert [row[0] for row in table.rows] == list(printed)
    for (paper, images, classes, *here), cell in zip(table.rows, table1.cells(bench), strict=True):
        assert (images, classes) == printed[paper][1:]
        found = values(cell)
        assert here == [found[k] for k in ("name", "images", "classes", "left_out")]
        assert printed[paper][0] in cell.name


# --- Figures --------------------------------------------------------------------------------------


def test_figure_3_shows_every_row_under_its_column(bench):
    names = ("abnormal", "abnormal_std", "optimum", "ratio", "outside", "weakest")
    rows = [
        {
            "objective": objective,
            "gamma": gamma,
            **{name: _figure(objective, str(gamma), name) for name in names},
            "covered": 3 + number,
            "subtracted": (None, True, False)[number],
        }
        for objective in ("equation_15", "equation_18")
        for number, gamma in enumerate((1.0, 0.5, 0.1))
    ]
    _fill(bench, figure3.cells(bench), lambda cell: {"rows": rows})
    (table,) = figure3.results(bench)
    for row, shown in zip(rows, table.rows, strict=True):
        assert dict(zip(table.columns, shown, strict=True)) == {
            "objective": row["objective"],
            "gamma": f"{row['gamma']:g}",
            "abnormal mass": row["abnormal"],
            "deviation": row["abnormal_std"],
            "optimum p_g*": row["optimum"],
            "relative to gamma = 1": row["ratio"],
            "normal modes generated": f"{row['covered']} of 7",
            "weakest of them": row["weakest"],
            "outside all modes": row["outside"],
            "at most a tenth": {None: "", True: "yes", False: "no"}[row["subtracted"]],
        }


def test_figure_6_shows_every_score_of_every_mode(bench):
    cells = figure6.cells(bench)
    names = ["figure6-tiled-1", "figure6-tiled-0", "figure6-whole", "figure6-dense"]
    assert [cell.name for cell in cells] == names

    def values(cell):
        names = (*figure6._TILED_SCORES, *figure6._WHOLE_SCORES, *figure6._DENSE_SCORES)
        number = zlib.crc32(cell.name.encode())
        grey = figure6._packed(np.full((2, 224, 224), number % 251))
        return {
            "auroc": {name: _figure(cell.name, "auroc", name) for name in names},
            "cells": number,
            "abnormal_cells": number // 7,
            "pictures": {"input": grey, "reconstruction": grey, "difference": grey},
            "scores": {"calibrated": np.arange(2 * 121.0).reshape(2, 121).tolist()},
            "threes": np.zeros((2, 11, 11), bool).tolist(),
        }

    _fill(bench, cells, values)
    (table,) = figure6.results(bench)
    expected = []
    for mode, method, name, scores in (
        ("tiled", "Noisy-AnoGAN", "figure6-tiled-1", figure6._TILED_SCORES),
        ("tiled", "AnoGAN (gamma = 1)", "figure6-tiled-0", figure6._TILED_SCORES),
        ("whole puzzle", "Noisy-AnoGAN", "figure6-whole", figure6._WHOLE_SCORES),
        ("whole puzzle", "Noisy-AnoGAN", "figure6-dense", figure6._DENSE_SCORES),
    ):
        number = zlib.crc32(name.encode())
        expected += [
            [mode, method, _figure(name, "auroc", score), number, number // 7] for score in scores
        ]
    assert [[*row[:2], *row[3:]] for row in table.rows] == expected
    named = [row[2] for row in table.rows[:4]]
    for text, word in zip(named, ("difference", "L'", "discriminator", "calibrated"), strict=True):
        assert word in text


class _Images:
    """A data set whose images are filled with their own index."""

    resolution = 32

    def __init__(self, labels):
        self.labels = np.asarray(labels)
        self.ids = tuple(f"id{k}" for k in range(len(labels)))

    def images(self, indices, resolution):
        assert resolution == self.resolution
        filled = np.asarray(indices, np.uint8)[:, None, None, None]
        return np.broadcast_to(filled, (len(filled), 32, 32, 1)).copy()


def _indices(images):
    """Of float images in [-1, 1], as `runs.float_images` makes them, or of rows in [0, 1]."""
    flat = np.asarray(images).reshape(len(images), -1)
    assert np.ptp(flat, axis=1).max() == 0
    low, high = (-1.0, 1.0) if images.ndim == 4 else (0.0, 1.0)
    return np.rint((flat[:, 0] - low) / (high - low) * 255).astype(int).tolist()


SPLIT = Split(
    protocol="a split: of this test; seed 0",
    ids=tuple(f"id{k}" for k in range(60)),
    is_abnormal=np.arange(60) >= 30,
    train_normal=np.array([1, 3, 5, 7, 9, 31]),
    train_known_abnormal=np.array([33, 35, 37]),
    validation_normal=np.array([11, 13]),
    validation_known_abnormal=np.array([39, 41]),
    test=np.array([58, 2, 56, 4, 54, 6, 52, 8, 50, 10, 48, 12]),
)
TRUTH = SPLIT.is_abnormal[SPLIT.test]


@pytest.fixture
def competition(monkeypatch):
    """Competitors that note what they are given, each with scores of its own."""
    dataset = _Images(np.zeros(60, int))
    monkeypatch.setattr(runs, "load_dataset", lambda data, resolution, progress: dataset)
    monkeypatch.setattr(runs, "make_split", lambda found, data: SPLIT)
    scores = {
        name: np.random.default_rng(number).normal(size=len(SPLIT.test))
        for number, name in enumerate((*SUBSPACE, *SEMI_SUPERVISED, "ALOCC", "ALOCC D(x)"))
    }
    given = {}

    def subspace(name):
        def score(rows, **settings):
            given.setdefault(name, []).append((rows, settings))
            return scores[name]

        return score

    def semi_supervised(name):
        def fit_score(unlabelled, known, test, *, seed, settings):
            given[name] = (*map(_indices, (unlabelled, known, test)), seed, settings)
            return scores[name]

        return fit_score

    def fit_alocc(train, test, *, seed, settings):
        given["ALOCC"] = (_indices(train), _indices(test), seed, settings)
        return alocc.AloccScores(scores["ALOCC"], scores["ALOCC D(x)"], 123, True)

    for name in list(SUBSPACE):
        monkeypatch.setitem(SUBSPACE, name, subspace(name))
    for name in list(SEMI_SUPERVISED):
        monkeypatch.setitem(SEMI_SUPERVISED, name, semi_supervised(name))
    monkeypatch.setattr(alocc, "fit_score", fit_alocc)
    return scores, given


def _best_f1(scores):
    return max(f1_score(TRUTH, scores >= level) for level in scores)


def _check_figures(values, names, scores):
    """AUROC and best F1 by scikit-learn, at no threshold that a method could have chosen."""
    for name in names:
        assert values["auroc"][name] == pytest.approx(roc_auc_score(TRUTH, scores[name]))
        assert values["f1"][name] == pytest.approx(_best_f1(scores[name]))
    assert len({values["auroc"][name] for name in names}) > len(names) // 2
    # The two F1 differ here, so that one for the other would be seen.
    assert any(
        _best_f1(scores[name]) > f1_score(TRUTH, scores[name] > 0.0) + 0.01 for name in names
    )
    assert values["counts"] == {
        "train": 6,
        "hidden": 1,
        "known": 3,
        "validation": 2,
        "validation_known": 2,
        "test": 12,
        "test_abnormal": 6,
    }


def test_table_2_s_competitors_train_on_normal_images_and_are_measured_on_the_test_part(
    bench, competition
):
    scores, given = competition
    values = table2._competitors(bench, 3, "held out", 7).compute()
    names = (*SUBSPACE, "ALOCC", "ALOCC D(x)")
    assert set(values["auroc"]) == set(names)
    _check_figures(values, names, scores)
    assert values["alocc"] == [123, True]
    train, test, seed, settings = given["ALOCC"]
    assert sorted(train) == [1, 3, 5, 7, 9, 11, 13, 31]  # unlabelled: with the hidden one
    assert test == SPLIT.test.tolist()
    assert (seed, settings) == (7, alocc.QUICK)
    for name in SUBSPACE:
        ((rows, found),) = given[name]
        assert _indices(rows) == SPLIT.test.tolist()
        assert found == table2._QUICK_SUBSPACE.get(name, {})


def test_d_s_features_are_those_of_plain_anogan_for_the_test_part(bench, competition, monkeypatch):
    scores, given = competition
    asked = []
    rows = np.random.default_rng(0).normal(size=(len(SPLIT.test), 5))

    def features(run, indices):
        asked.append((run.config.loss.gamma, list(indices)))
        return rows

    monkeypatch.setattr(runs, "discriminator_features", features)
    cell = table2._on_features(bench, 3, "held out", 1)
    values = cell.compute()
    assert asked == [(1.0, SPLIT.test.tolist())]
    assert set(values["auroc"]) == set(SUBSPACE)
    _check_figures(values, SUBSPACE, scores)
    for name in SUBSPACE:
        assert given[name][0][0] is rows
    assert [before.name for before in cell.after] == ["caltech-3-held-1-0"]


def test_features_of_a_file_are_those_of_the_test_images_whatever_their_order(
    bench, competition, tmp_path
):
    _, given = competition
    order = np.random.default_rng(0).permutation(60)
    file = tmp_path / "vgg.npz"
    np.savez(file, features=np.stack([order, -order], axis=1) * 1.0, ids=[f"id{k}" for k in order])
    with_file = dataclasses.replace(bench, features=str(file))
    table2._competitors(with_file, 1, "held out", 0).compute()
    ((rows, _),) = given["CoP"]
    np.testing.assert_array_equal(rows, np.stack([SPLIT.test, -SPLIT.test], axis=1))
    np.savez(file, features=np.ones((2, 2)), ids=["id58", "other"])
    with pytest.raises(DataError, match="lack id2 and 10 other tested images"):
        table2._competitors(with_file, 1, "held out", 0).compute()


def test_the_sweeps_competitors_know_the_labels_of_training_and_validation_only(bench, competition):
    scores, given = competition
    pair = deep_sad_sweeps.Pair(3, 4, 5)
    cell = deep_sad_sweeps._competitors(bench, pair, deep_sad_sweeps.Point(0.05, 0.1))
    _check_figures(cell.compute(), SEMI_SUPERVISED, scores)
    for name in SEMI_SUPERVISED:
        unlabelled, known, test, seed, settings = given[name]
        assert sorted(unlabelled) == [1, 3, 5, 7, 9, 11, 13, 31]
        assert sorted(known) == [33, 35, 37, 39, 41]
        assert test == SPLIT.test.tolist()
        assert (seed, settings) == (5, deep_sad_sweeps.competitor_settings(bench)[name])


def test_a_cell_of_competitors_depends_on_their_settings_and_data_alone(bench):
    quick = table2._competitors(bench, 1, "held out", 0).settings
    full = table2._competitors(dataclasses.replace(bench, size="full"), 1, "held out", 0).settings
    assert quick["ALOCC"] != full["ALOCC"]
    assert (
        quick["data"] == identity(table2._run(bench, 1, "held out", 0, runs.ANOGAN).config)["data"]
    )


# --- Figures, from searched images ----------------------------------------------------------------


class _Found(NamedTuple):
    """As much of an `ImageResult` as the figures use, of the image that is filled with `index`."""

    index: int

    @property
    def terms(self):
        return {name: _figure(self.index, "term", name) for name in runs.SCORES}

    @property
    def reconstruction(self):
        return np.full((32, 32, 1), 255 - self.index, np.uint8)

    @property
    def difference(self):
        return np.full((4, 4), self.index / 100.0)


@pytest.fixture
def searched(monkeypatch):
    """Runs whose digits are the indices modulo ten, with all that was looked at."""
    dataset = _Images(np.arange(60) % 10)
    trained = SimpleNamespace(dataset=dataset, split=SPLIT)
    looked = []

    def look(found, config, indices):
        assert found is trained
        looked.append((config.data.digit, config.loss.gamma, [int(k) for k in indices]))
        return [_Found(int(k)) for k in indices]

    monkeypatch.setattr(runs.Run, "trained", lambda run: trained)
    monkeypatch.setattr(runs, "look", look)
    return looked


def test_figure_1_shows_training_images_by_l_prime(bench, searched, monkeypatch):
    monkeypatch.setattr(figure1, "_SHOWN", 2)
    for cell in figure1.cells(bench):
        assert bench.compute(cell)
    train = SPLIT.train_normal.tolist()
    assert searched == [(3, 0.1, train), (8, 0.1, train)]
    scores = {k: _figure(k, "term", "score") for k in train}
    order = sorted(train, key=lambda k: -scores[k])
    (table,) = figure1.results(bench)
    expected = [
        [digit, kind, f"id{k}", pytest.approx(scores[k])]
        for digit in (3, 8)
        for kind, chosen in (("highest", order[:2]), ("usual", order[2:4]))
        for k in chosen
    ]
    assert table.rows == expected
    kept = bench.kept(figure1.cells(bench)[0])
    assert [np.unique(image).tolist() for image in kept["highest"]["images"]] == [
        [k] for k in order[:2]
    ]


USED = {1, 3, 5, 7, 9, 31, 33, 35, 37, 11, 13, 39, 41}


def test_figures_4_and_5_show_images_that_neither_trained_nor_validated(
    bench, searched, monkeypatch
):
    monkeypatch.setattr(figure4, "_SHOWN", 2)
    monkeypatch.setattr(figure5, "_IMAGES", 2)
    bench = dataclasses.replace(bench, options={})
    of_digit = {
        digit: [k for k in range(60) if k % 10 == digit and k not in USED][:2]
        for digit in (0, 1, 6)
    }
    for module in (figure4, figure5):
        (cell,) = module.cells(bench)
        assert bench.compute(cell)
    assert searched == [(0, 0.1, of_digit[digit]) for digit in (0, 1, 0, 6)]

    (table,) = figure4.results(bench)
    means = [np.mean([_figure(k, "term", "score") for k in of_digit[d]]) for d in (0, 1)]
    assert table.rows == [
        [0, "normal", len(of_digit[0]), pytest.approx(means[0])],
        [1, "abnormal", len(of_digit[1]), pytest.approx(means[1])],
    ]
    kept = bench.kept(figure4.cells(bench)[0])
    for kind, digit in (("normal", 0), ("abnormal", 1)):
        assert np.array(kept[kind]["input"])[:, 0, 0, 0].tolist() == of_digit[digit]
        generated = np.array(kept[kind]["generated"])[:, 0, 0, 0]
        assert generated.tolist() == [255 - k for k in of_digit[digit]]

    (table,) = figure5.results(bench)
    zeros, sixes = (np.array(of_digit[d]) / 100.0 for d in (0, 6))
    auroc = roc_auc_score(
        np.repeat([0, 1], [len(zeros), len(sixes)]), np.concatenate([zeros, sixes])
    )
    assert table.rows == [
        [0, len(zeros), pytest.approx(zeros.mean()), pytest.approx(zeros.max(), abs=0.01), None],
        [6, len(sixes), pytest.approx(sixes.mean()), pytest.approx(sixes.max(), abs=0.01), auroc],
    ]


def test_what_is_unseen_was_in_no_part_but_the_test():
    wanted = np.arange(60) % 2 == 1
    found = runs.unseen(SPLIT, wanted, 4)
    assert found == [15, 17, 19, 21]
