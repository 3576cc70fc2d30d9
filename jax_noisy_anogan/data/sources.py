"""Which function lists which data set."""

from __future__ import annotations

from pathlib import Path

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import mnist
from jax_noisy_anogan.data.errors import DataError
from jax_noisy_anogan.data.source import Source


def open_source(config: DataConfig) -> Source:
    """List the examples of `config.name` without decoding them.

    Raises:
      DataError: the source's folder or files are missing or not as expected.
    """
    if config.name == "mnist5k":
        return mnist.mnist5k()
    if config.name == "mnist":
        return mnist.mnist(source_root(config))
    raise DataError(f"config.data.name {config.name!r} has no source")


def source_root(config: DataConfig) -> Path:
    """`config.root` as an absolute path.

    Raises:
      DataError: it is not set.
    """
    if not config.root:
        raise DataError(
            f"config.data.root is not set: {config.name} needs the folder of its source files"
        )
    return Path(config.root).expanduser().resolve()
