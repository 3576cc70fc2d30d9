"""Checkpoints on disk; the only module that knows orbax.

Layout: `workdir/checkpoints/<step>/{state,data,meta}`: `state` holds the arrays, `data` the place
of the input streams, `meta` where the schedule stands and a checksum of the arrays. Saves are
asynchronous and appear under their final name only when complete, so a kill during a save leaves
the previous checkpoint in place. A checkpoint that cannot be read, or whose checksums are wrong, is
moved to `workdir/damaged_checkpoints` and the one before it is used.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging as python_logging
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging

from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.runtime import processes
from jax_noisy_anogan.runtime.files import checksum
from jax_noisy_anogan.runtime.workdir import newest_step

State = TypeVar("State")
# How an operating system, or what writes for us, says that there is no room.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAYS_FULL = re.compile("no space|quota exceeded", re.IGNORECASE)


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read or written, or belongs to other settings."""


class Position(NamedTuple):
    """Where training stood when a checkpoint was written.

    Attributes:
      phase: index of the schedule's phase whose networks the state belongs to.
      step: updates done in the whole run.
      images: images shown in the whole run.
      rollbacks: how often training has returned to an earlier checkpoint; part of the random key.
    """

    phase: int
    step: int
    images: int
    rollbacks: int = 0


class Restored(NamedTuple):
    """A checkpoint in memory: the state, the input streams' position, and the schedule's."""

    position: Position
    state: Any
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run; use as a context manager, leaving waits for the last save.

    Args:
      keep: older ones are deleted; with 1 there is nothing to fall back to.
      read_only: for runs that this process does not train: nothing is written, moved or deleted.
    """

    def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False):
        options = (
            ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
            if read_only
            else ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, cleanup_tmp_directories=True
            )
        )
        # Resolved: tensorstore refuses paths with `..`.
        self._workdir = workdir.resolve()
        self._folder = self._workdir / "checkpoints"
        self._read_only = read_only
        _silence_orbax()
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_names=("state", "data", "meta")
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is processes.LostProcessError:
            return  # orbax would wait for the lost process
        try:
            self._writing(self._manager.wait_until_finished)
        except CheckpointError:
            if kind is None:
                raise
        finally:
            self._manager.close()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None without any."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
          CheckpointError: it failed.
        """
        self._writing(self._manager.wait_until_finished)

    def save(self, position: Position, state: Any, data: dict[str, Any]) -> None:
        """Start writing a checkpoint; returns once the arrays may be overwritten or donated.

        Args:
          state: a tree of arrays.
          data: JSON-able position of the input streams.

        Raises:
          CheckpointError: this save cannot start, or the one before it failed.
        """
        if position.step == self._manager.latest_step():
            return
        # Copies on the host: the next update may reuse what the saving thread reads. Of arrays on
        # several devices orbax would cut a part from each, with a program for every part.
        state = jax.tree.map(np.array, state)
        meta = {**position._asdict(), "checksum": checksum(state), "layout": layout_of(state)}
        meta["header"] = _checksum_of_json(meta, data)

        def write() -> None:
            started = self._manager.save(
                position.step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
            if not started:
                raise ValueError(f"step {position.step} is not after step {self.latest_step()}")

        self._writing(write)

    def restore_newest(self, template_of: Callable[[Position], Any]) -> Restored | None:
        """Read the newest checkpoint that is whole; damaged ones are set aside with a warning.

        Of several processes, all use the same one: the newest that is whole for each of them.

        Args:
          template_of: shapes, dtypes and shardings (`jax.ShapeDtypeStruct`) of a position's state.

        Returns:
          None where no checkpoint exists at all.

        Raises:
          CheckpointError: checkpoints exist but none can be used, or one has other shapes than its
            template.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reasons = []
        for step in steps:
            restored, reason = self._try_restore(step, template_of)
            if restored is not None:
                self._set_aside([s for s in steps if s > step])
                return restored
            reasons.append(f"{step}: {reason}")
            logging.warning("checkpoint %d is damaged (%s): trying the one before it", step, reason)
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self._folder} can be read ({'; '.join(reasons)}): start again "
                "with a new --workdir"
            )
        return None

    def _try_restore(
        self, step: int, template_of: Callable[[Position], Any]
    ) -> tuple[Restored | None, str]:
        restored, reason = None, ""
        try:
            restored = self._restore(step, template_of)
        except _DamagedError as error:
            reason = str(error)
        if processes.any_process(restored is None):
            return None, reason or "another process cannot read it"
        return restored, ""

    def _set_aside(self, steps: list[int]) -> None:
        if not steps or self._read_only:
            return
        if jax.process_index() == 0:
            aside = self._workdir / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            for step in steps:
                numbers = (aside / f"{step}.{number}" for number in itertools.count())
                moved = next(path for path in numbers if not path.exists())
                (self._folder / str(step)).rename(moved)
                logging.warning("the damaged checkpoint %d now lies in %s", step, moved)
        processes.any_process(False)  # nobody looks at the folder before it is settled
        self._manager.reload()

    def _restore(self, step: int, template_of: Callable[[Position], Any]) -> Restored:
        items = self._read(step, meta=ocp.args.JsonRestore(), data=ocp.args.JsonRestore())
        meta, data = items["meta"], items["data"]
        try:
            header = meta.pop("header", None)  # None: written before there was one
            if header is not None and _checksum_of_json(meta, data) != header:
                raise _DamagedError("its meta data do not have the checksum stored with them")
            expected, layout = meta.pop("checksum"), meta.pop("layout")
            position = Position(**meta)
        except (TypeError, KeyError, AttributeError) as error:
            raise _DamagedError("its meta data are incomplete") from error
        template = template_of(position)
        if layout_of(template) != layout:
            raise CheckpointError(
                f"{self._folder / str(step)} holds arrays of other names or shapes than the config "
                "describes: use the config that the run was started with, or a new --workdir"
            )
        _read_quietly(self._folder / str(step) / "state", template)
        items = self._read(
            step,
            state=ocp.args.PyTreeRestore(
                template, restore_args=ocp.checkpoint_utils.construct_restore_args(template)
            ),
        )
        if checksum(items["state"]) != expected:
            raise _DamagedError("its arrays do not have the checksum stored with them")
        return Restored(position, items["state"], data)

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax, tensorstore and JSON raise many kinds on damaged files
            raise _DamagedError(_first_line(error.__cause__ or error)) from error

    def _writing(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, ValueError, RuntimeError) as error:
            full = getattr(error, "errno", None) in _FULL or _SAYS_FULL.search(str(error))
            reason = "the disk is full" if full else _first_line(error, most=600)
            # Of the disk: orbax forgets the older one before the newer one is written.
            step = newest_step(self._folder.parent)
            kept = f"The one of step {step} is whole" if step else "None is there yet"
            raise CheckpointError(
                f"a checkpoint could not be written to {self._folder}: {reason}. {kept}: make "
                "room, then run the same command again"
            ) from error


class _OrbaxFilter(python_logging.Filter):
    """Drops what orbax and its tasks log: pages of it per failure, which exceptions also tell."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        return not (
            "/orbax/" in record.pathname
            or (record.name == "asyncio" and "/orbax/" in record.getMessage())
        )


_ORBAX_FILTER = _OrbaxFilter()


def _silence_orbax() -> None:
    for name in ("absl", "asyncio"):
        python_logging.getLogger(name).addFilter(_ORBAX_FILTER)


class _DamagedError(Exception):
    """A checkpoint's files are not what was written."""


def _read_quietly(folder: Path, template: Any) -> None:
    """Read all arrays one after another; raise _DamagedError at the first that cannot be decoded.

    None is larger than the largest of `template`: a small file can unpack to anything.

    Orbax reads them at once: at the first error it closes the loop in which the others still run,
    and each of them prints a traceback from a thread of its own.
    """
    most = max(leaf.size for leaf in jax.tree.leaves(template))
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    try:
        for key in ts.KvStore.open(database).result().list().result():
            path = key.decode()
            if path.endswith("/.zarray"):
                store = {**database, "path": path.removesuffix(".zarray")}
                array = ts.open({"driver": "zarr", "kvstore": store}).result()
                # Chunks unpack whole, and may be declared larger than the array.
                chunk = array.chunk_layout.read_chunk.shape or ()
                values = max(array.size, math.prod(size or 1 for size in chunk))
                if values > most:
                    raise ValueError(f"{path} holds {values} values, at most {most}")
                array.read().result()
    except (ValueError, OSError, NotImplementedError) as error:
        raise _DamagedError(f"its arrays cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException, most: int = 120) -> str:
    text = str(error).strip().splitlines()
    return text[0][:most] if text else type(error).__name__


def _checksum_of_json(*values: Any) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def layout_of(tree: Any) -> int:
    """CRC-32 over the names, shapes and types of all arrays, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    lines = [f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}" for path, leaf in leaves]
    return zlib.crc32("\n".join(lines).encode())
