"""An evaluation as files: metrics, tables, pictures, report."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data import Dataset, Split
from jax_noisy_anogan.evaluation.held_out import Scored, _HeldOut
from jax_noisy_anogan.evaluation.metrics import image_metrics
from jax_noisy_anogan.model import Model
from jax_noisy_anogan.runtime import processes
from jax_noisy_anogan.runtime.files import to_json, write_text
from jax_noisy_anogan.scoring import calibration as calibration_lib
from jax_noisy_anogan.scoring.calibration import CALIBRATED, Calibration
from jax_noisy_anogan.scoring.maps import save_maps
from jax_noisy_anogan.scoring.scorer import Scorer


def evaluate(
    config: Config,
    workdir: Path,
    dataset: Dataset,
    split: Split,
    model: Model,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Score validation and test images and write all results into `workdir`.

    Writes `calibration.json`, `map_calibration.npz`, `metrics.json`, `scores.csv`, `report.html`,
    `reconstructions.png` (Fig. 4), `pixel_difference.png` (Fig. 5) and, with
    `search.record_curve`, `curve.csv`.

    Of several processes each searches every so many-th shard; the first one does all the rest.

    Returns:
      What `metrics.json` holds; nothing in every process but the first.

    Raises:
      CalibrationError: too few normal validation images, or a score that is not finite.
      LostProcessError: another process has ended.
    """
    calibration_lib.require_normals(len(split.validation_normal))
    start = time.monotonic()
    scorer = Scorer(model, config)
    held_out = _HeldOut(config, workdir, dataset, split, scorer)
    held_out.search(progress=progress and jax.process_index() == 0)
    processes.any_process(False)  # the latents of all are written
    if jax.process_index() != 0:
        return {}
    seconds = time.monotonic() - start

    maps, scored, calibration = held_out.calibrated()
    save_maps(workdir / "map_calibration.npz", maps)
    calibration.save(workdir / "calibration.json")  # last: where it is, the maps are its own

    test = scored["test"]
    results: dict[str, Any] = score_metrics(calibration, test, split.is_abnormal[test.indices])
    pixel = held_out.pixel_metrics(maps) if dataset.has_masks else None
    if pixel is not None:
        results["pixel"] = pixel.result()._asdict()
        results["pixel_by_class"] = {k: v._asdict() for k, v in pixel.by_class().items()}
    results["about"] = {
        "images": len(test.indices),
        "abnormal": int(split.is_abnormal[test.indices].sum()),
        "validation_images": calibration.normals + calibration.abnormals,
        "search_steps": config.search.steps,
        "search_seconds": round(seconds, 1),
        "device": jax.devices()[0].device_kind,
    }
    write_text(workdir / "metrics.json", to_json(results))
    write_scores(workdir / "scores.csv", dataset, split, calibration, scored)
    held_out.write_curve()
    hottest = held_out.heat_scale(maps)
    held_out.draw_figures(maps, hottest)
    held_out.write_report(calibration, test, maps, hottest, pixel)
    return results


def score_metrics(
    calibration: Calibration, scored: Scored, is_abnormal: Bool[np.ndarray, " n"]
) -> dict[str, dict[str, float]]:
    """`ImageMetrics` of every term and of the calibrated score, at the stored thresholds."""
    scores = {**scored.terms, CALIBRATED: calibration.calibrated(scored.terms)}
    order = ("score", CALIBRATED, *(name for name in scored.terms if name != "score"))
    return {
        name: image_metrics(
            scores[name], is_abnormal, threshold=calibration.thresholds[name].chosen
        )._asdict()
        for name in order
    }


def write_scores(
    path: Path,
    dataset: Dataset,
    split: Split,
    calibration: Calibration,
    scored: dict[str, Scored],
) -> None:
    """One row per held-out image: id, class, part, truth, all terms, calibrated score, decision.

    Figures are written in full, so that metrics can be computed from the file.
    """
    text = io.StringIO()
    terms = list(scored["test"].terms)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["id", "class", "part", "is_abnormal", *terms, CALIBRATED, "probability", "decision"]
    )
    for part, found in scored.items():
        columns = [
            calibration.calibrated(found.terms),
            calibration.probability(found.terms),
            calibration.is_abnormal(found.terms),
        ]
        for k, index in enumerate(found.indices):
            calibrated, probability, decision = (column[k] for column in columns)
            writer.writerow(
                [
                    dataset.ids[index],
                    dataset.class_names[dataset.labels[index]],
                    part,
                    int(split.is_abnormal[index]),
                    *(float(found.terms[name][k]) for name in terms),
                    float(calibrated),
                    float(probability),
                    "abnormal" if decision else "normal",
                ]
            )
    write_text(path, text.getvalue())
