"""The held-out images of a run: searched, calibrated, measured, drawn.

The search is the long part. Its latents are kept in shards, so that it goes on where it was stopped
and everything behind it can be made again in seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jax_noisy_anogan import pictures
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data import DataError, Dataset, Split
from jax_noisy_anogan.evaluation.metrics import image_intervals, image_metrics
from jax_noisy_anogan.evaluation.pixel_metrics import PixelMetrics
from jax_noisy_anogan.evaluation.report import write_report
from jax_noisy_anogan.evaluation.selection import Report, ReportImage, ScoreSummary, select_images
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime.files import _save_npz, checksum, digest, write_text
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring.calibration import CALIBRATED, Calibration, CalibrationError, decide
from jax_noisy_anogan.scoring.maps import (
    _UNREADABLE,
    MapCalibration,
    fit_map_calibration,
)
from jax_noisy_anogan.scoring.scorer import (
    ImageResult,
    Scorer,
    Searched,
    _calibrated_map,
    learned_term,
    terms_of,
)

PARTS = ("validation_normal", "validation_known_abnormal", "test")
_FIGURE_5_IMAGES = 100
_SHARD_TILES = 128


class Scored(NamedTuple):
    """Results of one part, image by image.

    Attributes:
      indices: into the data set.
      terms: every raw term, `local` (the highest value of the calibrated map) included.
    """

    indices: Int[np.ndarray, " n"]
    terms: dict[str, Float[np.ndarray, " n"]]


class Measured(NamedTuple):
    """All held-out images of a run, by the names of `PARTS`, and their calibration."""

    maps: MapCalibration
    scored: dict[str, Scored]
    calibration: Calibration


def measure(
    config: Config,
    workdir: Path,
    dataset: Dataset,
    split: Split,
    model: Model,
    *,
    progress: bool = True,
) -> Measured:
    """What `evaluate` measures, without a file of it: for tables over many runs. One process.

    The latents that are found are kept in `workdir`.

    Raises:
      CalibrationError: see `evaluate`.
    """
    calibration_lib.require_normals(len(split.validation_normal))
    held_out = _HeldOut(config, workdir, dataset, split, Scorer(model, config))
    held_out.search(progress=progress)
    return held_out.calibrated()


class _HeldOut:
    """Images, latents and results of the parts that no network was trained on."""

    def __init__(
        self, config: Config, workdir: Path, dataset: Dataset, split: Split, scorer: Scorer
    ):
        self.config, self.workdir, self.dataset, self.split = config, workdir, dataset, split
        self.scorer = scorer
        self.resolution = dataset.resolution
        self.source = dataset.source(self.resolution)
        side = self.resolution
        tiles = len(scorer.positions(side, side))
        # Not of the batch size: with other batches or devices the shards stay the same.
        self.shard_images = max(1, _SHARD_TILES // tiles)
        steps = config.search.steps + 1 if config.search.record_curve else None
        self.shapes = (tiles, scorer.model.networks.latent_size), steps and (tiles, steps)
        stamp = digest(
            dataclasses.asdict(config.search) | {"batch_size": 0},
            config.score.tile_overlap,
            {name: split.part(name).tolist() for name in PARTS},
            dataset.path.name,
            checksum(scorer.model[1:]),
        )
        self.folder = workdir / "evaluation" / f"latents-{stamp}"

    def search(self, *, progress: bool) -> None:
        """Fill in all latents that are missing; a process takes every so many-th shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = self._shards()[jax.process_index() :: jax.process_count()]
        missing = [shard for shard in shards if self._read(shard) is None]
        total = sum(len(shard.indices) for shard in shards)
        done = total - sum(len(shard.indices) for shard in missing)
        with ProgressLine("search", total=total, done=done, unit="images", show=progress) as line:
            # All shards in one stream, so that batches are full across their borders.
            found = self.scorer.search(
                self.source[int(index)] for shard in missing for index in shard.indices
            )
            for shard in missing:
                rows = []
                for _ in shard.indices:
                    rows.append(next(found))
                    done += 1
                    line.update(done)
                columns = Searched(*zip(*rows, strict=True))._asdict()
                _save_npz(
                    shard.path,
                    **{k: np.stack(v) for k, v in columns.items() if v[0] is not None},
                )

    def results(self, indices: Int[np.ndarray, " n"]) -> Iterator[ImageResult]:
        """Measured results of held-out images, in the order asked for.

        Raises:
          CalibrationError: a term is not finite; names it and the image.
        """
        pairs = ((self.source[int(k)], self._searched[int(k)].latents) for k in indices)
        for index, result in zip(indices, self.scorer.measure(pairs), strict=True):
            for name, value in result.terms.items():
                if not math.isfinite(value):
                    raise CalibrationError(
                        f"{name} of {self.dataset.ids[index]} is {value}: the networks have "
                        "diverged; train with a lower config.optim.learning_rate"
                    )
            yield result

    def fit_maps(self) -> MapCalibration:
        """Statistics of the maps of normal validation images."""
        found = (r.map for r in self.results(self.split.validation_normal))
        try:
            return fit_map_calibration(
                found,
                sigma=self.config.score.map_sigma,
                per_pixel=self.dataset.tiles_per_side == 1,
            )
        except ValueError as error:
            raise CalibrationError(f"normal validation images: {error}") from error

    def measure(self, part: str, maps: MapCalibration) -> Scored:
        """Every raw term of one part."""
        indices = self.split.part(part)
        return Scored(indices, terms_of(self.results(indices), maps, self.config))

    def calibrated(self) -> Measured:
        """The terms of all parts, and the calibration that the validation parts give."""
        maps = self.fit_maps()
        scored = {part: self.measure(part, maps) for part in PARTS}
        calibration = calibration_lib.fit(
            scored["validation_normal"].terms,
            scored["validation_known_abnormal"].terms,
            rule=self.config.score.threshold_rule,
            false_positive_rate=self.config.score.false_positive_rate,
            learned=learned_term(self.config.loss),
        )
        return Measured(maps, scored, calibration)

    def pixel_metrics(self, maps: MapCalibration) -> PixelMetrics:
        """Over the test images whose masks are known."""
        split, dataset = self.split, self.dataset
        known = split.test[dataset.has_mask[split.test] | ~split.is_abnormal[split.test]]
        metrics = PixelMetrics()
        for index, result in zip(known, self.results(known), strict=True):
            masks = dataset.masks([int(index)], self.resolution)
            assert masks is not None
            abnormal = split.is_abnormal[index]
            name = dataset.class_names[dataset.labels[index]] if abnormal else ""
            metrics.update(self._map(result, maps), masks[0], name)
        return metrics

    def write_curve(self) -> None:
        """Write `curve.csv`: AUROC of L' after every number of search steps.

        Choose `search.steps` by the column of the validation images, never by that of the test
        images. Where the search has restarts, the curve is that of the one that won.
        """
        path = self.workdir / "curve.csv"
        if not self.config.search.record_curve:
            path.unlink(missing_ok=True)  # of an evaluation with other settings
            return
        split = self.split
        validation = np.concatenate([split.part(name) for name in PARTS[:2]])
        columns = [
            auroc_curve(self._curves(k), split.is_abnormal[k]) for k in (validation, split.test)
        ]
        lines = ["step,validation_auroc,test_auroc"]
        for step, values in enumerate(zip(*columns, strict=True)):
            lines.append(
                ",".join([str(step), *("" if math.isnan(v) else f"{v:.6f}" for v in values)])
            )
        write_text(path, "\n".join(lines) + "\n")

    def _curves(self, indices: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n steps"]:
        """L' of the images had the search ended after each step: its best until then."""
        found = (self._searched[int(index)].curve for index in indices)
        return np.array(
            [
                np.minimum.accumulate(curve, axis=1).max(axis=0)
                for curve in found
                if curve is not None
            ]
        ).reshape(len(indices), self.config.search.steps + 1)

    def write_report(
        self,
        calibration: Calibration,
        test: Scored,
        maps: MapCalibration,
        hottest: float,
        pixel: PixelMetrics | None,
    ) -> None:
        """Write `report.html`, with the images that are worth looking at."""
        dataset, config = self.dataset, self.config
        scores = calibration.calibrated(test.terms)
        threshold = calibration.thresholds[CALIBRATED].chosen
        is_abnormal = self.split.is_abnormal[test.indices]
        chosen = select_images(scores, is_abnormal, threshold=threshold)
        positions = np.unique(np.concatenate(chosen).astype(np.int64))
        cards = {}
        for k, result in zip(positions, self.results(test.indices[positions]), strict=True):
            index = int(test.indices[k])
            image = self.source[index]
            masks = dataset.masks([index], self.resolution) if dataset.has_mask[index] else None
            cards[int(k)] = ReportImage(
                path=dataset.ids[index],
                score=float(scores[k]),
                is_abnormal=bool(is_abnormal[k]),
                is_flagged=bool(decide(scores[k], threshold)),
                image=image,
                class_name=dataset.class_names[dataset.labels[index]],
                terms={name: float(values[k]) for name, values in test.terms.items()},
                reconstruction=result.drawn,
                heatmap=pictures.overlay(image, self._map(result, maps), low=0.0, high=hottest),
                mask=None if masks is None else masks[0],
            )
        names = [dataset.class_names[label] for label in dataset.labels[test.indices]]
        values = {CALIBRATED: scores, **test.terms}
        report = Report(
            title=f"{dataset.name}: evaluation",
            subtitle=self.split.protocol,
            score_name=CALIBRATED,
            scores=scores,
            is_abnormal=is_abnormal,
            threshold=threshold,
            summaries=[
                ScoreSummary(
                    name,
                    image_metrics(value, is_abnormal, threshold=limit),
                    image_intervals(value, is_abnormal, threshold=limit, seed=0),
                )
                for name, value in values.items()
                for limit in (calibration.thresholds[name].chosen,)
            ],
            class_names=names,
            settings=dataclasses.asdict(config),
            pixel=None if pixel is None else pixel.result(),
            pixel_intervals=None if pixel is None else pixel.intervals(seed=0, resamples=200),
            pixel_by_class={} if pixel is None else pixel.by_class(),
            false_negatives=[cards[int(k)] for k in chosen.false_negatives],
            false_positives=[cards[int(k)] for k in chosen.false_positives],
            most_anomalous=[cards[int(k)] for k in chosen.most_anomalous],
            least_anomalous=[cards[int(k)] for k in chosen.least_anomalous],
            heat_range=(0.0, hottest),
            failures={item.file: item.reason for item in dataset.left_out},
        )
        write_report(self.workdir / "report.html", report)

    def _map(self, result: ImageResult, maps: MapCalibration) -> Float[np.ndarray, "h w"]:
        return _calibrated_map(result, maps, self.config)

    def heat_scale(self, maps: MapCalibration) -> float:
        """Where heat is strongest, in all pictures: twice the usual height of a normal map."""
        heights = [self._map(r, maps).max() for r in self.results(self.split.validation_normal)]
        return 2.0 * max(float(np.median(heights)), 1.0)

    def draw_figures(self, maps: MapCalibration, hottest: float) -> None:
        """Fig. 4 and 5 of the paper, with test images; maps and masks where there are masks."""
        test = self.split.test
        is_abnormal = self.split.is_abnormal[test]
        # Rows of equal length: as many images as the smaller kind has, unless it has none.
        kinds = [int(n) for n in (is_abnormal.sum(), (~is_abnormal).sum()) if n]
        count = min(self.config.score.figure_images, *kinds)
        rows, labels, histogram = [], [], []
        for kind, wanted in (("normal", ~is_abnormal), ("abnormal", is_abnormal)):
            indices = _spread(test[wanted], self.dataset.labels, _FIGURE_5_IMAGES)
            results = list(self.results(indices))
            histogram.append(np.array([r.difference for r in results]))
            # Classes in turn, so that a few images show many of them.
            shown = _spread(np.arange(len(indices)), self.dataset.labels[indices], count)
            if not len(shown):
                continue
            inputs = np.stack([self.source[int(indices[k])] for k in shown])
            drawn = np.stack([results[k].drawn for k in shown])
            difference = np.stack([results[k].difference for k in shown])
            rows += [inputs, drawn, pictures.difference_image(difference, high=2.0)]
            labels += [f"{kind}: input", "G(z)", "difference"]
            masks = self.dataset.masks(indices[shown], self.resolution)
            if masks is None:
                continue
            heat = [self._map(results[k], maps) for k in shown]
            both = zip(inputs, heat, strict=True)
            rows.append(np.stack([pictures.overlay(*b, low=0.0, high=hottest) for b in both]))
            labels.append("map")
            if kind == "abnormal":
                rows.append(np.where(masks[..., None], np.uint8(255), np.uint8(0)))
                labels.append("mask")
        pictures.save_png(
            self.workdir / "reconstructions.png", pictures.rows_of_images(rows, labels)
        )
        figure = pictures.difference_histogram_figure(*histogram)
        figure.savefig(self.workdir / "pixel_difference.png", dpi=120)

    def _shards(self) -> list[_Shard]:
        return [
            _Shard(self.folder / f"{part}-{start:07d}.npz", indices[start : start + step])
            for part in PARTS
            for indices in (self.split.part(part),)
            for step in (self.shard_images,)
            for start in range(0, len(indices), step)
        ]

    @functools.cached_property
    def _searched(self) -> dict[int, Searched]:
        """What was found for every held-out image, by its index into the data set.

        Raises:
          DataError: a shard has been damaged since the search.
        """
        found: dict[int, Searched] = {}
        for shard in self._shards():
            read = self._read(shard)
            if read is None:
                raise DataError(f"{shard.path} cannot be read: evaluate again")
            found.update(zip(shard.indices.tolist(), read, strict=True))
        return found

    def _read(self, shard: _Shard) -> list[Searched] | None:
        """One shard's images; None where it must be searched, or searched again."""
        try:
            with np.load(shard.path, allow_pickle=False) as values:
                columns = {name: values[name] for name in values.files}
        except _UNREADABLE:
            return None
        curves = columns.get("curve")
        shapes = [getattr(columns.get(name), "shape", None) for name in Searched._fields]
        if shapes != [shape and (len(shard.indices), *shape) for shape in self.shapes]:
            return None
        rows = [None] * len(shard.indices) if curves is None else curves
        return [Searched(*row) for row in zip(columns["latents"], rows, strict=True)]


class _Shard(NamedTuple):
    path: Path
    indices: Int[np.ndarray, " n"]


def auroc_curve(
    scores: Float[np.ndarray, "n steps"], is_abnormal: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " steps"]:
    """AUROC of each column; nan with images of one kind only."""
    return np.array([image_metrics(s, is_abnormal, threshold=0.0).auroc for s in scores.T])


def _spread(
    items: Int[np.ndarray, " n"], labels: Int[np.ndarray, " all"], count: int
) -> Int[np.ndarray, " m"]:
    """The first `count` items, taking classes in turn; `labels` is indexed by item or position."""
    own = labels[items]
    turn = np.zeros(len(items), np.int64)
    for label in np.unique(own):
        turn[own == label] = np.arange(np.count_nonzero(own == label))
    return items[np.sort(np.argsort(turn, kind="stable")[:count])]
