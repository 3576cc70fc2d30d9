"""Mapping over devices and processes: one mesh, one helper, one start-up.

`data_parallel` is what `jax.pmap` has been since JAX 0.10 (a jit of shard_map), without the leading
device axis on replicated values; a test holds the two equal. Inside a mapped function gradients
must be averaged explicitly with `jax.lax.pmean(gradients, AXIS)`: `check_vma=False` is what makes
that right, with the default the same line returns gradients too large by the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_noisy_anogan.settings import ConfigError

AXIS = "data"
REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(AXIS)


def keep_compiled(folder: str) -> None:
    """Keep compiled programs in `folder` between runs, small ones too; "" keeps none."""
    path = str(Path(folder).expanduser())
    if folder and path != jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", path)
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
) -> Callable[..., Any]:
    """Compile `function` to run once per device on its part of every `SHARDED` argument."""
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate_argnums)


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
