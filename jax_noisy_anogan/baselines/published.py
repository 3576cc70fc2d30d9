"""Published numbers as data, each with its source and whether it was checked against it.

`verified` is False for figures quoted from memory of a paper: print them only with that remark.
All values are fractions, not percent.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "Kimura and Yanagihara 2018, Table 2"
SABOKROU = "Sabokrou et al. 2018, Table 1"
YOU = "You, Robinson, Vidal 2017, Caltech-256 table"
RUFF = "Ruff et al. 2020, MNIST, mean over 90 runs"
RUFF_2018 = "Ruff et al. 2018, MNIST table"


@dataclass(frozen=True)
class Published:
    """One printed number.

    Attributes:
      setting: what varies within the table: "categories", "labelled", "pollution" or "digit".
      at: value of the setting.
      metric: "f1" (the best over thresholds) or "auroc".
      spread: standard deviation where one is printed.
    """

    source: str
    method: str
    setting: str
    at: float
    metric: str
    value: float
    spread: float | None = None
    verified: bool = True


_CATEGORIES = (1, 3, 5)
_RATIOS = (0.0, 0.01, 0.05, 0.1, 0.2)


def _caltech(source: str, metric: str, table: dict[str, tuple[float, ...]], verified: bool = True):
    return tuple(
        Published(source, method, "categories", at, metric, value, verified=verified)
        for method, values in table.items()
        for at, value in zip(_CATEGORIES, values, strict=True)
    )


TABLE_2 = _caltech(
    PAPER,
    "f1",
    {
        "CoP": (0.880, 0.718, 0.672),
        "REAPER": (0.808, 0.784, 0.716),
        "LRR": (0.893, 0.671, 0.667),
        "DPCP": (0.785, 0.777, 0.715),
        "R-graph": (0.914, 0.880, 0.858),
        "ALOCC": (0.928, 0.913, 0.905),
        "AnoGAN": (0.956, 0.915, 0.887),
        "Noisy-AnoGAN": (0.977, 0.963, 0.945),
    },
)

CALTECH_AUROC = _caltech(
    SABOKROU,
    "auroc",
    {
        "CoP": (0.905, 0.676, 0.487),
        "REAPER": (0.816, 0.796, 0.657),
        "Outlier Pursuit": (0.837, 0.788, 0.629),
        "LRR": (0.907, 0.479, 0.337),
        "DPCP": (0.783, 0.798, 0.676),
        "R-graph": (0.948, 0.929, 0.913),
        "ALOCC D(x)": (0.932, 0.930, 0.913),
        "ALOCC": (0.942, 0.938, 0.923),
    },
)

CALTECH_F1 = _caltech(
    SABOKROU,
    "f1",
    {
        "CoP": (0.880, 0.718, 0.672),
        "REAPER": (0.808, 0.784, 0.716),
        "Outlier Pursuit": (0.823, 0.779, 0.711),
        "LRR": (0.893, 0.671, 0.667),
        "DPCP": (0.785, 0.777, 0.715),
        "R-graph": (0.914, 0.880, 0.858),
        "ALOCC D(x)": (0.916, 0.902, 0.890),
        "ALOCC": (0.928, 0.913, 0.905),
    },
)

L1_THRESHOLDING = _caltech(
    YOU, "auroc", {"l1-thresholding": (0.772, 0.810, 0.774)}, verified=False
) + _caltech(YOU, "f1", {"l1-thresholding": (0.772, 0.782, 0.768)}, verified=False)


def _sweep(
    setting: str,
    method: str,
    ratios: tuple[float, ...],
    values: tuple[float, ...],
    spreads: tuple[float, ...] | None = None,
):
    return tuple(
        Published(
            RUFF,
            method,
            setting,
            at,
            "auroc",
            value,
            None if spreads is None else spreads[index],
            verified=False,
        )
        for index, (at, value) in enumerate(zip(ratios, values, strict=True))
    )


# Known abnormal images / all training images, from one class; no pollution.
DEEP_SAD_LABELLED = (
    _sweep(
        "labelled",
        "Deep SAD",
        _RATIOS,
        (0.928, 0.964, 0.967, 0.969, 0.969),
        (0.049, 0.027, 0.024, 0.023, 0.024),
    )
    + _sweep(
        "labelled",
        "Supervised",
        _RATIOS[1:],
        (0.928, 0.945, 0.950, 0.956),
        (0.055, 0.046, 0.047, 0.044),
    )
    + _sweep(
        "labelled",
        "SSAD raw",
        _RATIOS,
        (0.960, 0.966, 0.933, 0.907, 0.872),
        (0.029, 0.024, 0.036, 0.044, 0.056),
    )
    + _sweep(
        "labelled",
        "SSAD hybrid",
        _RATIOS,
        (0.963, 0.968, 0.974, 0.976, 0.978),
        (0.025, 0.023, 0.020, 0.017, 0.015),
    )
    + _sweep(
        "labelled",
        "SS-DGM",
        _RATIOS[1:],
        (0.899, 0.922, 0.916, 0.912),
        (0.092, 0.056, 0.055, 0.056),
    )
)

# Abnormal share of the unlabelled images, from all classes; labelled ratio .05.
DEEP_SAD_POLLUTION = (
    _sweep("pollution", "Deep SAD", _RATIOS, (0.967, 0.955, 0.935, 0.912, 0.866))
    + _sweep("pollution", "Supervised", _RATIOS, (0.945, 0.915, 0.867, 0.836, 0.797))
    + _sweep("pollution", "Deep SVDD", _RATIOS, (0.928, 0.921, 0.894, 0.865, 0.815))
    + _sweep("pollution", "CAE", _RATIOS, (0.929, 0.913, 0.872, 0.837, 0.786))
    + _sweep("pollution", "OC-SVM raw", _RATIOS, (0.960, 0.943, 0.914, 0.888, 0.841))
    + _sweep("pollution", "OC-SVM hybrid", _RATIOS, (0.963, 0.956, 0.938, 0.914, 0.859))
    + _sweep("pollution", "SSAD raw", _RATIOS, (0.979, 0.966, 0.934, 0.907, 0.874))
    + _sweep("pollution", "SSAD hybrid", _RATIOS, (0.974, 0.952, 0.895, 0.860, 0.821))
    + _sweep("pollution", "SS-DGM", _RATIOS, (0.922, 0.920, 0.910, 0.897, 0.874))
)


def _one_class(method: str, values: tuple[float, ...]):
    return tuple(
        Published(RUFF_2018, method, "digit", digit, "auroc", value, verified=False)
        for digit, value in enumerate(values)
    )


# One digit trains, the rest of the test part is abnormal.
MNIST_ONE_CLASS = (
    _one_class("AnoGAN", (0.966, 0.992, 0.850, 0.887, 0.894, 0.883, 0.947, 0.935, 0.849, 0.924))
    + _one_class("DCAE", (0.976, 0.983, 0.854, 0.867, 0.865, 0.782, 0.946, 0.923, 0.865, 0.904))
    + _one_class(
        "Deep SVDD", (0.980, 0.997, 0.917, 0.919, 0.949, 0.885, 0.983, 0.946, 0.939, 0.965)
    )
)

ALL = (
    TABLE_2
    + CALTECH_AUROC
    + CALTECH_F1
    + L1_THRESHOLDING
    + DEEP_SAD_LABELLED
    + DEEP_SAD_POLLUTION
    + MNIST_ONE_CLASS
)


def find(table: tuple[Published, ...], method: str, at: float) -> Published | None:
    """The number of a method at a value of the table's setting; None where none is printed."""
    return next((row for row in table if row.method == method and row.at == at), None)


def remark(row: Published) -> str:
    """What must stand beside the number."""
    return row.source if row.verified else f"{row.source} (quoted, unverified)"
