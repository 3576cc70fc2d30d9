"""Images: their sources, prepared records, split protocols and training streams."""

from jax_noisy_anogan.data.dataset import Dataset, load_dataset
from jax_noisy_anogan.data.splits import Split, make_split
from jax_noisy_anogan.data.streams import TrainingBatch, TrainingStreams
from jax_noisy_anogan.errors import DataError

__all__ = [
    "DataError",
    "Dataset",
    "Split",
    "TrainingBatch",
    "TrainingStreams",
    "load_dataset",
    "make_split",
]
