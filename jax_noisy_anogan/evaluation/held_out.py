"""The held-out images of a run: searched once, and seen once by G and D.

The search is the long part. What it finds, and what G and D then say, is kept in shards: both go on
where they were stopped, and what only a threshold changes is made again without networks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.evaluation.remembered import remember
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime.files import UNREADABLE, checksum, digest, save_npz
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring.calibration import CalibrationError, Fitted, Groups
from jax_noisy_anogan.scoring.maps import MapCalibration, MapMoments
from jax_noisy_anogan.scoring.memory import Memory
from jax_noisy_anogan.scoring.scorer import (
    ImageResult,
    Scorer,
    all_terms,
    learned_term,
    locate,
    measured_terms,
    trusted_terms,
)

PARTS = ("validation_normal", "validation_known_abnormal", "test")

_SHARD_TILES = 128
_SHARD_BYTES = 2**25
# What G and D said of all images is kept where it takes no more than this.
_KEPT_BYTES = 2**32

Image = UInt8[np.ndarray, "height width channels"]


class Scored(NamedTuple):
    """Results of one part, image by image.

    Attributes:
      indices: into the data set.
      terms: every raw term, see `all_terms`.
    """

    indices: Int[np.ndarray, " n"]
    terms: dict[str, Float[np.ndarray, " n"]]


class Measured(NamedTuple):
    """All held-out images of a run, by the names of `PARTS`, and their calibration.

    Attributes:
      memory: with the usual distances of validation normals; None without `score.memory`.
      calibrated: scores, of validation images by fits that have not seen the image.
    """

    maps: MapCalibration
    memory: Memory | None
    scored: dict[str, Scored]
    calibration: calibration_lib.Calibration
    calibrated: dict[str, Float[np.ndarray, " n"]]


class Seen(NamedTuple):
    """One test image as it passes by.

    Attributes:
      position: among the test images.
      example: index into the data set.
      terms: see `all_terms`.
      map: calibrated, the one that is shown.
    """

    position: int
    example: int
    image: Image
    result: ImageResult
    terms: dict[str, float]
    map: Float[np.ndarray, "height width"]


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

    What the search finds is kept in `workdir`.

    Raises:
      CalibrationError: see `evaluate`.
    """
    calibration_lib.require_normals(len(split.validation_normal))
    scorer = scorer_of(config, dataset, split, model, progress=progress)
    held_out = HeldOut(config, workdir, dataset, split, scorer)
    held_out.search(progress=progress)
    with held_out.progress(show=progress) as line:
        validated = validate(held_out, line)
        return tested(held_out, validated, (), line)


def scorer_of(
    config: Config,
    dataset: Dataset,
    split: Split,
    model: Model,
    memory: Memory | None = None,
    *,
    progress: bool,
) -> Scorer:
    """What searches and measures a run's images.

    Args:
      memory: of the run; where it has one and none is given, it is built.
    """
    plain = Scorer(model, config)
    if not config.score.memory:
        return plain
    if memory is None:
        memory = remember(
            dataset,
            split,
            plain,
            seed=config.data.split_seed,
            sigma=config.score.map_sigma,
            show=progress,
        )
    return Scorer(plain.model, config, plain.mesh, memory)


class Validated(NamedTuple):
    """The validation images, and what was fitted to them."""

    maps: MapCalibration
    memory: Memory | None
    scored: dict[str, Scored]
    fitted: Fitted


class _Usual:
    """Statistics of maps of normal images, and of their distances where there is a memory."""

    def __init__(self, sigma: float, *, per_pixel: bool):
        self._maps = MapMoments(sigma=sigma, per_pixel=per_pixel)
        self._distances = MapMoments(sigma=sigma, per_pixel=per_pixel)
        self._has_distances = False

    def add(self, result: ImageResult) -> None:
        self._maps.add(result.map)
        if result.distance is not None:
            self._has_distances = True
            self._distances.add(result.distance)

    def calibration(
        self, without: _Usual | None = None
    ) -> tuple[MapCalibration, MapCalibration | None]:
        """Of all images, or of all but those that `without` has counted too."""
        maps = self._maps.calibration(None if without is None else without._maps)
        if not self._has_distances:
            return maps, None
        return maps, self._distances.calibration(None if without is None else without._distances)


def validate(held_out: HeldOut, line: ProgressLine) -> Validated:
    """Map statistics and calibration, from the validation images.

    The terms of maps of a normal image are those of statistics without it: with it, a nominal
    false-positive rate of 5 % was 89 % on unseen digits with 9 validation images, 17 % with 52.
    Other photographs of the same part are left out with it.

    Raises:
      CalibrationError: the images are too few, or a term is not finite.
    """
    config, split = held_out.config, held_out.split
    normal, known = PARTS[:2]
    score, memory = config.score, held_out.scorer.memory
    groups = _together(split)
    keys = range(len(split.validation_normal)) if groups is None else groups[0].tolist()
    shared = Counter(keys)
    new = functools.partial(_Usual, score.map_sigma, per_pixel=not held_out.dataset.is_tiled)
    usual, parts = new(), defaultdict[int, _Usual](new)
    try:
        for key, result in zip(keys, held_out.results(normal, line), strict=True):
            usual.add(result)
            if shared[key] > 1:
                parts[key].add(result)
        maps, remembered = usual.calibration()
        own = []
        # Kept results are read again here, not measured again.
        for key, result in zip(keys, held_out.results(normal, line), strict=True):
            without = parts.get(key) or new()
            if shared[key] == 1:
                without.add(result)
            own.append(locate(result, *usual.calibration(without), score).terms)
    except ValueError as error:
        raise CalibrationError(f"normal validation images: {error}") from error
    found = [
        locate(result, maps, remembered, score).terms for result in held_out.results(known, line)
    ]
    names = all_terms(score)
    scored = {
        name: Scored(split.part(name), _columns(rows, names))
        for name, rows in ((normal, own), (known, found))
    }
    fitted = calibration_lib.fit(
        scored[normal].terms,
        scored[known].terms,
        groups=groups,
        rule=config.score.threshold_rule,
        false_positive_rate=config.score.false_positive_rate,
        learned=learned_term(config.loss),
        trusted=trusted_terms(score),
    )
    if memory is not None and remembered is not None:
        memory = memory._replace(usual=remembered)
    return Validated(maps, memory, scored, fitted)


def _together(split: Split) -> Groups | None:
    """Numbers of the normal and of the known abnormal validation images; one part shares one.

    None where each image is a part of its own, or where the parts are too few to leave one out.
    """
    if split.groups is None:
        return None
    normal, known = (split.groups[split.part(name)] for name in PARTS[:2])
    return (normal, known) if len(np.unique(normal)) >= calibration_lib.FEWEST_NORMALS else None


def tested(
    held_out: HeldOut,
    validated: Validated,
    collectors: Sequence[Callable[[Seen], None]],
    line: ProgressLine,
) -> Measured:
    """The test images, one after another past all collectors."""
    maps, memory, scored, (calibration, normal, known) = validated
    score, usual = held_out.config.score, None if memory is None else memory.usual
    indices = held_out.split.part("test")
    rows = []
    for position, result in enumerate(held_out.results("test", line)):
        index = int(indices[position])
        terms, map = locate(result, maps, usual, score)
        rows.append(terms)
        seen = Seen(position, index, held_out.source[index], result, terms, map)
        for collect in collectors:
            collect(seen)
    test = Scored(indices, _columns(rows, all_terms(score)))
    scores = (normal, known, calibration.calibrated(test.terms))
    by_part = dict(zip(PARTS, scores, strict=True))
    return Measured(maps, memory, {**scored, "test": test}, calibration, by_part)


def _columns(
    rows: list[dict[str, float]], names: Sequence[str]
) -> dict[str, Float[np.ndarray, " n"]]:
    return {name: np.array([row[name] for row in rows]) for name in names}


class HeldOut:
    """Images, latents and results of the parts that no network was trained on."""

    def __init__(
        self, config: Config, workdir: Path, dataset: Dataset, split: Split, scorer: Scorer
    ):
        self.config, self.dataset, self.split, self.scorer = config, dataset, split, scorer
        self.source = dataset.source(dataset.resolution)
        shapes = [dataset.shape(int(index)) for part in PARTS for index in split.part(part)]
        tiles = max(len(scorer.positions(*shape)) for shape in set(shapes))
        stamp = digest(
            dataclasses.asdict(config.search),
            config.score.tile_overlap,
            {name: split.part(name).tolist() for name in PARTS},
            dataset.path.name,
            checksum(scorer.model[1:]),
        )
        columns = ["latents", "curve"] if config.search.record_curve else ["latents"]
        evaluation = workdir / "evaluation"
        step = max(1, _SHARD_TILES // tiles)
        self._latents = Kept(evaluation / f"latents-{stamp}", columns, step)
        columns = ["terms", "reconstruction", "difference"]
        if config.score.map in ("attribution", "dense"):
            columns.append(config.score.map)
        if scorer.memory is not None:
            columns.append("distance")
        bytes_of = [math.prod(s) * (dataset.channels + 4 * (len(columns) - 2)) for s in shapes]
        size = max(bytes_of)
        remembered = checksum(scorer.memory) if scorer.memory is not None else ""
        stamp = digest(stamp, config.score.map, config.score.average_flips, remembered)
        step = int(np.clip(_SHARD_BYTES // size, 1, _SHARD_TILES))
        self._results = Kept(evaluation / f"results-{stamp}", columns, step)
        self._keeps_results = sum(bytes_of) <= _KEPT_BYTES

    def search(self, *, progress: bool) -> None:
        """Fill in all latents that are missing; a process takes every so many-th shard."""
        kept = self._latents
        shards = [s for part in PARTS for s in kept.shards(part, self.split.part(part))]
        shards = shards[jax.process_index() :: jax.process_count()]
        missing = [shard for shard in shards if kept.read(shard) is None]
        total = sum(len(shard.indices) for shard in shards)
        done = total - sum(len(shard.indices) for shard in missing)
        with ProgressLine("search", total=total, done=done, unit="images", show=progress) as line:
            # All shards in one stream, so that batches are full across their borders.
            found = self.scorer.search(
                self.source[int(index)] for shard in missing for index in shard.indices
            )
            for shard in missing:
                rows = []
                for searched in itertools.islice(found, len(shard.indices)):
                    rows.append(searched._asdict())
                    line.advance(1)
                kept.write(shard, rows)

    def progress(self, *, show: bool) -> ProgressLine:
        """A line for the pass of G and D over all images."""
        # `validate` comes back to the normal validation images.
        total = sum(len(self.split.part(part)) for part in (PARTS[0], *PARTS))
        return ProgressLine("measure", total=total, unit="images", show=show)

    def results(self, part: str, line: ProgressLine | None = None) -> Iterator[ImageResult]:
        """What G and D say of the images of a part, one after another.

        They see each image once; after that it is read, unless all results together exceed 4 GiB.

        Raises:
          CalibrationError: a term is not finite; names it and the image.
        """
        shards = self._results.shards(part, self.split.part(part))
        there = {shard.path for shard in shards if shard.path.exists()}
        fresh = self._measured(i for s in shards if s.path not in there for i in s.indices)
        for shard in shards:
            rows = self._results.read(shard) if shard.path in there else None
            if rows is not None:
                found: Iterable[ImageResult] = (self._result(row) for row in rows)
            else:
                own = self._measured(shard.indices) if shard.path in there else fresh
                found = itertools.islice(own, len(shard.indices))
                if self._keeps_results:
                    found = list(found)
                    self._results.write(shard, [self._row(result) for result in found])
            for result in found:
                yield result
                if line is not None:
                    line.advance(1)

    def forget_others(self) -> None:
        """Delete results that other settings of maps or search have left."""
        for folder in self._results.folder.parent.glob("results-*"):
            if folder != self._results.folder:
                shutil.rmtree(folder)

    def curves(self, indices: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n steps"]:
        """L' of the images had the search ended after each step: its best until then."""
        found = (self._searched[int(index)]["curve"] for index in indices)
        best = [np.minimum.accumulate(curve, axis=1).max(axis=0) for curve in found]
        return np.array(best).reshape(len(indices), self.config.search.steps + 1)

    def _measured(self, indices: Iterable[int]) -> Iterator[ImageResult]:
        passed: deque[int] = deque()

        def pairs() -> Iterator[tuple[Image, Float[np.ndarray, "tiles latent"]]]:
            for index in indices:
                passed.append(int(index))
                yield self.source[int(index)], self._searched[int(index)]["latents"]

        for result in self.scorer.measure(pairs()):
            index = passed.popleft()
            for name, value in result.terms.items():
                if not math.isfinite(value):
                    raise CalibrationError(
                        f"{name} of {self.dataset.ids[index]} is {value}: the networks have "
                        "diverged; train with a lower config.optim.learning_rate"
                    )
            yield result

    def _row(self, result: ImageResult) -> Row:
        terms = np.array([result.terms[name] for name in measured_terms(self.config.score)])
        return {**result._asdict(), "terms": terms}

    def _result(self, row: Row) -> ImageResult:
        names = measured_terms(self.config.score)
        terms = dict(zip(names, row["terms"].tolist(), strict=True))
        maps = (row.get(name) for name in ("attribution", "dense", "distance"))
        return ImageResult(terms, row["reconstruction"], row["difference"], *maps)

    @functools.cached_property
    def _searched(self) -> dict[int, Row]:
        """What was found for every held-out image, by its index into the data set.

        Raises:
          DataError: a shard has been damaged since the search.
        """
        found: dict[int, Row] = {}
        for part in PARTS:
            for shard in self._latents.shards(part, self.split.part(part)):
                read = self._latents.read(shard)
                if read is None:
                    raise DataError(f"{shard.path} cannot be read: evaluate again")
                found.update(zip(shard.indices.tolist(), read, strict=True))
        return found


Row = dict[str, np.ndarray]


class Shard(NamedTuple):
    """A file of some images of a part."""

    path: Path
    indices: Int[np.ndarray, " n"]


class Kept:
    """Arrays of held-out images, in files that hold a bounded number of images.

    Args:
      columns: names of what is kept of every image; the arrays of images may differ in size.
      step: images per file.
    """

    def __init__(self, folder: Path, columns: Sequence[str], step: int):
        self.folder, self._columns, self._step = folder, columns, step

    def shards(self, part: str, indices: Int[np.ndarray, " n"]) -> list[Shard]:
        """The files of a part, whether they exist or not."""
        return [
            Shard(self.folder / f"{part}-{start:07d}.npz", indices[start : start + self._step])
            for start in range(0, len(indices), self._step)
        ]

    def write(self, shard: Shard, rows: Sequence[Row]) -> None:
        """Keep the rows of a shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for name in self._columns:
            arrays[name] = np.concatenate([row[name].ravel() for row in rows])
            arrays[f"{name} shape"] = np.array([row[name].shape for row in rows])
        save_npz(shard.path, **arrays)

    def read(self, shard: Shard) -> list[Row] | None:
        """A shard's rows; None where it is missing or damaged."""
        count = len(shard.indices)
        rows: list[Row] = [{} for _ in range(count)]
        try:
            with np.load(shard.path, allow_pickle=False) as values:
                for name in self._columns:
                    shapes = values[f"{name} shape"]
                    ends = np.cumsum(shapes.prod(axis=1))
                    parts = np.split(values[name], ends)
                    # What is left over behind the last image is a part too.
                    for row, part, shape in zip(rows, parts[:-1], shapes, strict=True):
                        row[name] = part.reshape(shape)
        except UNREADABLE:
            return None
        return rows
