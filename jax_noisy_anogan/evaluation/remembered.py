"""The memory of a run: its patches, and how images are compared with them.

Patches and principal components come from normal training images. Whether D's features join the
random ones, and whether a patch is compared with those near its place only, is decided on
validation images: by how often a defect stands out from normal images, simulated on normal ones or
known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Bool, UInt8

from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.preprocess import pad_to_tile
from jax_noisy_anogan.data.simulated import simulate_defects
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.evaluation.metrics import image_metrics
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.scoring import components
from jax_noisy_anogan.scoring import memory as memory_lib
from jax_noisy_anogan.scoring.calibration import CalibrationError
from jax_noisy_anogan.scoring.components import Components
from jax_noisy_anogan.scoring.maps import Map, MapCalibration, MapMoments, calibrated_map
from jax_noisy_anogan.scoring.memory import HostFeatures, Memory
from jax_noisy_anogan.scoring.scorer import Scorer
from jax_noisy_anogan.scoring.tiles import blend_tiles

# Features of training images that patches are chosen from, and maps that a choice rests on.
_FEATURE_BYTES = 2**28
_MAP_BYTES = 2**28
# Patches, in all and per block of a memory of aligned parts.
_SIZE, _BLOCK_SIZE = 2_000, 300
_BLOCKS = 8
# Images that principal components are fitted to.
_COMPONENTS_OF = 1_000
# Validation images, and defects that are simulated on each normal one.
_JUDGED, _FEWEST_JUDGED, _DEFECTS = 100, 8, 3

Image = UInt8[np.ndarray, "height width channels"]


def remember(
    dataset: Dataset, split: Split, scorer: Scorer, *, seed: int, sigma: float, show: bool = True
) -> Memory:
    """The memory of a run; the usual distances are those of validation normals.

    Args:
      seed: of the images that lend patches, where there are more than fit, and of the simulations.
      sigma: `score.map_sigma`.
      show: a line of progress.

    Raises:
      CalibrationError: fewer than three normal training images or tiles, or all are the same.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    features = _training_features(dataset, split, scorer, rng, show)
    tiled = dataset.is_tiled
    candidates = list(_candidates(features, aligned=not tiled))
    judged = list(_judged(dataset, split, rng, count=_judged_count(dataset, len(candidates))))
    maps: list[list[Map]] = [[] for _ in candidates]
    compiled = jax.jit(memory_lib.distance_map, static_argnames="side")
    for item in judged:
        positions = scorer.positions(*item.image.shape[:2])
        found = jnp.asarray(np.stack(list(scorer.features(scorer.cut(item.image)))))
        for kept, memory in zip(maps, candidates, strict=True):
            tiles = np.asarray(compiled(memory, memory_lib.used(memory, found), scorer.tile))
            kept.append(blend_tiles(tiles, positions, item.image.shape[:2]))
    best: tuple[float, Memory] | None = None
    for memory, kept in zip(candidates, maps, strict=True):
        # Of whole parts every pixel has its own usual distance, as in `held_out.validate`.
        moments = MapMoments(sigma=sigma, per_pixel=not tiled)
        for item, map in zip(judged, kept, strict=True):
            if item.defect is None:
                moments.add(map)
        share = _stands_out(judged, kept, moments, sigma)
        logging.info(
            "memory: D's features %s, %d blocks a side: %.4f",
            *(memory.learned, len(memory.patches), share),
        )
        if best is None or share > best[0]:
            best = share, memory._replace(usual=moments.calibration())
    assert best is not None
    return best[1]._replace(components=_components(dataset, split, scorer, seed))


def _training_features(
    dataset: Dataset, split: Split, scorer: Scorer, rng: np.random.Generator, show: bool
) -> HostFeatures:
    """D's and random features of tiles of normal training images, chosen where all are too many."""
    first = dataset.source(dataset.resolution)[int(split.train_normal[0])]
    (example,) = scorer.features(scorer.cut(first)[:1])
    normal, source = split.train_normal, dataset.source(dataset.resolution)
    ends = np.cumsum([len(scorer.positions(*dataset.shape(int(index)))) for index in normal])
    count = min(int(ends[-1]), max(_FEATURE_BYTES // example.nbytes, 1))
    chosen = np.sort(rng.choice(int(ends[-1]), count, replace=False))
    owners = np.searchsorted(ends, chosen, side="right")

    def tiles() -> Iterator[Image]:
        for owner in np.unique(owners):
            cut = scorer.cut(source[int(normal[owner])])
            yield from cut[chosen[owners == owner] - (ends[owner] - len(cut))]

    with ProgressLine("memory", total=count, unit="tiles", show=show) as line:
        found = np.empty((count, *example.shape), np.float32)
        for row, features in enumerate(scorer.features(tiles())):
            found[row] = features
            line.advance(1)
    return found


def _components(dataset: Dataset, split: Split, scorer: Scorer, seed: int) -> Components:
    """Those of whole normal training images."""
    rng = np.random.Generator(np.random.PCG64(seed))
    normal, source = split.train_normal, dataset.source(dataset.resolution)
    chosen = np.sort(rng.permutation(normal)[:_COMPONENTS_OF])
    shown = np.stack([components.thumbnail(source[int(index)], scorer.tile) for index in chosen])
    try:
        return components.fit(shown, seed=seed)
    except ValueError as error:
        raise CalibrationError(f"normal training images: {error}") from error


def _candidates(features: HostFeatures, *, aligned: bool) -> Iterator[Memory]:
    """Memories to choose from, the plainest first."""
    places = features.shape[1]
    for learned in (False, True):
        own = features if learned else features[..., : memory_lib.RANDOM_FEATURES]
        yield memory_lib.build(own, size=_SIZE)
        if aligned and places % (2 * _BLOCKS) == 0:
            yield memory_lib.build(
                own, size=_BLOCK_SIZE, blocks=_BLOCKS, margin=places // (2 * _BLOCKS)
            )


class _Judged(NamedTuple):
    """A validation image.

    Attributes:
      normal: the position, among all, of the normal image that it is, or was made of; None for a
        known abnormal one.
      defect: where its defect lies; None for a normal one.
    """

    image: Image
    normal: int | None
    defect: Bool[np.ndarray, "height width"] | None


def _judged_count(dataset: Dataset, candidates: int) -> int:
    pixels = max(math.prod(dataset.shape(index)) for index in range(len(dataset)))
    bytes_each = 4 * pixels * candidates * (1 + _DEFECTS)
    return int(np.clip(_MAP_BYTES // bytes_each, _FEWEST_JUDGED, _JUDGED))


def _judged(
    dataset: Dataset, split: Split, rng: np.random.Generator, *, count: int
) -> Iterator[_Judged]:
    """Normal validation images, each followed by its simulated defects; then the known ones."""
    source, position = dataset.source(dataset.resolution), 0
    for index in split.validation_normal[:count]:
        image, normal = source[int(index)], position
        yield _Judged(image, normal, None)
        for _ in range(_DEFECTS):
            other = source[int(rng.choice(split.train_normal))]
            height, width = image.shape[:2]
            other = pad_to_tile(other, max(height, width))[:height, :width]
            faulty = simulate_defects(image, other, rng)
            yield _Judged(faulty.image, normal, faulty.mask)
        position += 1 + _DEFECTS
    for index in split.validation_known_abnormal[:count]:
        image = source[int(index)]
        defect = np.ones(image.shape[:2], bool)
        if dataset.has_masks and dataset.has_mask[index]:
            covered = source.mask(int(index)) > 0
            defect = covered if covered.any() else defect
        yield _Judged(image, None, defect)


def _stands_out(
    judged: Iterable[_Judged], maps: list[Map], moments: MapMoments, sigma: float
) -> float:
    """How often the map within a defect exceeds all of a normal image's: AUROC.

    No image, nor one made of it, is judged by statistics that hold it.
    """
    scores, defective = [], []
    statistics = moments.calibration()
    for item, map in zip(judged, maps, strict=True):
        usual: MapCalibration = statistics
        if item.normal is not None:
            usual = moments.calibration(without=moments.of(maps[item.normal]))
        found = np.asarray(calibrated_map(map, usual, sigma=sigma))
        scores.append(float(found.max() if item.defect is None else found[item.defect].max()))
        defective.append(item.defect is not None)
    return image_metrics(np.array(scores), np.array(defective), threshold=0.0).auroc
