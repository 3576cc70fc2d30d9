"""Deliberate faults, each of which a test must find.

    python benchmarks/deliberate_faults.py [--only TEXT] [--list]

Copies the project to a temporary folder, puts one fault of `FAULTS` at a time into the copy by
exact text replacement, runs the tests named beside it, and prints a table: found (a test failed),
or NOT FOUND. Before, the same tests must pass without a fault. Exit code 0 if all were found.

One fault takes from 2 seconds to a minute of one core. A new one is a `Fault(...)` of `FAULTS`;
`tests/test_deliberate_faults.py` fails where an old text no longer occurs exactly once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "jax_noisy_anogan"
# One server imports what all runs need, and every run is a fork of it.
SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ("flax.linen", "matplotlib.figure", "optax", "orbax.checkpoint", "sklearn.metrics")
COPIED = (PACKAGE, "tests", "configs", "benchmarks", "docs", "pyproject.toml", "README.md")


class Fault(NamedTuple):
    """One fault.

    Attributes:
      name: what is wrong, in words.
      file: below the package.
      old, new: the text that is right and occurs exactly once, and the wrong one.
      tests: a file below `tests`, or `FILE -k WORDS` of pytest; the fewer, the faster.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = (
    # --- Memory of normal images -----------------------------------------------------------------
    Fault(
        "Principal components: the mean image is not taken away",
        "scoring/components.py",
        "apart = flat - jnp.broadcast_to(centre, flat.shape)",
        "apart = flat",
        "test_components.py -k deviations",
    ),
    Fault(
        "Principal components: what is usual is measured on the images they were fitted to",
        "scoring/components.py",
        "_left(*_axes(x[rest], seed), jnp.asarray(x[fold]))",
        "_left(*_axes(x, seed), jnp.asarray(x[fold]))",
        "test_components.py -k deviations",
    ),
    Fault(
        "Only the upper left square of a photograph is compared with the components",
        "scoring/components.py",
        "    height, width = image.shape[:2]\n",
        "    image = image[: min(image.shape[:2]), : min(image.shape[:2])]\n"
        "    height, width = image.shape[:2]\n",
        "test_components.py -k thumbnail",
    ),
    Fault(
        "Light of the photographs is taken for what they show",
        "training/choices.py",
        "squares.append(np.square(levels - around).mean())",
        "squares.append(np.square(levels - 120.0).mean())",
        "test_fit.py -k light",
    ),
    Fault(
        "The unit of f is ignored",
        "model.py",
        "search.feature_scale * out.features",
        "out.features",
        "test_model.py -k f_of_equation_3",
    ),
    Fault(
        "Objectives are compared on test images",
        "reproduction/objective_table.py",
        "validation_auroc(score)) for score in SCORES)",
        "runs.auroc(score)) for score in SCORES)",
        "test_reproduce_wiring.py -k objectives",
    ),
    # --- Competitors and reproduction tables -----------------------------------------------------
    Fault(
        "ALOCC is trained on test images",
        "reproduction/table2.py",
        "train = runs.float_images(dataset, split.train_normal, split.validation_normal)",
        "train = runs.float_images(dataset, split.train_normal, split.test)",
        "test_reproduce_wiring.py -k competitors_train",
    ),
    Fault(
        "Deep SAD and the classifier are given the test anomalies as known",
        "reproduction/deep_sad_sweeps.py",
        "dataset, split.train_known_abnormal, split.validation_known_abnormal",
        "dataset, split.train_known_abnormal, split.test[split.is_abnormal[split.test]]",
        "test_reproduce_wiring.py -k sweeps_competitors",
    ),
    Fault(
        "Table 2: the columns of AnoGAN and Noisy-AnoGAN are swapped",
        "reproduction/table2.py",
        '"AnoGAN": (plain.cell, "score"),\n        "Noisy-AnoGAN": (noisy.cell, "score"),',
        '"AnoGAN": (noisy.cell, "score"),\n        "Noisy-AnoGAN": (plain.cell, "score"),',
        "test_reproduce_wiring.py -k entry_of_table_2",
    ),
    Fault(
        "Table 2: the calibrated score is shown as L'",
        "reproduction/table2.py",
        '"Noisy-AnoGAN": (noisy.cell, "score")',
        '"Noisy-AnoGAN": (noisy.cell, "calibrated")',
        "test_reproduce_wiring.py -k entry_of_table_2",
    ),
    Fault(
        "MNIST: the calibrated score is shown in every column",
        "reproduction/mnist_table.py",
        "auroc(s))) for s in SCORES]",
        'auroc("calibrated"))) for s in SCORES]',
        "test_reproduce_wiring.py -k mnist",
    ),
    Fault(
        "Deep SAD's sweeps: the calibrated score is shown as L'",
        "reproduction/deep_sad_sweeps.py",
        '"Noisy-AnoGAN: L\'": (noisy.cell, "score")',
        '"Noisy-AnoGAN: L\'": (noisy.cell, "calibrated")',
        "test_reproduce_wiring.py -k entry_of_the_sweeps",
    ),
    Fault(
        "ALOCC's score has the wrong sign",
        "baselines/alocc.py",
        "refined, direct = -in_chunks(",
        "refined, direct = in_chunks(",
        "test_baselines_deep.py -k minus_the_logits",
    ),
    Fault(
        "ALOCC: D(x) is reported as D(R(x)) by the method",
        "baselines/alocc.py",
        "for image in (refined, x)]",
        "for image in (x, refined)]",
        "test_baselines_deep.py -k judges_r_of_x",
    ),
    Fault(
        "ALOCC: D(x) is reported as D(R(x)) by Table 2",
        "reproduction/table2.py",
        '"ALOCC": found.refined',
        '"ALOCC": found.direct',
        "test_reproduce_wiring.py -k competitors_train",
    ),
    Fault(
        "ALOCC's R never sees noise",
        "baselines/alocc.py",
        "noisy = x + noise * jax.random.normal(noise_key, x.shape)",
        "noisy = x",
        "test_baselines_deep.py -k given_noise",
    ),
    Fault(
        "ALOCC's R learns to return the noisy image",
        "baselines/alocc.py",
        "square = jnp.square(x - refined)",
        "square = jnp.square(noisy - refined)",
        "test_baselines_deep.py -k given_noise",
    ),
    Fault(
        "ALOCC's rule compares with the noise's deviation, not its variance",
        "baselines/alocc.py",
        "settings.refined_enough * settings.noise**2",
        "settings.refined_enough * settings.noise",
        "test_baselines_deep.py -k variances",
    ),
    Fault(
        "ALOCC is scored with the untrained networks",
        "baselines/alocc.py",
        "partial(_logits, settings.width, state)",
        "partial(_logits, settings.width, _initial(settings.width, key, train_images[:1]))",
        "test_baselines_deep.py -k finds_bars",
    ),
    Fault(
        "DPCP weighs by 1/r^2",
        "baselines/dpcp.py",
        "(x / jnp.maximum(distances, floor)[None]) @ x.T",
        "(x / jnp.maximum(distances, floor)[None] ** 2) @ x.T",
        "test_baselines.py -k dpcp_normals_minimise",
    ),
    Fault(
        "REAPER weighs by 1/r^2",
        "baselines/reaper.py",
        "(x / jnp.maximum(distances, floor)[None]) @ x.T",
        "(x / jnp.maximum(distances, floor)[None] ** 2) @ x.T",
        "test_baselines.py -k frank_wolfe",
    ),
    Fault(
        "Coherence Pursuit: samples resemble themselves",
        "baselines/coherence_pursuit.py",
        "jnp.fill_diagonal(x @ x.T, 0.0, inplace=False)",
        "x @ x.T",
        "test_baselines.py -k coherence",
    ),
    Fault(
        "R-graph: the walk's last step instead of the mean over steps",
        "baselines/r_graph.py",
        "return path.mean(axis=0)",
        "return path[-1]",
        "test_baselines.py -k r_graph",
    ),
    Fault(
        "Deep SAD pulls known anomalies in",
        "baselines/deep_sad.py",
        "eta / (square + _INVERSE_EPSILON)",
        "eta * square",
        "test_baselines_deep.py -k deep_sad_loss",
    ),
    Fault(
        "Deep SAD's batch normalisation looks at the batch that is scored",
        "baselines/deep_sad.py",
        'return Encoder().apply({"params": params, "batch_stats": statistics}, x, False)',
        "return Encoder().apply(\n"
        '        {"params": params, "batch_stats": statistics}, x, True, mutable="batch_stats"\n'
        "    )[0]",
        "test_baselines_deep.py -k 'alone and Deep'",
    ),
    Fault(
        "Deep SAD's rate never falls",
        "baselines/deep_sad.py",
        "{milestone: 0.1}",
        "{milestone: 1.0}",
        "test_baselines_deep.py -k rate_falls",
    ),
    Fault(
        "the classifier learns with swapped labels",
        "baselines/supervised_cnn.py",
        "np.repeat([0.0, 1.0], [",
        "np.repeat([1.0, 0.0], [",
        "test_baselines_deep.py -k 'higher and CNN'",
    ),
    Fault(
        "a shuffled epoch leaves examples out",
        "baselines/deep.py",
        "order = np.concatenate([order, rng.permutation(count)[:missing]])",
        "order = order[: count - count % batch_size]",
        "test_baselines_deep.py -k minibatches",
    ),
    Fault(
        "Table 2 reads features in the file's order",
        "reproduction/table2.py",
        "row_of[name] for name in wanted",
        "row for row, name in enumerate(wanted)",
        "test_reproduce_wiring.py -k features_of_a_file",
    ),
    Fault(
        "Table 2: D's features are those of Noisy-AnoGAN, which knows anomalies",
        "reproduction/table2.py",
        "    plain = _run(bench, count, protocol, repeat, runs.ANOGAN)\n\n    def score",
        "    plain = _run(bench, count, protocol, repeat, runs.NOISY)\n\n    def score",
        "test_reproduce_wiring.py -k d_s_features",
    ),
    Fault(
        "tables: the best F1 is the F1 at the threshold",
        "reproduction/runs.py",
        'values["f1_best"]',
        'values["f1_at_threshold"]',
        "test_reproduce_wiring.py -k competitors_train",
    ),
    Fault(
        "tables: AUROC stands under F1",
        "reproduction/table2.py",
        '(("F1", f1), ("AUROC", auroc))',
        '(("F1", auroc), ("AUROC", f1))',
        "test_reproduce_wiring.py -k entry_of_table_2",
    ),
    Fault(
        "tables: the deviation is the standard error",
        "reproduction/results.py",
        "for value in values]) ** 0.5",
        "for value in values]) ** 0.5 / len(values) ** 0.5",
        "test_reproduce.py -k deviation",
    ),
    Fault(
        "tables: held out and transductive are swapped",
        "reproduction/table2.py",
        '{"transductive": False, "held out": True}',
        '{"transductive": True, "held out": False}',
        "test_reproduce_wiring.py -k runs_of_table_2",
    ),
    Fault(
        "tables: a kept cell is read for other settings too",
        "reproduction/cells.py",
        'f"{cell.name}-{digest(cell.settings)}.json"',
        'f"{cell.name}.json"',
        "test_reproduce.py -k finished_cell",
    ),
    Fault(
        "tables: every seed trains alike",
        "reproduction/runs.py",
        "train=dataclasses.replace(config.train, seed=seed)",
        "train=dataclasses.replace(config.train, seed=0)",
        "test_reproduce_wiring.py -k mnist",
    ),
    Fault(
        "Noisy-AnoGAN's tables are computed at gamma = 0.5",
        "reproduction/runs.py",
        'NOISY: {"gamma": 0.1,',
        'NOISY: {"gamma": 0.5,',
        "test_reproduce_wiring.py -k runs_of_table_2",
    ),
    Fault(
        "Figure 1 takes the images of least score",
        "reproduction/figure1.py",
        "np.argsort(-scores",
        "np.argsort(scores",
        "test_reproduce_wiring.py -k figure_1",
    ),
    Fault(
        "Figures 4 and 5 show images that trained",
        "reproduction/runs.py",
        'if part != "test"]',
        'if part == "test"]',
        "test_reproduce_wiring.py -k figures_4",
    ),
    Fault(
        "Figure 6: rows and columns of a puzzle are exchanged",
        "reproduction/figure6.py",
        "top, left = row * CELL_SIDE, column * CELL_SIDE",
        "top, left = column * CELL_SIDE, row * CELL_SIDE",
        "test_reproduce.py -k tiles",
    ),
    Fault(
        "Figure 3: the optimum is not clipped at zero",
        "reproduction/ring.py",
        "return np.maximum(0.0, c * p_d - removed)",
        "return c * p_d - removed",
        "test_ring.py -k optimum",
    ),
    Fault(
        "Figure 3: the share of the last normal mode is shown as the abnormal mass",
        "reproduction/ring.py",
        "abnormal=float(generated[:, abnormal].mean())",
        "abnormal=float(generated[:, abnormal - 1].mean())",
        "test_ring.py -k row_says",
    ),
    # --- Splits and data -------------------------------------------------------------------------
    Fault(
        "Caltech-256: the last instead of the first images",
        "data/splits.py",
        "[: config.caltech256.images_per_category] for label in chosen",
        "[-config.caltech256.images_per_category :] for label in chosen",
        "test_data_protocols.py -k caltech",
    ),
    Fault(
        "Caltech-256: known abnormal images are tested",
        "data/splits.py",
        "clutter = np.setdiff1d(all_clutter, known)",
        "clutter = all_clutter",
        "test_data_protocols.py -k caltech",
    ),
    Fault(
        "images without a label are tested as defects",
        "data/splits.py",
        "~np.isin(names, examples.normal_classes) & ~unlabeled",
        "~np.isin(names, examples.normal_classes)",
        "test_data_protocols.py -k unlabeled",
    ),
    Fault(
        "validation images train",
        "data/splits.py",
        "_joined([np.setdiff1d(train, held), ",
        "_joined([train, ",
        "test_data_protocols.py -k two_parts",
    ),
    Fault(
        "known abnormal validation images train",
        "data/splits.py",
        "training_known = np.setdiff1d(known, held_known)",
        "training_known = known",
        "test_data_protocols.py -k two_parts",
    ),
    Fault(
        "hidden abnormal images are tested too",
        "data/splits.py",
        "np.setdiff1d(test, hidden)",
        "test",
        "test_data_protocols.py -k two_parts",
    ),
    Fault(
        "near duplicates of training images are tested",
        "data/splits.py",
        "test = _unlike(test, _joined([training, held, held_known]), groups)",
        "test = _unlike(test, _joined([held, held_known]), groups)",
        "test_look_alikes.py",
    ),
    Fault(
        "every split seed gives the same split",
        "data/splits.py",
        "SeedSequence([seed, ",
        "SeedSequence([0, ",
        "test_data_protocols.py -k seed_alone",
    ),
    Fault(
        "a limited test part holds as many normal images as it can",
        "data/splits.py",
        "min(len(normal), max(limit // 2, limit - len(abnormal)))",
        "min(len(normal), limit - 1)",
        "test_data_protocols.py -k limited_test",
    ),
    Fault(
        "contamination is a share of the normal images, not of all unlabelled ones",
        "data/splits.py",
        "round(share / (1 - share) * unlabelled)",
        "round(share * unlabelled)",
        "test_data_protocols.py -k contamination",
    ),
    Fault(
        "Caltech-256: images in the order in which the disk lists them",
        "data/caltech256.py",
        "path) for path in sorted(listing.images(folder))",
        "path) for path in reversed(sorted(listing.images(folder)))",
        "test_data_caltech256.py -k by_category",
    ),
    # --- Model and training ----------------------------------------------------------------------
    Fault(
        "raw instead of averaged networks score",
        "training/state.py",
        "local_copy((state.average, state.statistics))",
        "local_copy((state.params, state.statistics))",
        "test_model.py",
    ),
    Fault(
        "search.feature_resolution is ignored",
        "model.py",
        "out.features[search.feature_resolution][0]",
        "out.features[4][0]",
        "test_model.py -k f_of_equation_3",
    ),
    Fault(
        "the penalty of wgan_gp has weight 1, where Karras has 10",
        "config.py",
        'return 10.0 if self.objective == "wgan_gp" else 1.0',
        "return 1.0",
        "test_settings.py -k penalty",
    ),
    # --- Metrics and calibration -----------------------------------------------------------------
    Fault(
        "metrics: the best F1 is the F1 at the threshold",
        "evaluation/metrics.py",
        "f1_best=float(f1.max())",
        "f1_best=float(\n"
        "            sklearn_metrics.f1_score(is_abnormal, decide(scores, threshold))\n"
        "        )",
        "test_metrics.py -k definitions",
    ),
    Fault(
        "report: the ROC curve is drawn with its axes exchanged",
        "evaluation/charts.py",
        "zip(false, true, strict=True)",
        "zip(true, false, strict=True)",
        "test_report.py -k curves_and_bars",
    ),
    Fault(
        "report: normal and abnormal are exchanged in the histogram",
        "evaluation/charts.py",
        '{"normal": scores[~is_abnormal], "abnormal": scores[is_abnormal]}',
        '{"normal": scores[is_abnormal], "abnormal": scores[~is_abnormal]}',
        "test_report.py -k curves_and_bars",
    ),
    Fault(
        "report: the best F1 and the F1 at the threshold are exchanged",
        "evaluation/report.py",
        '("auroc", "average_precision", "f1_best", "f1_at_threshold")',
        '("auroc", "average_precision", "f1_at_threshold", "f1_best")',
        "test_report.py -k row_of_a_score",
    ),
    Fault(
        "report: a kind's missed images are shown as flagged",
        "evaluation/report.py",
        'Cell(f"{hits:,}", share=hits / count)',
        'Cell(f"{count - hits:,}", share=(count - hits) / count)',
        "test_report.py -k row_of_a_kind",
    ),
    # --- Inputs and the split of a run ------------------------------------------------------------
    Fault(
        "A run divides its images anew when others come to the folder",
        "experiment.py",
        "split = split_file.read(path, dataset)",
        "split = make_split(dataset, config.data)",
        "test_split_file.py",
    ),
    Fault(
        "An image of a run's split may become another one",
        "data/split_file.py",
        "if files and now[id_] != files.get(id_)",
        "if False",
        "test_split_file.py",
    ),
    Fault(
        "A row is kept although its file has another content",
        "scoring/files.py",
        "rows.done[file.name] == content_of(file.path)",
        "True",
        "test_score_files.py -k same_name",
    ),
    Fault(
        "score reads the results that it writes",
        "data/folders.py",
        "if self.is_for_pictures(here):",
        "if False:",
        "test_score_files.py -k inside_the_folder",
    ),
    Fault(
        "score reads the results of an earlier scoring",
        "data/folders.py",
        "elif is_ours(entry) and entry.resolve() != self._out:",
        "elif False:",
        "test_score_files.py -k inside_the_folder",
    ),
    Fault(
        "score passes over files without counting them",
        "data/folders.py",
        'self.passed_over[f"file of another kind ({ending})"] += 1',
        "pass",
        "test_score_files.py -k passed_over",
    ),
    Fault(
        ".jfif files are no images",
        "data/decode.py",
        '".jfif", ',
        "",
        "test_image_layouts.py -k usual_endings",
    ),
    Fault(
        "EXIF rotation is not applied",
        "data/decode.py",
        "upright = ImageOps.exif_transpose(picture)\n    if mode in",
        "upright = picture\n    if mode in",
        "test_data_images.py -k exif",
    ),
    Fault(
        "A missing file is called damaged",
        "data/decode.py",
        'raise BadImageError(name, "does not exist") from error',
        "raise BadImageError(name, _damage(error)) from error",
        "test_detector.py -k no_image",
    ),
    Fault(
        "One RGBA array is taken for as many images as it has rows",
        "scoring/detector.py",
        "shape[2] in (1, 3, 4)",
        "shape[2] in (1, 3)",
        "test_detector.py -k one_image_is",
    ),
    Fault(
        "Thresholds outside 0..1 are taken",
        "scoring/calibration.py",
        "if not 0.0 <= threshold <= 1.0:",
        "if False:",
        "test_detector.py -k no_anomaly",
    ),
    Fault(
        "test/Good is a kind of defect",
        "data/layouts.py",
        'is_normal = what == "normal"',
        'is_normal = folder.name == "good"',
        "test_image_layouts.py -k flawless",
    ),
    Fault(
        "Masks beside their images are images",
        "data/folders.py",
        "[path for path in files if path not in image_of], masks",
        "files, masks",
        "test_image_layouts.py -k beside",
    ),
    Fault(
        "Colour photographs become grey",
        "data/survey.py",
        "(3 if content.has_colour else 1)",
        "1",
        "test_survey.py -k colour",
    ),
    Fault(
        "12 bits are read as 16",
        "data/survey.py",
        "(white if content.is_sixteen_bit else 65_535)",
        "65_535",
        "test_survey.py -k bits",
    ),
    Fault(
        "data.group_pattern has no effect",
        "data/splits.py",
        "if config.group_pattern:",
        "if False:",
        "test_image_layouts.py -k pattern",
    ),
    Fault(
        "Abnormal images that a table marks train are tested",
        "data/splits.py",
        'np.flatnonzero(is_abnormal & ~examples.marked("train"))',
        "np.flatnonzero(is_abnormal)",
        "test_image_layouts.py -k table_gives",
    ),
    Fault(
        "A run is not found by a path with ..",
        "runtime/checkpoint.py",
        "workdir.resolve()",
        "workdir.absolute()",
        "test_checkpoint.py -k dots",
    ),
    Fault(
        "A failed start locks its folder to its settings",
        "runtime/workdir.py",
        "if harmful and has_trained(workdir):",
        "if harmful:",
        "test_faults.py -k locks_nothing",
    ),
    Fault(
        "score ends with 0 where every file failed",
        "score.py",
        "if summary.errors == summary.files:",
        "if False:",
        "test_score_files.py -k no_file_can",
    ),
    # --- Scoring, cross-fitting, masks -----------------------------------------------------------
    Fault(
        "map statistics are taken from test normals",
        "evaluation/held_out.py",
        "for key, result in zip(keys, held_out.results(normal, line), strict=True):\n"
        "            usual.add(result)",
        'for key, result in zip(keys, held_out.results("test", line), strict=False):\n'
        "            usual.add(result)",
        "test_no_test_image_decides.py",
    ),
    Fault(
        "local of a validation normal rests on the image itself",
        "evaluation/held_out.py",
        "locate(result, *usual.calibration(without), score)",
        "locate(result, *usual.calibration(), score)",
        "test_evaluation.py -k map_statistics",
    ),
    Fault(
        "other photographs of a part stay in what judges it",
        "evaluation/held_out.py",
        "if split.groups is None:\n        return None",
        "return None",
        "test_evaluation.py -k same_part",
    ),
    Fault(
        "images of one part are fitted to while another is judged",
        "scoring/calibration.py",
        "if groups is not None:\n        from",
        "if False:\n        from",
        "test_calibration.py -k same_part",
    ),
    Fault(
        "thresholds rest on scores of images that were fitted",
        "scoring/calibration.py",
        "scores[0][held_normal] = without(normals[held_normal])",
        "scores[0][held_normal] = whole(normals[held_normal])",
        "test_calibration.py -k not_seen_them",
    ),
    Fault(
        "the quantile does not count the further image",
        "scoring/thresholds.py",
        "int(false_positive_rate * (len(ordered) + 1) + 1e-9)",
        "int(false_positive_rate * len(ordered) + 1e-9)",
        "test_calibration.py -k 'further_image or floating'",
    ),
    Fault(
        "a threshold never lies beyond the largest validation score",
        "scoring/thresholds.py",
        "return float(ordered[-1] + c * excess.mean())",
        "return float(ordered[-1])",
        "test_calibration.py -k fresh_scores",
    ),
    Fault(
        "one abnormal image sets a threshold",
        "scoring/thresholds.py",
        "_FEWEST_ABNORMAL = 2",
        "_FEWEST_ABNORMAL = 1",
        "test_calibration.py -k one_abnormal",
    ),
    Fault(
        "pixel metrics look at the mask in the network's pixels",
        "evaluation/pixel_metrics.py",
        "mask = _bounded(dataset.own_mask(index))",
        "mask = dataset.masks([index], dataset.resolution)[0]",
        "test_evaluation.py -k own_pixels",
    ),
    Fault(
        "an abnormal image whose mask is empty counts as flawless",
        "evaluation/pixel_metrics.py",
        "if abnormal and not mask.any():",
        "if False:",
        "test_evaluation.py -k own_pixels",
    ),
    Fault(
        "a batch is not filled up: the shape follows the number of images",
        "scoring/scorer.py",
        "padded = rows + rows[-1:] * (self.batch_size - len(rows))",
        "padded = rows + rows[-1:] * (-len(rows) % self.mesh.size)",
        "test_scoring.py -k 'every_bit'",
    ),
    Fault(
        "a tile's bits depend on its place in the batch",
        "scoring/scorer.py",
        "if size == 1 or size % _NOTHING_LEFT_OVER == 0:",
        "if True:",
        "test_scoring.py -k every_place",
    ),
    # --- The encoder that trains along -----------------------------------------------------------
    Fault(
        "the encoder learns as if nothing were fading",
        "training/step.py",
        "old.params, x, state, batch.alpha",
        "old.params, x, state, jnp.float32(1.0)",
        "test_train_step.py -k 'equations_give and real'",
    ),
    Fault(
        "each device's encoder learns from its own images alone",
        "training/step.py",
        'gradient = self._mean(gradient)\n        metrics = {"e_loss"',
        'metrics = {"e_loss"',
        "test_train_step.py -k '1_2_and and real'",
    ),
    Fault(
        "a crossfading encoder shows the new block first",
        "networks/encoder.py",
        "y = crossfade(old, y, alpha)",
        "y = crossfade(y, old, alpha)",
        "test_networks.py -k encoder_equals",
    ),
    Fault(
        "groups are checked only when their phase begins",
        "training/loop.py",
        "phase.minibatch // mesh.size, mesh.size",
        "phase.minibatch // mesh.size, 1",
        "test_parallel.py -k groups_that",
    ),
    Fault(
        "yardsticks of test learn from nothing of the run",
        "evaluation/new_data.py",
        "            run=run,\n",
        "",
        "test_new_data.py -k yardsticks_learn",
    ),
    Fault(
        "missed defects are shown as found",
        "evaluation/figures.py",
        'for card in groups["most_anomalous"] if card.is_abnormal',
        'for card in groups["most_anomalous"]',
        "test_evaluation.py -k best_and_worst",
    ),
)


def outdated(package: Path) -> list[str]:
    """One line for every fault whose old text does not occur exactly once, or changes nothing."""
    lines = []
    for fault in FAULTS:
        path = package / fault.file
        count = path.read_text().count(fault.old) if path.is_file() else 0
        if count != 1 or fault.old == fault.new:
            lines.append(f"{fault.name}: {fault.file} holds its old text {count} times, not once")
    return lines


def exit_code(copy: Path, tests: str) -> int:
    """Of pytest, in a process of its own: 0 where all passed, 1 where a test failed."""
    process = SERVER.Process(target=run_pytest, args=(copy, shlex.split(f"tests/{tests}")))
    process.start()
    process.join()
    return process.exitcode


def run_pytest(copy: Path, arguments: list[str]) -> None:
    """End this process with pytest's exit code; the copy's package hides an installed one."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = str(copy)
    # What a fault leaves unchanged need not be compiled again.
    jax.config.update("jax_compilation_cache_dir", str(copy / "compiled"))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    # In this process: with workers a stop after the first failure has another exit code.
    sys.exit(int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments])))


def together(tests: Iterable[str]) -> list[str]:
    """The same tests with each file once: `FILE -k A` and `FILE -k B` are `FILE -k 'A or B'`."""
    words: dict[str, list[str]] = {}
    for one in dict.fromkeys(tests):
        file, *selected = shlex.split(one.replace(" -k ", " "))
        words.setdefault(file, []).append(f"({selected[0]})" if selected else "")
    return [
        f"{file} -k {shlex.quote(' or '.join(found))}" if all(found) else file
        for file, found in words.items()
    ]


def judge(fault: Fault, copy: Path) -> str:
    """Run the tests with the fault; the copy is whole again afterwards."""
    path = copy / PACKAGE / fault.file
    right = path.read_text()
    path.write_text(right.replace(fault.old, fault.new))
    code = exit_code(copy, fault.tests)
    path.write_text(right)
    return {0: "NOT FOUND", 1: "found"}.get(code, f"no answer (pytest ended with {code})")


def main() -> int:
    parser = argparse.ArgumentParser(description="Put faults in, see whether a test finds them.")
    parser.add_argument("--only", default="", help="faults whose name or file holds this text")
    parser.add_argument("--list", action="store_true", help="name the faults and run nothing")
    arguments = parser.parse_args()
    chosen = [f for f in FAULTS if arguments.only in f.name or arguments.only in f.file]
    if lines := outdated(ROOT / PACKAGE):
        print(*lines, sep="\n", file=sys.stderr)
        return 2
    if arguments.list:
        print(*(f"{fault.name} ({fault.file}; {fault.tests})" for fault in chosen), sep="\n")
        return 0
    SERVER.set_forkserver_preload(list(PRELOADED))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, copy / name, ignore=ignored)
            else:
                shutil.copy(source, copy / name)
        failing = set()
        for tests in together(fault.tests for fault in chosen):
            if code := exit_code(copy, tests):
                print(f"tests/{tests}: pytest ends with {code} without a fault", file=sys.stderr)
                failing.add(tests.split()[0])
        print("| fault | file | tests | | s |\n|---|---|---|---|---|", flush=True)
        answers = []
        for fault in chosen:
            start = time.monotonic()
            sound = fault.tests.split()[0] not in failing
            answers.append(judge(fault, copy) if sound else "no answer (fails without the fault)")
            seconds = time.monotonic() - start
            print(
                f"| {fault.name} | {fault.file} | {fault.tests} | {answers[-1]} | {seconds:.0f} |",
                flush=True,
            )
    found = answers.count("found")
    print(f"\n{found} of {len(answers)} found")
    return 0 if found == len(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
