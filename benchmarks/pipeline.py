"""Does the input keep up? Batches delivered against batches consumed, per stage.

    python benchmarks/pipeline.py --config configs/mnist5k.py

For every resolution of the config's schedule: images per second that the training streams deliver
to the devices, images per second that one training step consumes on the same machine, and their
ratio, which should be at least 2. At the end, memory over many batches of the last stage.
`--from_records` reads and decodes records even where the images would fit in memory.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags

from jax_noisy_anogan import cli
from jax_noisy_anogan.config import Config, validate
from jax_noisy_anogan.data.dataset import Dataset, load_dataset
from jax_noisy_anogan.data.splits import Split, make_split
from jax_noisy_anogan.data.streams import MEMORY_BYTES, PREFETCHED_BATCHES, TrainingStreams
from jax_noisy_anogan.networks import build_networks
from jax_noisy_anogan.training.growth import Phase, make_schedule
from jax_noisy_anogan.training.state import ema_decay_for, init_state, make_optimizer
from jax_noisy_anogan.training.step import TrainStep

_CONFIG = cli.define_config()
_RECORDS = flags.DEFINE_bool("from_records", False, "Never keep decoded images in memory")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "How long each measurement lasts at least")
_BATCHES = flags.DEFINE_integer("batches", 10_000, "Batches over which memory is watched")
_LARGEST = flags.DEFINE_integer("largest", 1024, "Measure the stages up to this resolution")


def measure(config: Config, *, from_records: bool, seconds: float, largest: int, batches: int):
    """Print one line per resolution and the growth of memory."""
    dataset = load_dataset(config.data, resolution=config.growth.resolution)
    split = make_split(dataset, config.data)
    phases = [p for p in make_schedule(config.growth).phases if not p.fading]
    phases = [p for p in phases if p.resolution <= largest]
    print(f"{dataset.name} on {jax.devices()[0].device_kind}; images/s of each stream")
    print(f"{'stage':>12} {'minibatch':>9} {'pipeline':>12} {'step':>12} {'ratio':>8}")
    for phase in phases:
        delivered = _delivered(dataset, split, config, phase, from_records, seconds)
        consumed = _consumed(dataset, split, config, phase, seconds)
        print(
            f"{phase.resolution:>5} x {phase.resolution:<4} {phase.minibatch:>9} "
            f"{delivered:>12,.0f} {consumed:>12,.1f} {delivered / consumed:>8,.1f}",
            flush=True,
        )
    _watch_memory(dataset, split, config, phases[-1], from_records, batches)


def _streams(
    dataset: Dataset, split: Split, config: Config, phase: Phase, from_records: bool
) -> TrainingStreams:
    return TrainingStreams(
        dataset,
        split,
        resolution=phase.resolution,
        minibatch=phase.minibatch,
        seed=0,
        with_abnormal=config.loss.gamma < 1,
        to_device=jax.device_put,
        memory_bytes=0 if from_records else MEMORY_BYTES,
    )


def _delivered(
    dataset: Dataset,
    split: Split,
    config: Config,
    phase: Phase,
    from_records: bool,
    seconds: float,
) -> float:
    streams = _streams(dataset, split, config, phase, from_records)

    def one_batch() -> None:
        jax.block_until_ready(next(streams))

    # The first batches were read ahead while nothing was measured.
    rate = _rate(one_batch, seconds, warm_up=PREFETCHED_BATCHES + 1)
    streams.close()
    return rate * phase.minibatch


def _consumed(
    dataset: Dataset, split: Split, config: Config, phase: Phase, seconds: float
) -> float:
    """The step alone, on one batch that stays on the device."""
    network = config.network
    networks = build_networks(
        resolution=phase.resolution,
        fading=phase.fading,
        channels=dataset.channels,
        fmap_base=network.fmap_base,
        fmap_max=network.fmap_max,
        latent_size=network.latent_size,
        stddev_group=network.stddev_group,
        compute_dtype=network.compute_dtype,
    )
    optimizer = make_optimizer(config.optim)
    step = jax.jit(
        TrainStep(
            networks,
            optimizer,
            loss=config.loss,
            prior=network.prior,
            ema_decay=ema_decay_for(config.optim.ema_half_life_images, phase.minibatch),
        ),
        donate_argnums=0,
    )
    state = init_state(networks, optimizer, jax.random.key(0))
    streams = _streams(dataset, split, config, phase, from_records=False)
    normal, abnormal = next(streams)
    streams.close()
    alpha, key = jax.numpy.float32(1.0), jax.random.key(1)

    def one_step() -> None:
        nonlocal state
        state, _ = step(state, normal, abnormal, alpha, key)
        jax.block_until_ready(state.step)

    return _rate(one_step, seconds, warm_up=2) * phase.minibatch


def _rate(call: Callable[[], None], seconds: float, *, warm_up: int) -> float:
    """Calls per second in the best of three windows, the one that other work disturbs least."""
    for _ in range(warm_up):
        call()
    rates = []
    for _ in range(3):
        start, calls = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds / 3 or calls < 1:
            call()
            calls += 1
        rates.append(calls / elapsed)
    return max(rates)


def _watch_memory(
    dataset: Dataset, split: Split, config: Config, phase: Phase, from_records: bool, batches: int
) -> None:
    streams = _streams(dataset, split, config, phase, from_records)
    for _ in range(max(1, batches // 10)):
        next(streams)
    before = _resident_mebibytes()
    for _ in range(batches):
        next(streams)
    after = _resident_mebibytes()
    streams.close()
    print(
        f"memory over {batches:,} batches of {phase.minibatch} x {phase.resolution}²: "
        f"{before:,.1f} MiB before, {after:,.1f} MiB after"
    )


def _resident_mebibytes() -> float:
    """Memory in use now; where the system does not tell, the peak so far."""
    table = Path("/proc/self/statm")
    if table.exists():
        return int(table.read_text().split()[1]) * resource.getpagesize() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    measure(
        validate(_CONFIG.value),
        from_records=_RECORDS.value,
        seconds=_SECONDS.value,
        largest=_LARGEST.value,
        batches=_BATCHES.value,
    )


if __name__ == "__main__":
    cli.run(main)
