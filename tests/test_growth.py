"""The growth schedule, growing a state, and the average's half-life."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_noisy_anogan.config import GrowthConfig, OptimConfig
from jax_noisy_anogan.networks import build_networks
from jax_noisy_anogan.training.growth import make_schedule
from jax_noisy_anogan.training.state import ema_decay_for, grow_state, init_state, make_optimizer

RESOLUTIONS = [2**k for k in range(2, 11)]


def _growth(**changes):
    """A short schedule, 4 to 16: 20 stable, 12 fading and 40 final images in minibatches of 4."""
    settings = {
        "resolution": 16,
        "stable_images": 20,
        "fade_images": 12,
        "final_images": 40,
        "minibatch_default": 4,
    }
    return GrowthConfig(**{**settings, **changes})


# ---------------------------------------------------------------------------------------------
# Schedule
# ---------------------------------------------------------------------------------------------


def test_phases_stabilise_then_fade_from_the_lowest_resolution_up():
    phases = make_schedule(_growth()).phases
    assert [(p.resolution, p.fading, p.start_images, p.end_images) for p in phases] == [
        (4, False, 0, 20),
        (8, True, 20, 32),
        (8, False, 32, 52),
        (16, True, 52, 64),
        (16, False, 64, 104),
    ]
    assert [p.name for p in phases[:2]] == ["4x4 stable", "8x8 fade"]


def test_boundaries_belong_to_the_phase_that_begins_there():
    schedule = make_schedule(_growth())
    for phase in schedule.phases:
        assert schedule.phase_of_step(phase.start_step) == phase
        assert schedule.phase_of_step(phase.end_step - 1) == phase
    assert schedule.phase_of_step(schedule.total_steps) == schedule.phases[-1]


def test_alpha_rises_linearly_from_zero_and_stays_below_one_while_fading():
    schedule = make_schedule(_growth(fade_images=40))
    before, fade, after = schedule.phases[:3]
    alphas = [fade.alpha(fade.start_step + step) for step in range(10)]
    np.testing.assert_allclose(alphas, np.arange(10) / 10, rtol=1e-12)
    assert (after.fading, after.alpha(fade.end_step)) == (False, 1.0)
    assert (before.fading, before.alpha(0)) == (False, 1.0)


@pytest.mark.parametrize(
    ("resolution", "images_each", "reached"),
    [
        # tkarras/progressive_growing_of_gans, lod_training_kimg = lod_transition_kimg.
        (1024, 600_000, 9_600_000),
        (1024, 800_000, 12_800_000),
        (32, 600_000, 3_600_000),
    ],
)
def test_the_final_resolution_is_stable_when_the_original_reaches_it(
    resolution, images_each, reached
):
    growth = GrowthConfig(
        resolution=resolution,
        stable_images=images_each,
        fade_images=images_each,
    )
    final = make_schedule(growth).phases[-1]
    assert (final.resolution, final.fading, final.start_images) == (resolution, False, reached)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(start=st.integers(0, 4), stages=st.integers(0, 4), images=st.integers(0, 50_000))
def test_the_schedule_agrees_with_the_level_of_detail_of_the_original(start, stages, images):
    """lod falls by one in every fade and rests between (Karras et al. 2018, published code)."""
    stable, fade = 6_000, 4_000
    growth = GrowthConfig(
        start_resolution=RESOLUTIONS[start],
        resolution=RESOLUTIONS[start + stages],
        stable_images=stable,
        fade_images=fade,
        minibatch_default=1,
        minibatch={str(resolution): 1 for resolution in RESOLUTIONS},
    )
    whole, rest = divmod(images, stable + fade)
    level = min(whole + max(rest - stable, 0) / fade, stages)
    phase = make_schedule(growth).phase_of_step(images)  # minibatches of one image
    ours = np.log2(phase.resolution) - np.log2(RESOLUTIONS[start]) - (1.0 - phase.alpha(images))
    assert ours == pytest.approx(level, abs=1e-9)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
    span=st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted),
    lengths=st.tuples(*(st.integers(1, 500) for _ in range(3))),
    minibatch=st.dictionaries(st.sampled_from([str(r) for r in RESOLUTIONS]), st.integers(1, 64)),
)
def test_any_schedule_is_a_row_of_whole_minibatches_without_gaps(span, lengths, minibatch):
    stable, fade, final = lengths
    growth = GrowthConfig(
        start_resolution=RESOLUTIONS[span[0]],
        resolution=RESOLUTIONS[span[1]],
        stable_images=stable,
        fade_images=fade,
        final_images=final,
        minibatch_default=7,
        minibatch=minibatch,
    )
    schedule = make_schedule(growth)
    step = images = 0
    for index, phase in enumerate(schedule.phases):
        assert (phase.index, phase.start_step, phase.start_images) == (index, step, images)
        usual = {256: 16, 512: 8, 1024: 4}.get(phase.resolution, 7)
        assert phase.minibatch == minibatch.get(str(phase.resolution), usual)
        wanted = fade if phase.fading else stable if phase != schedule.phases[-1] else final
        assert 0 <= phase.images - wanted < phase.minibatch
        for local in (0, phase.steps - 1):
            assert schedule.phase_of_step(step + local) == phase
            alpha = phase.alpha(step + local)
            assert alpha == pytest.approx(local / phase.steps if phase.fading else 1.0)
        step, images = step + phase.steps, images + phase.images
    assert (schedule.total_steps, schedule.total_images) == (step, images)
    fades = [p.resolution for p in schedule.phases if p.fading]
    assert fades == RESOLUTIONS[span[0] + 1 : span[1] + 1]


# ---------------------------------------------------------------------------------------------
# Growing a state
# ---------------------------------------------------------------------------------------------


def _networks(resolution, fading):
    return build_networks(
        resolution=resolution,
        fading=fading,
        channels=1,
        fmap_base=16,
        fmap_max=8,
        latent_size=4,
        encoder=True,
    )


@pytest.fixture(scope="module")
def states():
    """A trained-looking state at 4 x 4 and the same one grown into the fade to 8 x 8."""
    optimizer = make_optimizer(OptimConfig())
    before = init_state(_networks(4, False), optimizer, jax.random.key(0))
    before = before.replace(
        step=jnp.asarray(7, jnp.int32),
        average=jax.tree.map(lambda leaf: leaf + 1.0, before.params),
        optimizer=jax.tree.map(jnp.ones_like, before.optimizer),
        statistics=jax.tree.map(lambda leaf: leaf + 0.5, before.statistics),
    )
    after = grow_state(before, _networks(8, True), optimizer, jax.random.key(1))
    return before, after


def test_growing_carries_parameters_and_their_average_bit_for_bit(states):
    before, after = states
    for old, new in ((before.params, after.params), (before.average, after.average)):
        for old_tree, new_tree in zip(old, new, strict=True):
            assert set(old_tree) < set(new_tree)
            for name in old_tree:
                jax.tree.map(np.testing.assert_array_equal, old_tree[name], new_tree[name])
    assert (after.step, after.statistics) == (before.step, before.statistics)


def test_new_layers_enter_the_average_with_their_first_values(states):
    before, after = states
    for name in set(after.params.generator) - set(before.params.generator):
        jax.tree.map(
            np.testing.assert_array_equal,
            after.average.generator[name],
            after.params.generator[name],
        )


def test_growing_resets_the_optimiser_for_old_and_new_layers(states):
    _, after = states
    for state, params in zip(after.optimizer, after.params, strict=True):
        adam = state[0]
        assert jax.tree.structure(adam.mu) == jax.tree.structure(params)
        assert adam.count == 0
        assert not any(np.any(leaf) for leaf in jax.tree.leaves((adam.mu, adam.nu)))


def test_a_grown_state_shares_no_buffer_that_the_update_would_donate_twice(states):
    _, after = states
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(after)]
    assert len(pointers) == len(set(pointers))


# ---------------------------------------------------------------------------------------------
# The average
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("half_life", "minibatch"), [(10_000, 16), (10_000, 500), (64, 64)])
def test_an_update_weighs_half_after_the_half_life(half_life, minibatch):
    decay = ema_decay_for(half_life, minibatch)
    average = jnp.ones(())
    for _ in range(half_life // minibatch):
        average = optax.incremental_update(jnp.zeros(()), average, 1.0 - decay)
    assert float(average) == pytest.approx(0.5, rel=1e-3)


def test_the_original_average_has_a_half_life_of_about_11_thousand_images():
    assert ema_decay_for(16 * np.log(0.5) / np.log(0.999), 16) == pytest.approx(0.999)
    assert 16 * np.log(0.5) / np.log(0.999) == pytest.approx(11_085, abs=1)


def test_without_a_half_life_the_average_is_the_newest_value():
    assert ema_decay_for(0.0, 16) == 0.0
