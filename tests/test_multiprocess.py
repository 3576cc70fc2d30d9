"""Two processes of two devices each, on the loopback interface, against one."""

import csv
import json
import shutil
import socket
import time

import commands
import numpy as np
import pytest
from PIL import Image

from jax_noisy_anogan.scoring.scorer import TERMS

# Sums over devices are ordered otherwise: rounding of float32, for values up to 4.
TOLERANCE = 2e-6

# Trains with the command's own start-up, lock and error lines; then scores its held-out images.
SCRIPT = '''
import dataclasses, sys, time
from pathlib import Path
import jax
import numpy as np
from jax_noisy_anogan import cli, experiment
from jax_noisy_anogan.config import *
from jax_noisy_anogan.evaluation.held_out import HeldOut
from jax_noisy_anogan.runtime import processes
from jax_noisy_anogan.scoring.scorer import Scorer
from jax_noisy_anogan.training import loop
from jax_noisy_anogan.training import state as state_lib

folder, action = Path(sys.argv[1]), sys.argv[2]
sys.argv = ["train", *sys.argv[3:]]
config = validate(Config(
    data=DataConfig(max_test_images=8, validation_fraction=0.02),
    network=NetworkConfig(fmap_base=32, fmap_max=8, latent_size=8, stddev_group=2),
    growth=GrowthConfig(start_resolution=4, resolution=4, final_images=64,
        minibatch_default=8),
    search=SearchConfig(steps=2, batch_size=8),
    # No average: what is compared has moved by all of every update.
    optim=OptimConfig(ema_half_life_images=0.0),
    train=TrainConfig(
        checkpoint_every_images=16, log_every_steps=1, sample_images=4,
        compilation_cache_dir=str(folder.parents[1] / "cache"),
    ),
))
# SGD: Adam would hide a gradient that is too large by the number of devices.
import optax
loop.optimizer_of = state_lib.optimizer_of = lambda config, phase: optax.sgd(0.05)

def report_updates(*args):
    step = compile_step(*args)
    def run(*values):
        print("step", flush=True)
        if action == "slow":
            time.sleep(0.5)
        return step(*values)
    return run
compile_step, loop.compile_step = loop.compile_step, report_updates

class Scores:
    """Raw terms of the test images instead of the whole evaluation, which draws and writes."""
    @staticmethod
    def evaluate(config, folder, dataset, split, model, *, progress):
        held_out = HeldOut(config, folder, dataset, split, Scorer(model, config))
        held_out.search(progress=False)
        processes.any_process(False)
        if jax.process_index():
            return {}
        found = [r.terms["score"] for r in held_out.results("test")]
        np.save(folder / "scores.npy", np.array(found))
        state = jax.tree.leaves(model.params)
        np.save(folder / "params.npy", np.concatenate([np.asarray(x).ravel() for x in state]))
        return {}

experiment.results_lib = Scores
if action == "crash":
    def crash(*_, **__):
        if jax.process_index():
            raise LookupError("a fault of the program")
        processes.any_process(False)
    experiment.run = crash
cli.define_processes()
cli.run(lambda _: experiment.run(config, folder, progress=False))
'''


# A command that says how many images it searches.
COUNTED = """
import runpy, sys
from jax_noisy_anogan.scoring.scorer import Scorer

def counted(self, images):
    def seen():
        for image in images:
            print("searched", flush=True)
            yield image
    return search(self, seen())

search, Scorer.search = Scorer.search, counted
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _start(folder, processes, devices, action="train"):
    script = folder.parent / "train.py"
    script.write_text(SCRIPT)
    return _start_command([str(script), str(folder), action], processes, devices)


def _start_command(command, processes, devices):
    port, started = _free_port(), []
    for index in range(processes):
        flags = (
            [
                f"--coordinator=127.0.0.1:{port}",
                f"--process_count={processes}",
                f"--process_index={index}",
            ]
            if processes > 1
            else []
        )
        started.append(
            commands.start(*command, *flags, JAX_NUM_CPU_DEVICES=str(devices), JAX_PLATFORMS="cpu")
        )
    return started


def _finish(processes, seconds=240):
    try:
        return [process.outcome(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def _after_steps(process, count):
    # Gloo writes lines of its own.
    while process.stdout().splitlines().count("step") < count and process.returncode is None:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    (done,) = _finish(_start(folder, 1, 4))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_train_score_stop_and_resume_as_one(alone, tmp_path):
    folder = tmp_path / "run"
    # Stopped by a signal to one of them only: both stop, at the same step, with one checkpoint.
    processes = _start(folder, 2, 2, "slow")
    _after_steps(processes[1], 3)
    processes[1].terminate()
    told = _finish(processes)
    assert [done.returncode for done in told] == [75, 75], told
    lines = [done.stderr.strip().splitlines()[-1] for done in told]
    assert lines[0] == lines[1]
    assert "run the same command again" in lines[0]
    stopped = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert 0 < stopped < 8
    assert f"stopped at step {stopped} of 8" in lines[0]

    told = _finish(_start(folder, 2, 2))
    assert [done.returncode for done in told] == [0, 0], told
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == list(range(1, 9))  # written by one process only, and without a gap

    params, expected = np.load(folder / "params.npy"), np.load(alone / "params.npy")
    np.testing.assert_allclose(params, expected, rtol=0, atol=TOLERANCE)
    scores, expected = np.load(folder / "scores.npy"), np.load(alone / "scores.npy")
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert (folder / "split.json").read_text() == (alone / "split.json").read_text()


def _rows(folder):
    with open(folder / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def _assert_same_scores(ours, theirs, names):
    for a, b in zip(ours, theirs, strict=True):
        assert [a[name] for name in names] == [b[name] for name in names]
        for name in (*TERMS, "local"):
            if b[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4, abs=1e-6)


def _command(processes, module, *arguments):
    """Exit codes, outputs and errors of a command in processes of two devices each."""
    command = ["-c", COUNTED, f"jax_noisy_anogan.{module}", *map(str, arguments)]
    codes, *said = zip(*_finish(_start_command(command, processes, 2)), strict=True)
    return list(codes), *said


def test_two_processes_evaluate_as_one(finished_run, tmp_path):
    one, two = finished_run[1], tmp_path / "two"
    without = shutil.ignore_patterns("evaluation", "*.csv", "*.html")
    shutil.copytree(one, two, ignore=without)
    codes, printed, errors = _command(2, "evaluate", f"--workdir={two}")
    assert codes == [0, 0], errors
    searched = [text.count("searched") for text in printed]
    assert min(searched) > 0
    assert sum(searched) == len(_rows(two))
    assert ["AUROC" in text for text in printed] == [True, False]
    kept = (sorted(p.name for p in (run / "evaluation").glob("*/*")) for run in (one, two))
    assert next(kept) == next(kept)
    _assert_same_scores(_rows(one), _rows(two), ["id", "part", "is_abnormal", "decision"])


def test_two_processes_score_as_one_and_refuse_as_one(finished_run, tmp_path):
    images, outs = tmp_path / "images", [tmp_path / "one", tmp_path / "two"]
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(images / f"{number}.png")
    (images / "bad.png").write_text("no image")
    command = ["score", f"--workdir={finished_run[1]}", f"--images={images}"]
    for count, out in enumerate(outs, 1):
        codes, printed, errors = _command(count, *command, f"--out={out}")
        assert codes == [0] * count, errors
        assert [text.count("searched") for text in printed] == [[9], [5, 4]][count - 1]
        assert ["10 files" in text for text in printed] == [True, False][:count]
    _assert_same_scores(*map(_rows, outs), ["path", "decision", "error"])

    # Rows of other settings get into the folder from neither process.
    before = {path: path.read_bytes() for path in out.glob("rows-*")}
    for number in range(2):
        shutil.copy(images / "0.png", images / f"new{number}.png")
    codes, _, errors = _command(2, *command, f"--out={out}", "--threshold=0.25")
    assert codes == [2, 69], errors
    assert "another run, search, threshold" in errors[0]
    assert "because the first process did" in errors[1].strip().splitlines()[-1]
    assert {path: path.read_bytes() for path in out.glob("rows-*")} == before


@pytest.mark.parametrize("action", ["slow", "crash"])
def test_when_one_process_dies_the_other_stops_with_a_line(tmp_path, action):
    folder = tmp_path / "run"
    processes = _start(folder, 2, 2, action)
    if action == "slow":
        _after_steps(processes[0], 2)
        processes[1].kill()
    told = _finish(processes)
    if action == "crash":
        assert told[1].returncode == 2
        assert "LookupError: a fault of the program" in told[1].stderr
    assert told[0].returncode == 69, told
    line = told[0].stderr.strip().splitlines()[-1]
    assert "another process of this run has ended" in line
    assert "same command" in line
