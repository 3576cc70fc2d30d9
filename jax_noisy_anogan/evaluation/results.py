"""An evaluation as files: metrics, tables, pictures, report."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.evaluation.figures import Figures, write_best_and_worst
from jax_noisy_anogan.evaluation.held_out import (
    PARTS,
    HeldOut,
    Measured,
    Scored,
    Validated,
    scorer_of,
    tested,
    validate,
)
from jax_noisy_anogan.evaluation.metrics import image_intervals, image_metrics
from jax_noisy_anogan.evaluation.operating import Found, SetBy, operating_points, set_by
from jax_noisy_anogan.evaluation.pixel_metrics import MaskedPixels
from jax_noisy_anogan.evaluation.report import write_report
from jax_noisy_anogan.evaluation.selection import Cards, Report, ScoreSummary
from jax_noisy_anogan.evaluation.yardsticks import compare
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime import processes
from jax_noisy_anogan.runtime.files import to_json, write_text
from jax_noisy_anogan.runtime.progress import ProgressLine
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring import memory as memory_lib
from jax_noisy_anogan.scoring.calibration import ANOMALY, CALIBRATED, DECISION, Calibration
from jax_noisy_anogan.scoring.maps import save_maps
from jax_noisy_anogan.scoring.memory import Memory
from jax_noisy_anogan.scoring.scorer import Scorer, heat_term
from jax_noisy_anogan.scoring.thresholds import decide

# Examples in a row of `reconstructions.png`.
_IMAGES_PER_ROW = 16


def _order(calibration: Calibration) -> tuple[str, ...]:
    """Scores as tables list them."""
    first, *rest = calibration.terms
    return first, CALIBRATED, *rest


def evaluate(
    config: Config,
    workdir: Path,
    dataset: Dataset,
    split: Split,
    model: Model,
    *,
    validated: Validated | None = None,
    memory: Memory | None = None,
    run: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score validation and test images and write all results into `workdir`.

    Writes `calibration.json`, `map_calibration.npz`, with `score.memory` `memory.npz`,
    `metrics.json`, `scores.csv`, `report.html`, `reconstructions.png` (Fig. 4),
    `pixel_difference.png` (Fig. 5), `best_and_worst.png` and, with `search.record_curve`,
    `curve.csv`.

    Of several processes each searches every so many-th shard; the first one does all the rest.

    Args:
      validated: a calibration that judges instead of one from the validation images, of which
        there are none then; it is not written.
      memory: of the run, where the images are not those that it was made from.
      run: its folder, likewise: yardsticks learn from its training images.

    Returns:
      What `metrics.json` holds; nothing in every process but the first.

    Raises:
      CalibrationError: too few normal validation images, or a score that is not finite.
      LostProcessError: another process has ended.
    """
    if validated is None:
        calibration_lib.require_normals(len(split.validation_normal))
    start = time.monotonic()
    show = progress and jax.process_index() == 0
    # Only the first process measures.
    scorer = (
        scorer_of(config, dataset, split, model, memory, progress=show)
        if jax.process_index() == 0
        else Scorer(model, config)
    )
    held_out = HeldOut(config, workdir, dataset, split, scorer)
    held_out.search(progress=show)
    processes.any_process(False)  # the latents of all are written
    if jax.process_index() != 0:
        return {}
    seconds = time.monotonic() - start

    held_out.forget_others()
    with held_out.progress(show=show) as line:
        if validated is None:
            validated = validate(held_out, line)
            save_maps(workdir / "map_calibration.npz", validated.maps)
            if validated.memory is not None:
                memory_lib.save(workdir / "memory.npz", validated.memory)
            else:
                (workdir / "memory.npz").unlink(missing_ok=True)  # of other settings
            # Of a calibration before, until the test images are judged by this one.
            (workdir / "scores.csv").unlink(missing_ok=True)
            # Last: where it is, maps and memory are its own.
            validated.fitted.calibration.save(workdir / "calibration.json")
        shown = _shown(held_out, validated)
        measured = tested(held_out, validated, [c for c in shown[:3] if c is not None], line)

    results = metrics_of(measured, split, shown.pixels)
    is_judged = "auroc" in results[ANOMALY]
    if is_judged and config.data.name == "image_folder" and config.score.yardsticks:
        aurocs = _aurocs(measured, split)
        yardsticks, notice = compare(
            config.data, dataset, split, ANOMALY, *aurocs, run=run, show=show
        )
        results["yardsticks"] = {name: found._asdict() for name, found in yardsticks.items()}
        results["notice"] = notice
    alone = set_by(measured, split, config.score.false_positive_rate)
    results["about"] |= {
        "threshold_set_by": None if alone is None else alone._asdict(),
        "search_steps": config.search.steps,
        "search_seconds": round(seconds, 1),
        "device": jax.devices()[0].device_kind,
    }
    write_text(workdir / "metrics.json", to_json(results))
    write_scores(workdir / "scores.csv", dataset, split, measured)
    write_curve(workdir / "curve.csv", held_out)
    with ProgressLine(
        "report", total=len(measured.calibration.terms) + 3, unit="parts", show=show
    ) as line:
        shown.figures.write(workdir)
        write_best_and_worst(workdir, shown.cards.groups())
        line.advance(1)
        report = report_of(config, dataset, split, measured, shown, results, line)
        write_report(workdir / "report.html", report)
    return results


def _aurocs(measured: Measured, split: Split) -> tuple[float, float]:
    """AUROC of the score that decides: of the test images, and of the validation images.

    The latter is nan where the validation images are not of this folder.
    """
    found = []
    for parts in (("test",), PARTS[:2]):
        if not sum(len(split.part(name)) for name in parts):
            found.append(math.nan)
            continue
        scores = np.concatenate([measured.calibrated[name] for name in parts])
        indices = np.concatenate([measured.scored[name].indices for name in parts])
        found.append(image_metrics(scores, split.is_abnormal[indices], threshold=0.0).auroc)
    return found[0], found[1]


class Shown(NamedTuple):
    """What keeps figures, report and pixel metrics while the test images pass by.

    Attributes:
      pixels: None without masks.
      hottest: where heat is strongest in all pictures: twice the usual height of a normal map.
    """

    figures: Figures
    cards: Cards
    pixels: MaskedPixels | None
    hottest: float


def _shown(held_out: HeldOut, validated: Validated) -> Shown:
    dataset, split = held_out.dataset, held_out.split
    heights = validated.scored["validation_normal"].terms[heat_term(held_out.config.score)]
    hottest = 2.0 * max(float(np.median(heights)), 1.0)
    return Shown(
        Figures(dataset, split, count=_IMAGES_PER_ROW, hottest=hottest),
        Cards(dataset, split, validated.fitted.calibration, hottest),
        MaskedPixels(dataset, split) if dataset.has_masks else None,
        hottest,
    )


def metrics_of(measured: Measured, split: Split, pixels: MaskedPixels | None) -> dict[str, Any]:
    """What `metrics.json` holds, but for how it came about.

    Figures that need images of both kinds are left out where there is only one.
    """
    test, calibration = measured.scored["test"], measured.calibration
    is_abnormal = split.is_abnormal[test.indices]
    results: dict[str, Any] = {}
    for name, values in score_metrics(calibration, test, is_abnormal).items():
        if name == CALIBRATED:  # the same ranking and decisions, as people read them
            name, values = ANOMALY, values | {"threshold": DECISION}
        results[name] = {key: value for key, value in values.items() if not math.isnan(value)}
    points = operating_points(measured, is_abnormal)
    results["operating_points"] = [point._asdict() for point in points]
    if pixels is not None:
        results["pixel"] = pixels.metrics.result()._asdict()
        results["pixel_by_class"] = {
            name: found._asdict() for name, found in pixels.metrics.by_class().items()
        }
        results["empty_masks"] = pixels.empty
        if pixels.empty:
            logging.warning(
                "%d abnormal test images have a mask that shows no defect and are left out of the "
                "pixel metrics: %s",
                len(pixels.empty),
                ", ".join(pixels.empty[:5]) + (", ..." if len(pixels.empty) > 5 else ""),
            )
    decides = calibration.thresholds[CALIBRATED]
    false_alarms = Found.above(decides.chosen, measured.calibrated["test"][~is_abnormal])
    results["about"] = {
        "images": len(test.indices),
        "abnormal": int(is_abnormal.sum()),
        "validation_images": calibration.normals + calibration.abnormals,
        "false_positive_rate": [decides.rate_low, decides.rate_high],
        "test_false_alarms": false_alarms._asdict(),
    }
    return results


def score_metrics(
    calibration: Calibration, scored: Scored, is_abnormal: Bool[np.ndarray, " n"]
) -> dict[str, dict[str, float]]:
    """`ImageMetrics` of every term and of the calibrated score, at the stored thresholds."""
    scores = {**scored.terms, CALIBRATED: calibration.calibrated(scored.terms)}
    return {
        name: image_metrics(
            scores[name], is_abnormal, threshold=calibration.thresholds[name].chosen
        )._asdict()
        for name in _order(calibration)
    }


def write_scores(path: Path, dataset: Dataset, split: Split, measured: Measured) -> None:
    """One row per held-out image: id, class, part, truth, all terms, calibrated score, anomaly,
    decision.

    Figures are written in full, so that metrics can be computed from the file. Those of validation
    images come from fits without the image: `local` of normal ones, and the calibrated score.
    """
    text = io.StringIO()
    terms = list(measured.scored["test"].terms)
    threshold = measured.calibration.thresholds[CALIBRATED].chosen
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "class", "part", "is_abnormal", *terms, CALIBRATED, ANOMALY, "decision"])
    for part, found in measured.scored.items():
        calibrated = measured.calibrated[part]
        anomaly, decision = (
            measured.calibration.to_anomaly(calibrated),
            decide(calibrated, threshold),
        )
        for k, index in enumerate(found.indices):
            writer.writerow(
                [
                    dataset.ids[index],
                    dataset.class_names[dataset.labels[index]],
                    part,
                    int(split.is_abnormal[index]),
                    *(float(found.terms[name][k]) for name in terms),
                    float(calibrated[k]),
                    float(anomaly[k]),
                    "abnormal" if decision[k] else "normal",
                ]
            )
    write_text(path, text.getvalue())


def write_curve(path: Path, held_out: HeldOut) -> None:
    """AUROC of L' after every number of search steps, where `search.record_curve` asks for it.

    Choose `search.steps` by the column of the validation images, never by that of the test images.
    Where the search has restarts, the curve is that of the one that won.
    """
    if not held_out.config.search.record_curve:
        path.unlink(missing_ok=True)  # of an evaluation with other settings
        return
    split = held_out.split
    validation = np.concatenate([split.part(name) for name in PARTS[:2]])
    columns = [
        auroc_curve(held_out.curves(k), split.is_abnormal[k]) for k in (validation, split.test)
    ]
    lines = ["step,validation_auroc,test_auroc"]
    for step, values in enumerate(zip(*columns, strict=True)):
        lines.append(",".join([str(step), *("" if math.isnan(v) else f"{v:.6f}" for v in values)]))
    write_text(path, "\n".join(lines) + "\n")


def auroc_curve(
    scores: Float[np.ndarray, "n steps"], is_abnormal: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " steps"]:
    """AUROC of each column; nan with images of one kind only."""
    return np.array([image_metrics(s, is_abnormal, threshold=0.0).auroc for s in scores.T])


def report_of(
    config: Config,
    dataset: Dataset,
    split: Split,
    measured: Measured,
    shown: Shown,
    results: dict[str, Any],
    line: ProgressLine,
) -> Report:
    """What `report.html` shows; `line` is told of every score, and of the pixels."""
    test, calibration = measured.scored["test"], measured.calibration
    is_abnormal = split.is_abnormal[test.indices]
    scores = {ANOMALY: calibration.to_anomaly(measured.calibrated["test"]), **test.terms}
    pixel = None if shown.pixels is None else shown.pixels.metrics
    empty = () if shown.pixels is None else shown.pixels.empty
    groups = shown.cards.groups()
    parts = None if split.groups is None else split.groups[test.indices]
    alone = results["about"]["threshold_set_by"]
    summaries = []
    for name, values in scores.items():
        limit = DECISION if name == ANOMALY else calibration.thresholds[name].chosen
        intervals = image_intervals(values, is_abnormal, threshold=limit, seed=0, groups=parts)
        figures = image_metrics(values, is_abnormal, threshold=limit)
        summaries.append(ScoreSummary(name, figures, intervals))
        line.advance(1)
    pixel_intervals = None if pixel is None else pixel.intervals(seed=0, resamples=200)
    line.advance(1)
    return Report(
        title=f"{dataset.name}: evaluation",
        subtitle=split.protocol,
        scores=scores[ANOMALY],
        is_abnormal=is_abnormal,
        threshold=DECISION,
        operating_points=operating_points(measured, is_abnormal),
        set_by=None if alone is None else SetBy(**alone),
        summaries=summaries,
        class_names=[dataset.class_names[label] for label in dataset.labels[test.indices]],
        settings=dataclasses.asdict(config),
        pixel=None if pixel is None else pixel.result(),
        pixel_intervals=pixel_intervals,
        pixel_by_class={} if pixel is None else pixel.by_class(),
        hottest=shown.hottest,
        yardsticks=results.get("yardsticks", {}),
        notice=results.get("notice", ""),
        failures={item.file: item.reason for item in dataset.left_out}
        | dict.fromkeys(empty, "its mask shows no defect: left out of the pixel metrics"),
        false_negatives=groups["false_negatives"],
        false_positives=groups["false_positives"],
        most_anomalous=groups["most_anomalous"],
        least_anomalous=groups["least_anomalous"],
    )
