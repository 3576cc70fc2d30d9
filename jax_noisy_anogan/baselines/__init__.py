"""Competitors: subspace methods on features, and deep one-class and supervised models.

Every subspace method is `score(features, *, settings) -> Float[Array, "n"]`, every deep one
`fit_score(training images, ..., test images, *, seed, settings)`. Higher is more outlying.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float

from jax_noisy_anogan.baselines import (
    alocc,
    coherence_pursuit,
    deep_sad,
    dpcp,
    l1_thresholding,
    lrr,
    outlier_pursuit,
    r_graph,
    reaper,
    supervised_cnn,
)

__all__ = ["SEMI_SUPERVISED", "SUBSPACE", "alocc"]

SUBSPACE: dict[str, Callable[..., Float[Array, "n"]]] = {
    "CoP": coherence_pursuit.score,
    "REAPER": reaper.score,
    "LRR": lrr.score,
    "DPCP": dpcp.score,
    "R-graph": r_graph.score,
    "Outlier Pursuit": outlier_pursuit.score,
    "l1-thresholding": l1_thresholding.score,
}

# `fit_score(train_unlabelled, known_abnormal, test, *, seed, settings)`.
SEMI_SUPERVISED: dict[str, Callable[..., Float[np.ndarray, " n"]]] = {
    "Deep SAD": deep_sad.fit_score,
    "Supervised CNN": supervised_cnn.fit_score,
}
