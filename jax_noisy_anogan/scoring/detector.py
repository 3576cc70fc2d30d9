"""A trained run as an object that scores images: `jax_noisy_anogan.load(workdir).score(images)`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config
from jax_noisy_anogan.data import DataError
from jax_noisy_anogan.data.dataset import image_resolution
from jax_noisy_anogan.data.decode import decode_image
from jax_noisy_anogan.data.mnist import pad_to_32
from jax_noisy_anogan.data.preprocess import prepared
from jax_noisy_anogan.model import Model, with_guide
from jax_noisy_anogan.scoring.calibration import Calibration
from jax_noisy_anogan.scoring.maps import (
    Box,
    MapCalibration,
    calibrated_map,
    largest_region,
    load_maps,
)
from jax_noisy_anogan.scoring.scorer import LOCAL, ImageResult, Scorer
from jax_noisy_anogan.training.state import load_model

Image = UInt8[np.ndarray, "height width channels"]


class Detection(NamedTuple):
    """What is found in one image.

    Attributes:
      score: the paper's L' (Eq. 24) at z_hat.
      calibrated: the calibrated score, a logit.
      probability: the calibrated score in [0, 1].
      is_abnormal: the decision at the run's threshold, or at the one given instead.
      terms: every raw term by name, `score` included.
      image: as the networks saw it, square.
      drawn: G(z_hat).
      map: standard deviations above what is usual for normal images, per pixel of `image`.
      box: around the largest region whose map exceeds `map_threshold`; None if there is none.
    """

    score: float
    calibrated: float
    probability: float
    is_abnormal: bool
    terms: dict[str, float]
    image: Image
    drawn: Image
    map: Float[np.ndarray, "height width"]
    box: Box | None


class Detector:
    """Scores images with a trained model; make one with `load`.

    Attributes:
      config: of the run.
      calibration: thresholds and weights.
      map_threshold: maps above it are shown as defective; normal validation images' highest map
        values exceed it as often as their `local` term exceeds its threshold.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        calibration: Calibration,
        maps: MapCalibration,
        *,
        mesh: Mesh | None = None,
    ):
        self.config, self.calibration = config, calibration
        self.map_threshold = calibration.thresholds[LOCAL].quantile
        self._maps = maps
        self._model, self._mesh = with_guide(model, config), mesh
        self._scorers: dict[int | None, Scorer] = {None: Scorer(self._model, config, mesh)}

    @property
    def resolution(self) -> int:
        """Side of the images that are searched; others are brought to it first."""
        return image_resolution(self.config.data, self.config.growth.resolution)

    def score(
        self,
        images: Iterable[str | Path | Image] | UInt8[np.ndarray, "n h w *c"],
        *,
        threshold: float | None = None,
    ) -> list[Detection]:
        """Search, score and judge images.

        Args:
          images: paths of image files, or arrays with values 0..255, `[h, w]` or `[h, w, channels]`
            each; of any size.
          threshold: a probability that replaces the run's threshold.

        Raises:
          BadImageError: a file cannot be used; names it.
          DataError: an array is not of that form, or `images` is a single image.
        """
        if isinstance(images, str | Path) or getattr(images, "ndim", 3) == 2:
            raise DataError("one image instead of several: put it in a list, as in score([image])")
        wanted = list(images)
        prepared = (self.prepare(image) for image in wanted)
        return list(self.stream(prepared, threshold=threshold, count=len(wanted)))

    def prepare(self, image: str | Path | Image) -> UInt8[np.ndarray, "side side channels"]:
        """Read an image and bring it to the form that the networks were trained with.

        Raises:
          DataError: a file or array cannot be used.
        """
        data = self.config.data
        if isinstance(image, str | Path):
            pixels = decode_image(
                Path(image), channels=data.channels, max_pixels=data.max_image_pixels
            ).image
        else:
            pixels = _as_pixels(image, data.channels)
        if data.name in ("mnist", "mnist5k") and pixels.shape == (28, 28, 1):
            pixels = pad_to_32(pixels[..., 0])
        return prepared(pixels, self.resolution, data)

    def stream(
        self,
        images: Iterable[UInt8[np.ndarray, "side side channels"]],
        *,
        threshold: float | None = None,
        count: int | None = None,
    ) -> Iterator[Detection]:
        """Score any number of prepared images in bounded memory, in their order.

        Args:
          images: what `prepare` returns.
          count: how many they are, if known: few images then make a smaller batch.
        """
        scorer = self._scorer(count)
        held: deque[Image] = deque()
        measured: deque[Image] = deque()

        def prepared() -> Iterator[Image]:
            for image in images:
                held.append(image)
                yield image

        def found() -> Iterator[tuple[Image, np.ndarray]]:
            for searched_tiles in scorer.search(prepared()):
                image = held.popleft()
                measured.append(image)
                yield image, searched_tiles.latents

        for result in scorer.measure(found()):
            yield self._detection(measured.popleft(), result, threshold)

    def _scorer(self, count: int | None) -> Scorer:
        """One scorer per batch size, which is a power of two where few images are asked for."""
        full = self._scorers[None]
        size = None
        if count is not None:
            tiles = count * len(full.positions(self.resolution, self.resolution))
            power = 1 << max(tiles - 1, 0).bit_length()
            size = power if power < full.batch_size else None
        if size not in self._scorers:
            self._scorers[size] = Scorer(self._model, self.config, self._mesh, batch_size=size)
        return self._scorers[size]

    def _detection(self, image: Image, result: ImageResult, threshold: float | None) -> Detection:
        sigma = self.config.score.map_sigma
        map = np.asarray(calibrated_map(jnp.asarray(result.map), self._maps, sigma=sigma))
        terms = {**result.terms, LOCAL: float(map.max())}
        row = {name: np.array([value]) for name, value in terms.items()}
        return Detection(
            score=terms["score"],
            calibrated=float(self.calibration.calibrated(row)[0]),
            probability=float(self.calibration.probability(row)[0]),
            is_abnormal=bool(self.calibration.is_abnormal(row, threshold)[0]),
            terms=terms,
            image=image,
            drawn=result.drawn,
            map=map,
            box=largest_region(map, self.map_threshold),
        )


def load(workdir: str | Path, *, mesh: Mesh | None = None) -> Detector:
    """The detector of a run that `jax_noisy_anogan.train` has finished.

    Args:
      workdir: the run's folder.
      mesh: devices to use; all of this process by default.

    Raises:
      ConfigError, CheckpointError, CalibrationError: the folder is not a finished run; says why.
    """
    folder = Path(workdir).expanduser()
    config = config_lib.load(folder)
    calibration = Calibration.load(folder / "calibration.json")
    maps = load_maps(folder / "map_calibration.npz")
    return Detector(load_model(folder, config), config, calibration, maps, mesh=mesh)


def _as_pixels(image: np.ndarray, channels: int) -> Image:
    try:
        array = np.asarray(image)
    except ValueError as error:  # lists in lists of different lengths
        raise DataError(f"{type(image).__name__} is no image: expected an array") from error
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or min(array.shape[:2], default=0) < 4:
        raise DataError(
            f"an image array of {array.dtype} and shape {array.shape}: expected uint8 values 0..255"
            " of shape [height, width] or [height, width, channels], at least 4 x 4"
        )
    if array.shape[2] == channels:
        return array
    if array.shape[2] == 1:
        return np.repeat(array, channels, axis=2)
    if array.shape[2] == 3:
        # By Pillow, as files are: a rounding of one's own would differ in the last bit.
        return np.asarray(PIL.Image.fromarray(array).convert("L"))[..., None]
    raise DataError(f"an image array with {array.shape[2]} channels: expected 1 or 3")
