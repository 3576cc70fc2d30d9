"""What the commands share: flags, and errors as one line instead of a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.runtime import processes
from jax_noisy_anogan.settings import ConfigError


def define_config(default: str | None = None) -> flags.FlagHolder:
    """Define `--config FILE.py[:variant]` and one flag per field (`--config.loss.gamma=0.5`).

    Without a default the flag must be given.
    """
    holder = config_flags.DEFINE_config_file(
        "config", default, "Config file, with an optional variant: configs/mnist5k.py:smoke"
    )
    if default is None:
        flags.mark_flag_as_required("config")
    return holder


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
    """Print the image metrics of `metrics.json` as a table, and pixel metrics where there are."""
    from rich.console import Console
    from rich.table import Table

    if not results:
        return
    table = Table("score", "AUROC", "average precision", "best F1", "F1 at threshold", "threshold")
    for name, values in results.items():
        if isinstance(values, dict) and "f1_at_threshold" in values:
            table.add_row(name, *(f"{value:.4f}" for value in values.values()))
    console = Console()
    console.print(table)
    if "pixel" in results:
        pixel = results["pixel"]
        console.print(f"pixels: AUROC {pixel['auroc']:.4f}, AUPRO {pixel['aupro']:.4f}")
    about = results["about"]
    console.print(
        f"{about['images']:,} held-out images, {about['abnormal']:,} of them abnormal; "
        f"{about['search_steps']} search steps in {about['search_seconds']} s on {about['device']}"
    )


def run(main: Callable[[list[str]], None]) -> None:
    """Parse the flags and run `main(positional arguments)`.

    A wrong flag, setting, file or checkpoint ends with one line on standard error and exit code 2,
        an interrupt with exit code 130, training that was stopped by a signal with exit code 75,
        a process whose peers are gone with exit code 69.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.WARNING)
    app.run(lambda argv: _call(main, argv[1:]), flags_parser=_parse_flags)


def no_arguments(arguments: list[str]) -> None:
    """Refuse positional arguments, of which most commands take none.

    Raises:
      ConfigError: there is one.
    """
    if arguments:
        raise ConfigError(f"{arguments[0]!r} is not expected: settings are written --name=value")


def _parse_flags(argv: Sequence[str]) -> list[str]:
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
        return f"--{unknown[0]} is not a setting: jax_noisy_anogan/config.py lists them"
    if isinstance(error, flags.Error | KeyError | ValueError):
        if "--config must have a value" in text:
            return "--config is missing: name a config file, as in --config configs/mnist5k.py"
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
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if not full or os.environ.get("JAX_NOISY_ANOGAN_TRACEBACK"):
            raise
        first = (str(error).strip().splitlines() or ["no memory is left"])[0]
        _fail(
            f"out of memory ({first[:200]}): in training set config.growth.microbatch or "
            "rematerialize_from, in searches lower config.search.batch_size"
        )
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" of {error.filename}" if error.filename else ""
        return f"the disk{where} is full: make room, then run the same command again to go on"
    return " ".join(str(error).split())


def _fail(message: str, code: int = 2, *, wait: bool = False) -> NoReturn:
    print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized() and not wait:
        # The usual end would wait for the other processes, which wait for this one.
        os._exit(code)
    sys.exit(code)
