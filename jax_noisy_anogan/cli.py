"""What the commands share: flags, and errors as one line instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from jax_noisy_anogan.checkpoint import CheckpointError
from jax_noisy_anogan.config import ConfigError
from jax_noisy_anogan.data import DataError

USER_ERRORS = (ConfigError, DataError, CheckpointError, FloatingPointError, OSError)


def define_config(default: str | None = None) -> flags.FlagHolder:
    """Define `--config FILE.py[:variant]` and one flag per field (`--config.loss.gamma=0.5`)."""
    return config_flags.DEFINE_config_file(
        "config", default, "Config file, with an optional variant: configs/mnist5k.py:smoke"
    )


def define_workdir(text: str) -> flags.FlagHolder[str]:
    """Define the required `--workdir DIR`."""
    return flags.DEFINE_string("workdir", None, text, required=True)


def run(main: Callable[[list[str]], None]) -> None:
    """Parse the flags and run `main(positional arguments)`.

    A wrong flag, setting, file or checkpoint ends with one line on standard error and exit code 2,
    an interrupt with exit code 130.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.WARNING)
    app.run(lambda argv: _call(main, argv[1:]), flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        _fail(_describe_flag_error(error, argv))
    except FileNotFoundError as error:
        _fail(f"--config: {error.filename} does not exist")


def _describe_flag_error(error: Exception, argv: Sequence[str]) -> str:
    text = " ".join(str(error.args[0] if error.args else error).split())
    named = [a.lstrip("-").split("=")[0] for a in argv if a.startswith("--config.")]
    unknown = [name for name in named if f"{name.rsplit('.', 1)[-1]}" in text]
    if isinstance(error, KeyError | AttributeError) and unknown:
        return f"{unknown[0]} is not a setting: {text}"
    return text


def _call(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    try:
        main(arguments)
    except USER_ERRORS as error:
        if os.environ.get("JAX_NOISY_ANOGAN_TRACEBACK"):
            raise
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr)
    sys.exit(2)
