"""Signs in the training metrics that a network has stopped learning.

A GAN that has collapsed goes on with finite losses, so nothing else notices. Each sign must hold at
every update of a window; a single healthy update ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Half an epoch of MNIST's digit 0 at its default batch is shorter than a passing phase of training
# may last; a run of any use is several times longer.
WINDOW_IMAGES = 10_000
# One grey level in [-1, 1]: written as 8-bit images, all generated ones are the same.
LEAST_SPREAD = 2.0 / 255.0
# Of the spread of normal images: below, the generator "draws nearly one tile" with small changes.
LEAST_SHARE = 0.2

SIGNS = {
    "generator_constant": "the generator draws nearly the same image from every latent",
    "discriminator_constant": "the discriminator says the same of every image",
    "discriminator_perfect": "the discriminator tells every generated image from every real one, "
    "so that the generator learns nothing more",
}


class Monitor(NamedTuple):
    """How long every sign has held.

    Attributes:
      images: shown since the sign began; 0 where it does not hold.
    """

    images: Mapping[str, int] = dict.fromkeys(SIGNS, 0)

    def update(self, metrics: Mapping[str, float], images: int, *, critic: bool) -> Monitor:
        """The monitor after one update that showed `images` images.

        Args:
          metrics: of `train_step`, from this update alone: a mean over updates hides a pinned one.
          critic: whether D is a Wasserstein critic, whose sign says nothing.
        """
        holds = signs(metrics, critic=critic)
        return Monitor({k: (n + images) * holds[k] for k, n in self.images.items()})

    @property
    def ongoing(self) -> tuple[str, ...]:
        """Signs that have held for the whole window."""
        return tuple(name for name, n in self.images.items() if n >= WINDOW_IMAGES)


def signs(metrics: Mapping[str, float], *, critic: bool) -> dict[str, bool]:
    """Which signs hold in the metrics of one update.

    Generated images that all pass for normal are no sign by themselves: where p_g = p_d, the
    optimum of Eq. 18 is D = 1 / (1 + gamma) > 1/2 everywhere. D is constant only if known abnormal
    images pass as well.
    """
    real, fake = metrics["d_accuracy_real"], metrics["d_accuracy_fake"]
    # An accuracy of 1 on images that are not normal means "not normal", on real ones "normal".
    called_normal = [real, 1.0 - fake]
    if "d_accuracy_abnormal" in metrics:
        called_normal.append(1.0 - metrics["d_accuracy_abnormal"])
    return {
        "generator_constant": metrics["g_spread"]
        < max(LEAST_SPREAD, LEAST_SHARE * metrics["real_spread"]),
        "discriminator_constant": not critic
        and (max(called_normal) == 0.0 or min(called_normal) == 1.0),
        "discriminator_perfect": not critic and real == 1.0 and fake == 1.0,
    }
