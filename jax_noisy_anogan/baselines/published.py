"""Published numbers that stand beside ours, each with its source, as fractions.

`YOU`, `RUFF` and `RUFF_2018` are quoted from memory of the papers and were not checked against
them: print them only with that remark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PAPER = "Kimura and Yanagihara 2018, Table 2"
SABOKROU = "Sabokrou et al. 2018, Table 1"
YOU = "You, Robinson, Vidal 2017, Caltech-256 table"
RUFF = "Ruff et al. 2020, MNIST, mean over 90 runs"
RUFF_2018 = "Ruff et al. 2018, MNIST table"

# By method, then by what varies within the table.
Table = Mapping[str, Mapping[float, float]]


def _table(places: Sequence[float], columns: Mapping[str, Sequence[float]]) -> Table:
    return {method: dict(zip(places, values, strict=True)) for method, values in columns.items()}


_CATEGORIES = (1, 3, 5)

# F1, the best over thresholds, of `PAPER`.
TABLE_2 = _table(
    _CATEGORIES,
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

# Of `SABOKROU`, but for l1-thresholding, which is of `YOU`.
CALTECH_AUROC = _table(
    _CATEGORIES,
    {
        "CoP": (0.905, 0.676, 0.487),
        "REAPER": (0.816, 0.796, 0.657),
        "Outlier Pursuit": (0.837, 0.788, 0.629),
        "LRR": (0.907, 0.479, 0.337),
        "DPCP": (0.783, 0.798, 0.676),
        "R-graph": (0.948, 0.929, 0.913),
        "ALOCC D(x)": (0.932, 0.930, 0.913),
        "ALOCC": (0.942, 0.938, 0.923),
        "l1-thresholding": (0.772, 0.810, 0.774),
    },
)
CALTECH_F1 = _table(
    _CATEGORIES,
    {
        "CoP": (0.880, 0.718, 0.672),
        "REAPER": (0.808, 0.784, 0.716),
        "Outlier Pursuit": (0.823, 0.779, 0.711),
        "LRR": (0.893, 0.671, 0.667),
        "DPCP": (0.785, 0.777, 0.715),
        "R-graph": (0.914, 0.880, 0.858),
        "ALOCC D(x)": (0.916, 0.902, 0.890),
        "ALOCC": (0.928, 0.913, 0.905),
        "l1-thresholding": (0.772, 0.782, 0.768),
    },
)

# AUROC of `RUFF` by the known abnormal share of all training images, from one class, no pollution.
DEEP_SAD_LABELLED = {
    **_table((0.0, 0.01, 0.05, 0.1, 0.2), {"Deep SAD": (0.928, 0.964, 0.967, 0.969, 0.969)}),
    **_table((0.01, 0.05, 0.1, 0.2), {"Supervised": (0.928, 0.945, 0.950, 0.956)}),
}
# By the abnormal share of the unlabelled images, from all classes; known share 0.05.
DEEP_SAD_POLLUTION = _table(
    (0.0, 0.01, 0.05, 0.1, 0.2),
    {
        "Deep SAD": (0.967, 0.955, 0.935, 0.912, 0.866),
        "Supervised": (0.945, 0.915, 0.867, 0.836, 0.797),
    },
)

# AUROC of `RUFF_2018` by digit: one trains, the others of the test part are abnormal.
MNIST_ONE_CLASS = _table(
    range(10),
    {
        "AnoGAN": (0.966, 0.992, 0.850, 0.887, 0.894, 0.883, 0.947, 0.935, 0.849, 0.924),
        "Deep SVDD": (0.980, 0.997, 0.917, 0.919, 0.949, 0.885, 0.983, 0.946, 0.939, 0.965),
    },
)


def find(table: Table, method: str, at: float) -> float | None:
    """The number of a method at a place of the table; None where none is printed."""
    return table.get(method, {}).get(at)
