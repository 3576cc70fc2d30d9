"""Which images show the same thing again: one part photographed several times.

Where a random split puts such pictures on both sides, held-out images are recognised rather than
judged.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import sparse
from scipy.sparse import csgraph

from jax_noisy_anogan.data.dataset import Dataset
from jax_noisy_anogan.data.preprocess import local_contrast

# From here on two images are taken for one thing: magnetic tiles, of which every one was
# photographed six times under other light, fall into groups of six at 0.8; at 0.7 and below groups
# of different tiles begin to join.
SAME = 0.8
_SIDE = 32
_NEIGHBOURHOOD = 1 / 16
_ROWS = 1024

Thumbnails = Float[np.ndarray, "n pixels"]


def thumbnails(dataset: Dataset, indices: Int[np.ndarray, " n"]) -> Thumbnails:
    """The images at 32 x 32 as `unit_rows`."""
    return unit_rows(dataset.images(indices, min(_SIDE, dataset.resolution)))


def unit_rows(images: UInt8[np.ndarray, "n side side channels"]) -> Thumbnails:
    """Images in little without their light: local contrast as unit vectors.

    The product of two is their correlation, from -1 to 1.
    """
    rows = np.empty((len(images), images[:1].size), np.float32)
    for row, image in enumerate(images):
        rows[row] = local_contrast(image, _NEIGHBOURHOOD).ravel()
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def groups(images: Thumbnails, at_least: float) -> Int[np.ndarray, " n"]:
    """A number per image; those that correlate so much, also through others, share it."""
    found = np.arange(len(images))
    for first, correlations in _correlations(images, images):
        # Some rows at a time: where all images are alike, the pairs of all would fill the memory.
        rows, columns = np.nonzero(correlations >= at_least)
        found = joined(found, _connected(len(images), first + rows, columns))
    return found


def joined(*numberings: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Groups of images that share a number in any of the numberings, also through others."""
    places = np.arange(len(numberings[0]))
    firsts = []
    for numbers in numberings:
        _, first, member = np.unique(numbers, return_index=True, return_inverse=True)
        firsts.append(first[member])
    return _connected(len(places), np.tile(places, len(numberings)), np.concatenate(firsts))


def _connected(
    count: int, first: Int[np.ndarray, " pairs"], second: Int[np.ndarray, " pairs"]
) -> Int[np.ndarray, " count"]:
    """A number per image; those of a pair share it, also through others."""
    edges = sparse.coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return csgraph.connected_components(edges, directed=False)[1].astype(np.int64)


def seen(held_out: Thumbnails, training: Thumbnails, at_least: float) -> Bool[np.ndarray, " n"]:
    """Which held-out images correlate so much with at least one training image."""
    found = [
        (correlations >= at_least).any(axis=1)
        for _, correlations in _correlations(held_out, training)
    ]
    return np.concatenate([np.zeros(0, bool), *found])


def _correlations(
    images: Thumbnails, others: Thumbnails
) -> Iterator[tuple[int, Float[np.ndarray, "rows others"]]]:
    """Row numbers and correlations of some images with all others at a time."""
    for first in range(0, len(images), _ROWS):
        yield first, images[first : first + _ROWS] @ others.T
