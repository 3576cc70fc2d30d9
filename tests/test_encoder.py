"""The encoder that a search may begin at: what it learns, what it leaves alone, where it lies."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import model
from jax_noisy_anogan.config import Config, GrowthConfig, NetworkConfig, SearchConfig
from jax_noisy_anogan.data import load_dataset, make_split
from jax_noisy_anogan.evaluation import results
from jax_noisy_anogan.losses import search_loss
from jax_noisy_anogan.model import Model, Reference, bind, make_encoder, with_guide
from jax_noisy_anogan.networks import build_networks, project_to_hypersphere
from jax_noisy_anogan.networks.pixels import to_byte_images, to_float_images
from jax_noisy_anogan.scoring.scorer import Scorer
from jax_noisy_anogan.settings import ConfigError
from jax_noisy_anogan.training import encoder
from jax_noisy_anogan.training import state as state_lib

WIDTHS = {"fmap_base": 64, "fmap_max": 8, "latent_size": 8}
CONFIG = Config(
    network=NetworkConfig(**WIDTHS),
    growth=GrowthConfig(start_resolution=8, resolution=8),
    search=SearchConfig(steps=3, start="encoder", batch_size=8),
)
NETWORKS = build_networks(resolution=8, fading=False, channels=1, **WIDTHS)
REFERENCE = Reference(*(jnp.float32(value) for value in (1.0, 0.4, 3.0, -1.0)))


@pytest.fixture(scope="module")
def trained():
    """Networks that were never trained, and 150 updates of an encoder for them."""
    params = NETWORKS.init(jax.random.key(3))
    optimizer = optax.adam(0.003, b2=0.99)
    state = model.init_encoder(CONFIG, NETWORKS, optimizer)
    first = jax.tree.map(np.array, state.params)
    step = jax.jit(encoder.make_encoder_step(NETWORKS, CONFIG, optimizer))
    z = jax.random.normal(jax.random.key(8), (32, 8))
    images = to_byte_images(NETWORKS.generate(params.generator, z))
    losses = []
    for index in range(150):
        part = images[index % 2 * 16 :][:16]
        state, loss = step(
            state, params, REFERENCE, part, jax.random.fold_in(jax.random.key(1), index)
        )
        losses.append(float(loss))
    return params, first, state.params, losses


def _mean_loss(params, encoder_params, images):
    """Eq. 24 at E(x), image by image and term by term."""
    generate, judge = bind(NETWORKS, params, REFERENCE, CONFIG)
    found = []
    for x in images:
        z = make_encoder(CONFIG).apply({"params": encoder_params}, x[None])
        drawn = generate(project_to_hypersphere(z)[0])
        terms = search_loss(
            x,
            drawn,
            judge(x).features,
            judge(drawn).features,
            judge(drawn).normality,
            gamma=CONFIG.loss.gamma,
            feature_weight=CONFIG.search.feature_weight,
        )
        found.append(float(terms.total))
    return np.mean(found)


def test_the_loss_falls_on_images_that_it_never_saw(trained):
    params, first, last, losses = trained
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])
    z = jax.random.normal(jax.random.key(99), (16, 8))
    unseen = NETWORKS.generate(params.generator, z)
    assert _mean_loss(params, last, unseen) < 0.7 * _mean_loss(params, first, unseen)


def test_the_first_loss_is_equation_24_at_the_encoder_s_latents(trained):
    params, first, _, losses = trained
    key = jax.random.fold_in(jax.random.key(1), 0)
    z = jax.random.normal(jax.random.key(8), (32, 8))
    real = to_byte_images(NETWORKS.generate(params.generator, z))[:16]
    u = np.asarray(jax.random.uniform(key, (16, 8), minval=-1.0, maxval=1.0))
    u = u * np.sqrt(8) / np.linalg.norm(u, axis=1, keepdims=True)
    drawn = NETWORKS.generate(params.generator, jnp.asarray(u))
    halves = [_mean_loss(params, first, images) for images in (to_float_images(real), drawn)]
    assert np.mean(halves) == pytest.approx(losses[0], rel=1e-4)


def test_an_update_changes_every_layer_of_the_encoder_and_nothing_of_g_and_d(trained):
    params, first, last, _ = trained
    same = NETWORKS.init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, params, same)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), first, last)
    assert all(jax.tree.leaves(moved))


def test_a_search_begins_at_the_encoder_s_latent(trained):
    params, _, last, _ = trained
    config = dataclasses.replace(CONFIG, search=dataclasses.replace(CONFIG.search, steps=0))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    (*found,) = Scorer(Model(NETWORKS, params, REFERENCE, last), config).search(iter(images))
    wanted = make_encoder(config).apply({"params": last}, to_float_images(jnp.asarray(images)))
    wanted = np.asarray(wanted) * np.sqrt(8) / np.linalg.norm(wanted, axis=1, keepdims=True)
    for row, z in zip(found, wanted, strict=True):
        np.testing.assert_allclose(row.latents[0], z, rtol=1e-4, atol=1e-5)


def test_a_model_without_an_encoder_says_what_to_do():
    fresh = Model(NETWORKS, NETWORKS.init(jax.random.key(3)), REFERENCE)
    with pytest.raises(ConfigError, match=r"search\.start is 'encoder'.*evaluate"):
        with_guide(fresh, CONFIG)


def test_a_run_keeps_its_encoder_and_makes_it_again_where_it_is_damaged(
    finished_run, tmp_path, caplog
):
    config, source = finished_run
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    changes = ["search.start=encoder", "search.encoder_images=64", "search.steps=2"]
    config = config_lib.changed(config, changes)
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=False)
    split = make_split(dataset, config.data)
    bare = state_lib.load_model(folder, config)
    assert bare.guide is None

    def fit(config):
        return encoder.fit(config, folder, dataset, split, bare, progress=False)

    first = fit(config).guide
    stored = folder / "encoder" / "checkpoints"
    written = {path: path.stat().st_mtime_ns for path in stored.rglob("*") if path.is_file()}
    jax.tree.map(np.testing.assert_array_equal, state_lib.load_model(folder, config).guide, first)
    jax.tree.map(np.testing.assert_array_equal, fit(config).guide, first)
    assert {path: path.stat().st_mtime_ns for path in written} == written

    # Another loss or another length is another encoder.
    longer = config_lib.changed(config, ["search.encoder_images=128"])
    assert state_lib.load_model(folder, longer).guide is None

    for path in written:
        if path.parent.name == "d":
            path.write_bytes(b"damaged" + path.read_bytes()[7:])
    assert state_lib.load_model(folder, config).guide is None
    assert "cannot be used" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, fit(config).guide, first)
    again = state_lib.load_model(folder, config)
    assert results.evaluate(config, folder, dataset, split, again, progress=False)["score"]
