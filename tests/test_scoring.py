"""A score depends on the image alone, and is what the equations say; whole and tiled images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import (
    Config,
    ConfigError,
    DataConfig,
    GrowthConfig,
    LossConfig,
    ScoreConfig,
    SearchConfig,
    validate,
)
from jax_noisy_anogan.model import DiscriminatorStatistics, Model, normality_of
from jax_noisy_anogan.networks import build_networks
from jax_noisy_anogan.runtime import parallel
from jax_noisy_anogan.runtime.parallel import make_mesh
from jax_noisy_anogan.scoring.maps import attribution
from jax_noisy_anogan.scoring.scorer import TERMS, Scorer, learned_term, trusted_terms
from jax_noisy_anogan.training.state import load_model

SIDE, LATENT, STEPS, BATCH = 8, 8, 4, 8
GAMMA, LAMBDA = 0.3, 0.2
STDDEV = 0.4
# Programs for other batch shapes add up in another order: 6e-8 per sum, carried through the search.
RTOL = 1e-4

CONFIG = Config(
    growth=GrowthConfig(resolution=SIDE),
    loss=LossConfig(gamma=GAMMA),
    search=SearchConfig(steps=STEPS, feature_weight=LAMBDA, batch_size=BATCH, record_curve=True),
)
NETWORKS = build_networks(
    resolution=SIDE, fading=False, channels=1, fmap_base=32, fmap_max=4, latent_size=LATENT
)
IMAGES = list(np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 1), np.uint8))
SIZES = [(8, 8), (20, 13), (5, 30), (16, 16), (4, 4), (9, 8)]
TILED = [np.random.default_rng(1).integers(0, 256, (*size, 1), np.uint8) for size in SIZES]


def _reference(stddev=STDDEV, real=3.0, fake=-1.0):
    # Sums that are half filled, as `DiscriminatorStatistics` keeps them.
    return DiscriminatorStatistics(
        *(jnp.float32(0.5 * value) for value in (1.0, stddev, real, fake))
    )


@pytest.fixture(scope="module")
def model():
    return Model(NETWORKS, NETWORKS.init(jax.random.key(3)), _reference())


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(model, CONFIG, make_mesh(jax.devices()[:1]))


def _score(scorer, images):
    """Searched tiles and results of all images."""
    searched = list(scorer.search(iter(images)))
    pairs = ((image, found.latents) for image, found in zip(images, searched, strict=True))
    return searched, list(scorer.measure(pairs))


@pytest.fixture(scope="module")
def whole(scorer):
    return _score(scorer, IMAGES)


@pytest.fixture(scope="module")
def tiled(scorer):
    return _score(scorer, TILED)


def _assert_close(found, wanted, rtol=RTOL):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert list(ours.terms) == list(TERMS)
        for name, value in ours.terms.items():
            # A logit is a difference that can be close to 0.
            assert value == pytest.approx(theirs.terms[name], rel=rtol, abs=rtol), name
        # Where a latent's gradient is nearly 0, Adam makes a step of its rounding: a pixel here and
        # there then moves by more, in 1 of 6 models, and no term shows it.
        error = np.abs(ours.difference - theirs.difference)
        assert np.quantile(error, 0.98 if rtol else 1.0) <= rtol
        assert np.abs(
            ours.reconstruction.astype(int) - theirs.reconstruction.astype(int)
        ).max() <= (rtol > 0)


def test_only_training_with_known_abnormal_images_teaches_the_discriminator_term():
    assert learned_term(LossConfig(gamma=0.1)) == "discriminator"
    assert learned_term(LossConfig(gamma=1.0)) == ""


def test_terms_are_equations_2_to_4_24_and_25_at_the_latent_that_was_found(model, whole):
    searched, results = whole
    params, stddev = model.params, jnp.float32(STDDEV)
    for image, found, result in zip(IMAGES, searched, results, strict=True):
        x = np.float64(image)[None] / 127.5 - 1
        drawn = NETWORKS.generate(params.generator, jnp.asarray(found.latents))
        d_x = NETWORKS.discriminate(params.discriminator, jnp.float32(x), stddev=stddev)
        d_drawn = NETWORKS.discriminate(params.discriminator, drawn, stddev=stddev)
        f, f_drawn = (np.float64(d.features[4]) for d in (d_x, d_drawn))
        drawn = np.float64(drawn)
        residual, feature = np.abs(x - drawn).sum(), np.abs(f - f_drawn).sum()
        normality = 1 / (1 + np.exp(-np.float64(d_drawn.logits[0])))
        penalty = abs(1 - normality)
        score = GAMMA * ((1 - LAMBDA) * residual + LAMBDA * feature) + (1 - GAMMA) * penalty
        wanted = (score, residual, feature, penalty, -np.float64(d_x.logits[0]))
        assert result.terms == pytest.approx(dict(zip(TERMS, wanted, strict=True)), rel=1e-5)
        np.testing.assert_allclose(
            result.difference, np.abs(x - drawn)[0].mean(axis=-1), rtol=1e-4, atol=1e-5
        )
        bytes_drawn = np.clip(np.rint((drawn[0] + 1) * 127.5), 0, 255)
        assert np.abs(result.reconstruction.astype(int) - bytes_drawn).max() <= 1


def test_terms_are_those_of_the_scaled_pixels_and_differences_those_of_the_image(model):
    # (b / 255 - 1/4) / (1/4) = (2 b / 255 - 1/2) / (1/2)
    half = [image // 2 for image in IMAGES]
    config = dataclasses.replace(CONFIG, data=DataConfig(pixel_mean=0.25, pixel_std=0.25))
    _, scaled = _score(Scorer(model, config), half)
    _, plain = _score(Scorer(model, CONFIG), [2 * image for image in half])
    for ours, theirs in zip(scaled, plain, strict=True):
        for name in TERMS:
            np.testing.assert_allclose(ours.terms[name], theirs.terms[name], rtol=RTOL, atol=1e-5)
        np.testing.assert_allclose(2 * ours.difference, theirs.difference, rtol=RTOL, atol=1e-5)
        drawn = np.minimum(2.0 * ours.reconstruction, 255)
        assert np.abs(drawn - theirs.reconstruction).max() <= 1


def test_attribution_is_measured_where_it_is_asked_for(model, whole):
    config = dataclasses.replace(CONFIG, score=ScoreConfig(map="attribution"))
    searched, results = whole
    pairs = [(image, found.latents) for image, found in zip(IMAGES, searched, strict=True)]
    networks, params, *_ = model

    def logit(image):
        out = networks.discriminate(params.discriminator, image[None], stddev=jnp.float32(STDDEV))
        return out.logits[0]

    attributed = jax.jit(functools.partial(attribution, logit))
    for (image, z), plain, result in zip(
        pairs, results, Scorer(model, config).measure(pairs), strict=True
    ):
        x = image.astype(np.float32) / 127.5 - 1.0
        expected = attributed(x, networks.generate(params.generator, z)[0])
        np.testing.assert_allclose(result.map, expected, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(result.difference, plain.difference, rtol=1e-5, atol=1e-6)
        assert plain.map is plain.difference


@pytest.mark.parametrize(
    ("shown", "axes"),
    [
        ({"flip_horizontal": True}, [(), (1,)]),
        ({"flip_vertical": True}, [(), (0,)]),
        ({"flip_horizontal": True, "flip_vertical": True}, [(), (0,), (1,), (0, 1)]),
    ],
)
def test_a_logit_over_flips_is_the_mean_of_the_flipped_images_logits(
    model, scorer, whole, shown, axes
):
    config = dataclasses.replace(
        CONFIG,
        data=DataConfig(**shown),
        score=ScoreConfig(map="attribution", average_flips=True),
    )
    searched, plain = whole
    pairs = [(image, found.latents) for image, found in zip(IMAGES, searched, strict=True)]

    def logit_of(x):
        views = jnp.stack([jnp.flip(x, axis) for axis in axes])
        stddev = jnp.float32(STDDEV)
        return NETWORKS.discriminate(model.params.discriminator, views, stddev=stddev).logits.mean()

    attributed = jax.jit(functools.partial(attribution, logit_of))
    flipped = [
        list(scorer.measure([(np.flip(image, axis), z) for image, z in pairs])) for axis in axes
    ]
    for k, result in enumerate(Scorer(model, config).measure(pairs)):
        mean = np.mean([results[k].terms["discriminator"] for results in flipped])
        assert result.terms["discriminator"] == pytest.approx(mean, rel=1e-4)
        for name in ("score", "residual", "feature", "abnormality"):
            assert result.terms[name] == pytest.approx(plain[k].terms[name], rel=1e-5)
        x, z = IMAGES[k].astype(np.float32) / 127.5 - 1.0, pairs[k][1]
        expected = attributed(x, NETWORKS.generate(model.params.generator, z)[0])
        np.testing.assert_allclose(result.map, expected, rtol=1e-3, atol=1e-6)


def test_flips_that_training_never_shows_are_not_averaged_over():
    config = dataclasses.replace(CONFIG, score=ScoreConfig(average_flips=True))
    with pytest.raises(ConfigError, match="average_flips"):
        validate(config)


def test_the_measured_score_is_the_least_that_the_search_itself_saw(whole):
    searched, results = whole
    for found, result in zip(searched, results, strict=True):
        assert found.curve.shape == (1, STEPS + 1)
        assert result.terms["score"] == pytest.approx(float(found.curve.min()), rel=1e-5)
        assert found.curve.min() < found.curve[0, 0]


def test_order_neighbours_and_padding_leave_every_bit_of_a_score(scorer, whole, tiled):
    _assert_close(_score(scorer, IMAGES[::-1])[1][::-1], whole[1], rtol=0)
    strangers = [255 - image for image in IMAGES[1:]] * 2
    _assert_close(_score(scorer, [*strangers, IMAGES[0]])[1][-1:], whole[1][:1], rtol=0)
    _assert_close(_score(scorer, IMAGES[:1])[1], whole[1][:1], rtol=0)
    _assert_close(_score(scorer, TILED[::-1])[1][::-1], tiled[1], rtol=0)
    assert _score(scorer, []) == ([], [])


def test_no_program_of_scoring_calls_a_library(model, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        parallel, "data_parallel", lambda *_, own_code, **given: chosen.append(own_code)
    )
    Scorer(model, CONFIG)
    assert chosen == [True] * 4


def _with_search(**changes):
    return dataclasses.replace(CONFIG, search=dataclasses.replace(CONFIG.search, **changes))


@pytest.mark.parametrize("devices", [2, 8])
def test_the_number_of_devices_leaves_every_bit_of_a_score(model, whole, tiled, devices):
    other = Scorer(model, CONFIG, make_mesh(jax.devices()[:devices]))
    assert other.batch_size == devices * BATCH
    _assert_close(_score(other, IMAGES)[1], whole[1], rtol=0)
    _assert_close(_score(other, TILED)[1], tiled[1], rtol=0)


@pytest.fixture(scope="module")
def wider():
    """Of 16 x 16: alone, XLA adds up the last of its eight tiles otherwise than those before."""
    networks = build_networks(
        resolution=16, fading=False, channels=1, fmap_base=256, fmap_max=16, latent_size=LATENT
    )
    return Model(networks, networks.init(jax.random.key(3)), _reference())


@pytest.mark.parametrize(("batch", "at_once"), [(1, 1), (2, 8), (20, 24)])
def test_every_bit_of_a_tile_is_the_same_at_every_place_of_a_batch(wider, batch, at_once):
    config = _with_search(batch_size=batch, steps=2)
    other = Scorer(wider, config, make_mesh(jax.devices()[:1]))
    assert other.batch_size == at_once
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    searched, results = _score(other, [image] * at_once)
    for found, result in zip(searched, results, strict=True):
        np.testing.assert_array_equal(found.latents, searched[0].latents)
        assert result.terms == results[0].terms
        np.testing.assert_array_equal(result.difference, results[0].difference)


@pytest.mark.parametrize("batch", [1, 16])
def test_another_batch_shape_changes_no_more_than_rounding(model, whole, tiled, batch):
    other = Scorer(model, _with_search(batch_size=batch), make_mesh(jax.devices()[:1]))
    assert other.batch_size == batch
    _assert_close(_score(other, IMAGES)[1], whole[1])
    _assert_close(_score(other, TILED)[1], tiled[1])


def _tiles(scorer, image):
    missing = [(0, max(SIDE - size, 0)) for size in image.shape[:2]]
    padded = np.pad(image, [*missing, (0, 0)], mode="reflect")
    corners = scorer.positions(*image.shape[:2])
    return [padded[top : top + SIDE, left : left + SIDE] for top, left in corners]


def test_a_tiled_image_has_the_largest_terms_of_its_tiles_scored_alone(scorer, tiled):
    searched, results = tiled
    assert len(scorer.positions(20, 13)) == 6
    for image, found, result in zip(TILED, searched, results, strict=True):
        tiles = _tiles(scorer, image)
        alone, parts = _score(scorer, tiles)
        np.testing.assert_array_equal(found.latents, np.concatenate([a.latents for a in alone]))
        for name in TERMS:
            assert result.terms[name] == max(part.terms[name] for part in parts)
        assert result.reconstruction.shape == image.shape
        assert result.difference.shape == image.shape[:2]
        if len(tiles) == 1:
            height, width = image.shape[:2]
            np.testing.assert_allclose(
                result.difference, parts[0].difference[:height, :width], rtol=1e-5, atol=1e-6
            )


def test_where_one_tile_alone_lies_the_blended_map_is_that_tile_s(scorer, tiled):
    image, result = TILED[3], tiled[1][3]
    corners = scorer.positions(16, 16).tolist()
    parts = _score(scorer, _tiles(scorer, image))[1]
    covers = np.zeros((16, 16), int)
    for top, left in corners:
        covers[top : top + SIDE, left : left + SIDE] += 1
    assert [covers[k, j] for k in (0, 15) for j in (0, 15)] == [1] * 4
    for (top, left), part in zip(corners, parts, strict=True):
        place = slice(top, top + SIDE), slice(left, left + SIDE)
        own = covers[place] == 1
        np.testing.assert_allclose(
            result.difference[place][own], part.difference[own], rtol=1e-5, atol=1e-6
        )


def test_tiles_of_many_images_share_batches(scorer, monkeypatch):
    batches = []
    monkeypatch.setattr(
        scorer, "_search", lambda v, images, f=scorer._search: batches.append(1) or f(v, images)
    )
    list(scorer.search(TILED))
    tiles = sum(len(scorer.positions(*size)) for size in SIZES)
    assert tiles > len(SIZES)
    assert len(batches) == -(-tiles // BATCH)


@pytest.mark.parametrize("devices", [1, 2])
def test_only_tiles_that_begin_farthest_from_what_g_draws_are_searched(model, devices):
    def scorer(**changes):
        config = _with_search(start="bank", bank_images=40, record_curve=False, **changes)
        config = dataclasses.replace(config, data=DataConfig(tile_image_resolution=32))
        return Scorer(model, config, make_mesh(jax.devices()[:devices]))

    some, beginning, searching = scorer(tiles=2), scorer(steps=0), scorer()
    for image, found in zip(TILED, some.search(iter(TILED)), strict=True):
        tiles = _tiles(some, image)
        begun, results = _score(beginning, tiles)
        every = list(searching.search(iter(tiles)))
        order = np.argsort([result.terms["score"] for result in results])
        for tile in order[:-2]:
            np.testing.assert_array_equal(found.latents[tile], begun[tile].latents[0])
        for tile in order[-2:]:
            np.testing.assert_array_equal(found.latents[tile], every[tile].latents[0])


def test_whole_images_are_all_searched(model):
    changes = {"start": "bank", "bank_images": 40, "record_curve": False}
    searched = [
        Scorer(model, _with_search(tiles=tiles, **changes), make_mesh(jax.devices()[:1])).search(
            iter(IMAGES)
        )
        for tiles in (0, 1)
    ]
    for every, one in zip(*searched, strict=True):
        np.testing.assert_array_equal(every.latents, one.latents)


def test_no_more_than_two_batches_are_read_ahead(scorer):
    read = []

    def endless():
        while True:
            read.append(1)
            yield IMAGES[len(read) % 6]

    found = scorer.search(endless())
    for given in range(3 * BATCH):
        next(found)
        assert len(read) <= given + 1 + 2 * BATCH


def test_a_wasserstein_critic_is_put_on_the_scale_of_its_own_means(model):
    squash = normality_of("wgan_gp", _reference(real=30.0, fake=-10.0))
    values = [1 / (1 + np.exp(-k)) for k in (2.0, -2.0, 0.0)]
    np.testing.assert_allclose([squash(v) for v in (30.0, -10.0, 10.0)], values, rtol=1e-6)
    loss = dataclasses.replace(CONFIG.loss, objective="wgan_gp", penalty="gp")
    critic = Scorer(
        model,
        dataclasses.replace(CONFIG, loss=loss),
        make_mesh(jax.devices()[:1]),
    )
    z = np.ones((1, LATENT), np.float32)
    (result,) = critic.measure([(IMAGES[0], z)])
    drawn = NETWORKS.generate(model.params.generator, jnp.asarray(z))
    stddev = jnp.float32(STDDEV)
    out = NETWORKS.discriminate(model.params.discriminator, drawn, stddev=stddev)
    # Means of 3 and -1: the middle is 1, half the distance 2.
    wanted = 1 - 1 / (1 + np.exp(-2 * (float(out.logits[0]) - 1) / 2))
    assert result.terms["abnormality"] == pytest.approx(wanted, rel=1e-4)


def test_restarts_keep_the_best_start_of_every_image(model):
    def scores(restarts):
        search = dataclasses.replace(CONFIG.search, restarts=restarts, record_curve=False)
        config = dataclasses.replace(CONFIG, search=search)
        scorer = Scorer(model, config, make_mesh(jax.devices()[:1]))
        return np.array([result.terms["score"] for result in _score(scorer, IMAGES)[1]])

    one, three = scores(1), scores(3)
    # The starts of one restart are not among those of three, so no image need be equal.
    assert three.mean() < one.mean()
    assert np.isfinite(three).all()


def test_a_bank_of_drawn_images_is_where_a_search_begins(model):
    search = dataclasses.replace(CONFIG.search, start="bank", bank_images=40, steps=0)
    config = dataclasses.replace(CONFIG, search=search)
    scorer = Scorer(model, config, make_mesh(jax.devices()[:1]))
    latents, thumbnails = (np.asarray(leaf) for leaf in scorer.model.bank)
    drawn = np.asarray(NETWORKS.generate(model.params.generator, jnp.asarray(latents)))
    np.testing.assert_allclose(thumbnails, drawn.reshape(40, -1), rtol=1e-4, atol=1e-5)
    for image, found in zip(IMAGES, scorer.search(iter(IMAGES)), strict=True):
        x = np.float64(image) / 127.5 - 1
        closest = np.square(np.float64(drawn) - x).sum(axis=(1, 2, 3)).argmin()
        np.testing.assert_array_equal(found.latents[0], latents[closest])
    again = Scorer(scorer.model, config, make_mesh(jax.devices()[:1]))
    assert again.model.bank is scorer.model.bank
    assert Scorer(scorer.model, CONFIG, make_mesh(jax.devices()[:1])).model.bank is None


def test_the_terms_of_a_memory_are_trusted():
    assert trusted_terms(ScoreConfig(memory=True)) == ("memory", "components")
    assert trusted_terms(ScoreConfig()) == ()


def test_a_run_that_is_only_read_names_no_folder_of_compiled_programs(finished_run, tmp_path):
    config, run = finished_run
    folder, before = tmp_path / "programs", jax.config.values["jax_compilation_cache_dir"]
    config = config_lib.changed(config, [f"train.compilation_cache_dir={folder}"])
    load_model(run, config)
    assert jax.config.values["jax_compilation_cache_dir"] == before
    assert not folder.exists()
