"""The networks against the published figures, and against NumPy and SciPy written from them."""

import functools

import hypothesis
import hypothesis.extra.numpy as hypothesis_numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats
from jax import lax

from jax_noisy_anogan.networks import (
    build_networks,
    grow_params,
    project_to_hypersphere,
    sample_latents,
)
from jax_noisy_anogan.networks.convolution import conv2d
from jax_noisy_anogan.networks.generator import channels_at
from jax_noisy_anogan.networks.layers import (
    EqualizedConv,
    EqualizedDense,
    crossfade,
    downsample_average,
    draw_parameters,
    fade_real_images,
    minibatch_stddev,
    pixel_norm,
    upsample_nearest,
)

# Karras et al. 2018, Table 2.
WIDTHS = {
    4: 512,
    8: 512,
    16: 512,
    32: 512,
    64: 256,
    128: 128,
    256: 64,
    512: 32,
    1024: 16,
}
# Widths that differ from block to block, so that a swapped one shows.
SMALL = {"fmap_base": 64, "fmap_max": 12, "latent_size": 10, "channels": 3}
QUICK = hypothesis.settings(deadline=None, max_examples=20)


def _small(resolution, fading=False, dtype="float64", **changes):
    return build_networks(
        resolution=resolution, fading=fading, compute_dtype=dtype, **{**SMALL, **changes}
    )


def _random_like(tree, seed):
    """N(0, 1) everywhere: biases too, which start at zero and would hide in a comparison."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), tree)


def _random_params(networks, seed=0):
    with jax.enable_x64(True):
        return _random_like(jax.eval_shape(networks.init, jax.random.key(0)), seed)


def _images(seed, *shape):
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape)


# ---------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------


def _conv_size(inputs, outputs, kernel=3):
    return kernel * kernel * inputs * outputs + outputs


def _published_sizes(resolution, channels):
    """Parameters of G and D with one toRGB and one fromRGB, counted from Table 2."""
    generator = 512 * 512 * 16 + 512 + _conv_size(512, 512)
    discriminator = _conv_size(513, 512) + (4 * 4 * 512 * 512 + 512) + (512 + 1)
    for r in (r for r in WIDTHS if 4 < r <= resolution):
        generator += _conv_size(WIDTHS[r // 2], WIDTHS[r]) + _conv_size(WIDTHS[r], WIDTHS[r])
        discriminator += _conv_size(WIDTHS[r], WIDTHS[r]) + _conv_size(WIDTHS[r], WIDTHS[r // 2])
    generator += _conv_size(WIDTHS[resolution], channels, kernel=1)
    discriminator += _conv_size(channels, WIDTHS[resolution], kernel=1)
    return generator, discriminator


@functools.cache
def _sizes(resolution, channels):
    networks = build_networks(resolution=resolution, fading=False, channels=channels)
    params = jax.eval_shape(networks.init, jax.random.key(0))
    return tuple(sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in params[:2])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", WIDTHS)
def test_every_resolution_builds_at_full_width_with_the_published_size(resolution, channels):
    fading = resolution > 4
    networks = build_networks(resolution=resolution, fading=fading, channels=channels)

    def run(key):
        params = networks.init(key)
        image = networks.generate(params.generator, jnp.zeros((4, 512)), 0.5)
        return image, networks.discriminate(params.discriminator, image, 0.5)

    image, judged = jax.eval_shape(run, jax.random.key(0))
    assert image.shape == (4, resolution, resolution, channels)
    assert judged.logits.shape == judged.stddev.shape == (4,)
    for at, features in judged.features.items():
        assert features.shape == (4, at, at, WIDTHS[max(at, 4)])
    assert set(judged.features) == {1, *(r for r in WIDTHS if r <= resolution)}

    assert _sizes(resolution, channels) == _published_sizes(resolution, channels)


def test_totals_are_those_of_the_literature():
    millions = {key: tuple(round(n / 1e6, 2) for n in _sizes(*key)) for key in ((32, 1), (1024, 3))}
    assert millions == {(32, 1): (20.71, 20.72), (1024, 3): (23.07, 23.08)}

    # pytorch_GAN_zoo keeps the toRGB and fromRGB of every resolution, and gives the first dense
    # layer a bias per unit (8,192) where the original has one per map (512).
    generator, discriminator = _sizes(32, 1)
    assert discriminator + 3 * _conv_size(1, 512, kernel=1) == 20_722_689
    assert generator + 3 * _conv_size(512, 1, kernel=1) == 20_723_204 - (8_192 - 512)


def test_channel_table():
    assert {r: channels_at(r, 8192, 512) for r in WIDTHS} == WIDTHS
    # The CIFAR-10 setting of the same paper.
    assert [channels_at(r, 4096, 128) for r in (4, 8, 16, 32)] == [128, 128, 128, 128]


# ---------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------


def test_weights_start_from_a_standard_normal_and_biases_from_zero():
    params = EqualizedConv(32).init(jax.random.key(1), jnp.zeros((1, 4, 4, 64)))["params"]
    assert params["weight"].shape == (3, 3, 64, 32)
    assert scipy.stats.kstest(np.ravel(params["weight"]), "norm").pvalue > 0.01
    assert not np.any(params["bias"])
    params = EqualizedDense(32).init(jax.random.key(2), jnp.zeros((1, 640)))["params"]
    assert scipy.stats.kstest(np.ravel(params["weight"]), "norm").pvalue > 0.01
    assert not np.any(params["bias"])


@pytest.mark.parametrize("gain", [2**0.5, 1.0])
def test_equalised_layers_scale_by_gain_over_root_fan_in_when_used(gain):
    weight, x = np.ones((3, 3, 7, 2)), np.ones((1, 5, 5, 7))
    params = {"params": {"weight": weight, "bias": np.array([0.25, -1.0])}}
    y = EqualizedConv(2, gain=gain).apply(params, x)
    # The middle pixel sees fan_in = 63 ones; biases are not scaled.
    np.testing.assert_allclose(y[0, 2, 2], gain * 63**0.5 + np.array([0.25, -1.0]), rtol=1e-6)

    params = {"params": {"weight": np.ones((63, 1)), "bias": np.array([0.5])}}
    y = EqualizedDense(1, gain=gain).apply(params, np.ones((2, 63)))
    np.testing.assert_allclose(y, np.full((2, 1), gain * 63**0.5 + 0.5), rtol=1e-6)


def test_pixel_norm_divides_by_the_root_mean_square_and_not_the_deviation():
    x = np.random.default_rng(0).normal(3.0, 1.0, (2, 3, 3, 5))
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(pixel_norm(jnp.asarray(x)), expected, rtol=1e-5)


def test_resampling_equals_numpy():
    x = _images(0, 2, 4, 6, 3).astype(np.float32)
    up = x.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(upsample_nearest(x), up)
    quarters = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
    np.testing.assert_allclose(downsample_average(x), quarters / 4, atol=1e-6)


_ARRAYS = hypothesis_numpy.arrays(
    np.float32, (1, 4, 4, 2), elements=st.floats(-10.0, 10.0, width=16)
)


@QUICK
@hypothesis.given(_ARRAYS)
def test_averaging_undoes_nearest_upsampling(x):
    np.testing.assert_array_equal(downsample_average(upsample_nearest(jnp.asarray(x))), x)


@QUICK
@hypothesis.given(_ARRAYS, _ARRAYS, st.floats(0.0, 1.0, width=32))
def test_crossfade_is_linear_between_its_ends(old, new, alpha):
    expected = (1.0 - alpha) * old.astype(float) + alpha * new.astype(float)
    np.testing.assert_allclose(
        crossfade(jnp.asarray(old), jnp.asarray(new), alpha), expected, atol=1e-5
    )


@QUICK
@hypothesis.given(_ARRAYS, st.floats(0.0, 1.0, width=32))
def test_fading_real_images_keeps_the_coarse_image_and_scales_the_detail(x, alpha):
    coarse = x.astype(float).reshape(1, 2, 2, 2, 2, 2).mean(axis=(2, 4))
    smooth = coarse.repeat(2, axis=1).repeat(2, axis=2)
    faded = fade_real_images(jnp.asarray(x), alpha)
    np.testing.assert_allclose(faded, smooth + alpha * (x - smooth), atol=2e-5)
    np.testing.assert_allclose(downsample_average(faded), coarse, atol=2e-5)


def test_real_images_fade_from_half_the_resolution_to_themselves():
    x = jnp.asarray(_images(1, 2, 8, 8, 1), jnp.float32)
    np.testing.assert_array_equal(fade_real_images(x, 0.0), upsample_nearest(downsample_average(x)))
    np.testing.assert_allclose(fade_real_images(x, 1.0), x, atol=1e-6)


def _stddev_numpy(x, group):
    """Karras et al. 2018, section 3, one loop per group."""
    statistic = np.empty(len(x))
    for first in range(0, len(x), group):
        members = x[first : first + group]
        centred = members - members.mean(axis=0)
        statistic[first : first + group] = np.sqrt((centred**2).mean(axis=0) + 1e-8).mean()
    return statistic


@pytest.mark.parametrize(("batch", "group"), [(8, 4), (12, 4), (4, 4), (3, 3), (6, 1)])
def test_minibatch_stddev_equals_numpy(batch, group):
    x = _images(batch, batch, 4, 4, 5) * np.arange(1, batch + 1).reshape(-1, 1, 1, 1)
    statistic = minibatch_stddev(jnp.asarray(x), group)
    np.testing.assert_allclose(statistic, _stddev_numpy(x, group), rtol=1e-5)


def test_minibatch_stddev_of_a_small_batch_takes_the_whole_batch_as_its_group():
    x = _images(0, 3, 4, 4, 5)
    np.testing.assert_allclose(minibatch_stddev(x, 4), _stddev_numpy(x, 3), rtol=1e-5)


def test_minibatch_stddev_of_parts_equals_that_of_the_whole():
    x = jnp.asarray(_images(0, 16, 4, 4, 5))
    parts = [minibatch_stddev(x[first : first + 8], 4) for first in (0, 8)]
    np.testing.assert_allclose(jnp.concatenate(parts), minibatch_stddev(x, 4), rtol=1e-6)


def test_minibatch_stddev_refuses_a_batch_that_is_no_multiple_of_the_group():
    with pytest.raises(ValueError, match=r"batch of 6 .* group size 4.*growth\.minibatch"):
        minibatch_stddev(jnp.zeros((6, 4, 4, 2)), 4)


# ---------------------------------------------------------------------------------------------
# Derivatives of the convolution
# ---------------------------------------------------------------------------------------------


def _plain_conv(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _curved(conv):
    """A function of (x, kernel) whose derivatives of every order depend on both."""
    return lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel)))


def _squared_gradient(conv, argument):
    gradient = jax.grad(_curved(conv), argument)
    return lambda x, kernel: jnp.sum(jnp.square(gradient(x, kernel)))


@pytest.mark.parametrize(
    ("shape", "kernel_size", "outputs"),
    [
        ((2, 5, 7, 3), 3, 4),  # 7 neighbours in a row as one pixel, where there are few outputs
        ((1, 4, 4, 2), 3, 4),
        ((3, 8, 8, 1), 3, 4),
        ((1, 3, 32, 1), 5, 1),  # a whole row
        ((2, 4, 10, 8), 5, 3),  # 10 neighbours; 2 for the input's gradient: too few for windows
        ((2, 3, 16, 1), 3, 2),  # 16 neighbours, 8 inputs together
        ((2, 3, 8, 12), 3, 8),  # more inputs than fill a core's registers
        ((2, 5, 11, 8), 3, 8),  # no divisor: 1
        ((2, 5, 6, 2), 3, 9),  # too many outputs
        ((2, 4, 5, 3), 5, 2),  # a kernel larger than the image
    ],
    ids=str,
)
def test_convolution_has_the_derivatives_of_autodiff_to_second_order(shape, kernel_size, outputs):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((kernel_size, kernel_size, shape[-1], outputs))
    x = rng.standard_normal(shape)

    def derivatives(conv):
        functions = (_curved(conv), _squared_gradient(conv, 0), _squared_gradient(conv, 1))
        return [jax.value_and_grad(f, (0, 1)) for f in functions]

    with jax.enable_x64(True):
        ours, plain = (
            jax.jit(lambda x, k, conv=conv: [f(x, k) for f in derivatives(conv)])(x, kernel)
            for conv in (conv2d, _plain_conv)
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_convolution_under_vmap_and_scan_has_the_derivatives_of_autodiff():
    rng = np.random.default_rng(1)
    images, kernel = rng.standard_normal((3, 1, 6, 6, 2)), rng.standard_normal((3, 3, 2, 2))

    def descend(conv, x):
        def update(x, _):
            return x - 0.1 * jax.grad(_curved(conv))(x, kernel), None

        return lax.scan(update, x, length=3)[0]

    with jax.enable_x64(True):
        ours, plain = (
            jax.jit(jax.vmap(functools.partial(descend, conv)))(images)
            for conv in (conv2d, _plain_conv)
        )
        np.testing.assert_allclose(ours, plain, rtol=1e-10)


# ---------------------------------------------------------------------------------------------
# Whole networks against NumPy and SciPy
# ---------------------------------------------------------------------------------------------


def _lrelu(x):
    return np.where(x > 0, x, 0.2 * x)


def _norm(x):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-8)


def _up(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _down(x):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def _conv3(params, x):
    weight = params["weight"] * np.sqrt(2.0 / (9 * x.shape[-1]))
    y = np.zeros((*x.shape[:3], weight.shape[-1]))
    for n, i, o in np.ndindex(len(x), *weight.shape[2:]):
        y[n, :, :, o] += scipy.signal.correlate2d(x[n, :, :, i], weight[:, :, i, o], mode="same")
    return y + params["bias"]


def _conv1(params, x, gain):
    return (
        np.einsum("nhwi,io->nhwo", x, params["weight"][0, 0]) * gain / np.sqrt(x.shape[-1])
        + params["bias"]
    )


def _dense(params, x, gain):
    return x @ params["weight"] * gain / np.sqrt(x.shape[-1]) + params["bias"]


def _generator_numpy(p, z, resolution, alpha=None):
    first = {"weight": p["block_4_dense"]["weight"], "bias": 0.0}
    x = _dense(first, _norm(z), np.sqrt(2.0) / 4).reshape(len(z), 4, 4, -1)
    x = _norm(_lrelu(x + p["block_4_bias"]))
    x = before = _norm(_lrelu(_conv3(p["block_4_conv"], x)))
    r = 4
    while r < resolution:
        r, before = 2 * r, x
        x = _norm(_lrelu(_conv3(p[f"block_{r}_conv_0"], _up(x))))
        x = _norm(_lrelu(_conv3(p[f"block_{r}_conv_1"], x)))
    image = _conv1(p[f"to_rgb_{r}"], x, 1.0)
    if alpha is None:
        return image
    return alpha * image + (1 - alpha) * _up(_conv1(p[f"to_rgb_{r // 2}"], before, 1.0))


def _discriminator_numpy(p, x, resolution, group, alpha=None):
    def from_rgb(r, image):
        return _lrelu(_conv1(p[f"from_rgb_{r}"], image, np.sqrt(2.0)))

    y, r = from_rgb(resolution, x), resolution
    while r > 4:
        y = _lrelu(_conv3(p[f"block_{r}_conv_0"], y))
        y = _down(_lrelu(_conv3(p[f"block_{r}_conv_1"], y)))
        if alpha is not None and r == resolution:
            y = alpha * y + (1 - alpha) * from_rgb(r // 2, _down(x))
        r //= 2
    features = y
    plane = np.ones((*y.shape[:3], 1)) * _stddev_numpy(y, group).reshape(-1, 1, 1, 1)
    y = _lrelu(_conv3(p["block_4_conv"], np.concatenate([y, plane], axis=-1)))
    y = _lrelu(_dense(p["block_4_dense"], y.reshape(len(y), -1), np.sqrt(2.0)))
    return _dense(p["logits"], y, 1.0)[:, 0], features


@pytest.mark.parametrize(("resolution", "alpha"), [(4, None), (8, 0.3), (16, None), (16, 0.7)])
def test_generator_equals_numpy_written_from_the_published_figures(resolution, alpha):
    z = 5.0 * np.random.default_rng(3).standard_normal((2, SMALL["latent_size"]))
    with jax.enable_x64(True):
        networks = _small(resolution, fading=alpha is not None)
        params = _random_params(networks).generator
        drawn = networks.generate(params, z, 1.0 if alpha is None else alpha)
    expected = _generator_numpy(params, z, resolution, alpha)
    np.testing.assert_allclose(drawn, expected, rtol=1e-9, atol=1e-9)
    # The output is linear: a squashed one would stay within 1.
    assert np.abs(expected).max() > 1.0


@pytest.mark.parametrize(("resolution", "alpha"), [(4, None), (8, 0.3), (16, None), (16, 0.7)])
def test_discriminator_equals_numpy_written_from_the_published_figures(resolution, alpha):
    x = _images(4, 4, resolution, resolution, 3)
    with jax.enable_x64(True):
        networks = _small(resolution, fading=alpha is not None, stddev_group=2)
        params = _random_params(networks).discriminator
        judged = networks.discriminate(params, x, 1.0 if alpha is None else alpha)
    logits, features = _discriminator_numpy(params, x, resolution, 2, alpha)
    np.testing.assert_allclose(judged.logits, logits, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(judged.features[4], features, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(judged.stddev, _stddev_numpy(features, 2), rtol=1e-9)


def _encoder_numpy(p, x, resolution, alpha=None):
    """The discriminator's blocks without its statistic, and the direction of a latent."""

    def from_rgb(r, image):
        return _lrelu(_conv1(p[f"from_rgb_{r}"], image, np.sqrt(2.0)))

    y, r = from_rgb(resolution, x), resolution
    while r > 4:
        y = _lrelu(_conv3(p[f"block_{r}_conv_0"], y))
        y = _down(_lrelu(_conv3(p[f"block_{r}_conv_1"], y)))
        if alpha is not None and r == resolution:
            y = alpha * y + (1 - alpha) * from_rgb(r // 2, _down(x))
        r //= 2
    y = _lrelu(_dense(p["block_4_dense"], y.reshape(len(y), -1), np.sqrt(2.0)))
    z = _dense(p["latent"], y, 1.0)
    return z / np.sqrt((z**2).mean(axis=-1, keepdims=True))


@pytest.mark.parametrize(("resolution", "alpha"), [(8, 0.3), (16, None)])
def test_encoder_equals_numpy_with_the_blocks_of_the_discriminator(resolution, alpha):
    x = _images(5, 2, resolution, resolution, 3)
    with jax.enable_x64(True):
        networks = _small(resolution, fading=alpha is not None, encoder=True)
        params = _random_params(networks).encoder
        found = networks.encode(params, x, 1.0 if alpha is None else alpha)
    np.testing.assert_allclose(found, _encoder_numpy(params, x, resolution, alpha), rtol=1e-6)


def test_half_precision_touches_neither_parameters_nor_outputs_nor_statistics():
    networks = _small(8, dtype="bfloat16")

    def run(key):
        params = networks.init(key)
        image = networks.generate(params.generator, jnp.ones((4, SMALL["latent_size"])))
        return params, image, networks.discriminate(params.discriminator, image)

    params, image, judged = jax.eval_shape(run, jax.random.key(0))
    outputs = (params, image, judged.logits, judged.stddev)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(outputs)} == {"float32"}
    assert judged.features[4].dtype == jnp.bfloat16


# ---------------------------------------------------------------------------------------------
# Growing
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown():
    """Networks of 8 x 8, their fade to 16 x 16 and 16 x 16 itself, parameters carried along."""
    stages = _small(8), _small(16, fading=True), _small(16)
    params = [_random_params(stages[0], seed=0)]
    for seed, networks in enumerate(stages[1:], start=1):
        fresh = _random_params(networks, seed)
        params.append(params[-1].map(grow_params, fresh))
    return list(zip(stages, params, strict=True))


def test_growing_keeps_every_old_layer_bit_for_bit_and_drops_the_old_path(grown):
    (_, before), (_, fading), (_, after) = grown
    for old, new in zip(before[:2], fading[:2], strict=True):
        for name in old:
            jax.tree.map(np.testing.assert_array_equal, old[name], new[name])
    assert set(fading.generator) - set(before.generator) == {
        "block_16_conv_0",
        "block_16_conv_1",
        "to_rgb_16",
    }
    for old, new in zip(fading[:2], after[:2], strict=True):
        for name in new:
            jax.tree.map(np.testing.assert_array_equal, old[name], new[name])
    assert set(fading.generator) - set(after.generator) == {"to_rgb_8"}
    assert set(fading.discriminator) - set(after.discriminator) == {"from_rgb_8"}


def test_growing_refuses_layers_of_another_width():
    old, fresh = _random_params(_small(8)), _random_params(_small(16, fading=True, fmap_max=8))
    with pytest.raises(ValueError, match=r"layer block_4_\w+ has shapes .*network\.fmap_max"):
        grow_params(old.generator, fresh.generator)


def test_fade_begins_at_the_previous_generator_and_ends_at_the_next(grown):
    z = np.random.default_rng(5).standard_normal((2, SMALL["latent_size"]))
    with jax.enable_x64(True):
        before, during, after = (
            functools.partial(networks.generate, params.generator, z) for networks, params in grown
        )
        np.testing.assert_allclose(during(0.0), _up(np.asarray(before())), rtol=1e-12)
        np.testing.assert_allclose(during(1.0), after(), rtol=1e-9, atol=1e-12)
        assert np.abs(during(0.0) - during(1.0)).max() > 0.1


def test_fade_begins_at_the_previous_discriminator_and_ends_at_the_next(grown):
    x = _images(6, 4, 16, 16, 3)
    with jax.enable_x64(True):
        before, during, after = (
            functools.partial(networks.discriminate, params.discriminator)
            for networks, params in grown
        )
        np.testing.assert_allclose(during(x, 0.0).logits, before(_down(x)).logits, rtol=1e-9)
        np.testing.assert_allclose(
            during(x, 0.0).features[4], before(_down(x)).features[4], rtol=1e-9
        )
        np.testing.assert_allclose(during(x, 1.0).logits, after(x).logits, rtol=1e-9)
        assert np.abs(during(x, 0.0).logits - during(x, 1.0).logits).max() > 0.1


# ---------------------------------------------------------------------------------------------
# Independence of the batch
# ---------------------------------------------------------------------------------------------


def test_scores_with_a_stored_statistic_depend_on_the_image_alone():
    x, others = _images(7, 4, 8, 8, 3), 3.0 * _images(8, 4, 8, 8, 3)
    networks = _small(8, fading=True, dtype="float32")
    params = _random_params(networks).discriminator
    judge = functools.partial(networks.discriminate, params, alpha=0.4, stddev=jnp.float32(0.7))
    together = judge(x).logits
    # Seven images: no multiple of the group, which scoring must not care about either.
    mixed = judge(np.concatenate([others, x[:3]])).logits
    np.testing.assert_allclose(mixed[4:], together[:3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(judge(x[2:3]).logits[0], together[2], rtol=1e-5, atol=1e-5)


def test_features_do_not_depend_on_the_batch_even_while_training_logits_do():
    x, others = _images(7, 4, 8, 8, 3), 3.0 * _images(8, 3, 8, 8, 3)
    networks = _small(8, dtype="float32")
    params = _random_params(networks).discriminator
    together = networks.discriminate(params, x)
    mixed = networks.discriminate(params, np.concatenate([x[:1], others]))
    assert set(together.features) == {1, 4, 8}
    for at in (4, 8):
        features = together.features[at][0]
        np.testing.assert_allclose(mixed.features[at][0], features, rtol=1e-5, atol=1e-5)
    assert abs(mixed.logits[0] - together.logits[0]) > 1e-3
    # The logits are made of the last ones, which lie behind the statistic.
    layer, last = params["logits"], together.features[1]
    weight = layer["weight"].reshape(-1) / np.sqrt(last.shape[-1])
    logits = np.asarray(last[:, 0, 0] @ weight) + np.asarray(layer["bias"])
    np.testing.assert_allclose(together.logits, logits, rtol=1e-5, atol=1e-6)


def test_a_stored_statistic_that_equals_the_batch_statistic_changes_nothing():
    x = _images(9, 4, 8, 8, 3)
    networks = _small(8, dtype="float32")
    params = _random_params(networks).discriminator
    trained = networks.discriminate(params, x)
    scored = networks.discriminate(params, x, 1.0, trained.stddev[0])
    np.testing.assert_allclose(scored.logits, trained.logits, rtol=1e-5)


# ---------------------------------------------------------------------------------------------
# Latents
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_latents_lie_on_the_hypersphere_where_normalisation_is_idle(prior):
    z = sample_latents(jax.random.key(0), prior, (64, 512))
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), np.full(64, 512**0.5), rtol=1e-5)
    np.testing.assert_allclose(pixel_norm(z), z, rtol=1e-5)
    assert abs(float(z.mean())) < 0.05


def test_the_priors_differ_as_a_cube_does_from_a_sphere():
    """Kurtosis of a coordinate: 1.8 for a uniform variable, 3 for a normal one."""
    for prior, kurtosis in (("uniform", 1.8), ("normal", 3.0)):
        z = sample_latents(jax.random.key(0), prior, (400, 512))
        assert abs(float(scipy.stats.kurtosis(np.ravel(z), fisher=False)) - kurtosis) < 0.05


def test_only_the_direction_of_a_latent_matters():
    networks = _small(8, dtype="float32")
    params = _random_params(networks).generator
    z = np.random.default_rng(0).standard_normal((2, SMALL["latent_size"]), np.float32)
    drawn = networks.generate(params, z)
    np.testing.assert_allclose(networks.generate(params, 7.0 * z), drawn, atol=1e-4)
    np.testing.assert_allclose(
        networks.generate(params, project_to_hypersphere(z)), drawn, atol=1e-4
    )


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_weights_are_drawn_as_flax_draws_them_to_the_last_bit(name):
    networks = _small(4)
    module, key = getattr(networks, name), jax.random.key(6)
    shape = (networks.latent_size,) if name == "generator" else networks.image_shape
    ours = draw_parameters(module, key, jnp.zeros((1, *shape)))
    theirs = jax.jit(module.init)(key, jnp.zeros((1, *shape)))["params"]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
