"""Images: their sources, prepared records, split protocols and training streams."""

from jax_noisy_anogan.data.errors import DataError
from jax_noisy_anogan.data.pipeline import TrainingBatch, TrainingStreams
from jax_noisy_anogan.data.protocols import Split, make_split
from jax_noisy_anogan.data.records import Dataset, load_dataset

__all__ = [
    "DataError",
    "Dataset",
    "Split",
    "TrainingBatch",
    "TrainingStreams",
    "load_dataset",
    "make_split",
]
