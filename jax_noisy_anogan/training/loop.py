"""Training through all phases of growth: streams in, updates, checkpoints out.

Running the same command again continues where the newest checkpoint stands; the result is the same,
bit for bit, as that of a run that was never stopped (on the same machine with the same number of
devices: on CPUs, already the number of virtual devices changes the last bits).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from jax_noisy_anogan import pictures
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.data.streams import TrainingStreams
from jax_noisy_anogan.errors import UserError
from jax_noisy_anogan.model import pixel_scale
from jax_noisy_anogan.networks import channels_at, sample_latents
from jax_noisy_anogan.networks.convolution import FEW_CHANNELS
from jax_noisy_anogan.networks.pixels import ByteImages, to_byte_images
from jax_noisy_anogan.runtime import parallel, processes
from jax_noisy_anogan.runtime.checkpoint import Checkpoints, Position
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.runtime.workdir import newest_step
from jax_noisy_anogan.training import collapse
from jax_noisy_anogan.training.estimate import Forecast
from jax_noisy_anogan.training.growth import Phase, Schedule, make_schedule
from jax_noisy_anogan.training.journal import Log, MetricWriter, Silent
from jax_noisy_anogan.training.reconstruction import Reconstruction
from jax_noisy_anogan.training.state import (
    TrainState,
    ema_decay_for,
    grow_state,
    init_state,
    networks_of,
    optimizer_of,
    state_template,
)
from jax_noisy_anogan.training.step import Metrics, TrainStep, require_whole_groups

# Separate uses of the run's one seed.
_INITIAL, _STEPS, _SAMPLES = 0, 1, 2
# Returns of a run to a checkpoint after something that is not finite.
_MAX_ROLLBACKS = 3


class TrainingStoppedError(UserError, RuntimeError):
    """A signal asked training to stop; a checkpoint holds everything."""

    all_stop = True
    exit_code = 75  # EX_TEMPFAIL of sysexits.h: run the same command again to go on


class Progress(NamedTuple):
    """Where a run stands between two updates, and everything needed to go on."""

    position: Position
    state: TrainState
    data: dict[str, int] | None


def train(
    config: Config,
    workdir: Path,
    dataset: Dataset,
    split: Split,
    *,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> TrainState:
    """Train to the end of the schedule, from the newest checkpoint if there is one.

    Args:
      config: validated.
      mesh: devices to train on; all by default.

    Returns:
      The state after the last update.

    Raises:
      FloatingPointError: losses or gradients stayed not finite after three returns to a checkpoint.
      TrainingStoppedError: on SIGTERM or SIGINT, after a checkpoint.
      CheckpointError: checkpoints cannot be read or written.
      ConfigError: a minibatch does not divide over the devices in whole groups.
      LostProcessError: another process of the run has ended.
    """
    mesh = parallel.make_mesh() if mesh is None else mesh
    schedule = make_schedule(config.growth)
    for phase in schedule.phases:
        parallel.require_divisible(
            phase.minibatch, mesh, f"config.growth.minibatch at {phase.resolution}"
        )
        # Here, and not when the phase begins: all phases before it would be lost.
        if phase.end_step > newest_step(workdir):
            require_whole_groups(
                config.loss, config.network.stddev_group, phase.minibatch // mesh.size, mesh.size
            )
    with Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
        run = _Run(config, workdir, dataset, split, mesh, schedule, checkpoints, progress)
        try:
            return run.finish()
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
                raise
            raise processes.lost_process(error) from error


class _Run:
    """One start of a run; holds what stays the same through all its phases."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        dataset: Dataset,
        split: Split,
        mesh: Mesh,
        schedule: Schedule,
        checkpoints: Checkpoints,
        progress: bool,
    ):
        self.config, self.workdir, self.dataset, self.split = config, workdir, dataset, split
        self.mesh, self.schedule, self.checkpoints = mesh, schedule, checkpoints
        self.show_progress = progress and jax.process_index() == 0
        self.key = jax.random.key(config.train.seed)
        self.monitor = collapse.Monitor()
        self.updated = False  # since this start

    def finish(self) -> TrainState:
        now = self._restore(rollbacks=0)
        with (
            _stop_signals() as stop,
            ProgressLine(
                "train",
                total=self.schedule.total_images,
                done=now.position.images,
                unit="images",
                show=self.show_progress,
            ) as line,
        ):
            forecast = Forecast(self.config, self.schedule, line.say)
            while now.position.step < self.schedule.total_steps:
                phase = self.schedule.phase_of_step(now.position.step)
                now = self._enter(phase, now)
                try:
                    now = self._run_phase(phase, now, line, forecast, stop)
                except FloatingPointError as error:
                    now = self._roll_back(now, error)
            # A signal may have come after the last update that could carry it.
            if processes.any_process(stop()):
                raise self._stopped(now.position)
        return now.state

    def _stopped(self, position: Position) -> TrainingStoppedError:
        self.checkpoints.wait()
        return TrainingStoppedError(
            f"stopped at step {position.step} of {self.schedule.total_steps} with a checkpoint: "
            "run the same command again to go on"
        )

    def _restore(self, rollbacks: int) -> Progress:
        """The newest whole checkpoint, or the start of the run."""
        restored = self.checkpoints.restore_newest(
            lambda position: state_template(
                self.config, self.schedule.phases[position.phase], self.mesh
            )
        )
        if restored is None:
            phase = self.schedule.phases[0]
            networks, optimizer = networks_of(self.config, phase), optimizer_of(self.config, phase)
            fresh = init_state(networks, optimizer, self._key(_INITIAL))
            return Progress(
                Position(0, 0, 0, rollbacks), parallel.replicate(fresh, self.mesh), None
            )
        position = restored.position._replace(rollbacks=max(rollbacks, restored.position.rollbacks))
        return Progress(position, restored.state, restored.data)

    def _roll_back(self, failed: Progress, error: FloatingPointError) -> Progress:
        rollbacks = failed.position.rollbacks + 1
        if rollbacks > _MAX_ROLLBACKS:
            raise FloatingPointError(
                f"{error}; gave up after {_MAX_ROLLBACKS} returns to a checkpoint: lower "
                "config.optim.learning_rate or raise config.loss.penalty_weight"
            ) from error
        self.checkpoints.wait()
        now = self._restore(rollbacks)
        logging.warning(
            "%s; back to step %d with other random numbers (%d of %d)",
            error,
            now.position.step,
            rollbacks,
            _MAX_ROLLBACKS,
        )
        return now

    def _enter(self, phase: Phase, now: Progress) -> Progress:
        if now.position.phase == phase.index:
            return now
        key = jax.random.fold_in(self._key(_INITIAL), phase.index)
        networks, optimizer = networks_of(self.config, phase), optimizer_of(self.config, phase)
        grown = grow_state(now.state, networks, optimizer, key)
        return now._replace(
            position=now.position._replace(phase=phase.index),
            state=parallel.replicate(grown, self.mesh),
        )

    def _run_phase(
        self,
        phase: Phase,
        now: Progress,
        line: ProgressLine,
        forecast: Forecast,
        stop: Callable[[], bool],
    ) -> Progress:
        config = self.config
        step_function = compile_step(config, phase, self.mesh)
        key = jax.random.fold_in(self._key(_STEPS), now.position.rollbacks)
        with (
            contextlib.closing(self._streams(phase, now)) as streams,
            contextlib.closing(
                MetricWriter(
                    self.workdir,
                    from_step=now.position.step,
                    writers=config.train.writers,
                    required=not self.updated,
                )
                if jax.process_index() == 0
                else Silent()
            ) as writer,
        ):
            state, position = now.state, now.position
            log = Log(phase, writer, line, config, self.monitor, forecast)
            reconstruction = self._reconstruction(phase)
            # One value per device: any process can ask all of them to stop.
            flags = {
                asked: parallel.shard(np.full(self.mesh.local_mesh.size, asked), self.mesh)
                for asked in (False, True)
            }
            due = _next_checkpoint(position.images, config.train.checkpoint_every_images)
            while position.step < phase.end_step:
                alpha = np.float32(phase.alpha(position.step))
                batch = next(streams)
                state, metrics = step_function(
                    state, batch.normal, batch.abnormal, alpha, key, flags[stop()], batch.masks
                )
                position = position._replace(
                    step=position.step + 1, images=position.images + phase.minibatch
                )
                self.updated = True
                log.add(position, float(alpha), metrics)
                ends = position.step == phase.end_step
                if reconstruction and (ends or position.images >= due):
                    average = parallel.local_copy(state.average)
                    log.note(reconstruction.measure(average, float(alpha)))
                if log.stopping or ends or position.images >= due:
                    log.fetch_all()  # a checkpoint never holds an update that is not finite
                    if ends:
                        self._draw_samples(phase, state, writer, position.step)
                    _require_finite(position, phase, state)
                    self.checkpoints.save(position, state, streams.state())
                    due = _next_checkpoint(position.images, config.train.checkpoint_every_images)
                if log.stopping:
                    raise self._stopped(position)
            self.monitor = log.monitor
            return Progress(position, state, streams.state())

    def _streams(self, phase: Phase, now: Progress) -> TrainingStreams:
        streams = TrainingStreams(
            self.dataset,
            self.split,
            resolution=phase.resolution,
            minibatch=phase.minibatch,
            seed=self.config.train.seed,
            with_abnormal=self.config.loss.gamma < 1.0,
            with_masks=self.config.network.dense,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            to_device=functools.partial(parallel.shard, mesh=self.mesh),
        )
        if now.data is not None:
            streams.restore(now.data)
        return streams

    def _reconstruction(self, phase: Phase) -> Reconstruction | None:
        """What measures the encoder, in the process that writes the curves."""
        networks = networks_of(self.config, phase)
        if networks.encoder is None or jax.process_index() != 0:
            return None
        return Reconstruction(networks, pixel_scale(self.config.data), self.dataset, self.split)

    def _draw_samples(
        self, phase: Phase, state: TrainState, writer: MetricWriter | Silent, step: int
    ) -> None:
        """Show what G draws; a phase is not lost for want of a picture."""
        if jax.process_index() != 0:
            return
        try:
            self._draw(phase, state, writer, step)
        except (OSError, jax.errors.JaxRuntimeError) as error:
            logging.warning(
                "no samples of %s (%s)", phase.name, next(iter(str(error).splitlines()), error)
            )

    def _draw(
        self, phase: Phase, state: TrainState, writer: MetricWriter | Silent, step: int
    ) -> None:
        networks = networks_of(self.config, phase)
        z = sample_latents(
            self._key(_SAMPLES),
            self.config.network.prior,
            (self.config.train.sample_images, self.config.network.latent_size),
        )
        params = parallel.local_copy(state.average.generator)
        images = jax.jit(networks.generate)(params, z)
        drawn = np.asarray(to_byte_images(images, pixel_scale(self.config.data)))
        kind = "fade" if phase.fading else "stable"
        folder = self.workdir / "samples"
        folder.mkdir(exist_ok=True)
        name = f"{phase.index:02d}_{phase.resolution}x{phase.resolution}_{kind}.png"
        columns = max(1, round(len(drawn) ** 0.5))
        grid = pictures.image_grid(drawn, columns)
        pictures.save_png(folder / name, grid)
        writer.picture(step, grid)

    def _key(self, purpose: int) -> PRNGKeyArray:
        return jax.random.fold_in(self.key, purpose)


def compile_step(config: Config, phase: Phase, mesh: Mesh) -> Callable[..., Any]:
    """The update of one phase, mapped over `mesh`; compiled at its first call.

    Beside the arguments of the step it takes one flag per device, and beside its metrics it returns
    whether any is set (`stopping`): all processes learn at the same step that one of them was
    asked to stop. A later training of the process with the same settings gets the same function,
    traced and compiled.
    """
    settings = (config.network, config.growth, config.loss, config.optim, config.search)
    others = (config.train.encoder, config.data.channels, pixel_scale(config.data))
    return _compiled_step(_Program(repr((settings, others)), phase, mesh, config))


@dataclass(frozen=True)
class _Program:
    """What an update depends on; its settings are compared as text, since a config can change."""

    settings: str
    phase: Phase
    mesh: Mesh
    config: Config = field(compare=False)


@functools.lru_cache(maxsize=16)
def _compiled_step(program: _Program) -> Callable[..., Any]:
    config, phase, mesh = copy.deepcopy(program.config), program.phase, program.mesh
    step = TrainStep(
        networks_of(config, phase),
        optimizer_of(config, phase),
        loss=config.loss,
        prior=config.network.prior,
        ema_decay=ema_decay_for(config.optim.ema_half_life_images, phase.minibatch),
        discriminator_rate=config.optim.discriminator_rate,
        pixels=pixel_scale(config.data),
        axis_name=parallel.AXIS,
        search=config.search,
    )

    def step_and_flag(
        state: TrainState,
        real: ByteImages,
        abnormal: ByteImages | None,
        alpha: Float[Array, ""],
        key: PRNGKeyArray,
        asked_to_stop: Bool[Array, " 1"],
        masks: UInt8[Array, "batch height width"] | None,
    ) -> tuple[TrainState, Metrics]:
        state, metrics = step(state, real, abnormal, alpha, key, masks)
        stopping = lax.pmax(asked_to_stop.any().astype(np.float32), parallel.AXIS)
        return state, metrics | {"stopping": stopping}

    everywhere, split = parallel.REPLICATED, parallel.SHARDED
    network = config.network
    last = channels_at(config.growth.resolution, network.fmap_base, network.fmap_max)
    return parallel.data_parallel(
        step_and_flag,
        mesh,
        in_specs=(everywhere, split, split, everywhere, everywhere, split, split),
        out_specs=(everywhere, everywhere),
        donate_argnums=(0,),
        own_code=last <= FEW_CHANNELS,
    )


def _require_finite(position: Position, phase: Phase, state: TrainState) -> None:
    # Losses and gradients are those before the last update: it may have overflowed by itself.
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state)):
        raise FloatingPointError(f"parameters not finite at step {position.step} ({phase.name})")


def _next_checkpoint(images: int, every: int) -> int:
    return (images // every + 1) * every


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or SIGINT into a question that the loop asks; a second one kills."""
    received = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        for name, handler in before.items():
            signal.signal(name, handler)

    def asked() -> bool:
        return received

    try:
        before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        for name in before:
            signal.signal(name, note)
    except ValueError:  # not in the main thread, where signals cannot be handled
        before = {}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
