"""The package's side of `compare.py`, in its process or in that of another Python.

Needs no PyTorch: so a Python for which there is no PyTorch can be compared too, with its own JAX.
`serve` answers a line of JSON with a line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring
from programs import GAMMA, program_bytes, search_program

from jax_noisy_anogan.config import LossConfig, OptimConfig, SearchConfig
from jax_noisy_anogan.networks import NetworkParams, Networks, build_networks, channels_at
from jax_noisy_anogan.networks.convolution import (
    FEW_CHANNELS,
    conv2d,
    conv2d_kernel_gradient,
)
from jax_noisy_anogan.networks.pixels import to_float_images
from jax_noisy_anogan.runtime.parallel import own_code_options
from jax_noisy_anogan.training.state import ema_decay_for, init_state, make_optimizer
from jax_noisy_anogan.training.step import TrainStep

LATENT = 64
ITERATIONS = 10
clock = time.perf_counter


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
      kind: "train" or "search"; "conv" and "kernel-gradient" are one layer of them, 3 x 3, with
        `fmap_max` channels in and out.
      penalty_interval: of `LossConfig`; the twin always penalises every real image.
      channels_last: memory format of the twin.
      steps: of a search.
    """

    kind: str
    resolution: int
    fmap_max: int
    batch: int
    penalty_interval: int = 1
    channels_last: bool = False
    steps: int = ITERATIONS

    @property
    def name(self) -> str:
        name = f"{self.kind} {self.resolution}² fmap {self.fmap_max} batch {self.batch}"
        if self.penalty_interval > 1:
            name += f" lazy {self.penalty_interval}"
        return name + (" (twin channels-last)" if self.channels_last else "")


class Side(NamedTuple):
    """One way to do a case's work.

    Attributes:
      run: does it once, waits for the result, and returns the seconds if another process counts.
    """

    run: Callable[[], Any]
    images: int


class Program(NamedTuple):
    """What the compiler says of the package's program.

    Attributes:
      seconds: to trace and compile.
      megabytes: arguments, results and temporaries at once.
    """

    seconds: float
    megabytes: float


def _widths(case: Case) -> tuple[int, int]:
    """`fmap_base` and `fmap_max`: widths halve above 32 x 32 as in Table 2 of Karras et al."""
    return case.fmap_max * 16, case.fmap_max


def build(case: Case) -> tuple[Networks, NetworkParams]:
    fmap_base, fmap_max = _widths(case)
    networks = build_networks(
        resolution=case.resolution,
        fading=False,
        channels=1,
        fmap_base=fmap_base,
        fmap_max=fmap_max,
        latent_size=LATENT,
    )
    return networks, networks.init(jax.random.key(0))


def byte_images(networks: Networks, count: int, seed: int) -> np.ndarray:
    shape = (count, *networks.image_shape)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def compiled(
    function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = (), own_code: bool = False
):
    """The compiled program and what it costs."""
    start = time.perf_counter()
    options = own_code_options(jax.default_backend()) if own_code else None
    jitted = jax.jit(function, donate_argnums=donate, compiler_options=options)
    program = jitted.lower(*args).compile()
    seconds = time.perf_counter() - start
    return program, Program(seconds, program_bytes(program) / 2**20)


def train_side(case: Case) -> tuple[Side, Program]:
    networks, _ = build(case)
    loss = LossConfig(gamma=GAMMA, penalty_interval=case.penalty_interval)
    optimizer, decay = make_optimizer(OptimConfig()), ema_decay_for(10_000, case.batch)
    real, abnormal = (byte_images(networks, case.batch, seed) for seed in (1, 2))
    step = TrainStep(networks, optimizer, loss=loss, prior="uniform", ema_decay=decay)
    args = jax.device_put((real, abnormal, jnp.float32(1.0), jax.random.key(1)))
    state = init_state(networks, optimizer, jax.random.key(0))
    own_code = channels_at(case.resolution, *_widths(case)) <= FEW_CHANNELS  # as in training
    program, cost = compiled(step, state, *args, donate=(0,), own_code=own_code)

    def run() -> None:
        nonlocal state
        state, metrics = program(state, *args)
        float(metrics["d_loss"])

    return Side(run, case.batch), cost


def search_side(case: Case) -> tuple[Side, Program]:
    networks, params = build(case)
    images = to_float_images(jnp.asarray(byte_images(networks, case.batch, 1)))
    key = jax.random.key(2)
    search = SearchConfig(steps=case.steps)
    search_of = search_program(networks, search)
    program, cost = compiled(search_of, params, images, key, own_code=True)

    def run() -> None:
        jax.block_until_ready(program(params, images, key))

    return Side(run, case.batch * case.steps), cost


def layer_arrays(case: Case) -> list[np.ndarray]:
    """Images, the gradient of a layer's output, and its kernel."""
    side, channels, batch = case.resolution, case.fmap_max, case.batch
    random = np.random.default_rng(0)
    x, cotangent = (random.normal(size=(batch, side, side, channels)) for _ in range(2))
    kernel = random.normal(size=(3, 3, channels, channels))
    return [array.astype(np.float32) for array in (x, cotangent, kernel)]


def layer_side(case: Case) -> tuple[Side, Program]:
    arrays = [jnp.asarray(array) for array in layer_arrays(case)]

    def layer(x: jax.Array, cotangent: jax.Array, kernel: jax.Array) -> jax.Array:
        if case.kind == "conv":
            return conv2d(x, kernel)
        return conv2d_kernel_gradient(x, cotangent, kernel)

    program, cost = compiled(layer, *arrays)

    def run() -> None:
        jax.block_until_ready(program(*arrays))

    return Side(run, case.batch), cost


SIDES: dict[str, Callable[[Case], tuple[Side, Program]]] = {
    "train": train_side,
    "search": search_side,
    "conv": layer_side,
    "kernel-gradient": layer_side,
}


def keep_to_one_core() -> None:
    """One core, and CPU time; to be called before JAX computes anything."""
    global clock
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    clock = time.process_time


def seconds_of(run: Callable[[], Any]) -> float:
    """Seconds of one run, by the clock of the process that it runs in, which may return them."""
    start = clock()
    counted = run()
    return counted if isinstance(counted, float) else clock() - start


class CompilationCounter:
    """Counts programs that XLA compiles while it is entered."""

    EVENT = "/jax/core/compile/backend_compile_duration"

    def __enter__(self) -> CompilationCounter:
        self.count = 0
        monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, *_: object, **__: object) -> None:
        self.count += event == self.EVENT


class Here:
    """The package's side in this process.

    Attributes:
      jax_version: of this process.
      compilations: by runs of its sides, whose programs should all be there before.
    """

    jax_version = jax.__version__
    compilations = 0

    def side(self, case: Case) -> tuple[Side, Program]:
        side, program = SIDES[case.kind](case)
        return Side(lambda: self._counted(side.run), side.images), program

    def close(self) -> None:
        """Nothing is left to end."""

    def _counted(self, run: Callable[[], Any]) -> float:
        with CompilationCounter() as later:
            seconds = seconds_of(run)
        self.compilations += later.count
        return seconds


class Elsewhere:
    """The same in another Python.

    Raises:
      SystemExit: it ended.
    """

    def __init__(self, python: str, *, single_core: bool):
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [python, str(Path(__file__)), *["--single-core"] * single_core],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self.jax_version = self._ask({})["jax_version"]
        self.compilations = 0

    def side(self, case: Case) -> tuple[Side, Program]:
        found = self._ask({"case": dataclasses.asdict(case)})
        return Side(self._run, found["images"]), Program(found["seconds"], found["megabytes"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _run(self) -> float:
        found = self._ask({"run": True})
        self.compilations = found["compilations"]
        return found["seconds"]

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"--our-python ended with {self._process.wait()}: see its error above")
        return json.loads(answer)


def serve() -> None:
    """Answer the questions of `Elsewhere` until its end."""
    if "--single-core" in sys.argv:
        keep_to_one_core()
    here = Here()
    run: Callable[[], Any] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any] = {"jax_version": here.jax_version}
        if "case" in question:
            side, program = here.side(Case(**question["case"]))
            run, answer = side.run, program._asdict() | {"images": side.images}
        elif "run" in question and run is not None:
            answer = {"seconds": run(), "compilations": here.compilations}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
