"""Figure 6: IR-MNIST, the 3s must light up; by whole puzzles, and by tiles of one cell each.

A whole puzzle is one image of the networks, which must then draw 121 digits from one latent. In the
tiled mode every cell is an image: cells of flawless puzzles are normal, the 3s of the 50 known
abnormal puzzles are known, and the cells of a tested puzzle are searched together and stitched.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from jax_noisy_anogan import experiment, pictures
from jax_noisy_anogan.config import Config, validate
from jax_noisy_anogan.data.catalog import open_source
from jax_noisy_anogan.data.dataset import Dataset, load_dataset
from jax_noisy_anogan.data.examples import Example
from jax_noisy_anogan.data.frame import enlarged
from jax_noisy_anogan.data.ir_mnist import CELL_SIDE, CELLS, SIDE, cell_mask
from jax_noisy_anogan.data.splits import Split, make_split
from jax_noisy_anogan.evaluation.metrics import image_metrics
from jax_noisy_anogan.experiment import Trained
from jax_noisy_anogan.reproduction import runs
from jax_noisy_anogan.reproduction.cells import Bench, Cell, Values, identity
from jax_noisy_anogan.reproduction.results import Result, story
from jax_noisy_anogan.runtime.files import digest
from jax_noisy_anogan.scoring import scorer
from jax_noisy_anogan.scoring.calibration import CALIBRATED
from jax_noisy_anogan.scoring.memory import Memory
from jax_noisy_anogan.scoring.scorer import ImageResult
from jax_noisy_anogan.settings import replaced

_SHOWN = 4
_TILE, _BORDER = 32, 2  # a cell as MNIST's own digits lie: 28 pixels within 32
_GRID = CELLS * CELL_SIDE
_WHOLE = (SIDE, SIDE)
# Of images in [-1, 1]: a difference of 2 is kept as 255.
_BYTES_PER_DIFFERENCE = 127.5
_TILED_SCORES = ("difference", "score", "discriminator", CALIBRATED)
_WHOLE_SCORES = ("difference", "attribution")
_DENSE_SCORES = ("dense", "distance")
_NAMES = {
    "difference": "pixel difference |x - G(z)|",
    "attribution": "pixel difference weighed by what it does to D (`score.map=attribution`)",
    "dense": "D that judges pixels, -logit (`network.dense`)",
    "distance": "distance to the nearest normal patch (`score.memory`)",
    "score": "L' (Eq. 24)",
    "discriminator": "discriminator, -logit D(x)",
    CALIBRATED: "calibrated",
}

Puzzle = UInt8[np.ndarray, "224 224 1"]


def cells(bench: Bench) -> list[Cell]:
    """Tiled with and without known abnormal cells; whole puzzles, also by what judges places."""
    tiled = [_tiled_cell(bench, method) for method in (runs.NOISY, runs.ANOGAN)]
    return [*tiled, _whole_cell(bench), _dense_cell(bench)]


def results(bench: Bench) -> list[Result]:
    """AUROC of "contains a 3" over cells, and the pictures."""
    listed = cells(bench)
    rows: list[list[Any]] = []
    modes = [
        ("tiled", runs.NOISY, _TILED_SCORES),
        ("tiled", runs.ANOGAN, _TILED_SCORES),
        ("whole puzzle", runs.NOISY, _WHOLE_SCORES),
        ("whole puzzle", runs.NOISY, _DENSE_SCORES),
    ]
    for (mode, method, scores), cell in zip(modes, listed, strict=True):
        found = bench.kept(cell)
        for score in scores:
            figures = [None] * 3
            if found is not None:
                figures = [found["auroc"][score], found["cells"], found["abnormal_cells"]]
            rows.append([mode, method, _NAMES[score], *figures])
    return [
        Result(
            "figure6",
            "Figure 6: IR-MNIST, AUROC of cells that hold a 3",
            ["mode", "method", "score", "cell AUROC", "cells", "with a 3"],
            rows,
            story(
                bench,
                listed,
                f"{_puzzles(bench)} test puzzles of {CELLS} x {CELLS} cells, none of which trained "
                "or validated; known: the 50 abnormal puzzles that the split names, in tiles only "
                "their 3s; calibrated on validation cells",
                f"tiled: {runs.settings_line(_tile_settings(bench))}",
                f"whole: {runs.settings_line(puzzle_config(bench))}; a cell's score is the mean "
                "of its pixels; D that judges pixels is another network, trained on the masks of "
                "the known 3s, whose features the memory may take",
            ),
            _picture(bench, listed),
        )
    ]


def puzzle_config(bench: Bench) -> Config:
    """Whole puzzles: the published files where their folder is given, else composed from MNIST."""
    if bench.roots.get("ir_mnist"):
        return bench.config("ir_mnist")
    return runs.with_data(bench.config("ir_mnist", "generated"), root=bench.roots.get("mnist", ""))


def _tile_settings(bench: Bench) -> Config:
    """Of the tiled mode, without its data."""
    return bench.config("ir_mnist", "tiles")


def _tiled_cell(bench: Bench, method: str) -> Cell:
    settings = runs.with_method(_tile_settings(bench), method)
    puzzles, shown = puzzle_config(bench), _SHOWN
    count, trained_puzzles = _puzzles(bench), bench.sized(quick=40, night=200, full=500)
    name = f"figure6-tiled-{list(runs.METHODS).index(method)}"
    identified = {
        "tiles": identity(settings),
        "puzzles": identity(puzzles)["data"],
        "counts": (count, trained_puzzles, shown),
    }

    def compute() -> Values:
        examples, known, tested = _parts(puzzles)
        flawless = [e for e in examples if e.label == 0 and e.mark == "train"][:trained_puzzles]
        folder = bench.out / "data" / f"cells-{digest(identified['puzzles'], trained_puzzles)}"
        _write_cells(
            folder, flawless, [examples[k] for k in known], puzzles.data.ir_mnist.abnormal_digit
        )
        config = validate(runs.with_data(settings, root=str(folder)))
        trained, measured = experiment.measure(
            config, bench.out / "runs" / f"{name}-{digest(identified)}", progress=False
        )
        tested = tested[:count]
        is_three = np.array(
            [_threes(examples[k], puzzles.data.ir_mnist.abnormal_digit) for k in tested]
        )
        scores: dict[str, list[Float[np.ndarray, " 121"]]] = {s: [] for s in _TILED_SCORES}
        pictures_of: dict[str, list[Any]] = {"input": [], "reconstruction": [], "difference": []}
        for number, k in enumerate(tested):
            puzzle = examples[k].load().image[..., :1]
            found = runs.look_at(trained, config, _tiles(puzzle))
            maps = [_uncovered(r.difference) for r in found]
            scores["difference"].append(np.array([m.mean() for m in maps]))
            for name_of in ("score", "discriminator"):
                scores[name_of].append(np.array([r.terms[name_of] for r in found]))
            located = [scorer.locate(r, measured.maps, None, config.score).terms for r in found]
            terms = {name: np.array([t[name] for t in located]) for name in located[0]}
            scores[CALIBRATED].append(measured.calibration.calibrated(terms))
            if number < shown:
                whole = [_uncovered(r.reconstruction[..., 0].astype(np.float32)) for r in found]
                pictures_of["input"].append(puzzle[..., 0])
                pictures_of["reconstruction"].append(_stitched(whole))
                pictures_of["difference"].append(_stitched(maps) * _BYTES_PER_DIFFERENCE)
        return {
            **_measured(is_three, scores),
            "pictures": {name: _packed(images) for name, images in pictures_of.items()},
            "scores": {s: np.array(scores[s][:shown]).tolist() for s in (CALIBRATED,)},
            "threes": is_three[:shown].tolist(),
        }

    return Cell(name, identified, compute)


def _whole_cell(bench: Bench) -> Cell:
    config = runs.with_method(puzzle_config(bench), runs.NOISY)
    config = replaced(config, {"score.map": "attribution"})
    run = runs.run(bench, "figure6-whole", config)

    def compute() -> Values:
        trained = run.trained()
        is_three, found = _looked_at(bench, trained, config)
        return {
            **_of_maps(is_three, found, _WHOLE_SCORES),
            "pictures": {
                "reconstruction": _packed(
                    [enlarged(r.reconstruction[..., 0], _WHOLE) for r in found[:_SHOWN]]
                ),
                "difference": _packed(
                    [enlarged(r.difference, _WHOLE) * _BYTES_PER_DIFFERENCE for r in found[:_SHOWN]]
                ),
            },
        }

    return Cell(run.cell.name, {"run": run.cell.settings, "puzzles": _puzzles(bench)}, compute)


def _dense_cell(bench: Bench) -> Cell:
    config = runs.with_method(puzzle_config(bench), runs.NOISY)
    asked = {"network.dense": True, "score.map": "dense", "score.memory": True}
    config = replaced(config, asked)
    run = runs.run(bench, "figure6-dense", config)

    def compute() -> Values:
        trained, measured = experiment.measure(validate(config), run.folder, progress=False)
        is_three, found = _looked_at(bench, trained, config, measured.memory)
        return _of_maps(is_three, found, _DENSE_SCORES)

    return Cell(run.cell.name, {"run": run.cell.settings, "puzzles": _puzzles(bench)}, compute)


def _looked_at(
    bench: Bench, trained: Trained, config: Config, memory: Memory | None = None
) -> tuple[Bool[np.ndarray, "n 11 11"], list[ImageResult]]:
    """Where the tested puzzles hold a 3, and what search and networks say of them."""
    cells = trained.dataset.cells
    assert cells is not None
    tested = _tested(trained.dataset, trained.split)[: _puzzles(bench)]
    is_three = np.array([cells[k] == config.data.ir_mnist.abnormal_digit for k in tested])
    return is_three, runs.look(trained, config, tested, memory)


def _of_maps(
    is_three: Bool[np.ndarray, "n 11 11"], found: Sequence[ImageResult], names: Sequence[str]
) -> Values:
    """AUROC of the means of every kind of map over cells."""
    means = {name: [_cell_means(getattr(r, name)).ravel() for r in found] for name in names}
    return _measured(is_three, means)


def _puzzles(bench: Bench) -> int:
    return bench.sized(quick=8, night=50, full=50)


def _tested(dataset: Dataset, split: Split) -> Int[np.ndarray, " n"]:
    """Abnormal test puzzles whose cells are known, in the order of the data set."""
    assert dataset.cells is not None
    labelled = (dataset.cells[split.test] >= 0).all(axis=(1, 2))
    return split.test[split.is_abnormal[split.test] & labelled]


def _parts(
    config: Config,
) -> tuple[list[Example], list[int], list[int]]:
    """Examples of the puzzles, and which are known and tested: as in the run on whole ones."""
    dataset = load_dataset(config.data, resolution=config.growth.resolution, progress=False)
    split = make_split(dataset, config.data)
    source = open_source(config.data, resolution=config.growth.resolution)
    place = {example.id: k for k, example in enumerate(source.examples)}
    known = [*split.train_known_abnormal, *split.validation_known_abnormal]
    tested = _tested(dataset, split)
    return (
        list(source.examples),
        [place[dataset.ids[k]] for k in known],
        [place[dataset.ids[k]] for k in tested],
    )


def _write_cells(
    folder: Path, flawless: Iterable[Example], known: Iterable[Example], digit: int
) -> None:
    """Every cell of the flawless puzzles, and the 3s of the known ones, as an image folder."""
    if folder.exists():
        return
    # Two processes may need the cells at once: each writes its own, and one of them stays.
    partial = folder.with_suffix(f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    for kind, puzzles in (("normal", flawless), ("abnormal", known)):
        (partial / kind).mkdir(parents=True)
        for number, example in enumerate(puzzles):
            wanted = ~_threes(example, digit) if kind == "normal" else _threes(example, digit)
            tiles = _tiles(example.load().image[..., :1])
            for cell in np.flatnonzero(wanted):
                Image.fromarray(tiles[cell][..., 0]).save(
                    partial / kind / f"{number:05d}-{cell:03d}.png"
                )
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(partial)


def _threes(example: Example, digit: int) -> Bool[np.ndarray, "11 11"]:
    if example.cells is None:
        return np.zeros((CELLS, CELLS), bool)
    return example.cells == digit


def _tiles(puzzle: Puzzle) -> list[UInt8[np.ndarray, "32 32 1"]]:
    """Every cell, in reading order, enlarged to 28 pixels within 32."""
    inner = _TILE - 2 * _BORDER
    tiles = []
    for row, column in np.ndindex(CELLS, CELLS):
        top, left = row * CELL_SIDE, column * CELL_SIDE
        cell = puzzle[top : top + CELL_SIDE, left : left + CELL_SIDE, 0]
        larger = Image.fromarray(cell).resize((inner, inner), Image.Resampling.BILINEAR)
        tiles.append(np.pad(np.asarray(larger), _BORDER)[..., None])
    return tiles


def _uncovered(tile: Float[np.ndarray, "32 32"]) -> Float[np.ndarray, "20 20"]:
    """Back from a tile to its cell."""
    inner = tile[_BORDER:-_BORDER, _BORDER:-_BORDER].astype(np.float32)
    size = (CELL_SIDE, CELL_SIDE)
    return np.asarray(Image.fromarray(inner).resize(size, Image.Resampling.BOX))


def _stitched(cells: list[Float[np.ndarray, "20 20"]]) -> Float[np.ndarray, "224 224"]:
    grid = np.array(cells).reshape(CELLS, CELLS, CELL_SIDE, CELL_SIDE)
    whole = np.zeros((SIDE, SIDE), np.float32)
    whole[:_GRID, :_GRID] = grid.transpose(0, 2, 1, 3).reshape(_GRID, _GRID)
    return whole


def _cell_means(map: Any) -> Float[np.ndarray, "11 11"]:
    inner = enlarged(map, _WHOLE)[:_GRID, :_GRID]
    return inner.reshape(CELLS, CELL_SIDE, CELLS, CELL_SIDE).mean(axis=(1, 3))


def _measured(is_three: Bool[np.ndarray, "n 11 11"], scores: dict[str, list[Any]]) -> Values:
    truth = is_three.ravel()
    return {
        "auroc": {
            name: image_metrics(np.concatenate(values), truth, threshold=0.0).auroc
            for name, values in scores.items()
        },
        "cells": len(truth),
        "abnormal_cells": int(truth.sum()),
    }


def _packed(images: Sequence[Float[np.ndarray, "height width"]]) -> str:
    """Square images of 0..255, one below the other, as a PNG in text: a cell stays small."""
    stacked = np.rint(np.concatenate(images)).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(stacked).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _unpacked(text: str) -> UInt8[np.ndarray, "n side side"]:
    stacked = np.asarray(Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]))
    side = stacked.shape[1]
    return stacked.reshape(-1, side, side)


def _differences(cell: Values) -> Float[np.ndarray, "n side side"]:
    return _unpacked(cell["pictures"]["difference"]) / _BYTES_PER_DIFFERENCE


def _picture(bench: Bench, listed: list[Cell]) -> pictures.Picture | None:
    """Inputs with the 3s outlined, drawings, differences, and the calibrated score of each cell."""
    tiled, whole = bench.kept(listed[0]), bench.kept(listed[2])
    if tiled is None:
        return None
    threes = np.array(tiled["threes"])
    inputs = _unpacked(tiled["pictures"]["input"])[..., None]
    outlined = np.stack(
        [
            pictures.outlined(x, cell_mask(t), line=(255, 60, 60))
            for x, t in zip(inputs, threes, strict=True)
        ]
    )
    score = np.array(tiled["scores"][CALIBRATED]).reshape(-1, CELLS, CELLS)
    heat = np.stack(
        [
            _stitched(list(np.repeat(s.ravel(), CELL_SIDE**2).reshape(-1, CELL_SIDE, CELL_SIDE)))
            for s in score
        ]
    )
    low, high = np.quantile(score, [0.05, 0.98])
    rows = [
        outlined,
        _unpacked(tiled["pictures"]["reconstruction"])[..., None],
        pictures.difference_image(_differences(tiled), 2.0),
        pictures.colour(heat, low=float(low), high=float(high), name=pictures.DIFFERENCES),
    ]
    labels = ["input, 3s outlined", "tiled: G(z)", "tiled: difference", "tiled: calibrated"]
    if whole is not None:
        rows.append(_unpacked(whole["pictures"]["reconstruction"])[..., None])
        rows.append(pictures.difference_image(_differences(whole), 2.0))
        labels += ["whole: G(z)", "whole: difference"]
    count = min(map(len, rows))
    return pictures.rows_of_images([row[:count] for row in rows], labels)
