"""Which function lists which data set."""

from __future__ import annotations

from pathlib import Path

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import ir_mnist, mnist
from jax_noisy_anogan.data.caltech256 import caltech256
from jax_noisy_anogan.data.examples import Source
from jax_noisy_anogan.data.image_folder import image_folder
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import user_path


def open_source(config: DataConfig, *, resolution: int) -> Source:
    """List the examples of `config.name` without decoding them.

    Args:
      resolution: at which synthetic surfaces are drawn.

    Raises:
      DataError: the source's folder or files are missing or not as expected.
    """
    if config.name == "mnist5k":
        return mnist.mnist5k()
    if config.name == "synthetic":
        # SciPy's filters are slow to import and no other source needs them.
        from jax_noisy_anogan.data.synthetic import synthetic

        return synthetic(config, resolution=resolution)
    if config.name == "ir_mnist" and config.ir_mnist.generated_images:
        return ir_mnist.generated(source_root(config) if config.root else None, config)
    if config.name == "mnist" and not config.root:
        cache = user_path(config.cache_dir, "config.data.cache_dir").resolve()
        return mnist.mnist(mnist.download(cache / "mnist-download"))
    root = source_root(config)
    if config.name == "mnist":
        return mnist.mnist(root)
    if config.name == "ir_mnist":
        return ir_mnist.published(root, config)
    if config.name == "caltech256":
        return caltech256(root, config)
    return image_folder(root, config)


def source_root(config: DataConfig) -> Path:
    """`config.root` as an absolute path.

    Raises:
      DataError: it is not set.
    """
    if not config.root:
        raise DataError(
            f"config.data.root is not set: {config.name} needs the folder of its source files"
        )
    return user_path(config.root, "config.data.root").resolve()
