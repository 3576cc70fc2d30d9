"""Trains what `search.start="encoder"` begins a latent search at, after the GAN and apart from it.

The encoder learns to do in one pass what the search does in many steps: it minimises the search's
own loss, L' of Eq. 24 at z = E(x), over normal training images and drawn ones (f-AnoGAN's izi_f,
Schlegl et al. 2019, has L_R and L_D there, as means). G and D stay as they are. It lies in
`workdir/encoder/checkpoints`, with the networks and settings that it belongs to.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data import Dataset, Split, TrainingStreams
from jax_noisy_anogan.losses import search_loss
from jax_noisy_anogan.model import (
    _KEY,
    EncoderState,
    Model,
    Reference,
    _belongs_to,
    bind,
    init_encoder,
    load,
    make_encoder,
    pixel_scale,
)
from jax_noisy_anogan.networks import (
    NetworkParams,
    Networks,
    Params,
    project_to_hypersphere,
    sample_latents,
)
from jax_noisy_anogan.networks.pixels import to_float_images
from jax_noisy_anogan.runtime import parallel, processes
from jax_noisy_anogan.runtime.checkpoint import Checkpoints, Position
from jax_noisy_anogan.runtime.progress import ProgressLine

_MINIBATCH = 32  # half of it normal training images
_LEARNING_RATE = 0.003


def make_encoder_step(
    networks: Networks,
    config: Config,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
) -> Callable[..., tuple[EncoderState, Float[Array, ""]]]:
    """One update: half of the images from the training data, as many drawn.

    Returns:
      `step(state, params, reference, images, key) -> (state, mean L')` with uint8 images; a pure
      function that is not compiled. `params` and `reference` are those of a `Model`.
    """
    encoder = make_encoder(config)

    def mean(tree: Any) -> Any:
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def step(
        state: EncoderState,
        params: NetworkParams,
        reference: Reference,
        images: UInt8[Array, "batch h w c"],
        key: PRNGKeyArray,
    ) -> tuple[EncoderState, Float[Array, ""]]:
        generate, judge = bind(networks, params, reference, config)
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        z = sample_latents(key, config.network.prior, (len(images), networks.latent_size))
        real = to_float_images(images, pixel_scale(config.data))
        x = jnp.concatenate([real, networks.generate(params.generator, z)])
        features = jax.vmap(judge)(x).features

        def loss_of(x: Array, features: Array, z: Array) -> Float[Array, ""]:
            drawn = generate(z)
            judged = judge(drawn)
            return search_loss(
                x,
                drawn,
                features,
                judged.features,
                judged.normality,
                gamma=config.loss.gamma,
                feature_weight=config.search.feature_weight,
                reduction=config.search.reduction,
            ).total

        def objective(encoder_params: Params) -> Float[Array, ""]:
            found = project_to_hypersphere(encoder.apply({"params": encoder_params}, x))
            return jax.vmap(loss_of)(x, features, found).mean()

        loss, gradient = jax.value_and_grad(objective)(state.params)
        updates, optimizer_state = optimizer.update(mean(gradient), state.optimizer, state.params)
        return EncoderState(optax.apply_updates(state.params, updates), optimizer_state), mean(loss)

    return step


def fit(
    config: Config,
    workdir: Path,
    dataset: Dataset,
    split: Split,
    model: Model,
    *,
    progress: bool = True,
) -> Model:
    """The model with its encoder, which is trained if `workdir` has none for it.

    A model whose `search.start` asks for none stays as it is. All processes take part; one that is
    stopped starts from the beginning.

    Raises:
      FloatingPointError: its loss is not finite.
      CheckpointError: it cannot be written.
    """
    if config.search.start != "encoder":
        return model
    found = load(config, workdir, model)
    if found.guide is not None:
        return found
    processes.on_first_process(lambda: _empty(workdir / "encoder"))
    mesh = parallel.make_mesh()
    batch = -(-_MINIBATCH // (2 * mesh.size)) * mesh.size
    steps = -(-config.search.encoder_images // (2 * batch))
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps), b2=0.99)
    everywhere, shared = parallel.REPLICATED, parallel.SHARDED
    update = parallel.data_parallel(
        make_encoder_step(model.networks, config, optimizer, axis_name=parallel.AXIS),
        mesh,
        in_specs=(everywhere, everywhere, everywhere, shared, everywhere),
        out_specs=(everywhere, everywhere),
        donate_argnums=(0,),
    )
    key = jax.random.fold_in(jax.random.key(config.train.seed), _KEY)
    state, params, reference = parallel.replicate(
        (init_encoder(config, model.networks, optimizer), model.params, model.reference), mesh
    )
    streams = TrainingStreams(
        dataset,
        split,
        resolution=model.networks.resolution,
        minibatch=batch,
        seed=config.train.seed,
        with_abnormal=False,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        to_device=functools.partial(parallel.shard, mesh=mesh),
    )
    show = progress and jax.process_index() == 0
    with (
        contextlib.closing(streams),
        ProgressLine("encoder", total=steps * 2 * batch, done=0, unit="images", show=show) as line,
    ):
        loss: Any = None
        for index in range(steps):
            before = loss
            state, loss = update(
                state, params, reference, next(streams).normal, jax.random.fold_in(key, index)
            )
            if before is not None:
                jax.block_until_ready(before)  # never far ahead of the device, see journal._Log
            line.update((index + 1) * 2 * batch)
    last = float(parallel.local_copy(loss))
    if not math.isfinite(last):
        raise FloatingPointError(
            f"the encoder's loss is {last} after {steps} updates: search with another "
            "config.search.start"
        )
    with Checkpoints(workdir / "encoder") as checkpoints:
        position = Position(0, steps, steps * 2 * batch)
        checkpoints.save(position, state.params, _belongs_to(config, model))
    return model._replace(guide=parallel.local_copy(state.params))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
