"""Layers of the progressive GAN (Karras et al. 2018, sections 2 to 4 and Appendix A).

Images are `[batch, height, width, channels]`. Parameters, normalisation statistics and network
outputs are float32; only convolutions and dense products run in a module's `dtype`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jax_noisy_anogan.networks.convolution import Images, conv2d, largest_divisor

LEAKY_SLOPE = 0.2
NORM_EPSILON = 1e-8
HE_GAIN = 2.0**0.5


# ---------------------------------------------------------------------------------------------
# Functions without parameters
# ---------------------------------------------------------------------------------------------


def at_least_float32(x: Array) -> Array:
    """`x` widened to float32; float64 stays, so that derivatives can be checked in it."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def add_bias(x: Float[Array, "*batch channels"], bias: Float[Array, " channels"]) -> Array:
    """Add one number per channel, in the precision of `x`."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def leaky_relu(x: Array) -> Array:
    return nn.leaky_relu(x, LEAKY_SLOPE)


def pixel_norm(x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
    """Divide every pixel's channel vector by its root mean square (Karras et al., section 4.2)."""
    wide = at_least_float32(x)
    scale = lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + NORM_EPSILON)
    return (wide * scale).astype(x.dtype)


def upsample_nearest(x: Images) -> Float[Array, "batch 2*height 2*width channels"]:
    """Double height and width by repetition."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c)).reshape(
        n, 2 * h, 2 * w, c
    )


def downsample_average(x: Images) -> Float[Array, "batch height/2 width/2 channels"]:
    """Halve height and width by averaging 2 x 2 pixels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def crossfade(old: Array, new: Array, alpha: Float[Array, ""] | float) -> Array:
    """`old` at `alpha` = 0, `new` at `alpha` = 1, linear between."""
    return old + (new - old) * jnp.asarray(alpha, new.dtype)


def fade_real_images(x: Images, alpha: Float[Array, ""] | float) -> Images:
    """Real images as the discriminator sees them while a layer fades in.

    At `alpha` = 0 they hold the detail of half the resolution, at 1 all of it, so that sharpness
    does not tell real images from the generator's cross-faded ones.
    """
    return crossfade(upsample_nearest(downsample_average(x)), x, alpha)


def minibatch_stddev(x: Images, group_size: int) -> Float[Array, " batch"]:
    """Standard deviation over a group of images, averaged to one number per image.

    Groups are runs of `group_size` neighbours, so a batch that is cut into parts (one per device)
    at multiples of the group gives the same numbers as the whole.

    Raises:
      ValueError: the batch is larger than a group and not a multiple of it.
    """
    batch = x.shape[0]
    group = min(group_size, batch)
    if batch % group:
        raise ValueError(
            f"minibatch standard deviation: a batch of {batch} is not a multiple of the group size "
            f"{group}; change growth.minibatch, network.stddev_group or the number of devices"
        )
    y = at_least_float32(x).reshape(batch // group, group, *x.shape[1:])
    deviation = jnp.sqrt(jnp.var(y, axis=1) + NORM_EPSILON)
    return jnp.repeat(deviation.mean(axis=(1, 2, 3)), group)


# ---------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------


def in_parts(
    apply: Callable[[nn.Module, Array], Any], module: nn.Module, x: Array, size: int
) -> Any:
    """`apply(module, x)` for at most `size` images at once; 0 takes all of them.

    Nothing but the results outlives a part: the backward pass computes it again and adds up the
    parameters' gradients, which is what accumulating gradients means. `apply` has to treat every
    image on its own; then the result is that of the whole but for the order of sums.
    """
    if not size or x.shape[0] <= size:
        return apply(module, x)
    images = largest_divisor(x.shape[0], size)
    parts = x.reshape(-1, images, *x.shape[1:])
    # A loop keeps the second pass apart from the first by itself: no barrier is needed.
    again = nn.remat(apply, prevent_cse=False)
    loop = nn.scan(
        lambda module, _, part: (None, again(module, part)),
        variable_broadcast="params",
        split_rngs={"params": False},
    )
    _, results = loop(module, None, parts)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)


# ---------------------------------------------------------------------------------------------
# Layers with parameters
# ---------------------------------------------------------------------------------------------


# The collection of the keys that weights are drawn with.
KEYS = "keys"


def standard_normal(module: nn.Module, name: str, shape: tuple[int, ...]) -> Array:
    """A parameter that begins as numbers from N(0, 1).

    In `draw_parameters` it is zero at first, and its key is kept in the collection `KEYS`.
    """
    if not module.has_rng(KEYS):
        return module.param(name, nn.initializers.normal(1.0), shape)
    module.put_variable(KEYS, name, module.make_rng("params"))
    zeros = jnp.zeros(shape)
    module.put_variable("params", name, zeros)
    return zeros


def draw_parameters(module: nn.Module, key: PRNGKeyArray, *inputs: Array) -> Any:
    """What `module.init` draws, without a program of its own for every weight.

    Compiling one takes about 0.2 s, and a network has dozens. Here weights are the first numbers of
    longer draws, which have few sizes: with JAX's keys a number depends on its place alone.
    """

    def prepare(key: PRNGKeyArray) -> tuple[Any, Any]:
        _, kept = module.apply(
            {}, *inputs, rngs={"params": key, KEYS: key}, mutable=["params", KEYS]
        )
        return kept["params"], kept[KEYS]

    params, keys = jax.jit(prepare)(key)
    params = flatten_dict(params)
    drawn = {path: _first_numbers(k, params[path]) for path, k in flatten_dict(keys).items()}
    return unflatten_dict(params | drawn)


def _first_numbers(key: PRNGKeyArray, like: Array) -> Array:
    numbers = _numbers(key, 1 << (like.size - 1).bit_length())
    return numbers[: like.size].reshape(like.shape)


@functools.partial(jax.jit, static_argnums=1)
def _numbers(key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    return jax.random.normal(key, (count,))


class EqualizedConv(nn.Module):
    """Convolution with equalised learning rate and bias (Karras et al., section 4.1).

    Weights are drawn from N(0, 1) and scaled by `gain / sqrt(fan_in)` when used.
    """

    features: int
    kernel_size: int = 3
    gain: float = HE_GAIN
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch height width features"]:
        size = self.kernel_size
        fan_in = size * size * x.shape[-1]
        weight = standard_normal(self, "weight", (size, size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = (weight * (self.gain * fan_in**-0.5)).astype(self.dtype)
        x = x.astype(self.dtype)
        y = x @ kernel[0, 0] if size == 1 else conv2d(x, kernel)
        return add_bias(y, bias)


class EqualizedDense(nn.Module):
    """Dense layer with equalised learning rate; see `EqualizedConv`."""

    features: int
    gain: float = HE_GAIN
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch features"]:
        fan_in = x.shape[-1]
        weight = standard_normal(self, "weight", (fan_in, self.features))
        kernel = (weight * (self.gain * fan_in**-0.5)).astype(self.dtype)
        y = x.astype(self.dtype) @ kernel
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,)))
        return y
