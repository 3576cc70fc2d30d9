"""The small networks of the 2-D experiment."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from jax_noisy_anogan.networks.layers import EqualizedDense, leaky_relu


class Mlp(nn.Module):
    """Dense layers with equalised learning rate; linear output.

    Attributes:
      outputs: 2 for a generator of points, 1 for a discriminator's logit.
      width, depth: of the hidden layers, and how many.
    """

    outputs: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        for layer in range(self.depth):
            x = leaky_relu(EqualizedDense(self.width, name=f"dense_{layer}")(x))
        return EqualizedDense(self.outputs, gain=1.0, name="output")(x)
