"""What a program says on standard error: its own lines and nobody else's.

Libraries write there in four ways: past Python (libtiff, XLA, gRPC), through `logging` (absl puts a
thread number before every line; orbax, grain and TFDS use it), through `warnings`, and by
tracebacks from threads of their own.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from pathlib import Path
from types import TracebackType

from absl import logging as absl_logging

PACKAGE = Path(__file__).parent.parent
# Says that JAX found no driver for an accelerator that is there: the user has to know.
_DEVICES = "jax._src.xla_bridge"


def keep_foreign_lines_out() -> None:
    """Leave standard error to this package, for the rest of the process; for programs only.

    Python's stream keeps the place where standard error was, descriptor 2 becomes the null device.
    A crash of native code is told by `faulthandler`. With `JAX_NOISY_ANOGAN_TRACEBACK` in the
    environment nothing is kept out.
    """
    if os.environ.get("JAX_NOISY_ANOGAN_TRACEBACK") or sys.stderr is None:
        return
    _take_descriptor()
    handler = absl_logging.get_absl_handler()
    handler.python_handler.setStream(sys.stderr)
    handler.setFormatter(_OneLine())
    handler.addFilter(_is_ours)
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    threading.excepthook = _thread_ended
    sys.unraisablehook = _not_raised


def _take_descriptor() -> None:
    sys.stderr.flush()
    try:
        own = os.dup(2)
    except OSError:
        return  # closed by whoever started the program
    old = sys.stderr
    sys.stderr = io.TextIOWrapper(
        io.FileIO(own, "w"),
        encoding=old.encoding,
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
    faulthandler.enable(sys.stderr, all_threads=False)


class _OneLine(logging.Formatter):
    """`train: warning: what happened`, as errors are told."""

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        return f"{Path(sys.argv[0]).stem}: {record.levelname.lower()}: {text}"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == _DEVICES or PACKAGE in Path(record.pathname).parents


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if _passed_us(ended.exc_traceback):
        threading.__excepthook__(ended)


def _not_raised(raised: sys.UnraisableHookArgs) -> None:
    if _passed_us(raised.exc_traceback):
        sys.__unraisablehook__(raised)


def _passed_us(raised_at: TracebackType | None) -> bool:
    """Whether code of this package was running: its faults are never hidden."""
    return any(PACKAGE in Path(f.filename).parents for f in traceback.extract_tb(raised_at))
