"""The two training streams: shuffled, repeated, sharded by process, prefetched, resumable.

A stream is an endless sequence of records; position p of the sequence depends on the seed and p
alone. A batch is a run of consecutive positions, of which every process takes its own share, so
the state is one number per stream: it survives other minibatches, resolutions and process counts.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jax_noisy_anogan.data.crops import Change, Image, Images, Shown, defects_of
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
      abnormal: as many known or simulated abnormal images, or None where the objective has no use
        for them.
      masks: the defective share of every pixel of `abnormal`; empty where it is unknown. None
        unless they are asked for.
    """

    normal: UInt8[np.ndarray, "local_batch resolution resolution channels"]
    abnormal: UInt8[np.ndarray, "local_batch resolution resolution channels"] | None
    masks: UInt8[np.ndarray, "local_batch resolution resolution"] | None = None


class TrainingStreams(Iterator[TrainingBatch]):
    """Iterates over training batches of one resolution, without end.

    Batches are augmented as `dataset.augmentation` says.

    Args:
      resolution: of the images; a prepared one. Where `dataset.is_tiled`, batches hold random crops
        of this size out of larger images.
      minibatch: global minibatch, over all processes.
      seed: of the order of the images; at most 2**31 - 1.
      with_abnormal: whether batches carry abnormal images; with `data.simulated_defects` at 1 all
        of them are simulated, and no known one is needed.
      with_masks: whether they carry the masks of those.
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
        with_masks: bool = False,
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
        self._with_masks = with_masks
        parts = _parts(dataset, split, with_abnormal)
        local = minibatch // process_count
        side = resolution * dataset.tiles_per_side
        normal = _readable(dataset, parts["normal"], side, memory_bytes)
        images = {"normal": normal}
        changes = {"normal": Change(dataset, resolution, seed, "normal")}
        if with_abnormal:
            known = parts["abnormal"]
            # Where all defects are simulated, the stream counts through the normal images.
            all_simulated = known is parts["normal"]
            images["abnormal"] = (
                normal if all_simulated else _readable(dataset, known, side, memory_bytes)
            )
            changes["abnormal"] = Change(
                dataset,
                resolution,
                seed,
                "abnormal",
                defects=None if all_simulated else defects_of(dataset, known, side, with_masks),
                backgrounds=normal,
                background_count=len(parts["normal"]),
            )
        self._streams = {
            name: _Stream(
                images[name],
                order=_Order(len(indices), seed, name),
                local=slice(process_index * local, (process_index + 1) * local),
                change=changes[name],
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
            shown = {
                name: stream.batch(starts[name] + int(number) * self._minibatch)
                for name, stream in self._streams.items()
            }
            if "abnormal" not in shown:
                return TrainingBatch(shown["normal"].image, None)
            abnormal, masks = shown["abnormal"]
            kept = masks if self._with_masks else None
            return TrainingBatch(shown["normal"].image, abnormal, kept)

        numbers = grain.MapDataset.range(2**31 - 1)
        batches = numbers.map(batch)
        if self._to_device is not None:
            batches = batches.map(self._to_device)
        return iter(batches.to_iter_dataset(options))


class _KeptImages:
    """Images of different sizes in memory."""

    def __init__(self, images: list[Image]):
        self._images = images

    def __getitem__(self, rows: Int[np.ndarray, " n"]) -> Sequence[Image]:
        return [self._images[row] for row in rows]


class _RecordImages:
    """Reads every image from its record."""

    def __init__(self, dataset: Dataset, indices: Int[np.ndarray, " n"], resolution: int):
        self._source = dataset.source(resolution)
        self._indices = indices

    def __getitem__(self, rows: Int[np.ndarray, " n"]) -> Sequence[Image]:
        return list(self._source.each(self._indices[rows]))


def _readable(
    dataset: Dataset, indices: Int[np.ndarray, " n"], resolution: int, memory_bytes: int
) -> Images:
    # Decoding one small record costs more Python than a training step leaves time for; whatever
    # fits in memory is decoded once.
    share = (resolution / dataset.resolution) ** 2 * dataset.channels
    if sum(math.prod(dataset.shape(int(index))) * share for index in indices) > memory_bytes:
        return _RecordImages(dataset, indices, resolution)
    if dataset.keeps_shape:
        return _KeptImages(list(dataset.source(resolution).each(indices)))
    return dataset.images(indices, resolution)


def _parts(dataset: Dataset, split: Split, with_abnormal: bool) -> dict[str, Int[np.ndarray, " n"]]:
    """The images of every stream; where all abnormal ones are simulated, the normal ones again."""
    parts = {"normal": split.train_normal}
    if with_abnormal:
        all_simulated = dataset.augmentation.simulated_defects == 1.0
        parts["abnormal"] = split.train_normal if all_simulated else split.train_known_abnormal
    for name, indices in parts.items():
        if len(indices) == 0:
            raise DataError(
                f"the split holds no {name} training image: give more images, or for abnormal "
                "ones raise config.data.known_abnormal_fraction, set config.data."
                "simulated_defects to 1, or config.loss.gamma to 1"
            )
    return parts


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

    def __init__(self, images: Images, *, order: _Order, local: slice, change: Change):
        self._images = images
        self._order = order
        self._local = local
        self._change = change

    @property
    def in_memory(self) -> bool:
        return not isinstance(self._images, _RecordImages)

    def batch(self, start: int) -> Shown:
        """Images and masks that begin at this position, stacked."""
        positions = slice(start + self._local.start, start + self._local.stop)
        rows = self._order[positions]
        images = self._images[rows]
        if self._change.is_off:
            whole = np.asarray(images)
            return Shown(whole, np.zeros(whole.shape[:3], np.uint8))
        numbered = zip(images, rows, range(positions.start, positions.stop), strict=True)
        shown = [self._change(*item) for item in numbered]
        return Shown(*(np.stack(column) for column in zip(*shown, strict=True)))
