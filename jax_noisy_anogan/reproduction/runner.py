"""Computes cells: in several processes that share a folder, and within a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.reproduction.cells import Bench, Cell
from jax_noisy_anogan.runtime import parallel

_PAUSE_S = 1.0


class UnfinishedError(UserError, RuntimeError):
    """The time is spent or the process was asked to stop; finished cells are kept."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h, as of training: the same command goes on


class CellsFailedError(UserError, RuntimeError):
    """Some cells raised; all others are kept."""

    exit_code = 1


def compute(bench: Bench, cells: Sequence[Cell]) -> None:
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
                    if not bench.compute(cell):
                        busy.append(cell)
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
