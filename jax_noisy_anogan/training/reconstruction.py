"""How well G(E(x)) shows normal images that training has not seen, beside principal components.

The yardstick is a principal component analysis of training images with as many numbers as a latent
has. A generator that reconstructs worse has not learned what its images have in common.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.preprocess import pad_to_tile
from jax_noisy_anogan.data.splits import Split
from jax_noisy_anogan.networks import NetworkParams, Networks
from jax_noisy_anogan.networks.pixels import ByteImages, PixelScale, to_byte_images, to_float_images

_HELD_OUT_IMAGES = 128
_TRAINING_IMAGES = 2048
# Pixels that the analysis looks at; above, fewer images than a latent has numbers would be left.
_TRAINING_PIXELS = 2**25


class Reconstruction:
    """Measures networks of one phase of growth on the normal validation images.

    Args:
      networks: with an encoder.
      pixels: how images enter them.
    """

    def __init__(self, networks: Networks, pixels: PixelScale, dataset: Dataset, split: Split):
        self._networks, self._pixels = networks, pixels
        self._reconstruct = jax.jit(self._reconstruct_bytes)
        count = min(_TRAINING_IMAGES, _TRAINING_PIXELS // int(np.prod(networks.image_shape)))
        self._held_out = _tiles(
            dataset, split.validation_normal, networks.resolution, _HELD_OUT_IMAGES
        )
        training = _tiles(dataset, split.train_normal, networks.resolution, count)
        self._values: dict[str, float] = {}
        # As many components as an image has pixels draw it without error, which says nothing.
        if networks.latent_size < min(len(training), int(np.prod(networks.image_shape))):
            components = project(training, self._held_out, networks.latent_size)
            error = np.abs(self._held_out - components)
            self._values["reconstruction_l1_pca"] = float(error.mean() / 255.0)

    def measure(self, average: NetworkParams, alpha: float) -> dict[str, float]:
        """Figures of the averaged networks, for the curves.

        Returns:
          `reconstruction_psnr`, mean over images of 10 log10(1 / mean (x - G(E(x)))^2) in decibels,
          and `reconstruction_l1`, mean |x - G(E(x))| (L_R of Eq. 2 per pixel), both in shares of
          the full range of pixels; `reconstruction_l1_pca`, the same of principal components, where
          there are more training images, and more pixels, than the latent has numbers.
        """

        images = jnp.asarray(self._held_out)
        found = np.asarray(self._reconstruct(average, images, alpha), np.float32)
        error = (found - self._held_out) / 255.0
        square = np.maximum(np.square(error).mean(axis=(1, 2, 3)), 1e-10)
        return {
            "reconstruction_psnr": float(-10.0 * np.log10(square).mean()),
            "reconstruction_l1": float(np.abs(error).mean()),
            **self._values,
        }

    def _reconstruct_bytes(
        self, params: NetworkParams, images: ByteImages, alpha: Float[Array, ""]
    ) -> ByteImages:
        x = to_float_images(images, self._pixels)
        z = self._networks.encode(params.encoder, x, alpha)
        return to_byte_images(self._networks.generate(params.generator, z, alpha), self._pixels)


def project(
    training: UInt8[np.ndarray, "m h w c"], images: UInt8[np.ndarray, "n h w c"], components: int
) -> Float[np.ndarray, "n h w c"]:
    """Images as the mean of the training images and their leading principal components."""
    from sklearn.decomposition import PCA  # takes a second to import

    flat, shown = (x.reshape(len(x), -1).astype(np.float32) for x in (training, images))
    analysis = PCA(components, random_state=0).fit(flat)
    return analysis.inverse_transform(analysis.transform(shown)).reshape(images.shape)


def _tiles(
    dataset: Dataset, indices: Int[np.ndarray, " n"], side: int, count: int
) -> UInt8[np.ndarray, "count side side c"]:
    """At most `count` images, or tiles of images, spread over all `indices`."""
    whole = dataset.resolution // dataset.tiles_per_side  # tiles are as many at every resolution
    shapes = np.array([dataset.shape(int(index)) for index in indices])
    in_one = np.maximum(shapes // whole, 1).prod(axis=1).mean()
    source = dataset.source(side * dataset.tiles_per_side)
    tiles = []
    for index in _spread(indices, math.ceil(count / in_one)):
        image = pad_to_tile(source[int(index)], side)
        rows, columns = (length // side for length in image.shape[:2])
        image = image[: rows * side, : columns * side].reshape(rows, side, columns, side, -1)
        tiles.append(image.swapaxes(1, 2).reshape(rows * columns, side, side, -1))
    return _spread(np.concatenate(tiles), count)


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, evenly spaced."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return values[places]
