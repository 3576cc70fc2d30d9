"""What a data set offers before it is prepared: a list of examples that load on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jax_noisy_anogan.errors import DataError


class BadImageError(DataError):
    """One example cannot be used; `on_bad_image` decides whether that ends the preparation."""

    def __init__(self, file: str, reason: str):
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason

    def raise_if_unread(self) -> None:
        """Raise where the system refused to read the file: what is kept must not leave it out.

        Raises:
          DataError: says what to do.
        """
        if isinstance(self.__cause__, OSError) and self.__cause__.errno is not None:
            raise DataError(f"{self}; make it readable or move it away, and run again") from self


@dataclass(frozen=True)
class Picture:
    """A decoded example at its own size.

    Attributes:
      image: values 0..255, as many channels as the data set's config asks for.
      mask: True where a pixel is anomalous; None where no mask is known.
      mode: how the file stored its pixels, in Pillow's names ("L", "RGB", "I;16", ...).
      size: width and height in the source, where `image` is not as large.
      beyond_white: whether values above `data.white_level` were taken for white.
    """

    image: UInt8[np.ndarray, "height width channels"]
    mask: Bool[np.ndarray, "height width"] | None = None
    mode: str = "L"
    size: tuple[int, int] | None = None
    beyond_white: bool = False


@dataclass(frozen=True)
class Example:
    """One image of a data set.

    Attributes:
      id: unique in its data set; for files the path relative to the root.
      label: index into the source's `class_names`.
      load: decodes the image; raises `BadImageError`.
      mark: the official part ("train", "test"), "unlabeled", or "" where there is none.
      cells: class of every cell of a puzzle image, or None.
      path: of its image file, where it has one.
      group: examples of the same object share it; "" where nothing is known.
    """

    id: str
    label: int
    load: Callable[[], Picture]
    mark: str = ""
    cells: Int[np.ndarray, "rows columns"] | None = None
    path: Path | None = None
    group: str = ""


@dataclass(frozen=True)
class Source:
    """A whole data set before preparation.

    Attributes:
      builder: name of the TFDS builder that writes it.
      normal_classes: classes that the layout itself declares normal; empty where the protocol
        decides.
      fingerprint: text that changes whenever the files or settings behind `examples` change.
      has_masks: whether examples can come with a mask.
      check_duplicates: whether equal contents are looked for.
      rejected: (file, reason) of files that were refused while listing.
    """

    builder: str
    class_names: tuple[str, ...]
    examples: Sequence[Example]
    fingerprint: str
    normal_classes: tuple[str, ...] = ()
    has_masks: bool = False
    check_duplicates: bool = False
    rejected: tuple[tuple[str, str], ...] = field(default=())
