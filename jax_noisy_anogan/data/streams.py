"""The two training streams: shuffled, repeated, sharded by process, prefetched, resumable.

A stream is an endless sequence of records; position p of the sequence depends on the seed and p
alone. A batch is a run of consecutive positions, of which every process takes its own share, so
the state is one number per stream: it survives other minibatches, resolutions and process counts.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jax_noisy_anogan.data.crops import _Change, _defects, _Images
from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.errors import DataError

MEMORY_BYTES = 2**30
PREFETCHED_BATCHES = 8
PREFETCHED_BYTES = 256 * 2**20
READING_THREADS = 4


class TrainingBatch(NamedTuple):
    """One process' share of a global minibatch, 0..255.

    Attributes:
      abnormal: as many known abnormal images, or None where the objective has no use for them.
    """

    normal: UInt8[np.ndarray, "local_batch resolution resolution channels"]
    abnormal: UInt8[np.ndarray, "local_batch resolution resolution channels"] | None


class TrainingStreams(Iterator[TrainingBatch]):
    """Iterates over training batches of one resolution, without end.

    Batches are augmented as `dataset.augmentation` says.

    Args:
      resolution: of the images; a prepared one. With `dataset.tiles_per_side` above 1, batches
        hold random crops of this size out of images that are so many times larger.
      minibatch: global minibatch, over all processes.
      seed: of the order of the images; at most 2**31 - 1.
      with_abnormal: whether batches carry known abnormal images.
      process_index, process_count: this process among those that train together.
      to_device: what becomes of every batch ahead of its turn, in the reading threads: hands its
        arrays to the accelerator, as `jax.device_put` does, so that a step never waits for that.
      memory_bytes: a stream whose images of this resolution fit is decoded once and kept in memory;
        a larger one is read from its records.

    Raises:
      DataError: a stream would be empty, or the minibatch does not divide among the processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        *,
        resolution: int,
        minibatch: int,
        seed: int,
        with_abnormal: bool,
        process_index: int = 0,
        process_count: int = 1,
        to_device: Callable[[TrainingBatch], TrainingBatch] | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ):
        if minibatch < 1 or minibatch % process_count:
            raise DataError(
                f"a minibatch of {minibatch} does not divide among {process_count} processes: set "
                f"config.growth.minibatch at {resolution} to a multiple"
            )
        if not 0 <= process_index < process_count:
            raise DataError(f"process {process_index} of {process_count}: expected a lower index")
        self._minibatch = minibatch
        self._to_device = to_device
        parts = {"normal": split.train_normal}
        if with_abnormal:
            parts["abnormal"] = split.train_known_abnormal
        local = minibatch // process_count
        side = resolution * dataset.tiles_per_side
        images = {
            name: _readable(dataset, indices, side, memory_bytes)
            for name, indices in parts.items()
            if _nonempty(name, indices)
        }
        self._streams = {
            name: _Stream(
                images[name],
                order=_Order(len(indices), seed, name),
                local=slice(process_index * local, (process_index + 1) * local),
                change=_Change(
                    dataset.augmentation,
                    resolution,
                    dataset.tiles_per_side,
                    seed,
                    name,
                    _defects(dataset, indices, side) if name == "abnormal" else None,
                    images["normal"],
                    len(split.train_normal),
                ),
            )
            for name, indices in parts.items()
        }
        self._bytes = 2 * local * resolution**2 * dataset.channels
        self._positions = dict.fromkeys(self._streams, 0)
        self._batches: Any = None

    def __next__(self) -> TrainingBatch:
        if self._batches is None:
            self._batches = self._prefetched(dict(self._positions))
        batch = next(self._batches)
        for name in self._positions:
            self._positions[name] += self._minibatch
        return batch

    def state(self) -> dict[str, int]:
        """Position of every stream, in records over all processes; counts batches handed out."""
        return dict(self._positions)

    def restore(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken, also with another minibatch or resolution.

        Raises:
          DataError: `state` lacks a stream or holds anything but a count.
        """
        for name in self._positions:
            position = state.get(name)
            if not isinstance(position, int) or position < 0:
                raise DataError(f"the input state {state!r} has no position of the {name} images")
        self.close()
        self._positions = {name: state[name] for name in self._positions}

    def close(self) -> None:
        """Stop the threads that read ahead; the object can be iterated again."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    def _prefetched(self, starts: dict[str, int]) -> Any:
        import grain

        in_memory = all(stream.in_memory for stream in self._streams.values())
        options = grain.ReadOptions(
            # Several threads only wait for each other's Python where nothing is decoded.
            num_threads=1 if in_memory else READING_THREADS,
            prefetch_buffer_size=max(1, min(PREFETCHED_BATCHES, PREFETCHED_BYTES // self._bytes)),
        )

        def batch(number: int) -> TrainingBatch:
            images = {
                name: stream.batch(starts[name] + int(number) * self._minibatch)
                for name, stream in self._streams.items()
            }
            return TrainingBatch(images["normal"], images.get("abnormal"))

        numbers = grain.MapDataset.range(2**31 - 1)
        batches = numbers.map(batch)
        if self._to_device is not None:
            batches = batches.map(self._to_device)
        return iter(batches.to_iter_dataset(options))


class _RecordImages:
    """Reads every image from its record."""

    def __init__(self, dataset: Dataset, indices: Int[np.ndarray, " n"], resolution: int):
        self._source = dataset.source(resolution)
        self._indices = indices

    def __getitem__(self, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n r r c"]:
        return np.stack([self._source[int(self._indices[row])] for row in rows])


def _readable(
    dataset: Dataset, indices: Int[np.ndarray, " n"], resolution: int, memory_bytes: int
) -> _Images:
    # Decoding one small record costs more Python than a training step leaves time for; whatever
    # fits in memory is decoded once.
    if len(indices) * resolution**2 * dataset.channels <= memory_bytes:
        return dataset.images(indices, resolution)
    return _RecordImages(dataset, indices, resolution)


def _nonempty(name: str, indices: Int[np.ndarray, " n"]) -> bool:
    if len(indices) == 0:
        raise DataError(
            f"the split holds no {name} training image: give more images, or for abnormal ones "
            "raise config.data.known_abnormal_fraction or set config.loss.gamma to 1"
        )
    return True


class _Order:
    """Row of a part at every position: each epoch is its own permutation.

    NumPy draws a whole epoch at once; grain's shuffle costs Python for every single record, which
    small images do not leave time for (at least 8 against 0.1 microseconds, measured).
    """

    def __init__(self, length: int, seed: int, name: str):
        self._length = length
        self._key = [seed, zlib.crc32(name.encode())]
        self._epoch = functools.lru_cache(maxsize=4)(self._permutation)

    def __getitem__(self, positions: slice) -> Int[np.ndarray, " n"]:
        first, last = positions.start // self._length, (positions.stop - 1) // self._length
        pieces = []
        for epoch in range(first, last + 1):
            offset = epoch * self._length
            start = max(positions.start - offset, 0)
            pieces.append(self._epoch(epoch)[start : positions.stop - offset])
        return np.concatenate(pieces)

    def _permutation(self, epoch: int) -> Int[np.ndarray, " n"]:
        sequence = np.random.SeedSequence([*self._key, epoch])
        return np.random.Generator(np.random.PCG64(sequence)).permutation(self._length)


class _Stream:
    """Batches of one part, by the position of their first record."""

    def __init__(self, images: _Images, *, order: _Order, local: slice, change: _Change):
        self._images = images
        self._order = order
        self._local = local
        self._change = change

    @property
    def in_memory(self) -> bool:
        return isinstance(self._images, np.ndarray)

    def batch(self, start: int) -> UInt8[np.ndarray, "local r r c"]:
        positions = slice(start + self._local.start, start + self._local.stop)
        rows = self._order[positions]
        images = self._images[rows]
        if self._change.is_off:
            return images
        numbered = zip(images, rows, range(positions.start, positions.stop), strict=True)
        return np.stack([self._change(*item) for item in numbered])
