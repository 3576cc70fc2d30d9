"""TensorFlow Datasets builders: they write a source's pyramid as array_record.

Importing this module imports TFDS; others do so only when records are written or read.
One builder config is one part of a data set (bounded memory, and the unit of a restart), and one
split is one resolution, so that reading 4 x 4 never touches larger pictures. Images are PNG bytes:
TFDS encodes arrays with TensorFlow, which is not needed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from jax_noisy_anogan.data import pyramid
from jax_noisy_anogan.data.examples import Example, Source


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example as PNG bytes of every resolution.

    Attributes:
      own_mask: the mask in the image's own pixels, of `pyramid.encode_bits`; empty without defect.
    """

    example: Example
    images: dict[int, bytes]
    masks: dict[int, bytes]
    own_mask: bytes = b""


@dataclasses.dataclass(kw_only=True)
class PartConfig(tfds.core.BuilderConfig):
    """One part of a data set; `encode` yields its examples."""

    # TFDS prints a config it meets: without these, thousands of examples.
    source: Source = dataclasses.field(repr=False)
    resolution: int
    channels: int
    encode: Callable[[], list[Encoded]] = dataclasses.field(repr=False)


def level_split(resolution: int) -> str:
    """Name of the TFDS split that holds one resolution."""
    return f"r{resolution:04d}"


class _PyramidBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Shared by all builders: features, splits and records."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = ()
    # Nothing is downloaded; TFDS' own look-up of checksums needs a package it does not install.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        part = self.builder_config
        features = {
            "id": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=list(part.source.class_names)),
            "mark": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, part.channels), encoding_format="png"),
        }
        if part.source.has_masks:
            features["mask"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        del dl_manager
        encoded = self.builder_config.encode()
        return {
            level_split(resolution): self._generate_examples(encoded, resolution)
            for resolution in pyramid.levels(self.builder_config.resolution)
        }

    def _generate_examples(
        self, encoded: list[Encoded], resolution: int
    ) -> Iterator[tuple[int, dict[str, object]]]:
        for number, item in enumerate(encoded):
            record: dict[str, object] = {
                "id": item.example.id,
                "label": np.int64(item.example.label),
                "mark": item.example.mark,
                "image": item.images[resolution],
            }
            if item.masks:
                record["mask"] = item.masks[resolution]
            yield number, record


class Mnist(_PyramidBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Handwritten digits of 28 x 28 pixels, padded to 32 x 32 (LeCun, Cortes, Burges)."""

    name = "mnist"


class IrMnist(_PyramidBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Puzzles of 11 x 11 MNIST digits, normal without one digit (Sabokrou et al.)."""

    name = "ir_mnist"


class Caltech256(_PyramidBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Photographs of 256 object categories and clutter (Griffin, Holub, Perona 2007)."""

    name = "caltech256"


class ImageFolder(_PyramidBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A user's own inspection images with optional defect masks."""

    name = "image_folder"


class Synthetic(_PyramidBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Procedural surfaces with small defects and exact masks."""

    name = "synthetic"


BUILDERS = {cls.name: cls for cls in (Mnist, IrMnist, Caltech256, ImageFolder, Synthetic)}
