"""Fig. 4 and 5 of the paper with a run's test images, and its best and worst decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from jax_noisy_anogan import pictures
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.frame import shrunk
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.evaluation.held_out import Seen
from jax_noisy_anogan.evaluation.selection import ReportImage

_FIGURE_5_IMAGES = 100
# Of every image: enough for a histogram, and large images would fill the memory.
_FIGURE_5_PIXELS = 2**16
# Longest side of a picture among others: of whole photographs a sheet would be hundreds of MB.
_LONGEST_SIDE = 512
KINDS = ("normal", "abnormal")


class Figures:
    """Keeps what the figures show while the test images pass by.

    Args:
      count: images per row of Fig. 4.
      hottest: where heat is strongest.
    """

    def __init__(self, dataset: Dataset, split: Split, *, count: int, hottest: float):
        self._dataset, self._hottest = dataset, hottest
        is_abnormal = split.is_abnormal[split.test]
        # Rows of equal length: as many images as the smaller kind has, unless it has none.
        sizes = [int(n) for n in (is_abnormal.sum(), (~is_abnormal).sum()) if n]
        labels = dataset.labels[split.test]
        self._compared = {
            kind: spread(np.flatnonzero(is_abnormal == truth), labels, _FIGURE_5_IMAGES)
            for kind, truth in zip(KINDS, (False, True), strict=True)
        }
        # Classes in turn, so that a few images show many of them.
        self._shown = {
            kind: spread(places, labels, min(count, *sizes))
            for kind, places in self._compared.items()
        }
        self._wanted = set(np.concatenate(list(self._compared.values())).tolist())
        self._pictured = set(np.concatenate(list(self._shown.values())).tolist())
        self._differences: dict[int, np.ndarray] = {}
        self._seen: dict[int, Seen] = {}

    def __call__(self, seen: Seen) -> None:
        """Keep a test image, if it is wanted."""
        if seen.position in self._wanted:
            difference = seen.result.difference.ravel()
            # Anywhere: every so many-th one would fall into the same columns of each row.
            count = min(difference.size, _FIGURE_5_PIXELS)
            chosen = np.random.default_rng(0).choice(difference.size, count, replace=False)
            self._differences[seen.position] = difference[chosen]
        if seen.position in self._pictured:
            self._seen[seen.position] = seen

    def write(self, workdir: Path) -> None:
        """Write `reconstructions.png` and `pixel_difference.png`."""
        rows, labels = [], []
        for kind in KINDS:
            shown = [self._seen[int(k)] for k in self._shown[kind]]
            for label, row in self._rows(kind, shown) if shown else ():
                labels.append(label)
                rows.append(row)
        pictures.save_png(workdir / "reconstructions.png", _sheet(rows, labels))
        histograms = (
            np.concatenate([np.zeros(0, np.float32), *(self._differences[int(k)] for k in places)])
            for places in (self._compared[kind] for kind in KINDS)
        )
        pictures.save_figure(
            workdir / "pixel_difference.png", pictures.difference_histogram_figure(*histograms)
        )

    def _rows(self, kind: str, shown: list[Seen]) -> list[tuple[str, list[pictures.Picture]]]:
        differences = [
            pictures.difference_image(seen.result.difference, high=2.0) for seen in shown
        ]
        rows = [
            (f"{kind}: input", [seen.image for seen in shown]),
            ("G(z)", [seen.result.reconstruction for seen in shown]),
            ("difference", differences),
        ]
        if self._dataset.has_masks:
            heat = [
                pictures.overlay(seen.image, seen.map, low=0.0, high=self._hottest)
                for seen in shown
            ]
            rows.append(("map", heat))
        if self._dataset.has_masks and kind == "abnormal":
            source = self._dataset.source(self._dataset.resolution)
            # Any part of a pixel: small defects would vanish.
            rows.append(("mask", [_white(source.mask(seen.example) > 0) for seen in shown]))
        return rows


def write_best_and_worst(workdir: Path, groups: Mapping[str, Sequence[ReportImage]]) -> None:
    """Write `best_and_worst.png`; where it would be empty, remove what is there.

    Defects with the highest scores, the missed ones and false alarms, the heat below each, and the
    masks of defects.

    Args:
      groups: images by the names of `Selection`.
    """
    chosen = {
        "found": [card for card in groups["most_anomalous"] if card.is_abnormal],
        "missed": groups["false_negatives"],
        "false alarm": groups["false_positives"],
    }
    rows, labels = [], []
    for label, cards in chosen.items():
        if cards:
            labels += [label, "heat"]
            rows += [[card.image for card in cards], [card.heatmap for card in cards]]
        # Drawn normal images have masks too, and nothing in them.
        if any(card.is_abnormal and card.mask is not None for card in cards):
            labels.append("mask")
            rows.append([_mask_of(card) for card in cards])
    path = workdir / "best_and_worst.png"
    if rows:
        pictures.save_png(path, _sheet(rows, labels))
    else:
        path.unlink(missing_ok=True)


def _mask_of(card: ReportImage) -> pictures.Picture:
    return _white(np.zeros(card.image.shape[:2], bool) if card.mask is None else card.mask)


def _white(mask: Bool[np.ndarray, "height width"]) -> pictures.Picture:
    return mask[..., None].astype(np.uint8) * np.uint8(255)


def _sheet(rows: Sequence[Sequence[pictures.Picture]], labels: Sequence[str]) -> pictures.Picture:
    """Rows of pictures of any size and number, filled up with white; large ones are shrunk."""
    longest = max(max(picture.shape[:2]) for row in rows for picture in row)
    factor = -(-longest // _LONGEST_SIDE)
    rows = [[shrunk(picture, factor) for picture in row] for row in rows]
    size = np.max([picture.shape[:2] for row in rows for picture in row], axis=0)
    count = max(map(len, rows))
    sheet = []
    for row in rows:
        placed = [pictures.on_paper(picture, *size) for picture in row]
        blank = pictures.on_paper(row[0][:0, :0], *size)
        sheet.append(np.stack(placed + [blank] * (count - len(row))))
    return pictures.rows_of_images(sheet, labels)


def spread(
    items: Int[np.ndarray, " n"], labels: Int[np.ndarray, " all"], count: int
) -> Int[np.ndarray, " m"]:
    """The first `count` items, taking classes in turn; `labels` is indexed by item."""
    own = labels[items]
    turn = np.zeros(len(items), np.int64)
    for label in np.unique(own):
        turn[own == label] = np.arange(np.count_nonzero(own == label))
    return items[np.sort(np.argsort(turn, kind="stable")[:count])]
