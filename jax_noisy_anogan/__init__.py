"""Noisy-AnoGAN: anomaly detection with a progressive GAN that unlearns known defects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_noisy_anogan.scoring.detector import Detection, Detector, load

__all__ = ["Detection", "Detector", "load"]


def __getattr__(name: str) -> Any:
    # The commands import their own rooms; only users of the API pay for all of them.
    if name in __all__:
        from jax_noisy_anogan.scoring import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
