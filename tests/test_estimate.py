"""How long training will take: the arithmetic of the networks, and what is said of it."""

import re

import jax
import pytest

from jax_noisy_anogan.config import Config, GrowthConfig, NetworkConfig
from jax_noisy_anogan.networks import build_networks
from jax_noisy_anogan.runtime.checkpoint import Position
from jax_noisy_anogan.training.estimate import (
    Forecast,
    cost,
    in_words,
    multiply_adds,
    seconds_left,
)
from jax_noisy_anogan.training.growth import make_schedule

SMALL = NetworkConfig(fmap_base=128, fmap_max=32, latent_size=64)


@pytest.mark.parametrize("resolution", [4, 8, 32])
def test_multiply_adds_are_those_of_the_kernels_at_every_position(resolution):
    networks = build_networks(
        resolution=resolution, fading=False, channels=1, fmap_base=128, fmap_max=32, latent_size=64
    )
    params = jax.eval_shape(networks.init, jax.random.key(0))
    counted = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if leaf.ndim == 2 and "logits" not in name:
            counted += leaf.size
        elif leaf.ndim == 4 and leaf.shape[:2] == (3, 3):
            counted += leaf.size * int(re.search(r"block_(\d+)_", name)[1]) ** 2
    assert multiply_adds(SMALL, resolution) == counted


# Images per second of training steps as the README has them: network, resolution, rate.
MEASURED = {
    "pipeline.py, mnist5k, two x86-64 cores": [
        (SMALL, 4, 8686),
        (SMALL, 8, 2104),
        (SMALL, 16, 641),
        (SMALL, 32, 300),
    ],
    "compare.py, one x86-64 core": [
        (NetworkConfig(fmap_base=16 * width, fmap_max=width, latent_size=64), resolution, rate)
        for resolution, width, rate in (
            (32, 32, 107),
            (32, 64, 32.4),
            (32, 256, 2.07),
            (64, 64, 13.4),
            (128, 32, 13.7),
            (256, 16, 12.3),
        )
    ],
}


@pytest.mark.parametrize("machine", MEASURED)
def test_one_measured_rate_foretells_the_others_within_a_factor_of_two(machine):
    units = [rate * cost(network, resolution) for network, resolution, rate in MEASURED[machine]]
    assert max(units) / min(units) < 2


def _config(**growth):
    return Config(network=SMALL, growth=GrowthConfig(resolution=8, **growth))


def test_what_is_left_is_counted_from_the_images_shown_so_far():
    config = _config(stable_images=160, fade_images=320, final_images=640)
    schedule = make_schedule(config.growth)
    ratio = cost(SMALL, 8) / cost(SMALL, 4)
    left = seconds_left(config, schedule, 80, schedule.phases[0], 0.5)
    assert left == pytest.approx(
        {"4x4 stable": 40.0, "8x8 fade": 160 * ratio, "8x8 stable": 320 * ratio}
    )
    later = seconds_left(config, schedule, 400, schedule.phases[1], 0.5)
    assert later == pytest.approx({"8x8 fade": 40.0, "8x8 stable": 320.0})
    # Computing blocks again in the backward pass costs a third more.
    config.growth.microbatch = {"8": 4}
    more = seconds_left(config, schedule, 80, schedule.phases[0], 0.5)
    assert more["8x8 fade"] == pytest.approx(left["8x8 fade"] * 4 / 3)
    assert more["4x4 stable"] == left["4x4 stable"]


def _heard(config, seconds):
    """What is said of a run whose updates take `seconds[phase]` each; compiling takes 100 s."""
    schedule, said, now = make_schedule(config.growth), [], 0.0
    forecast = Forecast(config, schedule, said.append, clock=lambda: now)
    step = 0
    for phase in schedule.phases:
        for number in range(min(phase.steps, 20)):
            now += seconds[phase.index] if number else 100.0
            step = phase.start_step + number + 1
            images = phase.start_images + (number + 1) * phase.minibatch
            forecast.updated(Position(phase.index, step, images))
        if phase.steps > 20:
            now += seconds[phase.index] * (phase.steps - 20)
            forecast.updated(Position(phase.index, phase.end_step, phase.end_images))
    return said


def test_days_of_work_are_told_at_once_with_what_takes_less():
    config = _config(stable_images=600_000, fade_images=600_000, final_images=600_000)
    ratio = cost(SMALL, 8) / cost(SMALL, 4)
    slow = [2.0, 2.0 * ratio, 2.0 * ratio]
    (said,) = _heard(config, slow)
    days = 600_000 / 16 * (2.0 + 4.0 * ratio) / 86_400
    told = float(re.match(r"about (\d+) days of updates to go", said)[1])
    assert abs(told - days) <= 0.5  # whole days are told
    assert said.endswith("take less")


def test_a_later_phase_speaks_only_where_the_estimate_was_far_off():
    config = _config(stable_images=16_000, fade_images=16_000, final_images=16_000)
    ratio = cost(SMALL, 8) / cost(SMALL, 4)
    assert len(_heard(config, [0.1, 0.1 * ratio, 0.1 * ratio])) == 1
    first, second = _heard(config, [0.1, 0.5 * ratio, 0.5 * ratio])
    assert "by the first ones of 4x4 stable" in first
    assert "by the first ones of 8x8 fade" in second
    assert "take less" not in first


def test_the_time_left_is_measured_to_the_end_of_a_phase_and_leaves_compilation_out():
    config = _config(stable_images=16_000, fade_images=16_000, final_images=16_000)
    schedule, now = make_schedule(config.growth), 0.0
    forecast = Forecast(config, schedule, lambda text: None, clock=lambda: now)
    assert forecast.left() is None
    phase, ratio = schedule.phases[0], cost(SMALL, 8) / cost(SMALL, 4)
    for step in range(1, phase.steps // 2 + 1):
        now += 100.0 if step == 1 else 1.0 if step < phase.steps // 4 else 3.0
        forecast.updated(Position(0, step, step * phase.minibatch))
    # Updates became three times as slow half-way: the mean of the phase so far.
    each = (phase.steps // 4 - 2 + 3.0 * (phase.steps // 4 + 1)) / (phase.steps // 2 - 1)
    to_go = phase.steps // 2 + ratio * (schedule.total_steps - phase.steps)
    assert forecast.left() == pytest.approx(each * to_go)
    # The next phase begins with its compilation, of which the time left knows nothing.
    forecast.updated(Position(0, phase.end_step, phase.end_images))
    before = forecast.left()
    now += 500.0
    forecast.updated(Position(1, phase.end_step + 1, phase.end_images + phase.minibatch))
    assert forecast.left() == pytest.approx(before)


def test_phases_of_a_few_updates_say_nothing():
    config = _config(stable_images=32, fade_images=32, final_images=32)
    assert _heard(config, [0.01, 0.01, 0.01]) == []


def test_a_run_whose_last_update_is_the_first_one_measured_says_nothing():
    config = _config(stable_images=32, fade_images=32, final_images=32)
    assert _heard(config, [0.01, 0.01, 1_000.0]) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "a second"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7200, "2 hours"),
        (2e5, "2 days"),
    ],
)
def test_durations_are_written_in_the_unit_that_fits(seconds, words):
    assert in_words(seconds) == words
