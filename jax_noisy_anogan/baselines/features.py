"""Features: what a subspace method sees of an image, one row per image.

Flattened pixels by default; any `.npz` of features computed elsewhere; or an array, such as the
features of the trained discriminator. The published linear methods of Table 2 see 4,096 features of
a VGG-16 that was trained on ImageNet. To compare on those, write the file where that network is at
hand, and hand it to `reproduce table2 --features FILE`:

    numpy.savez("vgg16.npz", features=rows, ids=ids)

`rows` is [n, features]; `ids` are the images' paths below `256_ObjectCategories`, such as
`251.airplanes-101/251_0001.jpg`. All tested images must be among them; more do no harm.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, UInt8

from jax_noisy_anogan.errors import DataError

Rows = Float[np.ndarray, "n features"]


class FeatureFile(NamedTuple):
    """The content of a feature file; `ids` is None if the file names no images."""

    features: Rows
    ids: tuple[str, ...] | None


def pixel_features(images: UInt8[np.ndarray, "n height width channels"]) -> Rows:
    """Flattened pixels in [0, 1].

    Raises:
      DataError: not uint8 images with four axes.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise DataError(
            "pixel features: expected uint8 images [n, height, width, channels], got "
            f"{images.dtype} of shape {images.shape}"
        )
    return images.reshape(len(images), -1).astype(np.float32) / 255.0


def array_features(values: Float[ArrayLike, "n *axes"]) -> Rows:
    """Any array with one entry per image, such as discriminator features, flattened to rows.

    Raises:
      DataError: see `check_features`.
    """
    array = np.asarray(values)
    if array.ndim < 2:
        raise DataError(f"features: expected one row per image, got shape {array.shape}")
    return check_features(array.reshape(len(array), -1))


def load_features(path: Path) -> FeatureFile:
    """Read `features` [n, ...] and, where present, `ids` [n] from an `.npz` file.

    Raises:
      DataError: the file is missing or no `.npz`, lacks `features`, or its arrays do not fit.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected an .npz file; write it with numpy.savez")
        with archive:
            if "features" not in archive:
                raise DataError(
                    f"{path}: no array named 'features'; it holds "
                    + (", ".join(sorted(archive)) or "nothing")
                )
            features = array_features(archive["features"])
            ids = tuple(str(i) for i in archive["ids"]) if "ids" in archive else None
    except FileNotFoundError:
        raise DataError(f"{path}: no such feature file") from None
    except DataError as error:
        message = str(error)
        raise DataError(
            message if message.startswith(str(path)) else f"{path}: {message}"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file of plain arrays ({error})") from None
    if ids is not None and len(ids) != len(features):
        raise DataError(f"{path}: {len(ids)} ids for {len(features)} rows of features")
    return FeatureFile(features, ids)


def check_features(features: Float[ArrayLike, "n features"]) -> Rows:
    """The features as a floating-point array that every method can work on.

    Raises:
      DataError: not a matrix of at least two rows of finite numbers.
    """
    rows = np.asarray(features)
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 1:
        raise DataError(f"features: expected a matrix of at least two rows, got shape {rows.shape}")
    if rows.dtype.kind not in "fiu":
        raise DataError(f"features: expected numbers, got {rows.dtype}")
    rows = rows.astype(np.float32 if rows.dtype.itemsize <= 4 else np.float64)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise DataError(f"features: row {bad} is not finite")
    return rows
