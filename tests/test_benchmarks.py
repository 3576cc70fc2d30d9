"""The PyTorch twin computes what the package computes; the comparison's own arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_noisy_anogan.config import LossConfig, OptimConfig, SearchConfig
from jax_noisy_anogan.latent_search import Judgement, search_latents
from jax_noisy_anogan.networks import NetworkParams, build_networks, sample_latents
from jax_noisy_anogan.train_step import (
    init_state,
    make_optimizer,
    make_train_step,
    to_float_images,
)

torch = pytest.importorskip("torch", reason="the twin needs the extra `bench`")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import torch_twin  # noqa: E402

BATCH, LATENT, STDDEV = 8, 16, 0.3
STAGES = [(4, False, 1, 8), (8, True, 1, 8), (16, False, 3, 12)]
GAMMA = 0.3


def _networks_and_params(stage):
    resolution, fading, channels, fmap_max = stage
    networks = build_networks(
        resolution=resolution,
        fading=fading,
        channels=channels,
        fmap_base=256,
        fmap_max=fmap_max,
        latent_size=LATENT,
    )
    params = networks.init(jax.random.key(0))
    # Biases start at zero, where a wrong bias would go unnoticed.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return networks, jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])


def _bytes(networks, seed):
    shape = (BATCH, *networks.image_shape)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def _latents(seed):
    return sample_latents(jax.random.key(seed), "uniform", (BATCH, LATENT))


def _tensor(x):
    return torch.from_numpy(np.array(x))


def _assert_close(ours, theirs, tolerance=1e-4):
    """Within `tolerance` of the largest value."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    scale = max(1.0, float(np.abs(ours).max()))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * scale)


def _assert_same_gradients(ours: dict, module) -> None:
    theirs = {name: p.grad for name, p in module.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert float(gradient.abs().max()) > 0, f"{name} has no gradient: nothing is compared"
        _assert_close(gradient, theirs[name])


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_twin_draws_and_judges_the_same(stage):
    networks, params = _networks_and_params(stage)
    twin = torch_twin.make_twin(networks, params)
    z, x = _latents(2), to_float_images(jnp.asarray(_bytes(networks, 3)))

    drawn = networks.generate(params.generator, z, 0.3)
    _assert_close(drawn.transpose(0, 3, 1, 2), twin.generator(_tensor(z), 0.3))
    for stddev in (None, STDDEV):
        ours = networks.discriminate(params.discriminator, x, 0.3, stddev)
        logits, features, statistic = twin.discriminator(torch_twin.to_torch_images(x), 0.3, stddev)
        _assert_close(ours.logits, logits)
        _assert_close(ours.stddev, statistic)
        assert ours.features.keys() == features.keys()
        for resolution, feature in ours.features.items():
            _assert_close(feature.transpose(0, 3, 1, 2), features[resolution])


@pytest.mark.parametrize(
    ("stage", "objective"), [(STAGES[1], "equation_18"), (STAGES[2], "equation_15")], ids=str
)
def test_the_twin_takes_the_same_step(stage, objective):
    """Gradients of D and G, read off one whole step of each.

    With an enormous epsilon Adam's first step is 0.01 times the gradient.
    """
    networks, params = _networks_and_params(stage)
    loss = LossConfig(gamma=GAMMA, objective=objective, penalty_weight=2.0)
    optim = OptimConfig(learning_rate=1e6, eps=1e8)
    real, abnormal = _bytes(networks, 4), _bytes(networks, 5)[:4]
    alpha, key = 0.6, jax.random.key(6)

    optimizer = make_optimizer(optim)
    step = make_train_step(networks, optimizer, loss=loss, prior="uniform", ema_decay=0.9)
    state = init_state(networks, optimizer, key).replace(
        params=params,
        average=params,
        optimizer=NetworkParams(*(optimizer.init(tree) for tree in params)),
    )
    state, metrics = jax.jit(step)(state, real, abnormal, jnp.float32(alpha), key)
    keys = [jax.random.fold_in(jax.random.fold_in(key, 0), index) for index in range(BATCH)]
    z = jnp.stack([sample_latents(jax.random.fold_in(k, 0), "uniform", (LATENT,)) for k in keys])

    twin = torch_twin.make_twin(networks, params)
    trainer = torch_twin.Trainer(twin, optim, loss, ema_decay=0.9)
    x, y = (torch_twin.to_torch_images(image) for image in (real, abnormal))
    loss_d = trainer.step(x, y, _tensor(z), alpha)
    ours_loss = metrics["d_loss"] + loss.penalty_weight * metrics["d_penalty"]
    np.testing.assert_allclose(ours_loss, loss_d, rtol=1e-5)

    before, after, average = (
        torch_twin.named_tensors(tree) for tree in (params, state.params, state.average)
    )
    for index, (network, module) in enumerate(zip(before, twin, strict=True)):
        for place, (name, theirs) in enumerate(module.named_parameters()):
            start = before[network][name]
            ours = (start - after[network][name]) / 0.01
            assert float(ours.abs().max()) > 1e-4, f"{name} did not move: nothing is compared"
            _assert_close(ours, (start - theirs) / 0.01)
            _assert_close(average[network][name], trainer.average[index][place])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_twin_searches_the_same(reduction):
    """Loss, its gradient, and where the search ends after a few steps."""
    networks, params = _networks_and_params(STAGES[2])
    search = SearchConfig(
        steps=3, learning_rate=0.05, feature_resolution=8, reduction=reduction, restarts=1
    )
    images, key = to_float_images(jnp.asarray(_bytes(networks, 7))), jax.random.key(8)

    def judge(image):
        out = networks.discriminate(params.discriminator, image[None], 1.0, STDDEV)
        return Judgement(jax.nn.sigmoid(out.logits[0]), out.logits[0], out.features[8][0])

    found = search_latents(
        lambda z: networks.generate(params.generator, z[None])[0],
        judge,
        images,
        key,
        search=search,
        gamma=GAMMA,
        prior="uniform",
        latent_size=LATENT,
    )
    start = sample_latents(key, "uniform", (1, LATENT))
    twin = torch_twin.make_twin(networks, params)
    latents, totals = torch_twin.search_latents(
        twin,
        torch_twin.to_torch_images(images),
        _tensor(start),
        search=search,
        gamma=GAMMA,
        stddev=STDDEV,
    )
    _assert_close(found.terms.total, totals)
    _assert_close(found.latent, latents, 1e-3)
