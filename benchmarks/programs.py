"""The programs that the benchmarks look at: a training step and a latent search, of any size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jax_noisy_anogan.config import LossConfig, OptimConfig, SearchConfig
from jax_noisy_anogan.latent_search import Judgement, search_latents
from jax_noisy_anogan.networks import NetworkParams, Networks, build_networks
from jax_noisy_anogan.training.state import ema_decay_for, init_state, make_optimizer
from jax_noisy_anogan.training.step import TrainStep

GAMMA, STDDEV = 0.1, 0.3


@dataclasses.dataclass(frozen=True)
class Work:
    """A training step, or a search of `steps` steps; full width by default.

    Attributes:
      kind: "train" or "search".
      dtype: of convolutions and dense products.
    """

    kind: str
    resolution: int
    batch: int
    dtype: str = "float32"
    rematerialize: bool = False
    microbatch: int = 0
    steps: int = 1
    fmap_base: int = 8192
    fmap_max: int = 512
    latent_size: int = 512
    channels: int = 3

    @property
    def name(self) -> str:
        return f"{self.kind} {self.resolution}² batch {self.batch} {self.dtype}" + self.savings

    @property
    def savings(self) -> str:
        """What the work does about memory, in words."""
        return " remat" * self.rematerialize + (
            f" microbatch {self.microbatch}" if self.microbatch else ""
        )

    @property
    def plain(self) -> Work:
        """The same work without settings that trade arithmetic for memory."""
        return dataclasses.replace(self, rematerialize=False, microbatch=0)

    def networks(self) -> Networks:
        return build_networks(
            resolution=self.resolution,
            fading=False,
            channels=self.channels,
            fmap_base=self.fmap_base,
            fmap_max=self.fmap_max,
            latent_size=self.latent_size,
            compute_dtype=self.dtype,
            rematerialize=self.rematerialize,
            microbatch=self.microbatch,
        )

    def function(self) -> Callable[..., Any]:
        """Of `arguments()`; a training step returns its new state first."""
        networks = self.networks()
        if self.kind == "search":
            return search_program(networks, SearchConfig(steps=self.steps))
        return TrainStep(
            networks,
            make_optimizer(OptimConfig()),
            loss=LossConfig(gamma=GAMMA),
            prior="uniform",
            ema_decay=ema_decay_for(10_000, self.batch),
        )

    def arguments(self) -> tuple[Any, ...]:
        """Arguments with values; under `jax.eval_shape` their shapes, without allocation."""
        networks, key = self.networks(), jax.random.key(0)
        shape = (self.batch, *networks.image_shape)
        if self.kind == "search":
            return networks.init(key), jax.random.uniform(key, shape, minval=-1.0), key
        state = init_state(networks, make_optimizer(OptimConfig()), key)
        real, abnormal = (
            jax.random.bits(jax.random.fold_in(key, number), shape, jnp.uint8) for number in (1, 2)
        )
        return state, real, abnormal, jnp.ones(()), key

    def compile(self, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
        """The compiled program, from shapes only; a training step gives away its state."""
        donate = (0,) if self.kind == "train" else ()
        shapes = jax.eval_shape(self.arguments)
        return jax.jit(self.function(), donate_argnums=donate).lower(*shapes).compile(options)

    def flops(self) -> float:
        """Operations in convolutions and products of the plain work, the same for every device.

        Layers of at most 8 channels, which no full-width network has, count with the zeros that
        fill their wide pixels.
        """
        plain = self.plain
        return count_flops(plain.function(), *jax.eval_shape(plain.arguments))


def search_program(networks: Networks, search: SearchConfig) -> Callable[..., Any]:
    """`search_latents` as a function of parameters, images and key."""

    def program(params: NetworkParams, images: jax.Array, key: jax.Array):
        def judge(image):
            out = networks.discriminate(params.discriminator, image[None], 1.0, STDDEV)
            features = out.features[search.feature_resolution][0]
            return Judgement(jax.nn.sigmoid(out.logits[0]), out.logits[0], features)

        return search_latents(
            lambda z: networks.generate(params.generator, z[None])[0],
            judge,
            images,
            key,
            search=search,
            gamma=GAMMA,
            prior="uniform",
            latent_size=networks.latent_size,
        )

    return program


def program_bytes(program: jax.stages.Compiled) -> int:
    """Arguments, results and temporaries at once, by the compiler's own analysis."""
    memory = program.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Multiplications and additions of the convolutions and products that `function` needs.

    XLA's own analysis counts a loop's body once, whatever the number of turns; this one counts
    every turn, and of alternatives (such as those for other devices) the most expensive.
    """
    closed = jax.make_jaxpr(function)(*args)
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _flops(used)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * equation.outvars[0].aval.size * math.prod(kernel) / outputs
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2.0 * equation.outvars[0].aval.size * summed
        elif name == "cond":
            total += max(_flops(branch.jaxpr) for branch in params["branches"])
        else:
            inner = sum(_flops(getattr(p, "jaxpr", p)) for p in params.values() if _holds(p))
            total += inner * params.get("length", 1) if name == "scan" else inner
    return total


def _holds(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
