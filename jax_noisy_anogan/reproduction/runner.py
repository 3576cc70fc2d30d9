"""Computes cells: in several processes that share a folder, and within a time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from types import FrameType

from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.reproduction.cells import Bench, Cell
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.training.estimate import in_words

_PAUSE_S = 1.0
# Of one cell on one x86-64 core, by size and kind: for as long as no cell of the kind is kept. What
# they rest on is in docs/reproduction.md.
_SECONDS: dict[str, dict[str, float]] = {
    "night": {
        "table1 mnist": 20,
        "table1 caltech256": 60,
        "table1 ir_mnist": 60,
        "figure3": 80,
        "figure6 tiled": 480,
        "figure6 whole": 560,
        "figure6 dense": 700,
        "mnist": 340,
        "mnist competitors": 110,
        "figure1": 45,
        "figure4": 25,
        "figure5": 25,
        "sad": 180,
        "sad competitors": 55,
        "caltech trans": 290,
        "caltech held": 290,
        "caltech trans competitors": 200,
        "caltech held competitors": 200,
        "caltech trans features": 100,
        "caltech held features": 100,
    },
}


class UnfinishedError(UserError, RuntimeError):
    """The time is spent or the process was asked to stop; finished cells are kept."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h, as of training: the same command goes on


class CellsFailedError(UserError, RuntimeError):
    """Some cells raised; all others are kept."""

    exit_code = 1


def compute(bench: Bench, cells: Sequence[Cell], processes: int = 1) -> None:
    """Compute all cells that are missing, each in one process; wait for those of the others.

    A cell that raises is reported and left out, so that it costs no other one.

    Raises:
      CellsFailedError: names the cells that raised.
      UserError: training was asked to stop, or see `within`.
    """
    parallel.keep_compiled(str(bench.out / "compiled"))
    waiting, failed = list(cells), {}
    while waiting:
        busy: list[Cell] = []
        for cell in waiting:
            if any(before.name in failed for before in cell.after):
                failed[cell.name] = "needs one that failed"
            elif any(bench.kept(before) is None for before in cell.after):
                busy.append(cell)
            else:
                try:
                    new = bench.missing([cell])
                    if not bench.compute(cell):
                        busy.append(cell)
                    elif new:
                        print(outlook(bench, cells, processes), file=sys.stderr, flush=True)
                except Exception as error:
                    if getattr(error, "exit_code", 0) == UnfinishedError.exit_code:
                        raise
                    failed[cell.name] = f"{type(error).__name__}: {error}"
                    traceback.print_exc()
        if len(busy) == len(waiting):
            time.sleep(_PAUSE_S)
        waiting = busy
    if failed:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
        raise CellsFailedError(f"{len(failed)} cells failed, run it again to try them: {reasons}")


def outlook(bench: Bench, cells: Sequence[Cell], processes: int) -> str:
    """What is missing and how long it takes, by kept cells of the same kind or measured ones."""
    missing = bench.missing(cells)
    kept: dict[str, list[float]] = {}
    for cell in cells:
        if (values := bench.kept(cell)) is not None:
            kept.setdefault(_kind(cell), []).append(values["seconds"])
    known = dict(_SECONDS.get(bench.size, {}))
    # A cell that was stopped for a while, or only measured again, says nothing of the others.
    known |= {kind: statistics.median(seconds) for kind, seconds in kept.items()}
    counts = Counter(map(_kind, missing))
    unknown = sum(count for kind, count in counts.items() if kind not in known)
    left = sum(count * known.get(kind, 0.0) for kind, count in counts.items()) / processes
    text = [f"{len(missing)} of {len(cells)} cells to compute"]
    if left:
        text.append(f"about {in_words(left)} in {processes} process" + "es" * (processes > 1))
    return ", ".join([*text, *([f"{unknown} of unknown length"] if unknown else [])])


def _kind(cell: Cell) -> str:
    """Its name without numbers: cells of one kind take about as long as each other."""
    return " ".join(re.findall(r"[a-z][a-z_]*[0-9]*", cell.name))


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Stop the work inside after so many seconds, or on SIGTERM; 0 sets no limit.

    Training writes a checkpoint first; anything else is done again.

    Raises:
      UnfinishedError: it was stopped.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise UnfinishedError("stopped: finished cells are kept, the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    if seconds > 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def settle(processes: int, worker: int) -> None:
    """Before JAX starts: one core for each of several processes, so that they do not compete."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if processes > 1 and cores:
        os.sched_setaffinity(0, {cores[worker % len(cores)]})


def default_processes() -> int:
    """One per core where JAX computes on CPUs, at most two; one where it has an accelerator.

    Asked in a process of its own, because it starts JAX.
    """
    code = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return min(2, os.cpu_count() or 1) if answer.stdout.strip() == "cpu" else 1


@contextlib.contextmanager
def helpers(processes: int) -> Iterator[None]:
    """The same command in further processes, which compute cells too; ended when this one ends."""
    command = [sys.executable, "-m", "jax_noisy_anogan.reproduce", *sys.argv[1:]]
    started = [
        subprocess.Popen(
            [*command, f"--processes={processes}", f"--worker={k}"],
            stdout=sys.stderr,
            stderr=sys.stderr,
        )
        for k in range(1, processes)
    ]
    try:
        yield
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
