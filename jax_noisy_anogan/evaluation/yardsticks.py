"""What yardsticks reach on the held-out images of a run, beside the run's own score.

They see the images themselves at 128 x 128, whatever the run's networks are shown: its resolution
and preprocessing are part of what is being measured. Images that keep their shape are stretched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jax_noisy_anogan.baselines.yardsticks import (
    BRIGHTNESS,
    KNOWN_DEFECTS,
    UNSUPERVISED,
    Judged,
)
from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.config import load as load_settings
from jax_noisy_anogan.data import split_file
from jax_noisy_anogan.data.catalog import open_source
from jax_noisy_anogan.data.dataset import Dataset, load_dataset
from jax_noisy_anogan.data.frame import fit_square
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.evaluation.metrics import image_metrics
from jax_noisy_anogan.evaluation.pixel_metrics import MaskedPixels
from jax_noisy_anogan.runtime.progress import ProgressLine

_SIDE = 128
# Normal training images that yardsticks learn from: more change little and take minutes.
_NORMAL = 1_000
# A difference of AUROC that is rounding and no lead.
_TIE = 1e-9
# AUROC, in either direction, from which on brightness says which kind an image is of.
_LIGHT = 0.95


class Divided(NamedTuple):
    """Images, how they were read, and the part that each of them lies in."""

    data: DataConfig
    dataset: Dataset
    split: Split


class YardstickResult(NamedTuple):
    """Figures of one yardstick; nan where they are not defined.

    Attributes:
      auroc, average_precision, f1_best: of the test images, as in `ImageMetrics`.
      validation_auroc: of the validation images.
      pixel_auroc, aupro: of the test images whose masks are known.
    """

    auroc: float
    average_precision: float
    f1_best: float
    validation_auroc: float
    pixel_auroc: float
    aupro: float


def compare(
    data: DataConfig,
    dataset: Dataset,
    split: Split,
    score: str,
    auroc: float,
    validation_auroc: float,
    *,
    run: Path | None = None,
    show: bool = False,
) -> tuple[dict[str, YardstickResult], str]:
    """All yardsticks of a run, and a line about them that belongs above its own figures.

    The line says which ones do better, or why there are none: a comparison that fails must not
    cost a run its evaluation. It is empty where neither is the case.

    Args:
      score: name of the score that decides; the AUROCs are its own, on test and validation images.
      run: folder of a finished run whose training images teach the yardsticks, where `split` has
        none.
      show: whether to show progress.
    """
    try:
        trained = None if run is None else _trained(run, data.cache_dir, show)
        found = measure(data, dataset, split, trained=trained, show=show)
    except DataError as error:
        return {}, f"No yardsticks beside this run: {error}"
    return found, lead(found, score, auroc, validation_auroc)


def known_figures(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Names of the figures that at least one yardstick has."""
    names = next(iter(found.values()))
    return [n for n in names if not all(math.isnan(values[n]) for values in found.values())]


def measure(
    data: DataConfig,
    dataset: Dataset,
    split: Split,
    *,
    trained: Divided | None = None,
    show: bool = False,
) -> dict[str, YardstickResult]:
    """Fit all yardsticks on the training part of a run and measure them on its held-out parts.

    They learn from at most 1,000 of the normal training images, chosen by the split's seed.

    Args:
      trained: whose training part it is, where the held-out images are of another folder.

    Raises:
      DataError: an image cannot be read, or the parts hold too few images.
    """
    teaching = trained or Divided(data, dataset, split)
    rng = np.random.Generator(np.random.PCG64(teaching.data.split_seed))
    normal = np.sort(rng.permutation(teaching.split.train_normal)[:_NORMAL])
    known = teaching.split.train_known_abnormal
    validation = np.concatenate([split.validation_normal, split.validation_known_abnormal])
    held_out = np.concatenate([validation, split.test])
    masked = np.zeros(len(known), bool)
    if teaching.dataset.has_masks:
        masked = teaching.dataset.has_mask[known]
    total = len(normal) + len(known) + len(held_out)
    results = {}
    with ProgressLine("yardsticks", total=total, unit="images", show=show) as line:
        read = _Reader(teaching.data, teaching.dataset, line)
        flawless, faulty, masks = read.images(normal), read.images(known), read.masks(known[masked])
        if trained is not None:
            read = _Reader(data, dataset, line)
        tested = read.images(held_out)
        applicable = UNSUPERVISED | (KNOWN_DEFECTS if masks.any() else {})
        for name, fit_score in applicable.items():
            line.say(f"what {name} reaches on the same images")
            judged = fit_score(flawless, faulty[masked], tested, seed=0, masks=masks)
            results[name] = _result(judged, len(validation), validation, dataset, split)
    return results


def lead(
    yardsticks: Mapping[str, YardstickResult], score: str, auroc: float, validation_auroc: float
) -> str:
    """One line that says which yardsticks beat the run's own score; empty where none does.

    It also says so where brightness alone tells the test images apart, in whichever direction: then
    the two kinds were photographed under different light, and no figure says much about defects.
    """
    told = []
    for part, own, field in (
        ("test", auroc, "auroc"),
        ("validation", validation_auroc, "validation_auroc"),
    ):
        ahead = {name: getattr(y, field) for name, y in yardsticks.items()}
        ahead = {name: value for name, value in ahead.items() if value > own + _TIE}
        if ahead:
            names = ", ".join(f"{name} {value:.3f}" for name, value in ahead.items())
            told.append(f"{names} on {part} images, where {score} has {own:.3f}")
    lines = (
        [f"Simple yardsticks do better than this run: {'; '.join(told)} (AUROC)."] if told else []
    )
    light = yardsticks[BRIGHTNESS].auroc if BRIGHTNESS in yardsticks else math.nan
    if max(light, 1.0 - light) > _LIGHT:
        lines.append(
            f"Brightness alone tells normal from abnormal test images (AUROC {light:.3f}): they "
            "differ in light, not only in defects."
        )
    return " ".join(lines)


def _trained(run: Path, cache_dir: str, show: bool) -> Divided:
    """What a finished run was trained on.

    Raises:
      DataError: images of it are missing, or have changed.
    """
    config = load_settings(run)
    data = dataclasses.replace(config.data, cache_dir=cache_dir)
    dataset = load_dataset(data, resolution=config.growth.resolution, progress=show)
    return Divided(data, dataset, split_file.read(run / "split.json", dataset))


def _result(
    judged: Judged,
    validated: int,
    validation: Int[np.ndarray, " v"],
    dataset: Dataset,
    split: Split,
) -> YardstickResult:
    own, tested = judged.scores[:validated], judged.scores[validated:]
    image = image_metrics(tested, split.is_abnormal[split.test], threshold=0.0)
    validated_image = image_metrics(own, split.is_abnormal[validation], threshold=0.0)
    pixels = MaskedPixels(dataset, split)
    if judged.maps is not None and dataset.has_masks:
        for index, map in zip(split.test, judged.maps[validated:], strict=True):
            pixels.add(int(index), map)
    found = pixels.metrics.result()
    return YardstickResult(
        image.auroc,
        image.average_precision,
        image.f1_best,
        validated_image.auroc,
        found.auroc,
        found.aupro,
    )


class _Reader:
    """Images and masks of a data set's source, by their place in its records."""

    def __init__(self, data: DataConfig, dataset: Dataset, line: ProgressLine):
        self.line = line
        self.data, self.ids, self.channels = data, dataset.ids, dataset.channels
        source = open_source(data, resolution=_SIDE)
        self.examples = {example.id: example for example in source.examples}

    def images(self, part: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n side side channels"]:
        found = np.empty((len(part), _SIDE, _SIDE, self.channels), np.uint8)
        for row, index in enumerate(part):
            picture = self.examples[self.ids[index]].load()
            found[row] = fit_square(picture.image, _SIDE, self.data.fit)
            self.line.advance(1)
        return found

    def masks(self, part: Int[np.ndarray, " m"]) -> Bool[np.ndarray, "m side side"]:
        found = np.zeros((len(part), _SIDE, _SIDE), bool)
        for row, index in enumerate(part):
            mask = self.examples[self.ids[index]].load().mask
            if mask is not None:
                # Any part of a pixel: thin defects would vanish.
                white = mask[..., None].astype(np.uint8) * np.uint8(255)
                found[row] = fit_square(white, _SIDE, self.data.fit)[..., 0] > 0
        return found
