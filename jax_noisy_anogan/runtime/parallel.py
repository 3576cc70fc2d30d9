"""Mapping over devices and processes: one mesh, one helper; and where compiled programs lie.

`data_parallel` is what `jax.pmap` has been since JAX 0.10 (a jit of shard_map), without the leading
device axis on replicated values; a test holds the two equal. Inside a mapped function gradients
must be averaged explicitly with `jax.lax.pmean(gradients, AXIS)`: `check_vma=False` is what makes
that right, with the default the same line returns gradients too large by the number of devices.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_noisy_anogan.config import ConfigError, DataConfig
from jax_noisy_anogan.runtime.files import user_path

AXIS = "data"
REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(AXIS)
_CACHE_BYTES = 2**30
OWN_CODE = {"xla_cpu_experimental_ynn_fusion_type": ""}


def keep_compiled(folder: str) -> None:
    """Keep compiled programs in `folder` between runs, small ones too; "" changes nothing.

    The user names it, never a run that is only read: a compiled program is code.
    """
    if folder:
        _use_cache(user_path(folder, "config.train.compilation_cache_dir"))


def keep_compiled_privately() -> Path | None:
    """Keep compiled programs in the user's cache folder, where nobody else can plant any.

    A compiled program is code. The folder is therefore the user's own and closed to others, and a
    run, which may come from somewhere else, cannot name it. Each kind of processor has one of its
    own: a program for another one may end the process. 1 GiB at most; the oldest go first.

    Returns:
      The folder; None where it cannot be had like this, or a folder is in use already.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return None
    try:
        folder = Path(DataConfig.cache_dir).expanduser() / f"compiled-{_processor()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except (OSError, RuntimeError):  # nowhere to write, no home
        return None
    others = stat.S_IRWXG | stat.S_IRWXO
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & others:
        logging.warning(
            "%s is not a folder that is yours alone: compiled programs are neither kept nor read; "
            "remove it",
            folder,
        )
        return None
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    _use_cache(folder)
    return folder


def _processor() -> str:
    """Short name of the instructions that this machine's processor knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        known = ""
    text = f"{platform.machine()} {platform.processor()} {known}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _use_cache(path: Path) -> None:
    if str(path) != jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # Whether there is a cache is settled at the first program that a process compiles.
        compilation_cache.reset_cache()


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis over all devices of all processes (or over `devices`)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def data_parallel(
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: Any,
    out_specs: Any,
    donate_argnums: tuple[int, ...] = (),
    *,
    own_code: bool = False,
) -> Callable[..., Any]:
    """Compile `function` to run once per device on its part of every `SHARDED` argument.

    Args:
      own_code: on CPUs, compile it with `own_code_options`.
    """
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    options = own_code_options(mesh.devices.flat[0].platform) if own_code else None
    return jax.jit(mapped, donate_argnums=donate_argnums, compiler_options=options)


@functools.cache
def own_code_options(platform: str) -> dict[str, str] | None:
    """Options of `jax.jit` that keep XLA for CPUs to its own code; None elsewhere.

    Otherwise it hands groups of operations to a library, YNNPACK. Images per second of one x86-64
    core without the library beside with it, jax 0.10.2 and 0.12.0.1, networks of 32 x 32: the
    search of 32 or 64 channels 1.19 to 1.21 and 1.13 to 1.17; training with 8 channels in the last
    layers 1.00 and 1.17, with 4 channels 0.98 and 1.46, but with 64 channels 0.83 and 0.89.
    """
    if platform != "cpu":
        return None
    try:
        jax.jit(jnp.negative, compiler_options=OWN_CODE).lower(np.float32(0.0)).compile()
    except jax.errors.JaxRuntimeError:  # another XLA
        return None
    return OWN_CODE


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy host values to every device."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def shard(tree: Any, mesh: Mesh) -> Any:
    """Spread this process's part of a batch over its devices, along the first axis."""
    sharding = NamedSharding(mesh, SHARDED)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def local_copy(tree: Any) -> Any:
    """This process's own copy of replicated arrays, for work that the other processes skip."""
    return jax.tree.map(
        lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree
    )


def require_divisible(batch: int, mesh: Mesh, field: str) -> None:
    """Raise ConfigError unless a global batch divides evenly over the devices."""
    if batch % mesh.size:
        raise ConfigError(
            f"{field} is {batch}, which {mesh.size} devices cannot share evenly: use a multiple of "
            f"{mesh.size}"
        )
