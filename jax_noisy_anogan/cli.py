"""What the commands share: flags, and errors as one line instead of a traceback."""

from __future__ import annotations

import ast
import errno
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
from absl import app, flags
from ml_collections import config_flags

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.runtime import messages, processes
from jax_noisy_anogan.scoring.calibration import ANOMALY

_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on


def define_config() -> flags.FlagHolder:
    """Define the required `--config FILE.py[:variant]` and one flag per field.

    As in `--config.loss.gamma=0.5`. A dict and None are written as in Python.
    """
    config_flags.register_flag_parser_for_type(dict, _DictParser())
    config_flags.register_flag_parser_for_type(float, _FloatParser())
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file or the name of one that comes with the package, with an optional variant: "
        "mnist5k:smoke. Every field is a flag too: --config.loss.gamma=0.5; docs/settings.md lists "
        "them",
    )
    flags.mark_flag_as_required("config")
    return holder


class _DictParser(flags.ArgumentParser):
    """Of `--config.growth.minibatch="{'8': 32}"`; ml_collections knows no dicts in dataclasses."""

    def parse(self, argument: Any) -> Any:
        try:
            return ast.literal_eval(argument) if isinstance(argument, str) else argument
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return argument


class _FloatParser(flags.FloatParser):
    """Knows None too, which some settings take; `validate` refuses it for all others."""

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else super().parse(argument)


def define_workdir(text: str) -> flags.FlagHolder[str]:
    """Define the required `--workdir DIR`."""
    return flags.DEFINE_string("workdir", None, text, required=True)


def define_changes() -> flags.FlagHolder[list[str]]:
    """Define `--set section.field=value`, for commands that take the config from the run."""
    return flags.DEFINE_multi_string(
        "set", [], "Change a setting of the run, as in --set search.steps=500; may be repeated"
    )


def define_processes() -> None:
    """Define the flags that start a command in several processes; `run` joins them."""
    flags.DEFINE_bool(
        "distributed", False, "One process of many; SLURM, a TPU pod or Kubernetes says which"
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, for all processes")
    flags.DEFINE_integer("process_count", None, "Number of processes that train together")
    flags.DEFINE_integer("process_index", None, "Number of this process, from 0")


def print_results(results: dict[str, Any]) -> None:
    """Print `metrics.json` as tables: image metrics, yardsticks, pixel metrics.

    Above them stands what a reader of the figures has to know first.
    """
    from rich.console import Console
    from rich.table import Column, Table

    # Here, because `score` needs none of it.
    from jax_noisy_anogan.evaluation.operating import HEADS, Found, OperatingPoint, SetBy
    from jax_noisy_anogan.evaluation.yardsticks import known_figures

    if not results:
        return
    table = Table(
        Column("score", no_wrap=True),
        "AUROC",
        "average precision",
        "best F1",
        "F1 at threshold",
        "threshold",
    )
    for name, values in results.items():
        if isinstance(values, dict) and "f1_at_threshold" in values:
            decides = name == ANOMALY
            table.add_row(
                f"{name} (decides)" if decides else name,
                *(f"{value:.4f}" for value in values.values()),
                style="bold" if decides else None,
            )
    console = Console()
    if results.get("notice"):
        console.print(results["notice"], style="bold", markup=False, soft_wrap=True)
    if table.rows:
        console.print(table)
    points = Table(HEADS[0], Column(HEADS[1], no_wrap=True), *HEADS[2:])
    for point in results["operating_points"]:
        points.add_row(*OperatingPoint(**point).cells())
    console.print(points)
    if results.get("yardsticks"):
        # Without masks there is no figure of pixels.
        heads = known_figures(results["yardsticks"])
        simple = Table("yardstick", *(head.replace("_", " ") for head in heads))
        for name, values in results["yardsticks"].items():
            known = (values[head] for head in heads)
            simple.add_row(name, *("–" if math.isnan(v) else f"{v:.4f}" for v in known))
        console.print(simple)
    if "pixel" in results:
        told = (("AUROC", results["pixel"]["auroc"]), ("AUPRO", results["pixel"]["aupro"]))
        texts = [f"{name} {value:.4f}" for name, value in told if not math.isnan(value)]
        console.print(f"pixels: {', '.join(texts) or 'no mask shows a defect'}")
    about = results["about"]
    console.print(
        f"{about['images']:,} held-out images, {about['abnormal']:,} of them abnormal; "
        f"{about['search_steps']} search steps in {about['search_seconds']} s on {about['device']}",
        soft_wrap=True,
        highlight=False,
    )
    if not table.rows:
        console.print("all test images are of one kind: no AUROC, no F1")
    low, high = about["false_positive_rate"]
    console.print(
        f"false alarms at anomaly 0.5: {low:.1%} to {high:.1%} of normal images (95 % interval, "
        "from the validation images, which set the threshold too)",
        soft_wrap=True,
        highlight=False,
    )
    if alone := about.get("threshold_set_by"):
        console.print(str(SetBy(**alone)), markup=False, soft_wrap=True, highlight=False)
    alarms = Found(**about["test_false_alarms"])
    if alarms.images:
        console.print(f"of the normal test images: {alarms.rate()}", highlight=False)


def print_next(folder: Path) -> None:
    """Print where the results of a run lie, and the next command."""
    print(f"results: {folder / 'report.html'}, {folder / 'metrics.json'}")
    print(f"next: jax-noisy-anogan score --workdir {folder} --images PHOTOGRAPHS --out SCORED")


def run(main: Callable[[list[str]], None]) -> None:
    """Parse the flags and run `main(positional arguments)`.

    A wrong flag, setting, file or checkpoint ends with one line on standard error and exit code 2,
    an interrupt with 130, SIGTERM (and in training SIGINT) with 75, a process whose peers are gone
    with 69, scoring without a usable image with 66; a command may have others for its own results.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    messages.keep_foreign_lines_out()
    # Whoever ignores it, as `nohup` does with another signal, has asked for that.
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    _keep_signals()
    app.run(lambda argv: _call(main, argv[1:]), flags_parser=_parse_flags)


def no_arguments(arguments: list[str]) -> None:
    """Refuse positional arguments, of which most commands take none.

    Raises:
      ConfigError: there is one.
    """
    if arguments:
        raise ConfigError(f"{arguments[0]!r} is not expected: settings are written --name=value")


def _with_config_file(argv: Sequence[str]) -> list[str]:
    """The arguments, the config's name replaced by its path."""
    found, before = [], ""
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config") and equals:
            argument = f"{name}={config_lib.find(value)}"
        elif before in ("--config", "-config"):
            argument = config_lib.find(argument)
        found.append(argument)
        before = argument
    return found


def _print_help(argv: Sequence[str]) -> NoReturn:
    """The command's own docstring and flags, one line each; those of libraries are left out."""
    print(sys.modules["__main__"].__doc__ or "")
    own = flags.FLAGS.flags_by_module_dict()
    shown = {
        flag.name: flag
        for module, defined in own.items()
        if module == argv[0] or module.startswith(("jax_noisy_anogan", "__main__"))
        for flag in defined
        if "." not in flag.name
    }
    print("flags:")
    for name, flag in sorted(shown.items()):
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        print(f"  --{name}: {' '.join((flag.help or '').split())}{default}")
    sys.exit(0)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    argv = _with_config_file(argv)
    if {"--help", "-help", "-h", "--helpshort"} & set(argv[1:]):
        _print_help(argv)
    try:
        arguments = flags.FLAGS(argv)
        # ml_collections keeps the error of an unreadable file until a field is read.
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS["config"].value, "data", None)
    except OSError:
        _fail(f"--config: {_config_path(argv)} is no file that can be read")
    # A config file is the user's own code: it may raise anything.
    except Exception as error:
        if os.environ.get("JAX_NOISY_ANOGAN_TRACEBACK"):
            raise
        _fail(_describe_flag_error(error, argv))
    return arguments


def _describe_flag_error(error: Exception, argv: Sequence[str]) -> str:
    text = str(error.args[0] if error.args else error).strip()
    if "Traceback" in text:
        # ml_collections wraps what the config file raised in its whole traceback.
        kind, _, message = text.splitlines()[-1].partition(": ")
        return message if kind.endswith("ConfigError") else f"{_config_path(argv)}: {message}"
    text = " ".join(text.split())
    named = [a.lstrip("-").split("=")[0] for a in argv if a.startswith("--config.")]
    unknown = [name for name in named if f"{name.rsplit('.', 1)[-1]}" in text]
    if isinstance(error, KeyError | AttributeError) and unknown:
        return f"--{unknown[0]} is not a setting: `python -m jax_noisy_anogan.config` lists them"
    if isinstance(error, flags.Error | KeyError | ValueError):
        if "--config must have a value" in text:
            return "--config is missing: name a config file, as in --config configs/mnist5k.py"
        if "as instance of" in text:
            section = named[0] if named else "config"
            return (
                f"--{section} is a section: set its settings one by one, as --config.data.digit=3"
            )
        return text
    return f"{_config_path(argv)}: {type(error).__name__}: {text}"


def _config_path(argv: Sequence[str]) -> str:
    """The file that `--config` names on the command line."""
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = flag.lstrip("-").partition("=")
        if name == "config" and flag.startswith("-"):
            return (value if equals else following).partition(":")[0]
    return "the config file"


def _call(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    try:
        _answer(main, arguments)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        # An orderly end waits for the other processes, and they wait for this one.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(UserError.exit_code)


def _answer(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    try:
        if "process_count" in flags.FLAGS:
            processes.start_processes(
                coordinator=flags.FLAGS.coordinator,
                process_count=flags.FLAGS.process_count,
                process_index=flags.FLAGS.process_index,
                detect=flags.FLAGS.distributed,
                on_lost=lambda error: _fail(str(error), error.exit_code),
            )
        main(arguments)
    except (UserError, FloatingPointError, OSError) as error:
        if os.environ.get("JAX_NOISY_ANOGAN_TRACEBACK"):
            raise
        code = error.exit_code if isinstance(error, UserError) else UserError.exit_code
        stopped = isinstance(error, UserError) and error.all_stop
        _fail(_describe(error), code, wait=stopped)
    except Exception as error:
        if os.environ.get("JAX_NOISY_ANOGAN_TRACEBACK"):
            raise
        missing = _missing_device()
        if missing:
            _fail(missing)
        if not isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
            raise
        full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if not full:
            raise
        first = (str(error).strip().splitlines() or ["no memory is left"])[0]
        _fail(
            f"out of memory ({first[:200]}): in training set config.growth.microbatch or "
            "rematerialize_from, in searches lower config.search.batch_size"
        )
    except _Terminated:
        _fail(
            "stopped: what is finished is kept, and the same command goes on with it",
            _STOPPED,
            at_once=True,
        )
    except KeyboardInterrupt:
        _fail("interrupted", 130, at_once=True)


class _Terminated(KeyboardInterrupt):
    """SIGTERM; a kind of interrupt, so that no `except Exception` swallows it."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _keep_signals() -> None:
    """What a signal raises inside a callback of the garbage collector is lost: send it again then.

    JAX has such a callback. Without this a stop that came at its moment would stop nothing.
    """
    before = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        number = _signal_of(lost.exc_value)
        if number is None:
            before(lost)
        while number is not None:
            try:
                # Not before the callback has returned.
                threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
                return
            except BaseException as error:
                # Of a busy machine it comes before this has returned, and would be lost here.
                number = _signal_of(error)
                if number is None:
                    raise

    sys.unraisablehook = hook


def _signal_of(error: BaseException | None) -> signal.Signals | None:
    """What raised it, if it is a stop."""
    if isinstance(error, _Terminated) or getattr(error, "exit_code", 0) == _STOPPED:
        return signal.SIGTERM
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else None


def _missing_device() -> str:
    """Why JAX finds no device to compute on; "" where it does."""
    try:
        jax.devices()
    # JAX's plugins raise errors of many kinds, some without a text.
    except Exception as error:
        reason = " ".join(str(error).partition("(set JAX_PLATFORMS")[0].split())
        return (
            f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}, and no such device can be "
            f"used{f' ({reason[:300]})' if reason else ''}: unset it to take what is there, or set "
            "it to cpu"
        )
    return ""


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" of {error.filename}" if error.filename else ""
        return f"the disk{where} is full: make room, then run the same command again to go on"
    return " ".join(str(error).split())


def _fail(message: str, code: int = 2, *, wait: bool = False, at_once: bool = False) -> NoReturn:
    print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr, flush=True)
    # The usual end would wait for the other processes, which wait for this one. After a signal, it
    # would take the interpreter away from a program that XLA still runs: a segmentation fault.
    if at_once or (jax.distributed.is_initialized() and not wait):
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
