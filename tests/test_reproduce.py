"""Tables from cells: right figures, honest captions, and nothing computed twice or lost."""

import csv
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

import jax_noisy_anogan
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import reproduce
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.data.ir_mnist import cell_mask
from jax_noisy_anogan.reproduction import (
    deep_sad_sweeps,
    figure1,
    figure4,
    figure5,
    figure6,
    mnist_table,
    runner,
    runs,
    table1,
    table2,
)
from jax_noisy_anogan.reproduction import deep_sad_sweeps as deep_sad
from jax_noisy_anogan.reproduction import mnist_table as mnist
from jax_noisy_anogan.reproduction.cells import Bench, Cell, identity
from jax_noisy_anogan.reproduction.results import Result, mean_and_deviation
from jax_noisy_anogan.reproduction.runner import CellsFailedError, UnfinishedError
from jax_noisy_anogan.settings import replaced

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(tmp_path):
    return Bench(out=tmp_path / "out", size="quick")


def _fill(bench, cells, values):
    """Keep `values(cell)` as if it had been computed."""
    for cell in cells:
        assert bench.compute(dataclasses.replace(cell, compute=lambda c=cell: values(c)))


def _scores(auroc, f1=0.5):
    names = (*runs.SCORES, *table2.COLUMNS, *deep_sad_sweeps.COMPETITORS)
    return {
        "auroc": dict.fromkeys(names, auroc),
        "f1": dict.fromkeys(names, f1),
        "protocol": "Caltech-256, held out: normal 251.airplanes; split seed 0",
        "counts": {"test": 8, "test_abnormal": 4},
        "alocc": [200, True],
    }


def _column(result, name):
    return [row[result.columns.index(name)] for row in result.rows]


# --- Cells --------------------------------------------------------------------------------------


def test_a_finished_cell_is_never_computed_again(bench):
    computed = []
    cell = Cell("a", {"x": 1}, lambda: computed.append(1) or {"y": 2})
    assert bench.kept(cell) is None
    runner.compute(bench, [cell])
    runner.compute(bench, [cell])
    assert len(computed) == 1
    assert bench.kept(cell)["y"] == 2
    assert bench.kept(dataclasses.replace(cell, settings={"x": 2})) is None


def test_a_cell_that_another_process_computes_is_left_to_it(bench):
    found = []
    cell = Cell("a", 0, lambda: {})
    outer = Cell("a", 0, lambda: found.append(bench.compute(cell)) or {})
    assert bench.compute(outer)
    assert found == [False]
    assert bench.compute(cell)  # the lock is gone, the result is there


def test_cells_wait_for_those_that_they_use(bench):
    order = []
    first = Cell("first", 0, lambda: order.append("first") or {})
    second = Cell("second", 0, lambda: order.append("second") or {}, (first,))
    runner.compute(bench, [second, first])
    assert order == ["first", "second"]


def test_a_failing_cell_costs_only_those_that_use_it(bench, capsys):
    broken = Cell("broken", 0, lambda: {}["missing"])
    user = Cell("user", 0, lambda: {}, (broken,))
    fine = Cell("fine", 0, lambda: {})
    with pytest.raises(CellsFailedError, match=r"2 cells.*KeyError.*needs one that failed"):
        runner.compute(bench, [broken, user, fine])
    assert bench.kept(fine) is not None
    assert bench.kept(broken) is None
    capsys.readouterr()


def test_when_the_time_is_spent_finished_cells_are_kept(bench):
    cells = [Cell("short", 0, lambda: {}), Cell("long", 0, lambda: time.sleep(30) or {})]
    start = time.monotonic()
    with pytest.raises(UnfinishedError) as stopped, runner.within(0.3):
        runner.compute(bench, cells)
    assert time.monotonic() - start < 25
    assert stopped.value.exit_code == 75
    assert [bench.kept(cell) is not None for cell in cells] == [True, False]
    runner.compute(bench, [cells[0], dataclasses.replace(cells[1], compute=lambda: {})])
    assert bench.kept(cells[1]) is not None


_KILLED = """
import os, signal, sys
from pathlib import Path
from jax_noisy_anogan.reproduction.cells import Bench, Cell
bench = Bench(out=Path(sys.argv[1]))
bench.compute(Cell("first", 0, lambda: {"y": 1}))
bench.compute(Cell("second", 0, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


def test_a_kept_cell_says_how_it_was_made_and_its_table_tells(bench):
    bench = dataclasses.replace(bench, size="night", options={"digits": [3], "seeds": [0]})
    cells = mnist_table.cells(bench)
    _fill(bench, cells, lambda cell: _scores(0.75))
    kept = bench.kept(cells[0])
    made = kept["made"]
    assert (kept["cell"], made["size"]) == ("mnist-3-0-0", "night")
    (file,) = bench.folder.glob("mnist-3-0-0-*.json")
    assert file.stem.endswith(made["settings"])
    assert made["hardware"].endswith(f"jax {jax.__version__}")
    assert made["code"].startswith(jax_noisy_anogan.__version__)
    assert str(ROOT) not in file.read_text()
    text = mnist_table.results(bench)[0].markdown()
    assert f"computed by version {made['code']} on {made['hardware']}" in text
    assert "size night" in text


def test_cells_of_other_settings_are_told_and_not_used(bench, tmp_path):
    bench = dataclasses.replace(bench, cells=tmp_path / "kept", options={"digits": [3, 4]})
    cells = mnist_table.cells(bench)
    _fill(bench, [dataclasses.replace(c, settings="others") for c in cells[:3]], lambda cell: {})
    _fill(bench, cells[:1], lambda cell: {})
    assert bench.of_other_settings(cells) == 3
    assert bench.of_other_settings(cells[1:]) == 2  # not those that nobody asks for
    assert bench.missing(cells) == cells[1:]
    assert len(list((tmp_path / "kept").glob("*.json"))) == 4


def test_the_time_to_come_is_that_of_kept_cells_of_the_kind(bench, monkeypatch):
    monkeypatch.setitem(runner._SECONDS, "quick", {"sad competitors": 600.0, "sad": 1.0})
    names = ["sad-0-0-0", "sad-0-1-0", "sad-0-1-1"]
    names += ["sad-2-3-0.05", "sad-0-1-competitors", "figure6-tiled-1"]
    cells = [Cell(name, 0, lambda: {}) for name in names]
    _fill(bench, cells[:3], lambda cell: {"seconds": 0})
    # One was only measured again, one stood still for a night.
    for cell, seconds in zip(cells[:3], (5, 30_000, 4_500), strict=True):
        (file,) = bench.folder.glob(f"{cell.name}-*.json")
        file.write_text(json.dumps({"seconds": seconds}))
    # 4500 s and 600 s, by two at once.
    expected = "3 of 6 cells to compute, about 42 minutes in 2 processes, 1 of unknown length"
    assert runner.outlook(bench, cells, 2) == expected
    one = "1 of 1 cells to compute, about 10 minutes in 1 process"
    assert runner.outlook(bench, cells[4:5], 1) == one
    assert runner.outlook(bench, cells[5:], 2) == "1 of 1 cells to compute, 1 of unknown length"
    assert runner.outlook(bench, cells[:2], 2) == "0 of 2 cells to compute"


def test_the_time_to_come_is_told_after_every_cell(bench, capsys):
    cells = [Cell("a", 0, lambda: {}), Cell("b", 0, lambda: {})]
    runner.compute(bench, cells)
    runner.compute(bench, cells)  # nothing new: nothing to tell
    told = [line for line in capsys.readouterr().err.splitlines() if " to compute" in line]
    assert [line.split(",")[0] for line in told] == [f"{k} of 2 cells to compute" for k in (1, 0)]


def test_a_kill_loses_no_finished_cell_and_leaves_no_lock(bench):
    done = subprocess.run([sys.executable, "-c", _KILLED, str(bench.out)], cwd=ROOT, check=False)
    assert done.returncode == -9
    again = [Cell("first", 0, lambda: 1 / 0), Cell("second", 0, lambda: {"y": 2})]
    runner.compute(bench, again)
    assert [bench.kept(cell)["y"] for cell in again] == [1, 2]


def test_where_things_lie_makes_no_other_cell(bench):
    elsewhere = dataclasses.replace(bench, out=Path("/elsewhere"), cache_dir="/cache")
    settings = [mnist_table.run(b, 0, 0, runs.NOISY).cell.settings for b in (bench, elsewhere)]
    assert settings[0] == settings[1]
    full = dataclasses.replace(bench, size="full")
    assert identity(full.config("mnist5k")) != settings[0]


def test_every_cell_has_a_name_of_its_own_and_two_methods_differ(bench):
    bench = dataclasses.replace(bench, roots={"caltech256": "/none"})
    modules = list(reproduce.EXPERIMENTS.values())
    cells = [cell for module in modules for cell in module.cells(bench)]
    by_name = {}
    for cell in cells:
        assert by_name.setdefault(cell.name, cell.settings) == cell.settings
    assert len({str((c.name, c.settings)) for c in cells}) == len(by_name)
    plain, noisy = (mnist_table.run(bench, 0, 0, m).config.loss for m in (runs.ANOGAN, runs.NOISY))
    assert (plain.gamma, noisy.gamma) == (1.0, 0.1)


# --- Tables -------------------------------------------------------------------------------------


def test_mnist_means_and_deviations_are_those_of_its_cells(bench):
    bench = dataclasses.replace(bench, options={"digits": [3, 7], "seeds": [0, 1]})
    rng = np.random.default_rng(0)
    drawn = {cell.name: float(rng.uniform(0.5, 1.0)) for cell in mnist_table.cells(bench)}
    _fill(bench, mnist_table.cells(bench), lambda cell: _scores(drawn[cell.name]))
    (table,) = mnist_table.results(bench)
    noisy = np.array([[drawn[f"mnist-{d}-1-{s}"] for s in (0, 1)] for d in (3, 7)])
    rows = [row for row in table.rows if row[1] == runs.NOISY]
    for row, values in zip(rows[:2], noisy, strict=True):
        assert row[2] == f"{values.mean():.3f} ± {values.std():.3f}"
    assert rows[2][0] == "mean"
    assert rows[2][2] == pytest.approx(noisy.mean())
    assert _column(table, "AnoGAN (quoted)")[:2] == [0.887, 0.887]
    assert "unverified" in table.markdown()
    assert "shrunk by --quick" in table.markdown()


def test_gaps_are_told_and_shown(bench):
    bench = dataclasses.replace(bench, options={"digits": [3]})
    cells = mnist_table.cells(bench)
    _fill(bench, cells[:1], lambda cell: _scores(0.75))
    (table,) = mnist_table.results(bench)
    assert table.rows[0][2] == "0.750"
    assert table.rows[1][2] is None
    text = table.markdown()
    assert "1 of 2 cells are not computed yet" in text
    assert "| 3 | Noisy-AnoGAN | – |" in text


def test_full_tables_do_not_say_that_they_are_shrunk(bench):
    for size in ("quick", "full"):
        of_size = dataclasses.replace(bench, size=size, options={"digits": [3]})
        (table,) = mnist_table.results(of_size)
        assert ("shrunk" in table.markdown()) is (size == "quick")


def test_table_2_prints_the_numbers_of_the_literature_beside_its_own(bench):
    bench = dataclasses.replace(bench, roots={"caltech256": "/none"})
    (table,) = table2.results(bench)
    assert len([row for row in table.rows if row[3] == "here"]) == 3 * 2 * 2
    (paper,) = [row for row in table.rows if row[:4] == [3, "transductive", "F1", "paper"]]
    found = dict(zip(table.columns, paper, strict=True))
    assert (found["R-graph"], found["AnoGAN"], found["Noisy-AnoGAN"]) == (0.880, 0.915, 0.963)
    assert "VGG-16" in found["data"]
    (elsewhere,) = [r for r in table.rows if r[:4] == [1, "transductive", "AUROC", "elsewhere"]]
    found = dict(zip(table.columns, elsewhere, strict=True))
    assert (found["CoP"], found["Outlier Pursuit"], found["AnoGAN"]) == (0.905, 0.837, None)
    assert (found["ALOCC"], found["ALOCC D(x)"]) == (0.942, 0.932)


def test_the_sweeps_follow_deep_sad_s_definitions(bench):
    ratios, pollutions = (
        [p._asdict() for p in s] for s in (deep_sad_sweeps.RATIOS, deep_sad_sweeps.POLLUTIONS)
    )
    assert [p["ratio"] for p in ratios] == [0, 0.01, 0.05, 0.1, 0.2]
    assert {p["pollution"] for p in ratios} == {0}
    assert [p["pollution"] for p in pollutions] == [0, 0.01, 0.05, 0.1, 0.2]
    assert {p["ratio"] for p in pollutions} == {0.05}
    config = deep_sad_sweeps._config(
        bench, deep_sad_sweeps.Pair(8, 9, 0), deep_sad_sweeps.Point(0.05, 0.1)
    )
    assert (config.data.digit, config.data.known_abnormal_classes) == (8, ("9",))
    assert (config.data.known_abnormal_ratio, config.data.contamination) == (0.05, 0.1)
    assert config.data.known_abnormal_fraction == 0


def test_the_sweeps_use_one_training_of_anogan_for_all_ratios(bench):
    names = [cell.name for cell in deep_sad_sweeps.cells(bench)]
    plain = [n for n in names if n.startswith("sad-0-1-0") and n.endswith("-0")]
    noisy = [n for n in names if n.startswith("sad-0-1-0") and n.endswith("-1")]
    assert len(plain) == 5
    assert len(noisy) == 8
    _fill(bench, deep_sad_sweeps.cells(bench), lambda cell: _scores(0.9))
    ratio, pollution = deep_sad_sweeps.results(bench)
    assert _column(ratio, "ratio") == _column(pollution, "pollution") == [0, 0.01, 0.05, 0.1, 0.2]
    assert _column(ratio, "Supervised CNN")[0] is None  # without labels there is no classifier
    assert set(_column(ratio, "Noisy-AnoGAN: calibrated")) == {"0.900 ± 0.000"}
    assert _column(pollution, "Deep SAD (quoted)")[3] == 0.912


def test_a_result_is_written_three_times_over(tmp_path, capsys):
    result = Result("t", "Title", ["a", "b"], [["x", 0.12345], ["|y|", None]], ["a note"])
    result.write(tmp_path)
    printed = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() in printed
    assert "| x | 0.123 |" in printed
    assert r"| \|y\| | – |" in printed  # a bar within a cell does not end it
    with (tmp_path / "t.csv").open() as file:
        assert list(csv.reader(file)) == [["a", "b"], ["x", "0.12345"], ["|y|", ""]]
    assert np.asarray(Image.open(tmp_path / "t.png")).std() > 0


def test_means_and_deviations_in_words():
    assert mean_and_deviation([]) is None
    assert mean_and_deviation([0.5]) == "0.500"
    values = [0.1, 0.4, 0.9]
    assert mean_and_deviation(values) == f"{np.mean(values):.3f} ± {np.std(values):.3f}"


# --- Figure 6: between puzzles and cells ----------------------------------------------------------


def test_tiles_of_cells_come_back_to_their_places():
    rng = np.random.default_rng(0)
    puzzle = np.zeros((224, 224, 1), np.uint8)
    flat = rng.integers(1, 256, 121)
    puzzle[:220, :220, 0] = np.kron(flat.reshape(11, 11), np.ones((20, 20)))
    tiles = figure6._tiles(puzzle)
    assert [tile[16, 16, 0] for tile in tiles] == flat.tolist()
    assert all(tile.shape == (32, 32, 1) and not tile[:2].any() for tile in tiles)
    cells = [figure6._uncovered(tile[..., 0].astype(np.float32)) for tile in tiles]
    np.testing.assert_allclose(figure6._stitched(cells), puzzle[..., 0], atol=1e-3)


def test_the_pictures_of_a_cell_come_back_from_its_text():
    images = np.random.default_rng(0).uniform(-3.0, 258.0, (3, 20, 20))
    back = figure6._unpacked(figure6._packed(list(images)))
    np.testing.assert_array_equal(back, images.round().clip(0, 255))


def test_a_cell_that_lights_up_has_the_highest_mean_at_any_resolution():
    threes = np.zeros((11, 11), bool)
    threes[2, 9] = threes[10, 0] = True
    mask = cell_mask(threes).astype(np.float32)
    small = np.asarray(Image.fromarray(mask).resize((64, 64), Image.Resampling.BOX))
    for map in (mask, small):
        means = figure6._cell_means(map)
        assert means[threes].min() > 2 * means[~threes].max()


# --- The command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ([], "full"),
        (["--quick"], "quick"),
        (["--size=quick"], "quick"),
        (["--size=night"], "night"),
    ],
)
def test_the_size_and_the_folder_of_cells_are_as_given(tmp_path, monkeypatch, given, size):
    class Caught(Exception):
        pass

    def catch(names, bench):
        raise Caught(bench)

    monkeypatch.setattr(reproduce, "experiments", catch)
    with flagsaver.flagsaver():
        flags.FLAGS(["reproduce", f"--out={tmp_path}", f"--cells={tmp_path / 'kept'}", *given])
        with pytest.raises(Caught) as caught:
            reproduce.main(["mnist"])
    (bench,) = caught.value.args
    assert (bench.size, bench.folder) == (size, tmp_path / "kept")


def test_unknown_experiments_and_missing_data_are_named(bench, capsys):
    with pytest.raises(ConfigError, match=r"table9.*expected all or some of table1"):
        reproduce.experiments(["table9"], bench)
    with pytest.raises(ConfigError, match="caltech256_root"):
        reproduce.cells_of(reproduce.experiments(["table2"], bench), bench)
    chosen = reproduce.experiments(["all"], bench)
    names = {name for name, module in reproduce.EXPERIMENTS.items() if module not in chosen}
    assert names == {"table2", "objective"}
    assert "table2 is left out" in capsys.readouterr().err
    assert all(cell.name for cell in reproduce.cells_of(chosen, bench))


def _tiny(config):
    """Networks of 8 x 8 pixels and two updates."""
    replace = dataclasses.replace
    return replace(
        config,
        data=replace(config.data, max_validation_images=24, max_test_images=24),
        network=replace(config.network, fmap_base=32, fmap_max=8, latent_size=8),
        growth=replace(
            config.growth,
            start_resolution=8,
            resolution=8,
            final_images=64,
            minibatch_default=32,
        ),
        search=replace(config.search, steps=2, batch_size=40),
        train=replace(config.train, sample_images=4),
    )


@pytest.fixture
def tiny(bench, monkeypatch, tmp_path):
    # Config files take `variant` from there.
    monkeypatch.setattr(config_lib, "variant", lambda config, name: _tiny(config))
    monkeypatch.setattr(figure1, "_count", lambda bench: 20)
    return dataclasses.replace(bench, cache_dir=str(tmp_path / "cache"))


def _run(modules, bench):
    cells = reproduce.cells_of(modules, bench)
    runner.compute(bench, cells)
    reproduce.write(modules, bench)
    return cells


@pytest.mark.slow
def test_digits_and_their_figures_from_training_to_pictures(tiny, monkeypatch, capsys):
    monkeypatch.setattr(mnist_table, "_methods", lambda bench: [runs.NOISY])
    bench = dataclasses.replace(tiny, options={"digits": [0]})
    cells = _run([mnist, figure1, figure4, figure5], bench)
    assert all(bench.kept(cell) is not None for cell in cells)
    for name in ("mnist", "figure1", "figure4", "figure5"):
        for suffix in ("md", "csv", "png"):
            assert (bench.out / f"{name}.{suffix}").stat().st_size > 0
        assert "not computed" not in (bench.out / f"{name}.md").read_text()
    noisy = bench.kept(figure1.cells(bench)[0])
    # Of so few images the two rows overlap.
    highest, usual = (noisy[kind]["scores"] for kind in ("highest", "usual"))
    assert highest == sorted(highest, reverse=True)
    assert highest[0] >= usual[0]
    assert highest[-1] >= usual[-1]
    capsys.readouterr()


def _write_caltech(root):
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a", "b", "c", "d", "e", "clutter"]):
        number = 257 if name == "clutter" else number + 1
        folder = root / "256_ObjectCategories" / f"{number:03d}.{name}"
        folder.mkdir(parents=True)
        for image in range(500 if name == "clutter" else 80):
            values = rng.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(values).save(folder / f"{number:03d}_{image:04d}.png")


@pytest.mark.slow
@pytest.mark.parametrize("module", [table1, deep_sad, figure6, table2], ids=lambda m: m.__name__)
def test_every_other_experiment_from_data_to_tables(tiny, tmp_path, monkeypatch, capsys, module):
    _write_caltech(tmp_path / "caltech")
    monkeypatch.setattr(table2, "CATEGORIES", (1, 5))
    monkeypatch.setattr(deep_sad_sweeps, "POLLUTIONS", deep_sad_sweeps.POLLUTIONS[2:4])
    monkeypatch.setattr(deep_sad_sweeps, "RATIOS", deep_sad_sweeps.RATIOS[:2])
    monkeypatch.setattr(figure6, "_puzzles", lambda bench: 2)
    tiles, puzzles = figure6._tile_settings, figure6.puzzle_config
    # Tiles have 32 pixels whatever the settings, and are looked at as they are.
    whole = {"growth.start_resolution": 32, "growth.resolution": 32}
    monkeypatch.setattr(figure6, "_tile_settings", lambda b: replaced(_tiny(tiles(b)), whole))
    monkeypatch.setattr(figure6, "puzzle_config", lambda b: _tiny(puzzles(b)))
    bench = dataclasses.replace(
        tiny,
        roots={"caltech256": str(tmp_path / "caltech")},
        options={"digits": [8], "seeds": [0]},
    )
    cells = _run([module], bench)
    assert all(bench.kept(cell) is not None for cell in cells)
    for result in module.results(bench):
        assert "not computed" not in result.markdown()
        assert (bench.out / f"{result.name}.png").stat().st_size > 0
    capsys.readouterr()
