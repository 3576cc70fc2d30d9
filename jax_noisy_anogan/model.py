"""The trained networks of a run folder."""

from __future__ import annotations

from pathlib import Path

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import encoder, parallel, trainer
from jax_noisy_anogan.checkpoint import CheckpointError, Checkpoints
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.growth import make_schedule
from jax_noisy_anogan.scoring import Model
from jax_noisy_anogan.train_step import TrainState


def load_model(workdir: Path, config: Config | None = None) -> Model:
    """The model of a finished run, with its encoder where `search.start` asks for it.

    Args:
      config: of the run; read from `workdir` by default.

    Raises:
      ConfigError: `workdir` is no run.
      CheckpointError: it holds no usable checkpoint, or training has not ended.
    """
    config = config_lib.load(workdir) if config is None else config
    parallel.keep_compiled(config.train.compilation_cache_dir)
    schedule = make_schedule(config.growth)
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(f"{workdir} holds no checkpoint: train first")
    mesh = parallel.make_mesh()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(
            lambda position: trainer.state_template(config, schedule.phases[position.phase], mesh)
        )
    if restored is None:
        raise CheckpointError(f"{workdir} holds no checkpoint: train first")
    if restored.position.step < schedule.total_steps:
        raise CheckpointError(
            f"{workdir} is trained to step {restored.position.step} of {schedule.total_steps}: run "
            "its training command again to finish it"
        )
    return encoder.load(config, workdir, model_of(config, restored.state))


def model_of(config: Config, state: TrainState) -> Model:
    """The model of the state after the last update."""
    networks = trainer.networks_of(config, make_schedule(config.growth).phases[-1])
    return Model(networks, *parallel.local_copy((state.average, state.reference)))
