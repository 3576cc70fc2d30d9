"""The encoder that is trained along: what it learns and leaves alone, where a search begins."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import experiment
from jax_noisy_anogan.config import (
    Config,
    ConfigError,
    LossConfig,
    SearchConfig,
    TrainConfig,
)
from jax_noisy_anogan.losses import search_loss
from jax_noisy_anogan.model import DiscriminatorStatistics, Model, bind, with_initialisation
from jax_noisy_anogan.networks import Networks, build_networks
from jax_noisy_anogan.networks.pixels import to_byte_images, to_float_images
from jax_noisy_anogan.scoring.artefact import make_detect
from jax_noisy_anogan.scoring.detector import load
from jax_noisy_anogan.scoring.scorer import Scorer
from jax_noisy_anogan.training.reconstruction import project
from jax_noisy_anogan.training.state import init_state, load_model
from jax_noisy_anogan.training.step import TrainStep

CONFIG = tiny.config(
    loss=LossConfig(gamma=0.3, penalty="none"),
    search=SearchConfig(start="encoder", batch_size=8, steps=0),
    train=TrainConfig(encoder=True),
)
SEEN = []  # what the update shows the encoder


class ObservedNetworks(Networks):
    def encode(self, params, x, alpha=1.0):
        jax.debug.callback(lambda value: SEEN.append(np.asarray(value)), x)
        return super().encode(params, x, alpha)


PLAIN = tiny.networks()
NETWORKS = build_networks(resolution=8, fading=False, channels=1, encoder=True, **tiny.WIDTHS)
STATISTICS = DiscriminatorStatistics(*(jnp.float32(value) for value in (1.0, 0.4, 3.0, -1.0)))
BATCH, GROUP = 16, 4
IMAGES = np.random.default_rng(0).integers(0, 256, (2, BATCH, 8, 8, 1), np.uint8)
# Adam would make a whole step of what rounding leaves of a gradient of zero.
SGD, ADAM = optax.sgd(1e-3), optax.adam(0.003, b2=0.99)


@functools.cache
def _stepping(encoder, weight=0.0, optimizer=SGD):
    """An update whose averages stay, compiled, and the state that it begins at."""
    observed = ObservedNetworks(NETWORKS.generator, NETWORKS.discriminator, 8, NETWORKS.encoder)
    networks = observed if encoder else PLAIN
    loss = dataclasses.replace(CONFIG.loss, reconstruction_weight=weight)
    step = TrainStep(
        networks, optimizer, loss=loss, prior="uniform", ema_decay=1.0, search=CONFIG.search
    )
    state = init_state(networks, optimizer, jax.random.key(3)).replace(statistics=STATISTICS)
    return jax.jit(step), state


def _update(encoder, images=IMAGES, weight=0.0):
    step, start = _stepping(encoder, weight)
    return step(start, *images, jnp.float32(1.0), jax.random.key(1))


# Two programs of the same update: parameters are of order 1 and change by about 1e-3.
SAME = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)


def _mean_loss(params, encoder, images):
    """Eq. 24 at E(x), image by image and term by term."""
    generate, judge = bind(NETWORKS, params, STATISTICS, CONFIG)
    found = []
    for x in images:
        generated = generate(NETWORKS.encode(encoder, x[None])[0])
        terms = search_loss(
            x,
            generated,
            judge(x).features,
            judge(generated).features,
            judge(generated).normality,
            gamma=CONFIG.loss.gamma,
            feature_weight=CONFIG.search.feature_weight,
        )
        found.append(float(terms.total))
    return np.mean(found)


def test_an_encoder_trained_along_moves_neither_g_nor_d_and_all_of_its_own_layers():
    (without, said), (beside, said_beside) = _update(False), _update(True)
    for plain, other in zip(without.params[:2], beside.params[:2], strict=True):
        jax.tree.map(SAME, plain, other)
    assert said_beside.keys() - said.keys() == {"e_loss", "e_gradient_norm"}
    start = _stepping(True)[1]
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), start.params.encoder, beside.params.encoder
    )
    assert all(jax.tree.leaves(moved))
    assert without.params.encoder is None


def test_its_loss_is_equation_24_at_its_latents_of_one_image_per_group():
    SEEN.clear()
    start, (_, said) = _stepping(True)[1], _update(True)
    jax.effects_barrier()
    real, generated = np.split(SEEN[0], 2)
    np.testing.assert_allclose(real, IMAGES[0][::GROUP] / 127.5 - 1.0, atol=1e-6)
    assert len(generated) == BATCH // GROUP
    wanted = _mean_loss(start.average, start.params.encoder, SEEN[0])
    assert float(said["e_loss"]) == pytest.approx(wanted, rel=1e-4)


def test_the_loss_falls_on_images_that_it_never_saw():
    step, state = _stepping(True, optimizer=ADAM)
    first = state.params.encoder
    # The averages stay and made the real images, so that the task is the same to the end.
    z = jax.random.normal(jax.random.key(99), (176, 8))
    images = NETWORKS.generate(state.average.generator, z)
    unseen, shown = images[:16], np.asarray(to_byte_images(images[16:])).reshape(10, BATCH, 8, 8, 1)
    for index in range(150):
        batch = (shown[index % 10], IMAGES[1], jnp.float32(1.0), jax.random.key(1))
        state, _ = step(state, *batch)
    before, after = (_mean_loss(state.average, e, unseen) for e in (first, state.params.encoder))
    assert after < 0.8 * before


def test_the_reconstruction_weight_pulls_g_to_the_real_images_and_moves_nothing_else():
    (without, _), (pulled, said) = _update(True), _update(True, weight=100.0)
    for name in ("discriminator", "encoder"):
        jax.tree.map(SAME, getattr(without.params, name), getattr(pulled.params, name))
    start = _stepping(True)[1]
    x = to_float_images(jnp.asarray(IMAGES[0][::GROUP]))
    z = NETWORKS.encode(start.params.encoder, x)

    def error(generator):
        return float(np.abs(x - NETWORKS.generate(generator, z)).mean())

    assert float(said["g_reconstruction"]) == pytest.approx(error(start.params.generator), rel=1e-4)
    assert error(pulled.params.generator) < error(start.params.generator)
    assert error(pulled.params.generator) < error(without.params.generator)
    # Known abnormal images do not enter it.
    _, other = _update(True, images=(IMAGES[0], 255 - IMAGES[1]), weight=100.0)
    assert float(other["g_reconstruction"]) == float(said["g_reconstruction"])


def test_principal_components_are_those_of_a_singular_value_decomposition():
    training = np.random.default_rng(1).integers(0, 256, (40, 4, 4, 1), np.uint8)
    images = np.random.default_rng(2).integers(0, 256, (5, 4, 4, 1), np.uint8)
    flat = np.float64(training.reshape(40, 16))
    axes = np.linalg.svd(flat - flat.mean(0))[2][:6]
    wanted = flat.mean(0) + (images.reshape(5, 16) - flat.mean(0)) @ axes.T @ axes
    found = project(training, images, 6)
    np.testing.assert_allclose(found, wanted.reshape(images.shape), rtol=1e-3, atol=1e-2)


def test_a_model_without_an_encoder_says_what_to_do():
    fresh = Model(PLAIN, PLAIN.init(jax.random.key(3)), STATISTICS)
    with pytest.raises(ConfigError, match=r"search\.start is 'encoder'.*train\.encoder=true"):
        with_initialisation(fresh, CONFIG)


@pytest.mark.parametrize("change", ["search.start=encoder", "loss.reconstruction_weight=1.0"])
def test_what_needs_an_encoder_is_refused_without_one(change):
    with pytest.raises(ConfigError, match=r"train\.encoder set to true"):
        config_lib.changed(Config(), [change])


@pytest.fixture(scope="module")
def answered(finished_run, tmp_path_factory):
    """A finished run whose encoder answers alone, evaluated; its settings and folder."""
    config, source = finished_run
    folder = tmp_path_factory.mktemp("encoder") / "run"
    shutil.copytree(source, folder)
    config = config_lib.changed(config, ["search.start=encoder", "search.steps=0"])
    experiment.run(config, folder, progress=False)
    return config, folder, load_model(folder, config)


def test_without_steps_the_encoder_alone_answers_in_search_detector_and_artefact(answered):
    config, folder, model = answered
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    x = np.float32(images / 127.5 - 1.0)
    z = np.asarray(model.networks.encode(model.params.encoder, x))
    generated = np.asarray(model.networks.generate(model.params.generator, z))
    wanted = np.clip(np.round((generated + 1.0) * 127.5), 0, 255).astype(int)
    (*found,) = Scorer(model, config).search(iter(images))
    for row, latent in zip(found, z, strict=True):
        np.testing.assert_allclose(row.latents[0], latent, rtol=1e-4, atol=1e-5)
    detector = load(folder)
    detections = detector.score(images)
    detect = make_detect(model, config, detector.calibration, detector._maps, shape=(8, 8))
    exported = jax.jit(detect)(images)
    for k, detection in enumerate(detections):
        assert np.abs(detection.reconstruction.astype(int) - wanted[k]).max() <= 1
        assert np.abs(np.asarray(exported["reconstruction"][k], int) - wanted[k]).max() <= 1
        residual = np.abs(x[k] - generated[k]).sum()
        assert detection.terms["residual"] == pytest.approx(residual, rel=1e-4)
        assert float(exported["terms"]["residual"][k]) == pytest.approx(residual, rel=1e-4)


def test_reconstruction_of_held_out_images_is_in_the_curves(finished_run):
    config, folder = finished_run
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert config.train.encoder
    assert 0.0 < line["reconstruction_psnr"] < 60.0
    assert 0.0 < line["reconstruction_l1_pca"] < line["reconstruction_l1"] < 1.0
