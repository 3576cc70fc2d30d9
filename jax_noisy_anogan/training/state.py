"""The state of training: networks, optimisers, averages; made, grown, and turned into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PRNGKeyArray

from jax_noisy_anogan.config import Config, OptimConfig
from jax_noisy_anogan.model import DiscriminatorStatistics, Model
from jax_noisy_anogan.networks import NetworkParams, Networks, build_networks, grow_params
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.runtime.checkpoint import CheckpointError, Checkpoints
from jax_noisy_anogan.training.growth import Phase, make_schedule


def load_model(workdir: Path, config: Config) -> Model:
    """The model of a finished run with these settings.

    Raises:
      CheckpointError: `workdir` holds no usable checkpoint, or training has not ended.
    """
    schedule = make_schedule(config.growth)
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(f"{workdir} holds no checkpoint: train first")
    mesh = parallel.make_mesh()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(
            lambda position: state_template(config, schedule.phases[position.phase], mesh)
        )
    if restored is None:
        raise CheckpointError(f"{workdir} holds no checkpoint: train first")
    if restored.position.step < schedule.total_steps:
        raise CheckpointError(
            f"{workdir} is trained to step {restored.position.step} of {schedule.total_steps}: run "
            "its training command again to finish it"
        )
    return model_of(config, restored.state)


def model_of(config: Config, state: TrainState) -> Model:
    """The model of the state after the last update."""
    networks = networks_of(config, make_schedule(config.growth).phases[-1])
    return Model(networks, *parallel.local_copy((state.average, state.statistics)))


class TrainState(flax.struct.PyTreeNode):
    """Everything that an update changes.

    Attributes:
      step: updates done in the whole run.
      average: running average of the parameters; what samples and scores are made with.
    """

    step: Array
    params: NetworkParams
    optimizer: NetworkParams
    average: NetworkParams
    statistics: DiscriminatorStatistics


def make_optimizer(
    optim: OptimConfig, constant_steps: int = 0, decay_steps: int = 0
) -> optax.GradientTransformation:
    """Adam as in Karras et al. 2018, Appendix A.

    With `decay_steps`, the rate falls along half a cosine to 0 after `constant_steps`.
    """
    rate: optax.ScalarOrSchedule = optim.learning_rate
    if decay_steps:
        decay = optax.cosine_decay_schedule(optim.learning_rate, decay_steps)
        rate = optax.join_schedules(
            [optax.constant_schedule(optim.learning_rate), decay], [constant_steps]
        )
    return optax.adam(rate, b1=optim.b1, b2=optim.b2, eps=optim.eps)


def init_state(
    networks: Networks, optimizer: optax.GradientTransformation, key: PRNGKeyArray
) -> TrainState:
    """The state before the first update."""
    params = networks.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=params.map(optimizer.init),
        # Copies: the update donates its input, and a buffer can be given away only once.
        average=jax.tree.map(jnp.copy, params),
        statistics=DiscriminatorStatistics(*(jnp.zeros(()) for _ in range(4))),
    )


def grow_state(
    state: TrainState,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
) -> TrainState:
    """Carry a state into the next phase: old layers kept, new ones drawn, optimiser reset."""
    import chex  # takes a second, which a detector that only loads a state need not wait

    fresh = init_state(networks, optimizer, key)

    def grow(old: NetworkParams, new: NetworkParams) -> NetworkParams:
        return old.map(grow_params, new)

    params = grow(state.params, fresh.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, fresh.params)
    return TrainState(
        step=state.step,
        params=params,
        optimizer=params.map(optimizer.init),
        # New layers enter the average with the values that they start from.
        average=jax.tree.map(jnp.copy, grow(state.average, fresh.params)),
        statistics=state.statistics,
    )


def ema_decay_for(half_life_images: float, minibatch: int) -> float:
    """Decay per update after which an image's weight in the average halves every half-life."""
    return 0.5 ** (minibatch / half_life_images) if half_life_images > 0 else 0.0


def networks_of(config: Config, phase: Phase) -> Networks:
    """The networks that train in `phase`."""
    network, growth = config.network, config.growth
    return build_networks(
        resolution=phase.resolution,
        fading=phase.fading,
        channels=config.data.channels or 1,  # runs have chosen; data sets without files are grey
        fmap_base=network.fmap_base,
        fmap_max=network.fmap_max,
        latent_size=network.latent_size,
        stddev_group=network.stddev_group,
        compute_dtype=network.compute_dtype,
        rematerialize=0 < growth.rematerialize_from <= phase.resolution,
        microbatch=growth.microbatch.get(str(phase.resolution), 0),
        dense=network.dense,
        encoder=config.train.encoder,
    )


def optimizer_of(config: Config, phase: Phase) -> optax.GradientTransformation:
    """The optimiser of a phase, which starts anew with it; the last one's rate may decay.

    Its state has the same form in all phases, so that a longer schedule goes on from a shorter one.
    """
    images = config.optim.decay_images
    if not images:
        return make_optimizer(config.optim)
    is_last = phase == make_schedule(config.growth).phases[-1]
    steps = min(-(-images // phase.minibatch), phase.steps) if is_last else 0
    return make_optimizer(config.optim, phase.steps - steps, max(steps, 1))


def state_template(config: Config, phase: Phase, mesh: Mesh) -> Any:
    """Shapes and placement of a phase's state, without allocating it."""
    networks, optimizer = networks_of(config, phase), optimizer_of(config, phase)
    shapes = jax.eval_shape(
        lambda: init_state(networks, optimizer, jax.random.key(config.train.seed))
    )
    sharding = NamedSharding(mesh, parallel.REPLICATED)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
