"""Progressive growing as a pure schedule (Karras et al. 2018, section 2 and Appendix A).

A run is a row of phases. At each resolution but the first a `fade` phase brings the new layers in,
then a `stable` phase trains them; every phase lasts a whole number of minibatches.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from jax_noisy_anogan.config import GrowthConfig, minibatch_at


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one pair of networks and one compiled program.

    Attributes:
      index: position in the schedule.
      fading: whether the newest layers are being cross-faded in.
      start_step, start_images: where the phase begins.
      steps: its length in minibatches.
      minibatch: global minibatch.
    """

    index: int
    resolution: int
    fading: bool
    start_step: int
    start_images: int
    steps: int
    minibatch: int

    @property
    def images(self) -> int:
        return self.steps * self.minibatch

    @property
    def end_step(self) -> int:
        return self.start_step + self.steps

    @property
    def end_images(self) -> int:
        return self.start_images + self.images

    @property
    def name(self) -> str:
        return f"{self.resolution}x{self.resolution} {'fade' if self.fading else 'stable'}"

    def alpha(self, step: int) -> float:
        """Share of the newest layers in step number `step` of the run: rises from 0 in a fade."""
        return min((step - self.start_step) / self.steps, 1.0) if self.fading else 1.0


@dataclass(frozen=True)
class Schedule:
    """All phases of a run."""

    phases: tuple[Phase, ...]

    @property
    def total_images(self) -> int:
        return self.phases[-1].end_images

    @property
    def total_steps(self) -> int:
        return self.phases[-1].end_step

    def phase_of_step(self, step: int) -> Phase:
        """The phase that performs step number `step` (from 0); the last one after the end."""
        starts = [phase.start_step for phase in self.phases]
        return self.phases[max(bisect.bisect_right(starts, step) - 1, 0)]


def make_schedule(growth: GrowthConfig) -> Schedule:
    """The phases of a run, from `start_resolution` to `resolution`."""
    phases: list[Phase] = []
    step = images = 0
    resolution = growth.start_resolution
    while resolution <= growth.resolution:
        minibatch = minibatch_at(growth, resolution)
        last = resolution == growth.resolution
        lengths = [(False, growth.final_images if last else growth.stable_images)]
        if resolution > growth.start_resolution:
            lengths.insert(0, (True, growth.fade_images))
        for fading, length in lengths:
            steps = -(-length // minibatch)
            phase = Phase(len(phases), resolution, fading, step, images, steps, minibatch)
            phases.append(phase)
            step, images = phase.end_step, phase.end_images
        resolution *= 2
    return Schedule(tuple(phases))
