"""Commands without the seconds of their imports: a process that has them forks for each."""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax

_FORKS = multiprocessing.get_context("forkserver")
# Only modules that define no flags: a command that is run defines its own.
_IMPORTED = ("jax_noisy_anogan.experiment", "jax_noisy_anogan.scoring.files", "sklearn.pipeline")
_FORKS.set_forkserver_preload(["commands", *_IMPORTED])


class Outcome(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Started:
    """A running command, with what tests use of `subprocess.Popen`."""

    def __init__(self, arguments, folder, environment):
        self._streams = tempfile.TemporaryDirectory(prefix="streams-")
        self._said = [Path(self._streams.name, name) for name in ("out", "err")]
        for path in self._said:
            path.touch()
        given = (list(map(str, arguments)), str(folder), environment, self._said)
        self._process = _FORKS.Process(target=_run, args=given)
        self._process.start()
        self.kill, self.terminate = self._process.kill, self._process.terminate

    @property
    def returncode(self):
        return self._process.exitcode

    def stdout(self):
        """What it has printed so far."""
        return self._said[0].read_text()

    def wait(self, timeout=900):
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self._outcome()}")
        return self.returncode

    def outcome(self, timeout=900):
        self.wait(timeout)
        return self._outcome()

    def _outcome(self):
        return Outcome(self.returncode, *(path.read_text() for path in self._said))


def start(*arguments, cwd=".", **environment):
    """Begin what Python would do with `-m MODULE ...`, `-c CODE ...` or `FILE ...`."""
    return Started(arguments, cwd, environment)


def run(*arguments, cwd=".", **environment):
    """What became of them."""
    return start(*arguments, cwd=cwd, **environment).outcome()


def command(name, *arguments, cwd=".", **environment):
    """What became of a command of the package; of the program itself for an empty name."""
    module = f"jax_noisy_anogan{name and '.' + name}"
    return run("-m", module, *arguments, cwd=cwd, **environment)


def _run(arguments, folder, environment, streams):
    os.chdir(folder)
    for path, stream in zip(streams, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.update(environment)
    for name, value in environment.items():
        if name.startswith("JAX_"):  # was read at the import
            is_number = isinstance(jax.config.values[name.lower()], int)
            jax.config.update(name.lower(), int(value) if is_number else value)
    try:
        how, *rest = arguments
        if how == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(textwrap.dedent(rest[0]), {"__name__": "__main__"})
        elif how == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(how, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # as at the end of an interpreter, and not of a fork
