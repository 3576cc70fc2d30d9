"""What the deep competitors share: layers, the training loop, scoring in chunks.

Images are float32 in [-1, 1], `[batch, height, width, channels]`, square, their side a multiple
of 8.

Strided convolutions of the original networks are convolutions of stride 1 with pooling, because
`conv2d` (fast in both directions on CPU) has stride 1 only. For the same reason one minibatch is
one jitted call: inside `scan` XLA's CPU compiler takes its slow path for the kernels' gradients.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.networks.convolution import conv2d
from jax_noisy_anogan.runtime.parallel import own_code_options

Images = Float[np.ndarray, "n height width channels"]
Scores = Float[np.ndarray, " n"]
Batch = Float[Array, "batch height width channels"]
State = TypeVar("State")
Result = TypeVar("Result")

_CHUNK = 256


def jit_of_few_channels(
    *static_argnames: str,
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """`jax.jit` of narrow networks, by `own_code_options`; JAX starts at the first call."""

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.cache
        def compiled() -> Callable[..., Result]:
            options = own_code_options(jax.default_backend())
            return jax.jit(function, static_argnames=static_argnames, compiler_options=options)

        @functools.wraps(function)
        def call(*args: Any) -> Result:
            return compiled()(*args)

        return call

    return decorate


class Conv(nn.Module):
    """Convolution of stride 1 that keeps the size; He-initialised."""

    features: int
    kernel_size: int = 5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Batch) -> Float[Array, "batch height width features"]:
        size = self.kernel_size
        shape = (size, size, x.shape[-1], self.features)
        y = conv2d(x, self.param("kernel", nn.initializers.he_normal(), shape))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (1, 1, 1, self.features))
        return y


def max_pool(x: Batch) -> Float[Array, "batch height/2 width/2 channels"]:
    """Halve height and width by the maximum of 2 x 2 pixels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def check_images(**parts: Images) -> None:
    """Make sure that all parts hold images of one kind; a part may be empty.

    Raises:
      DataError: wrong axes, type, range or side, or the parts differ.
    """
    shapes = {name: images.shape[1:] for name, images in parts.items()}
    for name, images in parts.items():
        if images.ndim != 4 or images.dtype != np.float32:
            raise DataError(
                f"{name}: expected float32 images [n, height, width, channels], got "
                f"{images.dtype} of shape {images.shape}"
            )
        height, width = images.shape[1:3]
        if height != width or height % 8:
            raise DataError(
                f"{name}: images are {height} x {width}: expected squares whose side is a "
                "multiple of 8"
            )
        if images.size and not (images.min() >= -1.0 and images.max() <= 1.0):
            raise DataError(f"{name}: pixels reach outside [-1, 1] or are not finite")
    if len(set(shapes.values())) > 1:
        raise DataError(f"images of different shapes: {shapes}")


def updates_per_epoch(count: int, batch_size: int) -> int:
    """Minibatches that show every one of `count` examples once."""
    return -(-count // min(batch_size, count))


def minibatches(
    rng: np.random.Generator, count: int, batch_size: int
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Shuffled indices, epoch after epoch without end, all minibatches of one size.

    The last one of an epoch is filled up with further random examples, so that every example is
    used and one compiled program serves all.
    """
    batch_size = min(batch_size, count)
    while True:
        order = rng.permutation(count)
        missing = -count % batch_size
        order = np.concatenate([order, rng.permutation(count)[:missing]])
        yield from order.reshape(-1, batch_size)


class Trained(NamedTuple, Generic[State]):
    """The last state, the mean of the step's value in every window, and the updates done."""

    state: State
    curve: list[float]
    updates: int


def run_updates(
    step: Callable[..., tuple[State, Array]],
    state: State,
    arrays: tuple[np.ndarray, ...],
    *,
    updates: int,
    window: int,
    batch_size: int,
    rng: np.random.Generator,
    finished: Callable[[float], bool] = lambda value: False,
) -> Trained[State]:
    """`state, value = step(state, *minibatch)`, `updates` times at most.

    Args:
      window: updates over which `value` is averaged; the values are fetched from the device, and
        `finished` is asked, once a window.
      finished: stops the training early; sees the mean of `value`, which is measured on training
        images only.

    Raises:
      FloatingPointError: the value is no longer finite.
    """
    curve: list[float] = []
    done = 0
    batches = minibatches(rng, len(arrays[0]), batch_size)
    while done < updates:
        values = []
        for indices in itertools.islice(batches, min(window, updates - done)):
            state, value = step(state, *(array[indices] for array in arrays))
            values.append(value)
        done += len(values)
        curve.append(float(np.mean(jax.device_get(values))))
        if not np.isfinite(curve[-1]):
            raise FloatingPointError(
                f"training diverged: value {curve[-1]} after {done} updates; lower the learning "
                "rate"
            )
        if finished(curve[-1]):
            break
    return Trained(state, curve, done)


def in_chunks(
    function: Callable[[Batch], Array], images: Images
) -> Float[np.ndarray, "n *features"]:
    """`function` of all images, a fixed number at a time."""
    padded = np.concatenate(
        [images, np.zeros_like(images, shape=(-len(images) % _CHUNK, *images.shape[1:]))]
    )
    parts = [
        np.asarray(function(jnp.asarray(c)))
        for c in np.split(padded, max(1, len(padded) // _CHUNK))
    ]
    return np.concatenate(parts)[: len(images)]


def keys_and_shuffler(seed: int) -> tuple[Any, np.random.Generator]:
    """The two sources of randomness of a run: initial parameters and noise; order of examples."""
    return jax.random.key(seed), np.random.Generator(np.random.PCG64(seed))
