"""Mapping over devices: one mesh, one helper.

`data_parallel` is what `jax.pmap` has been since JAX 0.10 (a jit of shard_map), without the leading
device axis on replicated values; a test holds the two equal. Inside a mapped function gradients
must be averaged explicitly with `jax.lax.pmean(gradients, AXIS)`: `check_vma=False` is what makes
that right, with the default the same line returns gradients too large by the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(AXIS)


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


def require_divisible(batch: int, mesh: Mesh, field: str) -> None:
    """Raise ValueError unless a global batch divides evenly over the devices."""
    if batch % mesh.size:
        raise ValueError(
            f"{field} is {batch}, which {mesh.size} devices cannot share evenly: use a multiple of "
            f"{mesh.size}"
        )
