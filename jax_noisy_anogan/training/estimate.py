"""How long training will take, from a few measured updates and the arithmetic of the networks.

An update costs what its convolutions and dense layers cost, and what it takes to move their
results. From the rate of one phase this foretells that of another on a CPU to within a factor of
two (`tests/test_estimate.py` holds it against measured rates); a GPU is hardly busy at small
resolutions, so that a first estimate there is too long. Each phase measures again, and goes on
measuring to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from jax_noisy_anogan.config import Config, NetworkConfig
from jax_noisy_anogan.networks import channels_at
from jax_noisy_anogan.runtime.checkpoint import Position
from jax_noisy_anogan.training.growth import Phase, Schedule

# An estimate rests on this many updates, or on those of this time; it is made again as often.
_UPDATES, _SECONDS = 6, 1.0
# A later estimate is told where it differs from the one before by more than this factor.
_NEWS = 1.5
_DAY = 86_400.0
# What it takes to write and read one activation, in multiply-adds: fitted to the ten measured rates
# of tests/test_estimate.py, which it then foretells best.
_ACTIVATION = 450


def multiply_adds(network: NetworkConfig, resolution: int) -> int:
    """Multiply-adds of G and D together for one image, forward, but for 1 x 1 convolutions.

    Karras et al. 2018, Table 2: two 3 x 3 convolutions at each resolution in each network.
    """

    def width(side: int) -> int:
        return channels_at(side, network.fmap_base, network.fmap_max)

    first = width(4)
    # At 4 x 4: a dense layer and a convolution in both; D also sees the minibatch statistic.
    count = 16 * first * (network.latent_size + first) + 9 * 16 * first * (2 * first + 1)
    side = 8
    while side <= resolution:
        count += 2 * 9 * side**2 * width(side) * (width(side // 2) + width(side))
        side *= 2
    return count


def activations(network: NetworkConfig, resolution: int) -> int:
    """Numbers that the convolutions of G and D write for one image, but for G's last."""
    # D's first layer takes an image to the width of its resolution.
    count = resolution**2 * channels_at(resolution, network.fmap_base, network.fmap_max)
    side = 4
    while side <= resolution:
        here = channels_at(side, network.fmap_base, network.fmap_max)
        below = channels_at(max(side // 2, 4), network.fmap_base, network.fmap_max)
        count += side**2 * (3 * here + below)
        side *= 2
    return count


def cost(network: NetworkConfig, resolution: int) -> int:
    """What an image costs in training, in units that are the same at every resolution."""
    moved = _ACTIVATION * activations(network, resolution)
    return multiply_adds(network, resolution) + moved


def seconds_left(
    config: Config, schedule: Schedule, images: int, phase: Phase, seconds_per_image: float
) -> dict[str, float]:
    """Seconds that the rest of every phase takes, by the phase's name.

    Args:
      images: how many training has shown already.
      phase: the one in which `seconds_per_image` was measured.
    """

    def work(of: Phase) -> float:
        growth = config.growth
        again = 0 < growth.rematerialize_from <= of.resolution
        again = again or str(of.resolution) in growth.microbatch
        return cost(config.network, of.resolution) * (4 / 3 if again else 1.0)

    rate = seconds_per_image / work(phase)
    return {
        of.name: rate * work(of) * (of.end_images - max(images, of.start_images))
        for of in schedule.phases
        if of.end_images > images
    }


class Forecast:
    """Says how long training will take, once its first updates are measured.

    It speaks again where a later phase shows that it was far off.

    Args:
      say: takes a line for the user.
      clock: in seconds.
    """

    def __init__(
        self,
        config: Config,
        schedule: Schedule,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._config, self._schedule, self._say, self._clock = config, schedule, say, clock
        self._phase, self._updates = -1, 0
        # The first update of the phase, which has compiled it; and the newest one.
        self._start, self._images, self._last = 0.0, 0, 0.0
        self._end: float | None = None
        self._measured = 0.0
        self._has_spoken = False

    def updated(self, position: Position) -> None:
        """Note that an update has ended; the first one of a phase compiles and does not count."""
        now = self._clock()
        if position.phase != self._phase:
            if self._end is not None:
                self._end += now - self._last  # compilation, which no estimate holds
            self._phase, self._updates = position.phase, 0
            self._start, self._images, self._last = now, position.images, now
            self._has_spoken, self._measured = False, now
            return
        self._last = now
        self._updates += 1
        if self._has_spoken and now - self._measured < _SECONDS:
            return
        if self._updates < _UPDATES and now - self._start < _SECONDS:
            return
        phase = self._schedule.phases[position.phase]
        each = (now - self._start) / (position.images - self._images)
        left = seconds_left(self._config, self._schedule, position.images, phase, each)
        total = sum(left.values())
        before = None if self._end is None else max(self._end - now, 1.0)
        self._end, self._measured = now + total, now
        if self._has_spoken:
            return
        self._has_spoken = True
        news = before is None or not 1 / _NEWS < max(total, 60.0) / max(before, 60.0) < _NEWS
        # A slow run may have been measured by its very last update: then nothing is left.
        if left and news:
            self._say(_told(left, phase))

    def left(self) -> float | None:
        """Seconds to the end of training, without compilation; None before the first estimate."""
        return None if self._end is None else max(self._end - self._clock(), 0.0)


def _told(left: dict[str, float], phase: Phase) -> str:
    total, longest = sum(left.values()), max(left, key=lambda name: left[name])
    text = f"about {in_words(total)} of updates to go ({longest}: {in_words(left[longest])}), "
    text += f"by the first ones of {phase.name}"
    if total < _DAY:
        return text
    return (
        f"{text}: a GPU, narrower networks (config.network.fmap_base) or shorter phases "
        "(config.growth.final_images) take less"
    )


def in_words(seconds: float) -> str:
    """A duration with its unit, as in "4 minutes"."""
    for unit, length in (("days", _DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
