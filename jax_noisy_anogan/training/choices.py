"""Settings that are left to the data and the machine: chosen once, kept with the run.

Each of them has a value that asks for a choice. `choose` looks at the files, at the pixels of
normal images and at the speed of this machine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from jax_noisy_anogan.config import Config, DataConfig, NetworkConfig
from jax_noisy_anogan.data import near_duplicates, survey
from jax_noisy_anogan.data.catalog import open_source
from jax_noisy_anogan.data.dataset import Dataset, image_resolution, load_dataset
from jax_noisy_anogan.data.examples import Source
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.data.summary import pixel_statistics
from jax_noisy_anogan.networks import channels_at
from jax_noisy_anogan.networks.convolution import conv2d
from jax_noisy_anogan.training.estimate import multiply_adds
from jax_noisy_anogan.training.growth import Schedule

# An update over the forward pass of G and D alone, in arithmetic. Measured: at 32 x 32 with 64
# channels an image of an update takes as long as 11 of its forward passes at a convolution's rate.
_UPDATE = 11.0
# The encoder's share of it: measured, updates of `configs/mnist5k.py` take a fifth longer with one.
_ENCODER = 2.5
# The same of a step of the search: forward and backward through G, and D's features.
_SEARCH_STEP = 3.0
# The last phase is this much longer than each of those before it.
_LAST = 20
_FEWEST_IMAGES = 500
_TIMED_SECONDS, _TIMED_PIXELS = 1.0, 2**19
_PAIRS = 200
# The neighbourhood of local contrast, where it is chosen, and images that are looked at for it.
# Of training images 1/16 was better than raw levels on magnetic tiles, whose light differs by 2.6
# times what they show (known defects, nearest patch: AUROC 0.763, 0.732), and worse on commutators,
# where it is half as much (0.865, 0.944).
LOCAL_CONTRAST = 1 / 16
_LIT = 200


class Choices(NamedTuple):
    """What was chosen.

    Attributes:
      values: by the setting's name, the value that asked for a choice and the value chosen.
      remarks: a line for the user about each choice, and about what the data lose by a setting.
    """

    values: dict[str, tuple[Any, Any]]
    remarks: list[str]


def choose(config: Config) -> Choices:
    """Choose every setting that `config` leaves open.

    Raises:
      DataError: the data set is missing or not as expected.
    """
    resolution = image_resolution(config.data, config.growth.resolution)
    source = open_source(config.data, resolution=resolution)
    found = survey.measured(config.data, source, resolution=resolution)
    values: dict[str, tuple[Any, Any]] = {
        f"data.{name}": (getattr(config.data, name), getattr(found.config, name))
        for name in ("channels", "white_level", "fit", "scale")
        if getattr(config.data, name) != getattr(found.config, name)
    }
    remarks = list(found.remarks)
    if not _knows_abnormal(source) and config.data.simulated_defects < 1.0:
        remarks.append(
            "no abnormal image is known: loss.gamma = 1, plain AnoGAN (data.simulated_defects = 1 "
            "makes abnormal images)"
        )
        values["loss.gamma"] = (config.loss.gamma, 1.0)
    data = found.config
    if data.local_contrast is None:
        chosen, line = _look_at_light(data, config.growth.resolution)
        data = dataclasses.replace(data, local_contrast=chosen)
        values["data.local_contrast"] = (None, chosen)
        remarks.append(line)
    if config.data.pixel_std == 0:
        scale, lines = _look_at_pixels(data, config.growth.resolution)
        values |= {
            f"data.{name}": (getattr(config.data, name), value) for name, value in scale.items()
        }
        remarks += lines
    if config.growth.final_images == 0:
        lengths = lengths_within(60.0 * config.train.minutes, config)
        values |= {
            f"growth.{name}": (getattr(config.growth, name), images)
            for name, images in lengths.items()
        }
        remarks.append(
            f"growth.final_images = {lengths['final_images']:,}: "
            + (
                "the fewest that are of use"
                if lengths["final_images"] == _FEWEST_IMAGES
                else f"about {config.train.minutes:g} minutes of training on this machine"
            )
        )
    return Choices(values, remarks)


def _knows_abnormal(source: Source) -> bool:
    if not source.normal_classes:
        return True
    kinds = {source.class_names[example.label] for example in source.examples}
    return bool(kinds - {*source.normal_classes, "unlabeled"})


def _look_at_light(data: DataConfig, resolution: int) -> tuple[float, str]:
    """Local contrast or not: whether light differs between normal training images."""
    dataset = load_dataset(data, resolution=resolution)
    source, normal = dataset.source(dataset.resolution), make_split(dataset, data).train_normal
    some = normal[np.linspace(0, len(normal) - 1, min(len(normal), _LIT)).astype(int)]
    light, shown = light_and_detail(source[int(index)] for index in some)
    chosen = LOCAL_CONTRAST if light > shown else 0.0
    return chosen, (
        f"data.local_contrast = {chosen:g}: the brightness of normal images differs by "
        f"{light:.1f} of 255 levels, and what they show by {shown:.1f}"
    )


def light_and_detail(
    images: Iterable[UInt8[np.ndarray, "height width channels"]],
) -> tuple[float, float]:
    """How much light differs between images, and how much what they show differs from place to
    place, both as deviations.

    Light is an image's mean level. What it shows is what its neighbourhoods, of the size of
    `data.local_contrast`, leave of its levels.
    """
    means, squares = [], []
    for image in images:
        levels = image.astype(np.float64).mean(axis=-1)
        around = ndimage.gaussian_filter(levels, LOCAL_CONTRAST * min(levels.shape))
        means.append(levels.mean())
        squares.append(np.square(levels - around).mean())
    return float(np.std(means)), float(np.sqrt(np.mean(squares)))


def _look_at_pixels(data: DataConfig, resolution: int) -> tuple[dict[str, float], list[str]]:
    """The pixel scale of the normal training images, and what flips would do to them."""
    dataset = load_dataset(data, resolution=resolution)
    normal = make_split(dataset, data).train_normal
    mean, std = (round(value, 3) for value in pixel_statistics(dataset, normal))
    std = min(max(std, 0.001), 1.0)
    lines = [f"data.pixel_mean = {mean:.3f}, data.pixel_std = {std:.3f}: measured"]
    lines += [
        f"flipped images look like the others: data.{name} = True would show more of them"
        for name, axis in (("flip_vertical", 0), ("flip_horizontal", 1))
        if not getattr(data, name) and flips_are_safe(_pictures(dataset, normal), axis)
    ]
    return {"pixel_mean": mean, "pixel_std": std}, lines


def _pictures(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """Up to 64 images in little, as unit vectors `[n, side, side, channels]`."""
    chosen = indices[np.linspace(0, len(indices) - 1, min(len(indices), 64)).astype(int)]
    flat = near_duplicates.thumbnails(dataset, chosen)
    side = round((flat.shape[1] / dataset.channels) ** 0.5)
    return flat.reshape(len(flat), side, side, dataset.channels)


def flips_are_safe(pictures: np.ndarray, axis: int) -> bool:
    """Whether an image correlates with the flips of others as with the others themselves.

    Images of parts in one position do not: there a flip shows what no normal image shows.

    Args:
      pictures: `[n, side, side, channels]`, each of length 1.
      axis: 0 turns them upside down, 1 mirrors them left to right.
    """
    flat = pictures.reshape(len(pictures), -1)
    flipped = np.flip(pictures, axis + 1).reshape(len(pictures), -1)
    others = ~np.eye(len(flat), dtype=bool)
    plain, turned = (flat @ flat.T)[others], (flat @ flipped.T)[others]
    if len(plain) < _PAIRS:
        return False
    # Images that do not correlate at all, such as textures, are safe to flip.
    spread = 2.0 * float(plain.std()) / len(flat) ** 0.5
    return float(plain.mean() - turned.mean()) <= spread


def lengths_within(seconds: float, config: Config) -> dict[str, int]:
    """Images of every kind of phase, so that all phases together take about this long here."""
    network, growth = config.network, config.growth
    side, before = growth.start_resolution, 0.0
    while side < growth.resolution:
        # A stable phase at this side, and the fade to the next one.
        before += multiply_adds(network, side) + multiply_adds(network, 2 * side)
        side *= 2
    per_image = multiply_adds(network, growth.resolution) + before / _LAST
    rate = convolution_rate(network, growth.resolution)
    images = int(seconds * rate / (_update(config) * per_image))
    final = max(images, _FEWEST_IMAGES)
    short = max(final // _LAST, _FEWEST_IMAGES)
    return {"final_images": final, "stable_images": short, "fade_images": short}


def _update(config: Config) -> float:
    """An update over the forward pass of G and D alone, in arithmetic."""
    return _UPDATE + (_ENCODER if config.train.encoder else 0.0)


class Seconds(NamedTuple):
    """What lies before a run on this machine, to within a factor of two or three."""

    training: float
    search: float


def foretold(config: Config, schedule: Schedule, step: int, images: int) -> Seconds:
    """From the rate of one convolution, before anything else is compiled.

    Args:
      step: of training, from which it goes on.
      images: to be searched, or their tiles.
    """
    network, resolution = config.network, config.growth.resolution
    # Virtual devices of a CPU share its cores.
    parts = 1 if jax.default_backend() == "cpu" else jax.device_count()
    rate = parts * convolution_rate(network, resolution)
    updates = sum(
        multiply_adds(network, phase.resolution)
        * phase.minibatch
        * (phase.end_step - max(step, phase.start_step))
        for phase in schedule.phases
        if phase.end_step > step
    )
    passes = _SEARCH_STEP * config.search.steps * images
    return Seconds(
        _update(config) * updates / rate, passes * multiply_adds(network, resolution) / rate
    )


def convolution_rate(network: NetworkConfig, resolution: int) -> float:
    """Multiply-adds per second of a 3 x 3 convolution of the last layers' size, on one device."""
    width = channels_at(resolution, network.fmap_base, network.fmap_max)
    images = min(max(_TIMED_PIXELS // resolution**2, 1), 8)
    x = jnp.ones((images, resolution, resolution, width))
    kernel = jnp.full((3, 3, width, width), 1.0 / (9 * width))
    apply = jax.jit(conv2d)
    jax.block_until_ready(apply(x, kernel))
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < _TIMED_SECONDS:
        jax.block_until_ready(apply(x, kernel))
        runs += 1
    taken = time.perf_counter() - start
    return runs * x.size * 9 * width / taken
