"""The whole path at tiny size: the command, its files, and going on where it stopped."""

import dataclasses
import json
import random
import signal
import sys
import time
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import Config, ConfigError, GrowthConfig
from jax_noisy_anogan.runtime import processes, workdir
from jax_noisy_anogan.runtime.files import checksum
from jax_noisy_anogan.training import loop
from jax_noisy_anogan.training import state as state_lib
from jax_noisy_anogan.training.choices import Choices
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import grow_state

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import fault_injection as faults

CONFIG = """
import dataclasses
import sys

sys.path.insert(0, {benchmarks!r})

from fault_injection import tiny_config
from jax_noisy_anogan.config import LossConfig, SearchConfig


def get_config():
    config = tiny_config({cache!r})
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, validation_fraction=0.05),
        growth=dataclasses.replace(
            config.growth, stable_images=32, fade_images=32, final_images=32
        ),
        loss=LossConfig(),
        search=SearchConfig(steps=2, batch_size=16),
    )
"""


@pytest.mark.parametrize(
    "content", ["[]", '{"data.foo": [1, 2]}', '{"data.channels": 1}', '{"data.channels": [0]}', "{"]
)
def test_damaged_choices_are_one_line(tmp_path, content):
    (tmp_path / "choices.json").write_text(content)
    with pytest.raises(ConfigError, match=r"choices\.json cannot be read: put it back"):
        workdir.read_choices(tmp_path)


def test_every_process_trains_as_long_as_the_first_one_chose(tmp_path, monkeypatch):
    """Each measures its own speed: lengths that differ would leave some waiting for the others."""

    def first_process(hold):
        workdir.write_choices(tmp_path, {"growth.final_images": (0, 300)})

    own = Choices({"growth.final_images": (0, 500)}, [])
    monkeypatch.setattr(experiment, "choose", lambda config: own)
    monkeypatch.setattr(processes, "on_first_process", first_process)
    with experiment.opened(Config(growth=GrowthConfig(final_images=0)), tmp_path) as config:
        assert config.growth.final_images == 300


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command that trains and evaluates, and its folder after it has run once."""
    root = tmp_path_factory.mktemp("command")
    file = root / "tiny.py"
    file.write_text(CONFIG.format(benchmarks=str(Path(faults.__file__).parent), cache=str(root)))

    def start(folder):
        given = ["-m", "jax_noisy_anogan.train", f"--config={file}", f"--workdir={folder}"]
        return commands.start(*given, JAX_NUM_CPU_DEVICES="1")

    folder = root / "run"
    done = start(folder).outcome()
    assert done.returncode == 0, done.stderr
    (root / "said.txt").write_text(done.stderr)
    return start, folder, done.stdout


def test_the_command_begins_with_five_lines_and_ends_with_the_next_command(command, capsys):
    _, folder, output = command
    said = (folder.parent / "said.txt").read_text().splitlines()
    first = next(k for k, line in enumerate(said) if line.startswith("device: "))
    opening = said[first : first + 5]
    heads = [line.partition(":")[0] for line in opening]
    assert heads == ["device", "images", "networks", "time, roughly", "folder"]
    counts = json.loads((folder / "split.json").read_text())["counts"]
    known = counts["train_known_abnormal"]
    assert f"training {counts['train_normal']:,} normal and {known:,} known abnormal;" in opening[1]
    assert "8 x 8 pixels; phases 4x4 stable, 8x8 fade, 8x8 stable" in opening[2]
    assert opening[4] == f"folder: {folder}"
    (decides,) = (line for line in output.splitlines() if "(decides)" in line)
    assert "anomaly" in decides
    assert output.splitlines()[-1].startswith(f"next: jax-noisy-anogan score --workdir {folder} ")
    # A second start says where it goes on.
    experiment.train(config_lib.load(folder), folder)
    assert f"folder: {folder}, goes on from step 12 of 12" in capsys.readouterr().err


def test_the_command_writes_every_result(command):
    _, folder, output = command
    tables = ["config.json", "split.json", "metrics.json", "scores.csv", "calibration.json"]
    pictures = ["reconstructions.png", "pixel_difference.png", "report.html"]
    for name in tables + pictures:
        assert (folder / name).stat().st_size > 0, name
    assert {path.name for path in (folder / "samples").iterdir()} == {
        "00_4x4_stable.png",
        "01_8x8_fade.png",
        "02_8x8_stable.png",
    }
    assert "metrics.json" in output


def test_the_curves_have_every_step_once(command):
    _, folder, _ = command
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["resolution"] for line in lines] == [4] * 4 + [8] * 8
    assert [line["alpha"] for line in lines] == [1.0] * 4 + [0.0, 0.25, 0.5, 0.75] + [1.0] * 4
    assert all(np.isfinite(line["d_loss"]) for line in lines)


def test_after_the_end_the_command_only_evaluates_again(command, monkeypatch):
    _, folder, _ = command
    before = json.loads((folder / "metrics.json").read_text())
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    curves = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.json").unlink()

    def trains(*_):
        raise AssertionError("a finished run trains")

    monkeypatch.setattr(loop._Run, "_run_phase", trains)
    again = experiment.run(config_lib.load(folder), folder, progress=False)
    assert json.loads((folder / "metrics.json").read_text()).keys() == before.keys()
    for name in ("score", "anomaly"):
        assert again[name]["auroc"] == pytest.approx(before[name]["auroc"])
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == checkpoints
    assert (folder / "metrics.jsonl").read_text() == curves


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    return faults.Bench(root, faults.tiny_config(str(root / "cache")))


def test_every_phase_is_compiled_once_and_a_stop_at_any_step_changes_no_bit(bench):
    bench.reference()
    last = make_schedule(bench.config.growth).total_steps
    folder = bench.root / "stops"
    rng = random.Random(0)
    stops = sorted(rng.sample(range(1, last), 5))

    class Stop(Exception):
        pass

    compiled = set()

    # Leave the loop after the update, without a checkpoint of that moment: what a kill does.
    def stopping(step):
        def alter(function):
            compiled.add(function)

            def run(state, *rest):
                result = function(state, *rest)
                if int(result[0].step) == step:
                    raise Stop
                return result

            return run

        return bench.altered_steps(alter)

    for step in stops:
        with stopping(step), pytest.raises(Stop):
            bench.train(folder)
    with stopping(None):
        bench.train(folder)
    assert bench.is_whole(folder)
    # By all of these trainings, each of which asked for them again.
    assert len(compiled) == 3
    assert [function._cache_size() for function in compiled] == [1, 1, 1]


def test_growing_keeps_every_parameter_of_the_lower_resolution(bench):
    config, phases = bench.config, make_schedule(bench.config.growth).phases
    folder = bench.root / "grown"
    growth = dataclasses.replace(config.growth, resolution=4)
    small = bench.train(folder, dataclasses.replace(config, growth=growth))
    networks = state_lib.networks_of(config, phases[1])
    grown = grow_state(small, networks, state_lib.make_optimizer(config.optim), jax.random.key(1))
    for before, after in zip(small.params[:2], grown.params[:2], strict=True):
        old, new = _by_path(before), _by_path(after)
        assert len(new) > len(old)
        for path, leaf in old.items():
            np.testing.assert_array_equal(new[path], leaf)


def test_only_the_last_phase_lets_the_rate_decay(bench):
    optim = dataclasses.replace(bench.config.optim, b1=0.0)
    phases = make_schedule(bench.config.growth).phases
    last = phases[-1]
    for images, first in ((2 * last.minibatch, last.steps - 2), (10**9, 0)):
        config = dataclasses.replace(
            bench.config, optim=dataclasses.replace(optim, decay_images=images)
        )
        for phase in phases:
            optimizer = state_lib.optimizer_of(config, phase)
            state, rates = optimizer.init(jnp.float32(0.0)), []
            for _ in range(phase.steps + 1):
                updates, state = optimizer.update(jnp.float32(1.0), state)
                rates.append(-float(updates))
            constant = first + 1 if phase == last else len(rates)
            np.testing.assert_allclose(rates[:constant], optim.learning_rate, rtol=1e-5)
            assert (np.diff(rates[constant - 1 :]) < 0).all()
            assert phase != last or rates[-1] == 0.0


def _by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
def test_the_command_killed_at_random_times_ends_with_the_same_bits(command, tmp_path):
    start, finished, _ = command
    folder, rng, kills = tmp_path / "run", random.Random(1), 0
    for _ in range(6):
        process = start(folder)
        begin = time.monotonic()
        while process.returncode is None and not (folder / "metrics.jsonl").exists():
            time.sleep(0.1)
            assert time.monotonic() - begin < 300
        time.sleep(rng.uniform(0.0, 8.0))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    done = start(folder).outcome()
    assert done.returncode == 0, done.stderr
    assert kills > 0
    ours, theirs = (
        state_lib.load_model(each, config_lib.load(each)) for each in (folder, finished)
    )
    assert checksum((ours.params, ours.statistics)) == checksum((theirs.params, theirs.statistics))
    config = config_lib.load(finished)
    assert faults.fingerprint(folder, config) == faults.fingerprint(finished, config)
