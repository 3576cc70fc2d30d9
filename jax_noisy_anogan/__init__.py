"""Noisy-AnoGAN: anomaly detection with a progressive GAN that unlearns known defects."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_noisy_anogan.experiment import fit
    from jax_noisy_anogan.scoring.detector import Detection, Detector, load

# At its import, without a home folder, it says at length where its cache lies instead.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

__all__ = ["Detection", "Detector", "__version__", "fit", "load"]

_ROOMS = {
    "fit": "experiment",
    "Detection": "scoring.detector",
    "Detector": "scoring.detector",
    "load": "scoring.detector",
}


def __getattr__(name: str) -> Any:
    # The commands import their own rooms; only users of the API pay for all of them.
    if name in _ROOMS:
        return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jax-noisy-anogan")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
