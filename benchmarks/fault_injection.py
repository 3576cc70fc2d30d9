"""Faults put into training, and what was lost: `python benchmarks/fault_injection.py [--quick]`.

A tiny run is hit by every fault, started again with the same settings until it ends, and compared
with a run that nothing happened to: parameters, optimisers, averages, reference statistics, place
in the schedule and in the data must be the same bits. Prints a row per fault: how often it was
injected, how often the run survived it, how often something was lost. `--json FILE` also writes the
rows. Full disks need the right to mount a tmpfs (root); without it that row counts no injection.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from jax_noisy_anogan.config import (
    Config,
    DataConfig,
    GrowthConfig,
    LossConfig,
    NetworkConfig,
    OptimConfig,
    TrainConfig,
    validate,
)
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.runtime import files, parallel, workdir
from jax_noisy_anogan.runtime.checkpoint import Checkpoints, Position
from jax_noisy_anogan.training import loop
from jax_noisy_anogan.training import state as state_lib
from jax_noisy_anogan.training.growth import make_schedule

STEPS_PER_PHASE = 12
STEPS_PER_CHECKPOINT = 4
MINIBATCH = 8
TRAINING = "training has begun"
BALLAST = "ballast"


class Row(NamedTuple):
    """One line of the table."""

    fault: str
    injected: int
    survived: int

    @property
    def lost(self) -> int:
        return self.injected - self.survived


def tiny_config(cache: str = "", **train: Any) -> Config:
    """Three phases up to 8 x 8 pixels, on digits."""
    images = STEPS_PER_PHASE * MINIBATCH
    return validate(
        Config(
            data=DataConfig(max_test_images=16),
            network=NetworkConfig(fmap_base=32, fmap_max=8, latent_size=8),
            growth=GrowthConfig(
                resolution=8,
                stable_images=images,
                fade_images=images,
                final_images=images,
                minibatch_default=MINIBATCH,
            ),
            # Every start traces every phase again; the penalty doubles that and adds no state.
            loss=LossConfig(penalty="none"),
            optim=OptimConfig(decay_images=images // 2),
            train=TrainConfig(
                **{
                    "checkpoint_every_images": STEPS_PER_CHECKPOINT * MINIBATCH,
                    "log_every_steps": 1,
                    "sample_images": 4,
                    "compilation_cache_dir": cache,
                    **train,
                }
            ),
        )
    )


def fingerprint(folder: Path, config: Config) -> str:
    """Digest of everything in the newest checkpoint; changes with any bit."""
    phases, mesh = make_schedule(config.growth).phases, parallel.make_mesh(jax.devices()[:1])
    with Checkpoints(folder, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(
            lambda position: state_lib.state_template(config, phases[position.phase], mesh)
        )
    assert restored is not None
    digest = hashlib.sha256(json.dumps([restored.position, restored.data]).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored.state):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class Bench:
    """Runs in folders of their own, with one reference to compare with."""

    def __init__(self, root: Path, config: Config):
        self.root, self.config = root, config
        self.dataset = load_dataset(config.data, resolution=8, progress=False)
        self.split = make_split(self.dataset, config.data)
        self.mesh = parallel.make_mesh(jax.devices()[:1])
        parallel.keep_compiled(config.train.compilation_cache_dir)

    def train(self, folder: Path, config: Config | None = None) -> state_lib.TrainState:
        """Train on one device in this process."""
        return loop.train(
            self.config if config is None else config,
            folder,
            self.dataset,
            self.split,
            mesh=self.mesh,
            progress=False,
        )

    @contextlib.contextmanager
    def altered_steps(self, alter: Callable[[Callable], Callable]) -> Iterator[None]:
        """Train with updates that `alter` has wrapped."""
        as_it_is = loop.compile_step
        loop.compile_step = lambda *args: alter(as_it_is(*args))
        try:
            yield
        finally:
            loop.compile_step = as_it_is

    def reference(self) -> Path:
        """The folder of the run that nothing happens to."""
        folder = self.root / "reference"
        if not folder.exists():
            self.train(folder)
        return folder

    def is_whole(self, folder: Path) -> bool:
        """Whether the run has come to the same end as the reference."""
        return fingerprint(folder, self.config) == fingerprint(self.reference(), self.config)

    def start(self, folder: Path, moment: str = "") -> subprocess.Popen[str]:
        """Train in a process of its own, which kills itself at `moment`."""
        cache = self.config.train.compilation_cache_dir
        return subprocess.Popen(
            [sys.executable, __file__, "--worker", str(folder), cache, moment],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # On CPUs the last bits depend on how many devices share the threads.
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())},
        )


def worker(folder: Path, cache: str, moment: str) -> None:
    """Train until the end, or until the moment comes.

    Moments: `step:K` after update K is sent; `signal:K:N` the same, but signal N instead of a kill;
    `wait:K` the same, but wait for a line of input; `save:K:S` S seconds into the save of step K;
    `between:P` before phase P, with all checkpoints written; `growth:P` when its state has grown.
    `time:S` after S seconds of CPU time, wherever that is: reading, restoring, compiling, ending.
    `full:K` does not kill, but leaves no room on the disk for the save of step K.
    """
    kind, *numbers = moment.split(":")
    first = int(float(numbers[0])) if numbers else -1

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_in_time() -> None:
        end = time.process_time() + float(numbers[0])
        while time.process_time() < end:
            time.sleep(0.002)
        die()

    if kind == "time":
        threading.Thread(target=die_in_time, daemon=True).start()

    def counted(*args: Any) -> Callable[..., Any]:
        step = compile_step(*args)

        def run(state: Any, *rest: Any) -> Any:
            number = int(state.step) + 1
            result = step(state, *rest)
            if kind == "step" and number == first:
                die()
            if kind == "signal" and number == first:
                os.kill(os.getpid(), int(numbers[1]))
            if kind == "wait" and number == first:
                print(TRAINING, flush=True)
                sys.stdin.readline()
            return result

        return run

    def saving(self: Checkpoints, position: Position, *rest: Any) -> None:
        if kind == "save" and position.step == first:
            threading.Timer(float(numbers[1]), die).start()
        if kind == "full" and position.step == first:
            self.wait()
            with contextlib.suppress(OSError), open(folder.parent / BALLAST, "wb", 0) as file:
                while True:
                    file.write(bytes(4096))
        save(self, position, *rest)

    def entering(self: Any, phase: Any, now: Any) -> Any:
        changes = now.position.phase != phase.index and phase.index == first
        if changes and kind == "between":
            self.checkpoints.wait()
            die()
        grown = enter(self, phase, now)
        if changes and kind == "growth":
            die()
        return grown

    compile_step, loop.compile_step = loop.compile_step, counted
    save, Checkpoints.save = Checkpoints.save, saving
    enter, loop._Run._enter = loop._Run._enter, entering
    config = tiny_config(cache)
    with files.locked(folder):
        workdir.settle_config(folder, config)
        bench = Bench(folder.parent, config)
        bench.train(folder)


def kill_moments(rng: random.Random) -> list[str]:
    """Five moments in the order in which a run meets them."""
    steps, every = STEPS_PER_PHASE, STEPS_PER_CHECKPOINT

    def save() -> str:
        return f"save:{steps + every * rng.randint(1, 2)}:{rng.uniform(0.0, 0.1):.3f}"

    return [
        f"step:{rng.randint(1, steps - 1)}",
        f"{rng.choice(['growth', 'between'])}:1",
        save(),
        f"step:{rng.randint(2 * steps + 1, 3 * steps - 1)}",
        f"time:{rng.uniform(0.0, 3.0):.2f}",
    ]


def sigkill(bench: Bench, chains: Iterable[Sequence[str]]) -> list[Row]:
    """Kill a run again and again, each time further on, then let it end."""
    injected: dict[str, int] = {}
    survived: dict[str, int] = {}
    for number, chain in enumerate(chains):
        folder, hit = bench.root / f"kill{number}", []
        for moment in [*chain, ""]:
            with bench.start(folder, moment) as process:
                process.communicate()
            if process.returncode == -signal.SIGKILL:
                hit.append("SIGKILL: " + _names[moment.partition(":")[0]])
        whole = bench.is_whole(folder)
        for name in hit:
            injected[name] = injected.get(name, 0) + 1
            survived[name] = survived.get(name, 0) + whole
    return [Row(name, injected[name], survived[name]) for name in sorted(injected)]


_names = {
    "step": "after an update",
    "save": "during a save",
    "growth": "during growth",
    "between": "between stages",
    "time": "at any time",
}


def stop_signals(bench: Bench, signals: Sequence[signal.Signals], rng: random.Random) -> list[Row]:
    """Ask a run to stop: checkpoint, message, exit code 75."""
    rows = []
    for number in signals:
        folder = bench.root / f"signal{number}"
        step = rng.randint(1, 2 * STEPS_PER_PHASE)
        with bench.start(folder, f"signal:{step}:{int(number)}") as process:
            _, errors = process.communicate()
        told = process.returncode == 75 and "run the same command again" in errors
        before = fingerprint(folder, bench.config)
        bench.train(folder)
        stopped_early = before != fingerprint(folder, bench.config)
        whole = told and stopped_early and bench.is_whole(folder)
        rows.append(Row(f"{number.name}: checkpoint, message, exit code 75", 1, int(whole)))
    return rows


def damaged(bench: Bench, *, quick: bool) -> list[Row]:
    """Damage files of the newest checkpoint: the one before it is used, and the run ends whole."""

    def truncate(file: Path) -> None:
        os.truncate(file, _size(file) // 2)

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    rows = []
    newest = bench.reference() / "checkpoints" / str(make_schedule(bench.config.growth).total_steps)
    arrays = max((newest / "state" / "ocdbt.process_0" / "d").iterdir(), key=_size)
    files = [arrays, newest / "data" / "metadata", newest / "meta" / "metadata"]
    for name, damage in (
        ("truncated", truncate),
        ("emptied", lambda file: os.truncate(file, 0)),
        ("bit flipped", flip),
        ("file missing", Path.unlink),
    ):
        survived = 0
        chosen = files if name == "bit flipped" or not quick else files[:1]
        for file in chosen:
            folder = bench.root / f"damaged-{name}-{files.index(file)}"
            shutil.copytree(bench.reference(), folder)
            damage(folder / file.relative_to(bench.reference()))
            bench.train(folder)
            aside = list((folder / "damaged_checkpoints").glob("*"))
            survived += len(aside) == 1 and bench.is_whole(folder)
        rows.append(Row(f"newest checkpoint: {name}", len(chosen), survived))
    return rows


def _size(file: Path) -> int:
    return file.stat().st_size


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mount a file system of this size; False without the right to."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def disk_full(bench: Bench) -> Row:
    """No room for the next checkpoint: the one before survives, and making room is enough."""
    name = "disk full during a save"
    with small_disk(bench.root / "disk", "16m") as mounted:
        if not mounted:
            return Row(name, 0, 0)
        folder = bench.root / "disk" / "run"
        with bench.start(folder, f"full:{2 * STEPS_PER_CHECKPOINT}") as process:
            _, errors = process.communicate()
        told = process.returncode == 2 and "the disk is full" in errors and "make room" in errors
        (folder.parent / BALLAST).unlink()
        bench.train(folder)
        return Row(name, 1, int(told and bench.is_whole(folder)))


def second_training(bench: Bench) -> Row:
    """A second command in the same folder is refused, the first goes on."""
    folder = bench.root / "twice"
    with bench.start(folder, "wait:1") as first:
        assert first.stdout is not None
        first.stdout.readline()
        with bench.start(folder) as second:
            _, errors = second.communicate()
        first.communicate("go on\n")
    refused = second.returncode == 2 and "in use by another" in errors
    whole = first.returncode == 0 and bench.is_whole(folder)
    return Row("second training in the same folder", 1, int(refused and whole))


def poisoned(step: Callable[..., Any], at: int, *, where: str, times: Iterator[bool]) -> Any:
    """The update with something that is not finite in it at update number `at`.

    Args:
      where: "input" of the networks, "update" of the parameters.
      times: whether it comes, each time that the run is at this update.
    """

    def spoil(state: Any) -> Any:
        return state.replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))

    def run(state: Any, *rest: Any) -> Any:
        bad = int(state.step) + 1 == at and next(times)
        state, metrics = step(spoil(state) if bad and where == "input" else state, *rest)
        return (spoil(state) if bad and where == "update" else state), metrics

    return run


def not_finite(bench: Bench, rng: random.Random) -> list[Row]:
    """NaN: noticed, back to the last checkpoint, on with other random numbers; or given up."""
    rows = []
    last = STEPS_PER_PHASE
    growth = dataclasses.replace(bench.config.growth, resolution=4)
    config = dataclasses.replace(bench.config, growth=growth)
    for where in ("input", "update"):
        at = rng.randint(STEPS_PER_CHECKPOINT + 1, last - 1)
        folder = bench.root / f"nan-{where}"
        once = itertools.chain([True], itertools.repeat(False))
        alter = functools.partial(poisoned, at=at, where=where, times=once)
        with bench.altered_steps(alter):
            state = bench.train(folder, config)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        back = (at - 1) // STEPS_PER_CHECKPOINT * STEPS_PER_CHECKPOINT
        survived = (
            all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))
            and [line["step"] for line in lines] == list(range(1, last + 1))
            and all(line["rollbacks"] == int(line["step"] > back) for line in lines)
        )
        rows.append(Row(f"NaN in the {where}: one return, then to the end", 1, int(survived)))

    folder, message = bench.root / "nan-always", ""
    alter = functools.partial(poisoned, at=6, where="input", times=itertools.repeat(True))
    with bench.altered_steps(alter):
        try:
            bench.train(folder, config)
        except FloatingPointError as error:
            message = str(error)
    gave_up = "at step 6" in message and "gave up" in message
    # It gave up with the last good checkpoint: without the fault it goes on, to the whole end.
    bench.train(folder)
    rows.append(
        Row("NaN that stays: given up, step named", 1, int(gave_up and bench.is_whole(folder)))
    )
    return rows


def run(root: Path, *, quick: bool, seed: int = 0, cache: str = "") -> Iterator[Row]:
    """All faults; `quick` injects each a few times."""
    rng = random.Random(seed)
    bench = Bench(root, tiny_config(cache or str(root / "cache")))
    signals = [signal.SIGTERM] if quick else [signal.SIGTERM, signal.SIGINT]
    yield from sigkill(bench, [kill_moments(rng) for _ in range(1 if quick else 5)])
    yield from stop_signals(bench, signals, rng)
    yield from damaged(bench, quick=quick)
    yield disk_full(bench)
    yield second_training(bench)
    yield from not_finite(bench, rng)


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few injections of each fault")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the faults")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    start, rows = time.monotonic(), []
    print(f"{'fault':<50} {'injected':>8} {'survived':>8} {'lost':>5}")
    with tempfile.TemporaryDirectory() as root:
        for row in run(Path(root), quick=arguments.quick, seed=arguments.seed):
            print(f"{row.fault:<50} {row.injected:>8} {row.survived:>8} {row.lost:>5}", flush=True)
            rows.append(row)
    print(f"{time.monotonic() - start:.0f} s, {_cpu_seconds():.0f} s of CPU time")
    if arguments.json:
        values = [{**row._asdict(), "lost": row.lost} for row in rows]
        arguments.json.write_text(json.dumps(values, indent=2) + "\n")
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        from jax_noisy_anogan import cli

        folder, cache, moment = sys.argv[2:]
        sys.argv = sys.argv[:1]
        cli.run(lambda _: worker(Path(folder), cache, moment))
    else:
        sys.exit(main())
