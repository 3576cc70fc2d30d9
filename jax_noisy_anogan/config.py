"""Every setting of a run, typed, in one place, with one `validate`.

A config file (`configs/*.py`) returns a `Config`; the command line overrides single fields
(`--config.loss.gamma=0.5`). `validate` is called once, before any work starts; the rooms of the
package then receive their own section only.
"""

# No `from __future__ import annotations`: ml_collections reads the fields' types to parse
# `--config.section.field=value`, and refuses them as text.
import ast
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_noisy_anogan.settings import (
    ConfigError,
    _at_least,
    _at_most,
    _between,
    _build,
    _check_types,
    _fail,
    _one_of,
    _power_of_two,
)

DATASETS = (
    "mnist5k",
    "mnist",
    "ir_mnist",
    "caltech256",
    "image_folder",
    "synthetic",
)
# Divided as published, whatever their images look like.
PUBLISHED_SPLITS = ("mnist5k", "mnist", "ir_mnist", "caltech256")
OBJECTIVES = ("equation_15", "equation_18", "wgan_gp")
PENALTIES = ("r1", "gp", "none")
PRIORS = ("uniform", "normal")
THRESHOLD_RULES = ("best_f1", "youden", "quantile")
SEARCH_OPTIMIZERS = ("adam", "sgd", "rmsprop", "adamax", "lion", "lbfgs")
REDUCTIONS = ("sum", "mean")
# Beyond what any machine holds: a typing error gets a line that names its field.
_LARGEST_WIDTH = 2**20
_LARGEST_BATCH = 2**20
_MOST_DRAWN = 4096
SCHEDULES = ("constant", "cosine")
STARTS = ("prior", "bank", "encoder")
MAPS = ("difference", "evidence")


@dataclass
class DataConfig:
    """Which images, from where, and how they are divided.

    Attributes:
      root: folder of the source files; not needed by `mnist5k` and `synthetic`; without it `mnist`
        is downloaded.
      cache_dir: prepared records go into a folder of their own below it.
      channels: 1 (grey) or 3 (RGB); images of the other kind are converted.
      fit: how an image becomes square: "stretch", "crop" (centre) or "pad" (zeros).
      layout: of an image folder: "auto", "mvtec", "plain" or "magnetic_tile".
      on_bad_image: "raise" at the first unusable file, or "skip" and list it in the report.
      max_image_pixels: larger files are refused before they are decoded.
      local_contrast: if positive, every pixel is replaced by how far it lies from the mean of its
        neighbourhood, in deviations of that neighbourhood, which takes uneven light away; this is
        the neighbourhood's Gaussian deviation as a share of the side.
      pixel_mean, pixel_std: networks see (pixel / 255 - pixel_mean) / pixel_std; the defaults give
        the paper's [-1, 1]. Textures of faint contrast need their own, which
        `python -m jax_noisy_anogan.describe` prints.
      tile_image_resolution: for tiled models, the images' own resolution, of which training shows
        random crops of the model's size; 0 trains on whole images.
      digit: the normal class of MNIST.
      train_fraction: share of the normal images that trains, where no official part says so.
      known_abnormal_fraction: share of every abnormal class that is known in training.
      known_abnormal_count: if positive, this many known abnormal images in all instead.
      known_abnormal_ratio: if positive, known abnormal images / all training images instead
        (gamma_l of Deep SAD, Ruff et al. 2020).
      known_abnormal_classes: names of the classes that they come from; empty means all.
      contamination: abnormal share hidden among the unlabelled training images (gamma_p of Deep
        SAD).
      validation_fraction: share of the training images (normal and known abnormal) held back.
      keep_together: of image folders and drawn surfaces: images that correlate at least so much
        (local contrast at 32 x 32; 0.8 finds photographs of the same part) fall to the same part of
        the split, so that nothing is tested that was seen in training; 0 divides image by image.
      max_validation_images: at most this many of them, half normal and half abnormal; the others
        train; 0 sets no limit.
      max_test_images: draw a balanced subsample of the test part; 0 keeps all.
      categories, repeat, images_per_category, held_out: Caltech-256: number of normal categories,
        which random choice of them, how many first images of each, and whether the tested normal
        images are kept out of training.
      abnormal_digit: of IR-MNIST.
      generated_images, generated_abnormal_images: puzzles to draw from MNIST instead of reading the
        published files; 0 reads them.
      texture, synthetic_images, synthetic_abnormal_images: "brushed", "fabric" or "speckle", and
        how many flawless and how many defective surfaces.
      synthetic_side: side in pixels at which surfaces are drawn, before they are brought to the
        resolution that is prepared; 0 draws them at that resolution.
      source_seed: of generated puzzles and synthetic surfaces.
      flip_horizontal, flip_vertical, quarter_turns: random augmentations of training images.
      max_shift: largest random shift as a fraction of the side.
      brightness: largest random change of brightness as a fraction of the full range.
      paste_defects: share of the known abnormal training images or tiles with masks whose defect is
        shown on a random normal one instead, so that few known defects meet many backgrounds.
    """

    name: str = "mnist5k"
    root: str = ""
    cache_dir: str = "~/.cache/jax_noisy_anogan"
    channels: int = 1
    fit: str = "stretch"
    layout: str = "auto"
    on_bad_image: str = "raise"
    max_image_pixels: int = 100_000_000
    local_contrast: float = 0.0
    pixel_mean: float = 0.5
    pixel_std: float = 0.5
    tile_image_resolution: int = 0
    digit: int = 0
    split_seed: int = 0
    train_fraction: float = 0.7
    known_abnormal_fraction: float = 0.1
    known_abnormal_count: int = 0
    known_abnormal_ratio: float = 0.0
    known_abnormal_classes: tuple[str, ...] = ()
    contamination: float = 0.0
    validation_fraction: float = 0.15
    keep_together: float = 0.0
    max_validation_images: int = 0
    max_test_images: int = 0
    categories: int = 1
    repeat: int = 0
    images_per_category: int = 150
    held_out: bool = False
    abnormal_digit: int = 3
    generated_images: int = 0
    generated_abnormal_images: int = 0
    texture: str = "brushed"
    synthetic_images: int = 400
    synthetic_abnormal_images: int = 200
    synthetic_side: int = 0
    source_seed: int = 0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    max_shift: float = 0.0
    brightness: float = 0.0
    paste_defects: float = 0.0


@dataclass
class NetworkConfig:
    """Widths of both networks; Karras et al. 2018, Table 2, at the defaults."""

    fmap_base: int = 8192
    fmap_max: int = 512
    latent_size: int = 512
    prior: str = "uniform"
    stddev_group: int = 4
    compute_dtype: str = "float32"


@dataclass
class GrowthConfig:
    """Progressive growing, in images shown to the discriminator, and the memory that it takes.

    `minibatch` maps a resolution (written as text, as in JSON) to the global minibatch;
    resolutions that are not named take `minibatch_default`.

    Attributes:
      microbatch: accumulates gradients: maps a resolution to the images of a device's minibatch
        that pass through a network at once, for a third more arithmetic; resolutions that are not
        named take all of them. The update is the same.
      rematerialize_from: networks of this resolution and above compute each block again in the
        backward pass (of training and of the search) instead of keeping it; 0 never does.
    """

    start_resolution: int = 4
    resolution: int = 32
    stable_images: int = 600_000
    fade_images: int = 600_000
    final_images: int = 600_000
    minibatch_default: int = 16
    minibatch: dict[str, int] = field(default_factory=lambda: {"256": 16, "512": 8, "1024": 4})
    microbatch: dict[str, int] = field(default_factory=dict)
    rematerialize_from: int = 0


@dataclass
class LossConfig:
    """The paper's objective; `gamma = 1` is plain AnoGAN.

    Attributes:
      objective: "equation_15" (the paper's formula, taken literally), "equation_18" (the balanced
        one that its derivation needs) or "wgan_gp" (Karras et al., balanced).
      penalty: "r1" (on real images) or "gp" (between real and drawn images).
      penalty_weight: of the penalty; R1 is weighed by gamma besides.
      penalty_interval: the penalty looks at one group of images in so many.
      drift_weight: of the square of a Wasserstein critic's output.
      abnormal_statistic: the minibatch standard deviation that D judges known abnormal images with:
        "own", of their own groups, or "real", that of the normal images beside them, as every image
        is judged when it is scored. With "own" D may learn to know groups of abnormal images by
        their spread, and then knows a single one less well.
    """

    gamma: float = 0.1
    objective: str = "equation_15"
    penalty: str = "r1"
    penalty_weight: float = 1.0
    penalty_interval: int = 1
    drift_weight: float = 0.001
    abnormal_statistic: str = "own"


@dataclass
class OptimConfig:
    """Adam on both networks, and the half-life of the averaged copies that scores are made with.

    Attributes:
      discriminator_rate: learning rate of D over that of G (two time-scale rule, Heusel et al.
        2017).
      decay_images: over so many images at the end both rates fall along half a cosine to 0; 0 keeps
        them, as the paper does. At most the last phase.
    """

    learning_rate: float = 0.001
    discriminator_rate: float = 1.0
    decay_images: int = 0
    b1: float = 0.0
    b2: float = 0.99
    eps: float = 1e-8
    ema_half_life_images: float = 10_000.0


@dataclass
class SearchConfig:
    """Latent search, Algorithm 1 of the paper (lambda = 0.1, n = 500), and shortcuts to its end.

    Attributes:
      learning_rate: of the first step; `schedule` says what becomes of it: "constant" (the paper),
        or "cosine", which decays to 0 at the last step, for short searches.
      start: where an image's search begins: "prior" (a latent of p_z, the same for every image, as
        in the paper), "bank" (the nearest of `bank_images` drawn images) or "encoder" (what a
        network says that is trained after the GAN on `encoder_images` images, half of them drawn,
        half normal training images). Further restarts begin at the next ones of the bank, or at
        latents of p_z.
    """

    steps: int = 500
    optimizer: str = "adam"
    learning_rate: float = 0.1
    schedule: str = "constant"
    start: str = "prior"
    bank_images: int = 4096
    encoder_images: int = 100_000
    restarts: int = 1
    feature_weight: float = 0.1
    feature_resolution: int = 4
    reduction: str = "sum"
    batch_size: int = 64
    record_curve: bool = False


@dataclass
class ScoreConfig:
    """From search results to decisions and maps.

    Attributes:
      threshold_rule: which threshold of the validation images decides: "best_f1" or "youden" (both
        need known abnormal validation images; without them "quantile" is used), or "quantile".
      false_positive_rate: share of normal validation images above the "quantile" threshold.
      map: what anomaly maps are made of: "difference", |x - G(z)| (the paper), or "evidence", that
        difference weighed by what it does to D's verdict: finer where D knows defects.
      average_flips: whether D's term and its evidence are means over the flips of an image that
        training showed (`data.flip_horizontal`, `data.flip_vertical`), at two or four times their
        cost. The search sees the image as it is.
      map_sigma: smoothing of anomaly maps, in pixels of the scored image.
      tile_overlap: for tiled models, overlap of neighbouring tiles as a share of their side.
      figure_images: examples per row in the pictures.
    """

    threshold_rule: str = "best_f1"
    false_positive_rate: float = 0.05
    map: str = "difference"
    average_flips: bool = False
    map_sigma: float = 1.0
    tile_overlap: float = 0.25
    figure_images: int = 16


@dataclass
class TrainConfig:
    """How a run proceeds: seeds, checkpoints, logging.

    Attributes:
      max_rollbacks: how often training returns to its last checkpoint, with other random numbers,
        after a loss or gradient that is not finite.
      sample_images: drawn images in the grid that is saved at the end of every phase.
      compilation_cache_dir: keeps compiled programs between runs; empty keeps none. Programs in it
        are trusted: never share a folder that others can write to.
    """

    seed: int = 0
    checkpoint_every_images: int = 50_000
    max_rollbacks: int = 3
    keep_checkpoints: int = 2
    log_every_steps: int = 50
    sample_images: int = 64
    tensorboard: bool = False
    compilation_cache_dir: str = ""


@dataclass
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def minibatch_at(growth: GrowthConfig, resolution: int) -> int:
    """Global minibatch at `resolution`."""
    return growth.minibatch.get(str(resolution), growth.minibatch_default)


def validate(config: Config) -> Config:
    """Check every field's type and range and every combination.

    Returns:
      The same config, so that a call can be chained.

    Raises:
      ConfigError: names the first field that is wrong, its value and what was expected.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"the config file returned {type(config).__name__}: expected jax_noisy_anogan.config."
            "Config (configs/toy2d.py belongs to "
            "`python -m jax_noisy_anogan.reproduction.figure3`)"
        )
    _check_types(config)
    _validate_data(config.data)
    _validate_resolutions(config.growth)  # the others compute with them
    _validate_network(config)
    _validate_growth(config)
    _validate_loss(config)
    _validate_search(config)
    _validate_score(config)

    optim = config.optim
    _between("optim.learning_rate", optim.learning_rate, 0.0, 1.0)
    _between("optim.discriminator_rate", optim.discriminator_rate, 0.0, 100.0)
    _at_least("optim.decay_images", optim.decay_images, 0)
    for name in ("b1", "b2"):
        if not 0.0 <= getattr(optim, name) < 1.0:
            _fail(f"optim.{name}", getattr(optim, name), "at least 0 and below 1")
    _between("optim.eps", optim.eps, 0.0, 1.0)
    _at_least("optim.ema_half_life_images", optim.ema_half_life_images, 0.0)

    train = config.train
    for name, low in (
        ("seed", 0),
        ("checkpoint_every_images", 1),
        ("max_rollbacks", 0),
        ("keep_checkpoints", 1),
        ("log_every_steps", 1),
        ("sample_images", 1),
    ):
        _at_least(f"train.{name}", getattr(train, name), low)
    _at_most("train.sample_images", train.sample_images, _MOST_DRAWN)
    return config


def _validate_data(data: DataConfig) -> None:
    for name, choices in (
        ("name", DATASETS),
        ("fit", ("stretch", "crop", "pad")),
        ("layout", ("auto", "mvtec", "plain", "magnetic_tile")),
        ("on_bad_image", ("raise", "skip")),
        ("texture", ("brushed", "fabric", "speckle")),
    ):
        _one_of(f"data.{name}", getattr(data, name), choices)
    if data.channels not in (1, 3):
        _fail("data.channels", data.channels, "1 (grey) or 3 (RGB)")
    for name in ("digit", "abnormal_digit"):
        if not 0 <= getattr(data, name) <= 9:
            _fail(f"data.{name}", getattr(data, name), "a digit from 0 to 9")
    for name, low in (
        ("split_seed", 0),
        ("source_seed", 0),
        ("max_image_pixels", 16),
        ("max_validation_images", 0),
        ("max_test_images", 0),
        ("known_abnormal_count", 0),
        ("categories", 1),
        ("repeat", 0),
        ("images_per_category", 2),
        ("generated_images", 0),
        ("generated_abnormal_images", 0),
        ("synthetic_images", 1),
        ("synthetic_abnormal_images", 0),
        ("synthetic_side", 0),
    ):
        _at_least(f"data.{name}", getattr(data, name), low)
    for name in ("train_fraction", "validation_fraction"):
        value = getattr(data, name)
        if not 0.0 < value < 1.0:
            _fail(f"data.{name}", value, "above 0 and below 1")
    for name in ("known_abnormal_fraction", "known_abnormal_ratio", "contamination", "max_shift"):
        value = getattr(data, name)
        if not 0.0 <= value < 1.0:
            _fail(f"data.{name}", value, "from 0 to below 1")
    if not 0.0 <= data.pixel_mean <= 1.0:
        _fail("data.pixel_mean", data.pixel_mean, "from 0 to 1")
    if not 0.0 <= data.local_contrast <= 0.5:
        _fail("data.local_contrast", data.local_contrast, "from 0 to 0.5")
    if not 0.0 <= data.keep_together <= 1.0:
        _fail("data.keep_together", data.keep_together, "from 0 to 1")
    if data.keep_together and data.name in PUBLISHED_SPLITS:
        _fail("data.keep_together", data.keep_together, f"0 with {data.name}, whose split is fixed")
    if not 0.001 <= data.pixel_std <= 1.0:
        _fail("data.pixel_std", data.pixel_std, "from 0.001 to 1")
    if not 0.0 <= data.paste_defects <= 1.0:
        _fail("data.paste_defects", data.paste_defects, "from 0 to 1")
    if not 0.0 <= data.brightness <= 1.0:
        _fail("data.brightness", data.brightness, "from 0 to 1")
    if data.known_abnormal_count and data.known_abnormal_ratio:
        _fail(
            "data.known_abnormal_ratio", data.known_abnormal_ratio, "0 with a known_abnormal_count"
        )
    if data.generated_abnormal_images and not data.generated_images:
        _fail("data.generated_images", 0, "at least 1 when abnormal puzzles are generated")
    if data.synthetic_side and not 16 <= data.synthetic_side <= 8192:
        _fail("data.synthetic_side", data.synthetic_side, "0, or from 16 to 8192")
    if data.tile_image_resolution:
        _power_of_two("data.tile_image_resolution", data.tile_image_resolution, 4, 4096)
    if not data.root:
        _require_root(data)


def _require_root(data: DataConfig) -> None:
    content = {
        "caltech256": "256_ObjectCategories",
        "image_folder": "the images, in one of the layouts of config.data.layout",
    }
    if not data.generated_images:
        content["ir_mnist"] = "train_mnist and test_mnist_matrix"
    if data.name in content:
        _fail("data.root", data.root, f"the folder that holds {content[data.name]}")


def _validate_network(config: Config) -> None:
    network = config.network
    for name, low in (("fmap_base", 8), ("fmap_max", 1), ("latent_size", 1), ("stddev_group", 1)):
        _at_least(f"network.{name}", getattr(network, name), low)
        _at_most(f"network.{name}", getattr(network, name), _LARGEST_WIDTH)
    _one_of("network.prior", network.prior, PRIORS)
    _one_of("network.compute_dtype", network.compute_dtype, ("float32", "bfloat16"))
    smallest = network.fmap_base >> (config.growth.resolution.bit_length() - 2)
    if smallest < 1:
        _fail(
            "network.fmap_base",
            network.fmap_base,
            f"at least {config.growth.resolution // 2}, so that resolution "
            f"{config.growth.resolution} keeps one channel",
        )


def _validate_resolutions(growth: GrowthConfig) -> None:
    _power_of_two("growth.resolution", growth.resolution, 4, 1024)
    _power_of_two("growth.start_resolution", growth.start_resolution, 4, 1024)
    if growth.start_resolution > growth.resolution:
        _fail(
            "growth.start_resolution",
            growth.start_resolution,
            f"at most growth.resolution ({growth.resolution})",
        )


def _validate_growth(config: Config) -> None:
    growth = config.growth
    for name in ("stable_images", "fade_images", "final_images", "minibatch_default"):
        _at_least(f"growth.{name}", getattr(growth, name), 1)
    _at_most("growth.minibatch_default", growth.minibatch_default, _LARGEST_BATCH)
    valid = {str(2**k) for k in range(2, 11)}
    for name in ("minibatch", "microbatch"):
        for key, value in getattr(growth, name).items():
            if key not in valid:
                _fail(f"growth.{name}", key, "resolutions from 4 to 1024 as keys")
            _at_least(f"growth.{name}[{key}]", value, 1)
            _at_most(f"growth.{name}[{key}]", value, _LARGEST_BATCH)
    if growth.rematerialize_from:
        _power_of_two("growth.rematerialize_from", growth.rematerialize_from, 4, 1024)
    resolution = growth.start_resolution
    while resolution <= growth.resolution:
        batch, group = minibatch_at(growth, resolution), config.network.stddev_group
        if batch > group and batch % group:
            _fail(
                f"growth.minibatch[{resolution}]",
                batch,
                f"a multiple of network.stddev_group ({group}), or less than it",
            )
        resolution *= 2


def _validate_loss(config: Config) -> None:
    loss = config.loss
    _between("loss.gamma", loss.gamma, 0.0, 1.0)
    if loss.objective.startswith("wgan") and loss.objective.endswith("15"):
        _fail(
            "loss.objective",
            loss.objective,
            "wgan_gp, the balanced form: with the weights of Eq. 15, adding c to a Wasserstein "
            "critic lowers its loss by (1 - gamma) c, without bound",
        )
    _one_of("loss.objective", loss.objective, OBJECTIVES)
    _one_of("loss.abnormal_statistic", loss.abnormal_statistic, ("own", "real"))
    _one_of("loss.penalty", loss.penalty, PENALTIES)
    _at_least("loss.penalty_weight", loss.penalty_weight, 0.0)
    _at_least("loss.penalty_interval", loss.penalty_interval, 1)
    _at_least("loss.drift_weight", loss.drift_weight, 0.0)
    if loss.objective == "wgan_gp" and loss.penalty != "gp":
        _fail("loss.penalty", loss.penalty, "gp with wgan_gp: nothing else bounds its critic")
    data = config.data
    known = data.known_abnormal_count or data.known_abnormal_ratio or data.known_abnormal_fraction
    if loss.gamma < 1.0 and not known:
        _fail(
            "loss.gamma",
            loss.gamma,
            "1.0 when data.known_abnormal_fraction is 0: without known abnormal images Eq. 17 has "
            "nothing to average",
        )


def _validate_search(config: Config) -> None:
    search = config.search
    _at_least("search.steps", search.steps, 0)
    _one_of("search.optimizer", search.optimizer, SEARCH_OPTIMIZERS)
    _between("search.learning_rate", search.learning_rate, 0.0, 100.0)
    _one_of("search.schedule", search.schedule, SCHEDULES)
    if search.schedule != "constant" and search.optimizer == "lbfgs":
        _fail("search.schedule", search.schedule, "constant with lbfgs, which has no step rate")
    _at_least("search.restarts", search.restarts, 1)
    _one_of("search.start", search.start, STARTS)
    _at_least("search.bank_images", search.bank_images, search.restarts)
    _at_least("search.encoder_images", search.encoder_images, 1)
    _at_least("search.batch_size", search.batch_size, 1)
    for name, high in (
        ("steps", 10**6),
        ("restarts", _LARGEST_BATCH),
        ("batch_size", _LARGEST_BATCH),
    ):
        _at_most(f"search.{name}", getattr(search, name), high)
    if not 0.0 <= search.feature_weight <= 1.0:
        _fail("search.feature_weight", search.feature_weight, "from 0 to 1 (lambda of Eq. 4)")
    _one_of("search.reduction", search.reduction, REDUCTIONS)
    _power_of_two(
        "search.feature_resolution", search.feature_resolution, 4, config.growth.resolution
    )


def _validate_score(config: Config) -> None:
    score = config.score
    _one_of("score.threshold_rule", score.threshold_rule, THRESHOLD_RULES)
    _one_of("score.map", score.map, MAPS)
    if not 0.0 < score.false_positive_rate < 1.0:
        _fail("score.false_positive_rate", score.false_positive_rate, "above 0 and below 1")
    if not 0.0 <= score.map_sigma <= 256.0:
        _fail("score.map_sigma", score.map_sigma, "from 0 to 256 pixels")
    if not 0.0 <= score.tile_overlap <= 0.75:
        _fail("score.tile_overlap", score.tile_overlap, "from 0 to 0.75")
    if score.average_flips and not (config.data.flip_horizontal or config.data.flip_vertical):
        _fail(
            "score.average_flips",
            True,
            "False without data.flip_horizontal or flip_vertical: D knows only what training shows",
        )
    _at_least("score.figure_images", score.figure_images, 1)
    _at_most("score.figure_images", score.figure_images, _MOST_DRAWN)


def variant(config: Config, name: str) -> Config:
    """The variant of a config file that `--config FILE.py:name` asks for.

    "smoke" runs the whole path in about a minute on two cores: narrow networks up to 16 x 16
    pixels, a few hundred images, a short search.

    Raises:
      ConfigError: `name` is neither "" nor "smoke".
    """
    if name not in ("", "smoke"):
        raise ConfigError(f"--config has the variant {name!r}: expected none or :smoke")
    if name == "smoke":
        resolution = min(config.growth.resolution, 16)
        replace = dataclasses.replace
        tiles = 4 * resolution if config.data.tile_image_resolution else 0
        config.data = replace(
            config.data,
            max_test_images=40,
            tile_image_resolution=tiles,
            synthetic_images=60,
            synthetic_abnormal_images=40,
        )
        config.network = replace(config.network, fmap_base=64, fmap_max=16, latent_size=16)
        config.growth = replace(
            config.growth,
            resolution=resolution,
            start_resolution=4,
            stable_images=320,
            fade_images=320,
            final_images=640,
            minibatch_default=16,
            minibatch={},
        )
        config.search = replace(config.search, steps=10, batch_size=20)
        config.train = replace(config.train, checkpoint_every_images=640, sample_images=16)
    return config


def changed(config: Config, changes: Sequence[str]) -> Config:
    """A validated copy of `config` with `section.field=value` settings replaced.

    Raises:
      ConfigError: not of that form, an unknown field, or a wrong value.
    """
    values = dataclasses.asdict(config)
    for change in changes:
        name, equals, text = change.removeprefix("config.").partition("=")
        section, _, item = name.partition(".")
        if not equals or item not in values.get(section, {}):
            raise ConfigError(f"--set {change}: expected section.field=value, as search.steps=500")
        # The flags of `train` take `true` as well as Python's own word.
        if isinstance(values[section][item], bool) and text in ("true", "false"):
            text = text.title()
        try:
            values[section][item] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[section][item] = text
    return validate(_build(Config, values, "config"))


def differences(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """Fields (as `section.field`) that differ, with both values."""
    found = {}
    for section in dataclasses.fields(Config):
        a, b = getattr(ours, section.name), getattr(theirs, section.name)
        for item in dataclasses.fields(a):
            values = getattr(a, item.name), getattr(b, item.name)
            if values[0] != values[1]:
                found[f"{section.name}.{item.name}"] = values
    return found


def to_json(config: Config) -> str:
    """The config as indented JSON, as written to `config.json` of a run."""
    values = dataclasses.asdict(config)
    # A config file may compute a setting with NumPy.
    return json.dumps(values, indent=2, default=lambda value: value.item()) + "\n"


def from_json(text: str) -> Config:
    """Rebuild and validate a config from `to_json`'s text.

    Raises:
      ConfigError: the text is not JSON, or a field is unknown or wrong.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # too many digits or brackets are no decode error
        raise ConfigError(f"not a JSON config: {error}") from error
    return validate(_build(Config, values, "config"))


def load(workdir: Path) -> Config:
    """The config of the run in `workdir`.

    Raises:
      ConfigError: `workdir` holds no readable `config.json`.
    """
    path = workdir / "config.json"
    try:
        return from_json(path.read_text(errors="replace"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): --workdir must name the folder of a run"
        ) from error
