"""Checkpoints on disk; the only module that knows orbax.

Layout: `workdir/checkpoints/<step>/{state,data,meta}`. `state` holds the arrays, `data` the position
of the input streams, `meta` where the schedule stands. Saves are asynchronous and appear under their
final name only when complete, so a kill during a save leaves the previous checkpoint in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp

State = TypeVar("State")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or belongs to other settings."""


class Position(NamedTuple):
    """Where training stood when a checkpoint was written.

    Attributes:
      phase: index of the schedule's phase whose networks the state belongs to.
      step: updates done in the whole run.
      images: images shown in the whole run.
    """

    phase: int
    step: int
    images: int


class Checkpoints:
    """The checkpoints of one run; use as a context manager, leaving waits for the last save."""

    def __init__(self, workdir: Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=True
        )
        self._folder = workdir.absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=options,
            item_names=("state", "data", "meta"),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None without any."""
        return self._manager.latest_step()

    def save(self, position: Position, state: Any, data: dict[str, Any]) -> None:
        """Start writing a checkpoint; returns once the arrays are safe to be overwritten.

        Args:
          state: a tree of arrays.
          data: JSON-able position of the input streams.
        """
        if position.step == self._manager.latest_step():
            return
        self._manager.save(
            position.step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                data=ocp.args.JsonSave(data),
                meta=ocp.args.JsonSave(position._asdict()),
            ),
        )

    def position(self, step: int) -> Position:
        """Where the checkpoint of `step` stands in the schedule."""
        restored = self._restore(step, meta=ocp.args.JsonRestore())
        return Position(**restored["meta"])

    def restore(self, step: int, template: State) -> tuple[State, dict[str, Any]]:
        """Read a checkpoint.

        Args:
          template: the state's tree with shapes, dtypes and shardings (`jax.ShapeDtypeStruct`).

        Returns:
          The state, placed as `template` says, and the position of the input streams.

        Raises:
          CheckpointError: unreadable, or of other shapes than `template`.
        """
        restored = self._restore(
            step,
            state=ocp.args.PyTreeRestore(
                template, restore_args=ocp.checkpoint_utils.construct_restore_args(template)
            ),
            data=ocp.args.JsonRestore(),
        )
        wanted, got = (
            jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (template, restored["state"])
        )
        if wanted != got:
            raise CheckpointError(
                f"{self._folder / str(step)} holds arrays of other shapes than the config "
                "describes: use the config that the run was started with, or a new --workdir"
            )
        return restored["state"], restored["data"]

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise CheckpointError(
                f"{self._folder / str(step)} cannot be read: {str(error).splitlines()[0]}"
            ) from error
