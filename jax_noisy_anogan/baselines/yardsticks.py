"""Yardsticks: what a few lines of classical code reach, in seconds on a CPU core.

Whoever reads a detector's figures has to know whether the images ask for more than this. Every
yardstick is `fit_score(normal training images, known abnormal ones, test images, *, seed, masks)`.
Higher is more outlying. None of them looks at a test image before it scores it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jax_noisy_anogan.data.pyramid import area_average
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.scoring import components, memory
from jax_noisy_anogan.scoring.maps import smooth

Images = UInt8[np.ndarray, "n side side channels"]
Masks = Bool[np.ndarray, "m side side"]
Maps = Float[np.ndarray, "n side side"]

# Settings: cross-validated inside the training parts of magnetic tiles and commutators.
_FEATURE_SIDE, _PLACES = 128, 32
_MEMORY_SIZE = 2_000
_CLASSIFIER_SIGMA = 1.0
# Images whose features are computed, and places that a classifier learns from, at a time or in all.
_CHUNK = 16
_PLACES_PER_KIND = 20_000


class Judged(NamedTuple):
    """What a yardstick says of the test images.

    Attributes:
      scores: grow with abnormality.
      maps: where, one value per place, of which an image has up to 64 x 64. None where it cannot
        say.
    """

    scores: Float[np.ndarray, " n"]
    maps: Maps | None


FitScore = Callable[..., Judged]


def brightness(
    normal: Images, abnormal: Images, test: Images, *, seed: int = 0, masks: Masks | None = None
) -> Judged:
    """How far an image's mean brightness is from usual, in deviations of the normal images.

    Where this alone separates a test set, its parts were photographed under different light, and no
    figure on it says much about defects.
    """
    _check(normal, test, abnormal, masks)
    levels, tested = (images.mean(axis=(1, 2, 3), dtype=np.float64) for images in (normal, test))
    # A hundredth of a grey level: images that are all equally bright have no deviation.
    return Judged(np.abs(tested - levels.mean()) / (levels.std() + 0.01), None)


def pca_residual(
    normal: Images, abnormal: Images, test: Images, *, seed: int = 0, masks: Masks | None = None
) -> Judged:
    """Largest value of what principal components leave of the local contrast at 64 x 64.

    The squared residual is smoothed and standardised at every pixel. The residuals of the training
    images that this needs come from components that were fitted without them or their near
    duplicates: those of the fitted images themselves are much too small.
    """
    _check(normal, test, abnormal, masks)
    built = components.fit(normal, seed=seed)
    return _judged(_in_chunks(lambda rows: _unusual(built, jnp.asarray(rows)), test))


def nearest_patch(
    normal: Images, abnormal: Images, test: Images, *, seed: int = 0, masks: Masks | None = None
) -> Judged:
    """Largest distance of a patch to the nearest one of the normal images: `scoring.memory`.

    With untrained features, at up to 32 x 32 places.
    """
    _check(normal, test, abnormal, masks)
    built = memory.build(_features(normal, seed), size=_MEMORY_SIZE, seed=seed)
    return _judged(
        _in_chunks(lambda rows: _distances(built, jnp.asarray(_features(rows, seed))), test)
    )


def known_defects(
    normal: Images, abnormal: Images, test: Images, *, seed: int = 0, masks: Masks | None = None
) -> Judged:
    """Largest logit of a classifier of patches: those under known masks against all others.

    Logistic regression on the features of `nearest_patch`: what the known masks are worth without
    any network. Patches of normal images, and of abnormal ones off their masks, are the other kind.

    Raises:
      DataError: no mask is known, or all are empty.
    """
    _check(normal, test, abnormal, masks)
    if masks is None or not len(masks):
        raise DataError("known defects: no mask of a known abnormal training image")
    known, faulty = (_features(images, seed) for images in (normal, abnormal))
    from sklearn.linear_model import LogisticRegression  # takes seconds to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    places = known.shape[1]
    covered = area_average(masks[..., None].astype(np.uint8) * np.uint8(255), places)[..., 0]
    # A quarter of a place; of a defect that is smaller everywhere the places that hold most of it.
    enough = np.minimum(covered.max(axis=(1, 2), keepdims=True), 64)
    defective, flawless = faulty[(covered >= enough) & (covered > 0)], faulty[covered == 0]
    if not len(defective):
        raise DataError("known defects: no mask covers anything")
    rng = np.random.Generator(np.random.PCG64(seed))
    width = known.shape[-1]
    kinds = [
        rows[rng.permutation(len(rows))[:_PLACES_PER_KIND]]
        for rows in (known.reshape(-1, width), flawless, defective)
    ]
    target = np.repeat([False, False, True], [len(rows) for rows in kinds])
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=200)
    ).fit(np.concatenate(kinds), target)

    def logits(rows: Images) -> Array:
        found = classifier.decision_function(_features(rows, seed).reshape(-1, width))
        maps = jnp.asarray(found, jnp.float32).reshape(len(rows), places, places)
        return smooth(maps, sigma=_CLASSIFIER_SIGMA)

    return _judged(_in_chunks(logits, test))


# By the names of tables. The last one needs masks of known abnormal images.
BRIGHTNESS = "brightness"
UNSUPERVISED: dict[str, FitScore] = {
    BRIGHTNESS: brightness,
    "PCA residual": pca_residual,
    "nearest patch": nearest_patch,
}
KNOWN_DEFECTS: dict[str, FitScore] = {"known defects": known_defects}


def _judged(maps: Maps) -> Judged:
    return Judged(maps.max(axis=(1, 2)).astype(np.float64), maps)


def _features(images: Images, seed: int) -> memory.HostFeatures:
    side = min(_FEATURE_SIDE, images.shape[1])
    places = min(_PLACES, side // 2)
    return _in_chunks(
        lambda rows: _random_features(
            jnp.asarray(area_average(rows, side)), places=places, seed=seed
        ),
        images,
    )


_random_features = jax.jit(memory.random_features, static_argnames=("places", "seed"))
_distances = jax.jit(memory.distances)
_unusual = jax.jit(components.unusual)


def _in_chunks(function: Callable[[Images], Array], images: Images) -> np.ndarray:
    """`function` of all images, always as many at a time: compiled once, memory bounded."""
    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % _CHUNK, axis=0)])
    parts = np.split(padded, len(padded) // _CHUNK)
    return np.concatenate([np.asarray(function(part)) for part in parts])[: len(images)]


def _check(normal: Images, test: Images, abnormal: Images, masks: Masks | None) -> None:
    """Raises DataError where the images cannot be compared, or too few are normal."""
    shapes = {images.shape[1:] for images in (normal, test, abnormal) if len(images)}
    if len(shapes) != 1 or any(images.dtype != np.uint8 for images in (normal, test)):
        raise DataError(f"yardsticks: expected uint8 images of one shape, got {sorted(shapes)}")
    if len(normal) < components.FOLDS or not len(test):
        raise DataError(
            f"yardsticks: {len(normal)} normal training and {len(test)} test images: at least "
            f"{components.FOLDS} and 1 are needed"
        )
    if (normal == normal[0]).all():
        raise DataError("yardsticks: all normal training images are the same")
    side = normal.shape[1]
    if normal.shape[2] != side or side % 4 or side & (side - 1):
        raise DataError(f"yardsticks: images of {normal.shape[1:3]}: expected a power of two")
    if masks is not None and masks.shape != abnormal.shape[:3]:
        raise DataError(f"yardsticks: masks of {masks.shape} for images of {abnormal.shape[:3]}")
