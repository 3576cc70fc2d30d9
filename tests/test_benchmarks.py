"""The PyTorch twin computes what the package computes; the comparison's own arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_noisy_anogan.config import LossConfig, OptimConfig, SearchConfig
from jax_noisy_anogan.latent_search import Judgement, search_latents
from jax_noisy_anogan.networks import build_networks, convolution, sample_latents
from jax_noisy_anogan.networks.pixels import to_float_images
from jax_noisy_anogan.training.state import init_state, make_optimizer
from jax_noisy_anogan.training.step import TrainStep, penalty_weight

torch = pytest.importorskip("torch", reason="the twin needs the extra `bench`")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import compare  # noqa: E402
import our_side  # noqa: E402
import torch_twin  # noqa: E402

BATCH, LATENT, STDDEV = 8, 16, 0.3
KINDS = ("train", "search", "conv", "kernel-gradient")
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

    drawn = jax.jit(networks.generate)(params.generator, z, 0.3)
    _assert_close(drawn.transpose(0, 3, 1, 2), twin.generator(_tensor(z), 0.3))
    for stddev in (None, STDDEV):
        ours = jax.jit(networks.discriminate)(params.discriminator, x, 0.3, stddev)
        logits, features, statistic = twin.discriminator(torch_twin.to_torch_images(x), 0.3, stddev)
        _assert_close(ours.logits, logits)
        _assert_close(ours.stddev, statistic)
        assert ours.features.keys() == features.keys()
        for resolution, feature in ours.features.items():
            _assert_close(feature.transpose(0, 3, 1, 2), features[resolution])


@pytest.mark.parametrize(
    ("stage", "objective"), [(STAGES[1], "equation_18"), (STAGES[0], "equation_15")], ids=str
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
    step = TrainStep(networks, optimizer, loss=loss, prior="uniform", ema_decay=0.9)
    state = init_state(networks, optimizer, key).replace(
        params=params,
        average=params,
        optimizer=params.map(optimizer.init),
    )
    state, metrics = jax.jit(step)(state, real, abnormal, jnp.float32(alpha), key)
    keys = [jax.random.fold_in(jax.random.fold_in(key, 0), index) for index in range(BATCH)]
    z = jnp.stack([sample_latents(jax.random.fold_in(k, 0), "uniform", (LATENT,)) for k in keys])

    twin = torch_twin.make_twin(networks, params)
    trainer = torch_twin.Trainer(twin, optim, loss, ema_decay=0.9)
    x, y = (torch_twin.to_torch_images(image) for image in (real, abnormal))
    loss_d = trainer.step(x, y, _tensor(z), alpha)
    ours_loss = metrics["d_loss"] + penalty_weight(loss) * metrics["d_penalty"]
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
    """Where the search ends after a few steps, and its loss there."""
    networks, params = _networks_and_params(STAGES[1])
    search = SearchConfig(
        steps=3, learning_rate=0.05, feature_resolution=8, reduction=reduction, restarts=1
    )
    images, key = to_float_images(jnp.asarray(_bytes(networks, 7))), jax.random.key(8)

    def judge(image):
        out = networks.discriminate(params.discriminator, image[None], 1.0, STDDEV)
        return Judgement(jax.nn.sigmoid(out.logits[0]), out.logits[0], out.features[8][0])

    @jax.jit
    def run(images, key):
        return search_latents(
            lambda z: networks.generate(params.generator, z[None])[0],
            judge,
            images,
            key,
            search=search,
            gamma=GAMMA,
            prior="uniform",
            latent_size=LATENT,
        )

    found = run(images, key)
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
    _assert_close(found.loss, totals)
    _assert_close(found.latent, latents, 1e-3)


@pytest.mark.parametrize(
    ("cached_numbers", "shape"),
    [
        (2**18, (6, 8, 8, 3)),  # one piece
        (2 * 8 * 8 * 5, (6, 8, 8, 3)),  # pieces of two images
        (300, (6, 8, 8, 3)),  # two images do not fit: bands of one row through all images
        (2 * 7 * 8 * 5, (7, 8, 8, 3)),  # a prime number of images: bands of two rows
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("few_channels", [0, 8])
def test_the_kernel_gradient_does_not_depend_on_its_pieces(
    monkeypatch, cached_numbers, shape, kernel_size, few_channels
):
    monkeypatch.setattr(convolution, "FEW_CHANNELS", few_channels)
    monkeypatch.setattr(convolution, "_CACHED_NUMBERS", cached_numbers)
    random = np.random.default_rng(9)
    x = random.normal(size=shape).astype(np.float32)
    cotangent = random.normal(size=(*shape[:3], 5)).astype(np.float32)
    kernel = jnp.zeros((kernel_size, kernel_size, shape[3], 5))
    # A fresh function: a cached compilation would keep the pieces of the case before.
    ours = jax.jit(lambda *args: convolution.conv2d_kernel_gradient(*args))(x, cotangent, kernel)
    theirs = torch.nn.grad.conv2d_weight(
        torch_twin.to_torch_images(x),
        (5, shape[3], kernel_size, kernel_size),
        torch_twin.to_torch_images(cotangent),
        padding=kernel_size // 2,
    )
    _assert_close(ours.transpose(3, 2, 0, 1), theirs)


def test_alternation_swaps_the_order_and_summarises_by_pairs():
    calls = []
    pairs = compare.alternate(
        lambda: calls.append("ours"), lambda: calls.append("twin"), trials=3, seconds=60
    )
    assert len(pairs) == 3
    assert calls[2:] == ["ours", "twin", "twin", "ours", "ours", "twin"]
    ours, reference, (low, middle, high) = compare.summarise([(1, 2), (2, 2), (1, 4)])
    assert (ours, reference, middle) == (1, 2, 2)
    assert (low, high) == (1.5, 3)


@pytest.mark.parametrize("python", ["this", "another"])
def test_a_row_of_each_kind_is_complete(tmp_path, monkeypatch, python):
    """Fields that the machine's speed does not decide."""
    monkeypatch.setattr(compare, "QUICK", [compare.Case(kind, 4, 8, 4) for kind in KINDS])
    file = tmp_path / "rows.json"
    elsewhere = ["--our-python", sys.executable] if python == "another" else []
    compare.main(["--quick", "--json", str(file), "--trials", "3", "--seconds", "0", *elsewhere])
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    assert rows.keys() == {f"{kind} 4² fmap 8 batch 4" for kind in KINDS}
    for row in rows.values():
        assert {"ours", "reference", "ratio"} < row.keys()
        assert row["compilations"] == 1, "a run after the first must not compile"
    row = rows["search 4² fmap 8 batch 4"]
    # Per image and step, multiplications and additions: two dense layers, two convolutions and the
    # logits, forward and for the input's gradient; from_rgb and to_rgb likewise.
    dense, conv, rgb = 64 * 128 + 128 * 8 + 8, 16 * 9 * (8 * 8 + 9 * 8), 16 * 8 * 2
    assert row["gigaflops_per_image"] * 1e9 > 4 * (dense + conv + rgb)
    assert row["gigaflops_per_image"] * 1e9 < 5 * (dense + conv + rgb)
    for kind in ("conv", "kernel-gradient"):
        flops = rows[f"{kind} 4² fmap 8 batch 4"]["gigaflops_per_image"] * 1e9
        assert flops == pytest.approx(2 * 16 * 9 * 8 * 8)


@pytest.mark.parametrize("kind", ["conv", "kernel-gradient"])
def test_both_sides_of_a_layer_do_the_same(kind, monkeypatch):
    results = []
    monkeypatch.setattr(jax, "block_until_ready", results.append)
    for module, name in ((torch, "conv2d"), (torch.nn.grad, "conv2d_weight")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, **k: results.append(f(*a, **k)))
    case = compare.Case(kind, 8, 3, 2)
    our_side.layer_side(case)[0].run()
    compare.layer_twin(case).run()
    ours, theirs = results
    _assert_close(ours.transpose((0, 3, 1, 2) if kind == "conv" else (3, 2, 0, 1)), theirs)
