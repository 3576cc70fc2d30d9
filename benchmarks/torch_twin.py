"""The same networks, losses, training step and latent search in PyTorch.

Two uses: a yardstick (`benchmarks/compare.py` times it beside the package) and an oracle
(`tests/test_benchmarks.py` asks for equal numbers from equal weights). It is written the way a
careful PyTorch user would write it: batched search, one forward pass for the real images' loss and
penalty, fused Adam, foreach averaging. Images are `[batch, channels, height, width]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jax_noisy_anogan.config import LossConfig, OptimConfig, SearchConfig
from jax_noisy_anogan.networks import NetworkParams, Networks
from jax_noisy_anogan.networks.generator import channels_at
from jax_noisy_anogan.training.step import penalty_weight

HE_GAIN = 2.0**0.5


class Equalized(nn.Module):
    """Convolution (kernel of 4 axes) or dense layer whose weight is scaled when used."""

    def __init__(self, shape: tuple[int, ...], gain: float = HE_GAIN, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.scale = gain * float(np.prod(shape[1:])) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if weight.ndim == 4:
            return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)
        return F.linear(x, weight, self.bias)


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def pixel_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def resolutions_above_4(resolution: int) -> list[int]:
    """8, 16, ..., `resolution`."""
    return [1 << power for power in range(3, resolution.bit_length())]


class Generator(nn.Module):
    """Latents to images."""

    def __init__(self, networks: Networks):
        super().__init__()
        g = networks.generator
        self.fading, self.resolution = g.fading, g.resolution
        width = channels_at(4, g.fmap_base, g.fmap_max)
        self.block_4_dense = Equalized((16 * width, networks.latent_size), HE_GAIN / 4, bias=False)
        self.block_4_bias = nn.Parameter(torch.zeros(width))
        self.block_4_conv = Equalized((width, width, 3, 3))
        for resolution in resolutions_above_4(g.resolution):
            previous, width = width, channels_at(resolution, g.fmap_base, g.fmap_max)
            self.add_module(f"block_{resolution}_conv_0", Equalized((width, previous, 3, 3)))
            self.add_module(f"block_{resolution}_conv_1", Equalized((width, width, 3, 3)))
        for resolution in {g.resolution, g.resolution // 2 if g.fading else g.resolution}:
            inputs = channels_at(resolution, g.fmap_base, g.fmap_max)
            self.add_module(f"to_rgb_{resolution}", Equalized((g.channels, inputs, 1, 1), 1.0))

    def forward(self, z: Tensor, alpha: float = 1.0) -> Tensor:
        x = self.block_4_dense(pixel_norm(z)).reshape(z.shape[0], -1, 4, 4)
        x = pixel_norm(leaky_relu(x + self.block_4_bias[:, None, None]))
        x = pixel_norm(leaky_relu(self.block_4_conv(x)))
        previous = x
        for resolution in resolutions_above_4(self.resolution):
            previous, x = x, upsample(x)
            for index in range(2):
                conv = getattr(self, f"block_{resolution}_conv_{index}")
                x = pixel_norm(leaky_relu(conv(x)))
        image = getattr(self, f"to_rgb_{self.resolution}")(x)
        if self.fading:
            old = upsample(getattr(self, f"to_rgb_{self.resolution // 2}")(previous))
            image = torch.lerp(old, image, alpha)
        return image


class Discriminator(nn.Module):
    """Images to logits, features by resolution, and the minibatch statistic."""

    def __init__(self, networks: Networks):
        super().__init__()
        d = networks.discriminator
        self.fading, self.resolution, self.group = d.fading, d.resolution, d.stddev_group

        def width_at(resolution: int) -> int:
            return channels_at(resolution, d.fmap_base, d.fmap_max)

        for resolution in resolutions_above_4(d.resolution):
            width, following = width_at(resolution), width_at(resolution // 2)
            self.add_module(f"block_{resolution}_conv_0", Equalized((width, width, 3, 3)))
            self.add_module(f"block_{resolution}_conv_1", Equalized((following, width, 3, 3)))
        for resolution in {d.resolution, d.resolution // 2 if d.fading else d.resolution}:
            shape = (width_at(resolution), d.channels, 1, 1)
            self.add_module(f"from_rgb_{resolution}", Equalized(shape))
        width = width_at(4)
        self.block_4_conv = Equalized((width, width + 1, 3, 3))
        self.block_4_dense = Equalized((width, 16 * width))
        self.logits = Equalized((1, width), 1.0)

    def forward(
        self, x: Tensor, alpha: float = 1.0, stddev: float | None = None
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        features = {}
        y = leaky_relu(getattr(self, f"from_rgb_{self.resolution}")(x))
        for resolution in reversed(resolutions_above_4(self.resolution)):
            features[resolution] = y
            for index in range(2):
                y = leaky_relu(getattr(self, f"block_{resolution}_conv_{index}")(y))
            y = downsample(y)
            if self.fading and resolution == self.resolution:
                from_rgb = getattr(self, f"from_rgb_{resolution // 2}")
                y = torch.lerp(leaky_relu(from_rgb(downsample(x))), y, alpha)
        features[4] = y
        statistic = self._statistic(y) if stddev is None else y.new_full((len(y),), stddev)
        plane = statistic[:, None, None, None].expand(-1, 1, 4, 4)
        y = leaky_relu(self.block_4_conv(torch.cat([y, plane], 1)))
        y = leaky_relu(self.block_4_dense(y.flatten(1)))
        features[1] = y[:, :, None, None]
        return self.logits(y)[:, 0], features, statistic

    def _statistic(self, y: Tensor) -> Tensor:
        group = min(self.group, len(y))
        grouped = y.reshape(len(y) // group, group, *y.shape[1:])
        deviation = torch.sqrt(grouped.var(1, unbiased=False) + 1e-8)
        return deviation.mean((1, 2, 3)).repeat_interleave(group)


# ---------------------------------------------------------------------------------------------
# Weights from the package and back
# ---------------------------------------------------------------------------------------------

# The package flattens `[4, 4, width]` where PyTorch flattens `[width, 4, 4]`.
_FLATTENED = "block_4_dense"


def _to_torch(network: str, layer: str, value: np.ndarray) -> np.ndarray:
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if value.ndim == 1:
        return value
    if layer != _FLATTENED:
        return value.T
    if network == "generator":
        grid = value.reshape(value.shape[0], 16, -1)
        return grid.transpose(2, 1, 0).reshape(-1, value.shape[0])
    grid = value.reshape(16, -1, value.shape[1])
    return grid.transpose(2, 1, 0).reshape(value.shape[1], -1)


def named_tensors(params: NetworkParams) -> dict[str, dict[str, Tensor]]:
    """Parameter trees (or gradients) of G and D as the twin's state dicts."""
    named: dict[str, dict[str, Tensor]] = {}
    for network, tree in zip(Twin._fields, params[:2], strict=True):
        named[network] = {}
        for layer, leaves in tree.items():
            for name, value in leaves.items() if isinstance(leaves, dict) else [("", leaves)]:
                array = _to_torch(network, layer, np.asarray(value))
                key = f"{layer}.{name}" if name else layer
                named[network][key] = torch.from_numpy(np.array(array, order="C"))
    return named


class Twin(NamedTuple):
    generator: Generator
    discriminator: Discriminator


def make_twin(networks: Networks, params: NetworkParams, *, channels_last: bool = False) -> Twin:
    """The twin of `networks` with the package's weights."""
    twin = Twin(Generator(networks), Discriminator(networks))
    for module, state in zip(twin, named_tensors(params).values(), strict=True):
        module.load_state_dict(state, strict=True)
        if channels_last:
            module.to(memory_format=torch.channels_last)
    return twin


def to_torch_images(images: Any) -> Tensor:
    """`[batch, height, width, channels]` of any array kind to the twin's layout."""
    return torch.from_numpy(np.array(np.asarray(images).transpose(0, 3, 1, 2), order="C"))


# ---------------------------------------------------------------------------------------------
# Training (objectives equation_15 and equation_18 with R1)
# ---------------------------------------------------------------------------------------------


def discriminator_loss(
    discriminator: Discriminator,
    real: Tensor,
    fake: Tensor,
    abnormal: Tensor | None,
    loss: LossConfig,
    alpha: float = 1.0,
) -> Tensor:
    """The package's `discriminator_objective`."""
    real = real.detach().requires_grad_(True)
    logits_real, _, _ = discriminator(real, alpha)
    not_normal = fake if abnormal is None else torch.cat([fake, abnormal])
    logits, _, _ = discriminator(not_normal, alpha)
    logits_fake, logits_abnormal = logits[: len(fake)], logits[len(fake) :]
    real_weight = loss.gamma if loss.objective == "equation_15" else 1.0
    total = real_weight * F.softplus(-logits_real).mean()
    total = total + loss.gamma * F.softplus(logits_fake).mean()
    if abnormal is not None:
        total = total + (1.0 - loss.gamma) * F.softplus(logits_abnormal).mean()
    if loss.penalty == "r1":
        (gradient,) = torch.autograd.grad(logits_real.sum(), real, create_graph=True)
        penalty = 0.5 * gradient.square().sum((1, 2, 3)).mean()
        total = total + penalty_weight(loss) * penalty
    return total


def generator_loss(logits_fake: Tensor) -> Tensor:
    """Non-saturating."""
    return F.softplus(-logits_fake).mean()


class Trainer:
    """D, then G, from one batch of drawn images, like the package's step."""

    def __init__(self, twin: Twin, optim: OptimConfig, loss: LossConfig, ema_decay: float):
        self.twin, self.loss, self.ema_decay = twin, loss, ema_decay
        self.params = [list(module.parameters()) for module in twin]
        self.average = [[p.detach().clone() for p in params] for params in self.params]
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(
                params, optim.learning_rate, (optim.b1, optim.b2), optim.eps, fused=True
            )
            for params in self.params
        )

    def step(self, real: Tensor, abnormal: Tensor | None, z: Tensor, alpha: float = 1.0) -> float:
        """One update.

        Args:
          real, abnormal: bytes.
          z: latents.

        Returns:
          The discriminator's loss.
        """
        generator, discriminator = self.twin
        real = real.float() * (2.0 / 255.0) - 1.0
        abnormal = None if abnormal is None else abnormal.float() * (2.0 / 255.0) - 1.0
        if generator.fading:
            real = torch.lerp(upsample(downsample(real)), real, alpha)
            if abnormal is not None:
                abnormal = torch.lerp(upsample(downsample(abnormal)), abnormal, alpha)
        fake = generator(z, alpha)

        discriminator.requires_grad_(True)
        loss_d = discriminator_loss(discriminator, real, fake.detach(), abnormal, self.loss, alpha)
        self.optimizer_d.zero_grad()
        loss_d.backward()
        self.optimizer_d.step()

        discriminator.requires_grad_(False)
        self.optimizer_g.zero_grad()
        generator_loss(discriminator(fake, alpha)[0]).backward()
        self.optimizer_g.step()
        with torch.no_grad():
            for average, params in zip(self.average, self.params, strict=True):
                torch._foreach_lerp_(average, params, 1.0 - self.ema_decay)
        return loss_d.item()


# ---------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------


def search_totals(
    twin: Twin,
    x: Tensor,
    features_x: Tensor,
    z: Tensor,
    *,
    search: SearchConfig,
    gamma: float,
    stddev: float,
) -> Tensor:
    """L' of Eq. 24 for every image."""
    drawn = twin.generator(z)
    logits, features, _ = twin.discriminator(drawn, 1.0, stddev)
    feature = features[search.feature_resolution]
    sums = [(x - drawn).abs(), (features_x - feature).abs()]
    reduce = torch.sum if search.reduction == "sum" else torch.mean
    residual, matching = (reduce(value, dim=(1, 2, 3)) for value in sums)
    anogan = (1.0 - search.feature_weight) * residual + search.feature_weight * matching
    return gamma * anogan + (1.0 - gamma) * (1.0 - torch.sigmoid(logits)).abs()


def search_latents(
    twin: Twin,
    x: Tensor,
    start: Tensor,
    *,
    search: SearchConfig,
    gamma: float,
    stddev: float,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 with Adam for a batch; the best latent and its L' for every image."""
    for module in twin:
        module.requires_grad_(False)

    def totals_at(z: Tensor) -> Tensor:
        return search_totals(twin, x, features_x, z, search=search, gamma=gamma, stddev=stddev)

    def keep_best(best: Tensor, best_z: Tensor, totals: Tensor, z: Tensor):
        better = totals < best
        return torch.where(better, totals, best), torch.where(better[:, None], z, best_z)

    with torch.no_grad():
        features_x = twin.discriminator(x, 1.0, stddev)[1][search.feature_resolution]
    z = start.expand(len(x), -1).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([z], search.learning_rate, fused=True)
    best, best_z = torch.full((len(x),), torch.inf), z.detach().clone()
    for _ in range(search.steps):
        totals = totals_at(z)
        optimizer.zero_grad()
        totals.sum().backward()
        with torch.no_grad():
            best, best_z = keep_best(best, best_z, totals, z)
            optimizer.step()
            norm = z.norm(dim=1, keepdim=True).clamp_min(1e-12)
            z.mul_(z.shape[1] ** 0.5 / norm)
    with torch.no_grad():
        best, best_z = keep_best(best, best_z, totals_at(z), z)
    return best_z, best
