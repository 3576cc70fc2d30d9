"""Every setting of a run, typed and stated once; `docs/settings.md` is written from this file.

A config file (`configs/*.py`) returns a `Config`; the command line overrides single settings
(`--config.loss.gamma=0.5`). `validate` is called once, before any work starts; the rooms of the
package then receive their own section only.

    python -m jax_noisy_anogan.config > docs/settings.md
"""

# No `from __future__ import annotations`: ml_collections reads the fields' types to parse
# `--config.section.field=value`, and refuses them as text.
import ast
import dataclasses
import json
import os
import re
import runpy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_noisy_anogan import settings
from jax_noisy_anogan.settings import ConfigError, refuse, setting

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
LAYOUTS = ("auto", "mvtec", "plain", "magnetic_tile", "pairs", "flat", "table")
# Settings that one layout alone reads.
_READ_BY = {"normal_dirs": "plain", "abnormal_dirs": "plain", "table": "table"}
FITS = ("stretch", "crop", "pad", "scale", "auto")
OBJECTIVES = ("equation_15", "equation_18", "wgan_gp")
PENALTIES = ("r1", "gp", "none")
PRIORS = ("uniform", "normal")
THRESHOLD_RULES = ("best_f1", "youden", "quantile")
SEARCH_OPTIMIZERS = ("adam", "sgd", "rmsprop", "adamax", "lion", "lbfgs")
REDUCTIONS = ("sum", "mean")
SCHEDULES = ("constant", "cosine")
STARTS = ("prior", "bank", "encoder")
MAPS = ("difference", "attribution", "dense", "memory")
# Of `config.json`. Runs of version 0.1 carry none, and call many settings otherwise.
FORMAT = 2
# Global minibatches where a larger one would not fit: 14, 6 and 3 in Karras et al. 2018, Appendix
# A.1, brought to what the groups of the minibatch standard deviation divide.
LARGE_MINIBATCHES = {"256": 16, "512": 8, "1024": 4}
# Beyond what any machine holds: a typing error gets a line that names its setting.
_LARGEST_WIDTH = 2**20
_LARGEST_BATCH = 2**20
_MOST_GENERATED = 4096
_RESOLUTIONS = tuple(str(2**k) for k in range(2, 11))


class FormatError(ConfigError):
    """The settings of a run are those of another version."""


@dataclass
class Caltech256Config:
    """Caltech-256 after Sabokrou et al. 2018: some categories are normal, clutter is abnormal."""

    categories: int = setting(1, "number N of normal categories", at_least=1)
    repeat: int = setting(0, "which random choice of the categories", at_least=0)
    images_per_category: int = setting(
        150, "only the first images of every category are used", at_least=2
    )
    held_out: bool = setting(
        False,
        "keep the tested normal images out of training; the published protocol tests the images "
        "that it trains on",
    )


@dataclass
class IrMnistConfig:
    """IR-MNIST: puzzles of 11 x 11 digits."""

    abnormal_digit: int = setting(
        3, "the digit that makes a puzzle abnormal", at_least=0, at_most=9
    )
    generated_images: int = setting(
        0,
        "number of normal puzzles to compose from MNIST; 0 reads the published files instead",
        at_least=0,
    )
    generated_abnormal_images: int = setting(
        0, "number of abnormal puzzles to compose from MNIST", at_least=0
    )
    seed: int = setting(0, "seed of the composed puzzles", at_least=0)


@dataclass
class SyntheticConfig:
    """Synthetic surfaces with small defects and exact masks."""

    texture: str = setting(
        "brushed", "what the surfaces look like", choices=("brushed", "fabric", "speckle")
    )
    images: int = setting(400, "number of flawless surfaces", at_least=1)
    abnormal_images: int = setting(200, "number of defective surfaces", at_least=0)
    side: int = setting(
        0,
        "side in pixels at which surfaces are made, before they are brought to the resolution that "
        "is prepared; 0 makes them at that resolution",
        at_least=16,
        at_most=8192,
        off=0,
    )
    seed: int = setting(0, "seed of the surfaces", at_least=0)


@dataclass
class DataConfig:
    """Which images, from where, and how they are divided."""

    name: str = setting("mnist5k", "the data set", choices=DATASETS)
    root: str = setting(
        "",
        "folder of the source files; `mnist5k` and `synthetic` need none, and `mnist` is then "
        "downloaded",
    )
    cache_dir: str = setting(
        "~/.cache/jax_noisy_anogan", "prepared records go into a folder of their own below it"
    )
    channels: int = setting(
        0,
        "colours of an image: 1 is grey, 3 is RGB; images of the other kind are converted; 0 takes "
        "what the files are, 3 where any of them shows a colour",
        choices=(0, 1, 3),
        remark="(1 is grey, 3 is RGB, 0 is as the files are)",
    )
    black_level: int = setting(0, "value of 16-bit images that becomes 0", at_least=0, below=65_535)
    white_level: int = setting(
        0,
        "value of 16-bit images that becomes 255; 0 takes the depth that the files use: 255, 1023, "
        "4095, 16383 or 65535",
        at_least=0,
        at_most=65_535,
    )
    fit: str = setting(
        "stretch",
        "how an image becomes square: stretched, its centre cropped, or padded with zeros; with "
        "`scale` it keeps its shape, at the scale of `scale`, and is worked on in tiles of the "
        "model's size; `auto` takes `scale` for an image folder whose images are far from square, "
        "or where `scale` is given, and `stretch` otherwise",
        choices=FITS,
    )
    scale: float = setting(
        0.0,
        "with `fit=scale`, pixels of an image, on a side, that become one pixel for the networks; "
        "0 takes what makes the shorter side of the median image two tiles, and at least 1",
        at_least=0.125,
        at_most=1024,
        off=0.0,
    )
    layout: str = setting(
        "auto",
        "of an image folder; `auto` finds out. In `pairs`, masks beside the images say which are "
        "abnormal; in `flat`, all images are normal; in `table`, the file `table` says",
        choices=LAYOUTS,
    )
    normal_dirs: str = setting(
        "", "of the plain layout: names of the folders of normal images, separated by commas"
    )
    abnormal_dirs: str = setting(
        "", "of the plain layout: names of the folders of abnormal images, separated by commas"
    )
    table: str = setting(
        "",
        "of an image folder: CSV file below `root` with the columns path,label and, where known, "
        "mask,group,split; paths are below `root` too",
    )
    group_pattern: str = setting(
        "",
        "of an image folder: a regular expression; images whose paths below `root` it matches with "
        "the same text (that of its first group, or all of it) show the same object and fall to "
        "the same part of the split",
    )
    on_bad_image: str = setting(
        "raise",
        "stop at the first unusable file, or skip it and list it in the report",
        choices=("raise", "skip"),
    )
    max_image_pixels: int = setting(
        100_000_000, "larger files are refused before they are decoded", at_least=16
    )
    local_contrast: float | None = setting(
        0.0,
        "if positive, every pixel is replaced by how far it lies from the mean of its "
        "neighbourhood, in deviations of that neighbourhood, which takes uneven light away; the "
        "value is the neighbourhood's Gaussian deviation as a share of the side; None takes "
        "1/16 where normal images differ in brightness by more than what they show, and else 0",
        at_least=0,
        at_most=0.5,
    )
    pixel_mean: float = setting(
        0.5,
        "networks see (pixel / 255 - `pixel_mean`) / `pixel_std`; the defaults give the paper's "
        "[-1, 1]",
        at_least=0,
        at_most=1,
    )
    pixel_std: float = setting(
        0.5,
        "textures of faint contrast need their own, which `python -m jax_noisy_anogan.describe` "
        "prints; 0 measures both values on the normal images",
        at_least=0.001,
        at_most=1,
        off=0,
    )
    tile_image_resolution: int = setting(
        0,
        "for tiled models, the images' own resolution, of which training shows random crops of the "
        "model's size; 0 trains on whole images",
        at_least=4,
        at_most=4096,
        power_of_two=True,
        off=0,
    )
    digit: int = setting(0, "the normal class of MNIST", at_least=0, at_most=9, remark="(a digit)")
    split_seed: int = setting(0, "seed of the random split", at_least=0)
    train_fraction: float = setting(
        0.7,
        "share of the normal images that trains, where no official part says so",
        above=0,
        below=1,
    )
    known_abnormal_fraction: float = setting(
        0.1, "share of every abnormal class that is known in training", at_least=0, below=1
    )
    known_abnormal_count: int = setting(
        0, "if positive, this many known abnormal images in all instead", at_least=0
    )
    known_abnormal_ratio: float = setting(
        0.0,
        "if positive, known abnormal images / all training images instead (gamma_l of Deep SAD, "
        "Ruff et al. 2020)",
        at_least=0,
        below=1,
    )
    known_abnormal_classes: tuple[str, ...] = setting(
        (), "names of the classes that known abnormal images come from; empty means all"
    )
    contamination: float = setting(
        0.0,
        "abnormal share hidden among the unlabelled training images (gamma_p of Deep SAD)",
        at_least=0,
        below=1,
    )
    validation_fraction: float = setting(
        0.15,
        "share of the training images, normal and known abnormal, that is held back to validate",
        above=0,
        below=1,
    )
    keep_together: float = setting(
        0.0,
        "of image folders and synthetic surfaces: images that correlate at least this much (local "
        "contrast at 32 x 32; 0.8 finds photographs of the same part) fall to the same part of the "
        "split, so that nothing is tested that was seen in training; 0 divides image by image",
        at_least=0,
        at_most=1,
    )
    max_validation_images: int = setting(
        0,
        "largest number of validation images, half normal and half abnormal; the others train; 0 "
        "sets no limit",
        at_least=0,
    )
    max_test_images: int = setting(
        0, "size of a balanced subsample of the test part; 0 keeps all", at_least=0
    )
    flip_horizontal: bool = setting(False, "show training images mirrored left to right, at random")
    flip_vertical: bool = setting(False, "show training images upside down, at random")
    quarter_turns: bool = setting(False, "turn training images by a random number of right angles")
    max_shift: float = setting(
        0.0,
        "largest random shift of training images, as a fraction of the side",
        at_least=0,
        below=1,
    )
    brightness: float = setting(
        0.0,
        "largest random change of training images' brightness, as a fraction of the full range",
        at_least=0,
        at_most=1,
    )
    paste_defects: float = setting(
        0.0,
        "share of the known abnormal training images or tiles with masks whose defect is shown on "
        "a random normal one instead, so that few known defects meet many backgrounds",
        at_least=0,
        at_most=1,
    )
    simulated_defects: float = setting(
        0.0,
        "share of the known abnormal images shown in training that are simulated: normal images "
        "with added scratches and spots, parts of other images, changed textures; 1 needs no known "
        "defect",
        at_least=0,
        at_most=1,
    )
    caltech256: Caltech256Config = field(default_factory=Caltech256Config)
    ir_mnist: IrMnistConfig = field(default_factory=IrMnistConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass
class NetworkConfig:
    """Widths of both networks; Karras et al. 2018, Table 2, at the defaults."""

    fmap_base: int = setting(
        8192,
        "a layer at resolution r has 2 `fmap_base` / r channels",
        at_least=8,
        at_most=_LARGEST_WIDTH,
    )
    fmap_max: int = setting(512, "most channels of a layer", at_least=1, at_most=_LARGEST_WIDTH)
    latent_size: int = setting(
        512, "number of components of a latent z", at_least=1, at_most=_LARGEST_WIDTH
    )
    prior: str = setting(
        "uniform",
        "distribution p_z of latents: uniform on [-1, 1] or normal, then scaled to a sphere",
        choices=PRIORS,
    )
    stddev_group: int = setting(
        4,
        "images per group of the minibatch standard deviation",
        at_least=1,
        at_most=_LARGEST_WIDTH,
    )
    compute_dtype: str = setting(
        "float32", "precision of the layers' arithmetic", choices=("float32", "bfloat16")
    )
    dense: bool = setting(
        False,
        "D judges every pixel beside the whole image, by a decoder of its own features; with "
        "masks, or with `data.simulated_defects`, it learns where defects are",
    )


@dataclass
class GrowthConfig:
    """Progressive growing, in images shown to the discriminator, and the memory that it takes."""

    start_resolution: int = setting(
        4, "resolution of the first phase", at_least=4, at_most=1024, power_of_two=True
    )
    resolution: int = setting(
        32, "resolution of the model", at_least=4, at_most=1024, power_of_two=True
    )
    stable_images: int = setting(
        600_000, "images of the phase after every fade but the last", at_least=1
    )
    fade_images: int = setting(600_000, "images over which new layers are brought in", at_least=1)
    final_images: int = setting(
        600_000,
        "images of the last phase; 0 chooses all three lengths so that training takes about "
        "`train.minutes`",
        at_least=1,
        off=0,
    )
    minibatch_default: int = setting(
        16, "global minibatch below 256 x 256", at_least=1, at_most=_LARGEST_BATCH
    )
    minibatch: dict[str, int] = setting(
        {},
        "global minibatch at single resolutions, as in `{'512': 4}`; without an entry it is "
        "`minibatch_default`, and 16 at 256, 8 at 512 and 4 at 1024 (Karras et al. 2018)",
        at_least=1,
        at_most=_LARGEST_BATCH,
        keys=_RESOLUTIONS,
    )
    microbatch: dict[str, int] = setting(
        {},
        "accumulates gradients: images of a device's minibatch that pass through a network at "
        "once, at single resolutions, for a third more arithmetic; without an entry all of them; "
        "the update is the same",
        at_least=1,
        at_most=_LARGEST_BATCH,
        keys=_RESOLUTIONS,
    )
    rematerialize_from: int = setting(
        0,
        "networks of this resolution and above compute each block again in the backward pass (of "
        "training and of the search) instead of keeping it; 0 never does",
        at_least=4,
        at_most=1024,
        power_of_two=True,
        off=0,
    )


@dataclass
class LossConfig:
    """The paper's objective."""

    gamma: float = setting(
        0.1,
        "weight of generated images beside 1 - gamma of known abnormal ones (Eq. 15); 1 is plain "
        "AnoGAN",
        above=0.0,
        at_most=1.0,
    )
    objective: str = setting(
        "equation_15",
        "the paper's formula, taken literally (`equation_15`), the balanced one that its "
        "derivation needs (`equation_18`), or a balanced Wasserstein critic after Karras et al. "
        "2018 (`wgan_gp`)",
        choices=OBJECTIVES,
        remark="(the balanced form: with the weights of Eq. 15, adding c to a Wasserstein critic "
        "lowers its loss by (1 - gamma) c, without bound)",
    )
    penalty: str = setting(
        "r1",
        "on D's gradient at real images (`r1`), or between real and generated ones (`gp`)",
        choices=PENALTIES,
    )
    penalty_weight: float | None = setting(
        None,
        "weight of the penalty; R1 is weighed by `gamma` besides; without a value 10 with "
        "`wgan_gp` (Karras et al. 2018), and 1 with the others",
        at_least=0.0,
    )
    penalty_interval: int = setting(
        1, "the penalty looks at one group of images in this many", at_least=1
    )
    drift_weight: float = setting(
        0.001,
        "weight of the square of a Wasserstein critic's output (Karras et al. 2018, Appendix A.1)",
        at_least=0.0,
    )
    dense_weight: float = setting(
        1.0, "weight of D's loss per pixel (`network.dense`) beside that per image", at_least=0.0
    )
    abnormal_statistic: str = setting(
        "own",
        "minibatch standard deviation that D judges known abnormal images with: `own`, of their "
        "own groups, or `real`, that of the normal images beside them, as every image is judged "
        "when it is scored; with `own` D may learn to know groups of abnormal images by their "
        "spread, and then knows a single one less well",
        choices=("own", "real"),
    )

    reconstruction_weight: float = setting(
        0.0,
        "weight, in G's objective, of the mean \\|x - G(E(x))\\| over normal training images and "
        "their pixels, so that G learns to draw what it is shown (needs `train.encoder`); 0 is the "
        "paper",
        at_least=0.0,
    )

    @property
    def weight_of_penalty(self) -> float:
        """`penalty_weight`, or what the objective asks for."""
        if self.penalty_weight is not None:
            return self.penalty_weight
        return 10.0 if self.objective == "wgan_gp" else 1.0


@dataclass
class OptimConfig:
    """Adam on both networks, and the averaged copies that scores are made with."""

    learning_rate: float = setting(0.001, "Adam step size of G", above=0.0, at_most=1.0)
    discriminator_rate: float = setting(
        1.0,
        "learning rate of D over that of G (two time-scale rule, Heusel et al. 2017)",
        above=0.0,
        at_most=100.0,
    )
    decay_images: int = setting(
        0,
        "over this many images at the end both rates fall along half a cosine to 0; 0 keeps them, "
        "as the paper does; at most the last phase",
        at_least=0,
    )
    b1: float = setting(0.0, "Adam's decay of the mean gradient", at_least=0, below=1)
    b2: float = setting(0.99, "Adam's decay of the mean squared gradient", at_least=0, below=1)
    eps: float = setting(
        1e-8, "Adam's epsilon, added to the root of the mean square", above=0.0, at_most=1.0
    )
    ema_half_life_images: float = setting(
        10_000.0, "half-life of the averaged copies, in images", at_least=0.0
    )


@dataclass
class SearchConfig:
    """Latent search, Algorithm 1 of the paper (lambda = 0.1, n = 500), and shortcuts to its end."""

    steps: int = setting(500, "steps n of Algorithm 1", at_least=0, at_most=10**6)
    optimizer: str = setting("adam", "what moves a latent", choices=SEARCH_OPTIMIZERS)
    learning_rate: float = setting(0.1, "of the first step", above=0.0, at_most=100.0)
    schedule: str = setting(
        "constant",
        "what becomes of the learning rate: `constant` (the paper), or `cosine`, which decays to 0 "
        "at the last step, for short searches",
        choices=SCHEDULES,
    )
    start: str = setting(
        "prior",
        "where the search of an image begins: at a latent of p_z, the same for every image, as in "
        "the paper (`prior`), at the nearest of `bank_images` generated images (`bank`), or at "
        "the latent that the encoder of `train.encoder` gives (`encoder`); further restarts begin "
        "at the next ones of the bank, or at latents of p_z",
        choices=STARTS,
    )
    bank_images: int = setting(4096, "generated images of the bank", at_least=1)
    restarts: int = setting(
        1, "searches per image, of which the best counts", at_least=1, at_most=_LARGEST_BATCH
    )
    tiles: int = setting(
        0,
        "of tiled models, how many tiles of an image are searched: those whose L' is largest where "
        "the search begins; the others stay there; 0 searches all",
        at_least=0,
        remark="tiles",
    )
    feature_weight: float = setting(
        0.1,
        "lambda of Eq. 4, weight of the feature term",
        at_least=0,
        at_most=1,
        remark="(lambda of Eq. 4)",
    )
    feature_resolution: int = setting(
        4,
        "resolution of D's features f(x) of Eq. 3; 1 is the layer that its logit is made of, "
        "behind the minibatch standard deviation, whose stored value every image is then judged "
        "with",
        choices=(1, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    )
    feature_scale: float = setting(
        1.0,
        "unit of the features f(x) of Eq. 3, which the paper leaves open: they are multiplied by "
        "it, and so is the feature term",
        above=0,
    )
    reduction: str = setting(
        "sum",
        "whether the terms of Eq. 2 and 3 are sums over pixels and features, or means",
        choices=REDUCTIONS,
    )
    batch_size: int = setting(
        8,
        "images (tiles of tiled models) that a device searches at once, rounded up to a multiple "
        "of eight from two on: one to 64 take about as long per image on a CPU, accelerators want "
        "more; a score depends on it, after a long search by up to some per cent, so that "
        "evaluation, scoring of files, API and export of a run keep to it",
        at_least=1,
        at_most=_LARGEST_BATCH,
    )
    record_curve: bool = setting(False, "keep the terms of every step, in `curve.csv`")


@dataclass
class ScoreConfig:
    """From search results to decisions and maps."""

    threshold_rule: str = setting(
        "best_f1",
        "which threshold of the validation images decides: `best_f1` or `youden` (both need two "
        "known abnormal validation images; without them `quantile` is used), or `quantile`",
        choices=THRESHOLD_RULES,
    )
    false_positive_rate: float = setting(
        0.05,
        "share of further normal images that the `quantile` threshold is to flag at most",
        above=0,
        below=1,
    )
    map: str = setting(
        "difference",
        "what anomaly maps are made of: `difference`, \\|x - G(z)\\| (the paper), `attribution`, "
        "that difference weighed by what it does to D's logit: finer where D knows defects, or "
        "`dense`, D's own logit of every pixel (`network.dense`), or `memory`, the distance to the "
        "nearest normal patch (`score.memory`)",
        choices=MAPS,
    )
    memory: bool = setting(
        False,
        "whether a memory of patches of normal training images, and of their principal components, "
        "is kept and compared with: gives the terms `memory`, `memory_sum` and `components`",
    )
    average_flips: bool = setting(
        False,
        "whether D's term and its maps are means over the flips of an image that training "
        "showed (`data.flip_horizontal`, `data.flip_vertical`), at two or four times their cost; "
        "the search sees the image as it is",
    )
    map_sigma: float = setting(
        1.0,
        "smoothing of anomaly maps, in pixels of the scored image",
        at_least=0,
        at_most=256,
        remark="pixels",
    )
    tile_overlap: float = setting(
        0.25,
        "for tiled models, overlap of neighbouring tiles as a share of their side",
        at_least=0,
        at_most=0.75,
    )
    yardsticks: bool = setting(
        True,
        "whether `evaluate` and `test` also measure, on the same images of a folder, what "
        "brightness, principal components, nearest patches and a classifier of known patches reach",
    )


@dataclass
class TrainConfig:
    """How a run proceeds: seeds, checkpoints, logging."""

    seed: int = setting(0, "seed of networks, latents and the order of images", at_least=0)
    minutes: float = setting(
        30.0,
        "time that training may take on this machine, where `growth.final_images` is 0",
        above=0,
        at_most=100_000,
    )
    encoder: bool = setting(
        False,
        "train an encoder of images to latents along with G and D, by the loss of the search on "
        "normal and generated images, for `search.start` and `loss.reconstruction_weight`",
    )
    checkpoint_every_images: int = setting(50_000, "images between two checkpoints", at_least=1)
    keep_checkpoints: int = setting(2, "number of checkpoints that are kept", at_least=1)
    log_every_steps: int = setting(50, "steps between two rows of `metrics.jsonl`", at_least=1)
    sample_images: int = setting(
        64,
        "generated images in the grid that is saved at the end of every phase",
        at_least=1,
        at_most=_MOST_GENERATED,
    )
    writers: tuple[str, ...] = setting(
        (),
        "where training curves and sample pictures go beside `metrics.jsonl` and `samples/`; each "
        "needs the extra of its name, and tensorboard the extra `logging`",
        choices=("tensorboard", "wandb", "mlflow"),
    )
    compilation_cache_dir: str = setting(
        "",
        "keeps compiled programs between runs; empty keeps none; programs in it are trusted: never "
        "share a folder that others can write to",
    )


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
    usual = LARGE_MINIBATCHES.get(str(resolution), growth.minibatch_default)
    return growth.minibatch.get(str(resolution), usual)


def validate(config: Config) -> Config:
    """Check the type and range of every setting and every combination.

    Returns:
      The config, in which settings that follow others (`loss.penalty_weight`) have their values.

    Raises:
      ConfigError: names the first setting that is wrong, its value and what was expected.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"the config file returned {type(config).__name__}: expected jax_noisy_anogan.config."
            "Config (configs/toy2d.py belongs to `reproduce figure3`)"
        )
    settings.check(config)
    _check_data(config.data)
    _check_resolutions(config)
    _check_minibatches(config)
    _check_loss(config)
    _check_dense(config)
    _check_memory(config)
    _check_search(config)
    if config.score.average_flips and not (
        config.data.flip_horizontal or config.data.flip_vertical
    ):
        refuse(
            "score.average_flips",
            True,
            "False without data.flip_horizontal or flip_vertical: D knows only what training shows",
        )
    return resolved(config)


def resolved(config: Config) -> Config:
    """The config with the values of settings that follow others, and tuples where lists stand."""
    # A config file may hold a list, and `config.json` holds nothing else.
    tuples = {k: tuple(v) for k, v in settings.values(config).items() if isinstance(v, list)}
    weight = config.loss.weight_of_penalty
    return settings.replaced(config, {"loss.penalty_weight": weight, **tuples})


def _check_data(data: DataConfig) -> None:
    if data.white_level and data.white_level <= data.black_level:
        refuse("data.white_level", data.white_level, "0, or above data.black_level")
    if data.layout == "table" and not data.table:
        refuse("data.table", data.table, "a CSV file for the layout table")
    for name, layout in _READ_BY.items():
        if (given := getattr(data, name)) and data.layout not in ("auto", layout):
            refuse(
                f"data.{name}", given, f'"" with data.layout={data.layout}, which does not read it'
            )
    if data.table and (data.normal_dirs or data.abnormal_dirs):
        refuse("data.table", data.table, '"" with data.normal_dirs or data.abnormal_dirs')
    if data.scale and (data.fit not in ("scale", "auto") or data.name != "image_folder"):
        expected = f"0 with data.fit={data.fit} of {data.name}, whose images become squares"
        refuse("data.scale", data.scale, expected)
    if data.fit == "scale" and data.name != "image_folder":
        refuse("data.fit", data.fit, f"stretch, crop or pad with {data.name}")
    if data.fit in ("scale", "auto") and data.tile_image_resolution:
        refuse(
            "data.tile_image_resolution",
            data.tile_image_resolution,
            f"0 with data.fit={data.fit}, whose pictures are as large as data.scale says",
        )
    try:
        re.compile(data.group_pattern)
    except (re.error, RecursionError, OverflowError) as error:
        refuse("data.group_pattern", data.group_pattern, f"a regular expression ({error})")
    if data.keep_together and data.name in PUBLISHED_SPLITS:
        refuse(
            "data.keep_together", data.keep_together, f"0 with {data.name}, whose split is fixed"
        )
    if data.known_abnormal_count and data.known_abnormal_ratio:
        refuse(
            "data.known_abnormal_ratio", data.known_abnormal_ratio, "0 with a known_abnormal_count"
        )
    if data.ir_mnist.generated_abnormal_images and not data.ir_mnist.generated_images:
        refuse(
            "data.ir_mnist.generated_images", 0, "at least 1 when abnormal puzzles are generated"
        )
    content = {
        "caltech256": "256_ObjectCategories",
        "image_folder": "the images, in one of the layouts of config.data.layout",
    }
    if not data.ir_mnist.generated_images:
        content["ir_mnist"] = "train_mnist and test_mnist_matrix"
    if not data.root and data.name in content:
        refuse("data.root", data.root, f"the folder that holds {content[data.name]}")


def _check_resolutions(config: Config) -> None:
    growth, network = config.growth, config.network
    if growth.start_resolution > growth.resolution:
        refuse(
            "growth.start_resolution",
            growth.start_resolution,
            f"at most growth.resolution ({growth.resolution})",
        )
    if network.fmap_base >> (growth.resolution.bit_length() - 2) < 1:
        refuse(
            "network.fmap_base",
            network.fmap_base,
            f"at least {growth.resolution // 2}, so that resolution {growth.resolution} keeps one "
            "channel",
        )
    if config.search.feature_resolution > growth.resolution:
        refuse(
            "search.feature_resolution",
            config.search.feature_resolution,
            f"1, or a power of two from 4 to {growth.resolution}",
        )


def _check_minibatches(config: Config) -> None:
    resolution = config.growth.start_resolution
    while resolution <= config.growth.resolution:
        batch, group = minibatch_at(config.growth, resolution), config.network.stddev_group
        if batch > group and batch % group:
            refuse(
                f"growth.minibatch[{resolution}]",
                batch,
                f"a multiple of network.stddev_group ({group}), or less than it",
            )
        resolution *= 2


def _check_loss(config: Config) -> None:
    loss, data = config.loss, config.data
    if loss.reconstruction_weight and not config.train.encoder:
        refuse(
            "loss.reconstruction_weight",
            loss.reconstruction_weight,
            "0, or train.encoder set to true: without an encoder nothing is reconstructed",
        )
    if loss.objective == "wgan_gp" and loss.penalty != "gp":
        refuse("loss.penalty", loss.penalty, "gp with wgan_gp: nothing else bounds its critic")
    known = data.known_abnormal_count or data.known_abnormal_ratio or data.known_abnormal_fraction
    if loss.gamma < 1.0 and not known and data.simulated_defects < 1.0:
        refuse(
            "loss.gamma",
            loss.gamma,
            "1.0 when data.known_abnormal_fraction is 0 and data.simulated_defects below 1: "
            "without abnormal images Eq. 17 has nothing to average",
        )


def _check_dense(config: Config) -> None:
    if config.network.dense and config.loss.objective == "wgan_gp":
        refuse("network.dense", True, "False with wgan_gp, whose critic has no loss per pixel")
    if config.score.map == "dense" and not config.network.dense:
        refuse("score.map", "dense", "another map without network.dense")


def _check_memory(config: Config) -> None:
    if config.score.map == "memory" and not config.score.memory:
        refuse("score.map", "memory", "another map without score.memory")


def _check_search(config: Config) -> None:
    search = config.search
    if search.schedule != "constant" and search.optimizer == "lbfgs":
        refuse("search.schedule", search.schedule, "constant with lbfgs, which has no step rate")
    if search.start == "encoder" and not config.train.encoder:
        refuse("search.start", search.start, "prior or bank, or train.encoder set to true")
    if search.tiles and (search.start == "prior" or search.record_curve):
        refuse(
            "search.tiles",
            search.tiles,
            "0 without a start of each image's own (search.start=encoder or bank), and 0 with "
            "search.record_curve",
        )
    if search.bank_images < search.restarts:
        refuse("search.bank_images", search.bank_images, f"at least {search.restarts}")


# What `--config FILE.py:NAME` changes of every config file.
_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "smoke": {
        "data.max_test_images": 40,
        "data.synthetic.images": 60,
        "data.synthetic.abnormal_images": 40,
        "network.fmap_base": 64,
        "network.fmap_max": 16,
        "network.latent_size": 16,
        "growth.start_resolution": 8,
        "growth.stable_images": 320,
        "growth.fade_images": 320,
        "growth.final_images": 640,
        "search.steps": 10,
        "search.start": "prior",
        "search.tiles": 0,
        "train.encoder": False,
        "search.batch_size": 20,
        "train.checkpoint_every_images": 640,
        "train.sample_images": 16,
    },
    "quick": {
        "data.max_validation_images": 100,
        "data.max_test_images": 200,
        "network.fmap_base": 128,
        "network.fmap_max": 32,
        "network.latent_size": 64,
        "growth.start_resolution": 8,
        "growth.stable_images": 1_500,
        "growth.fade_images": 1_500,
        "growth.final_images": 7_000,
        "growth.minibatch_default": 8,  # with 16, G generated no digits yet after so few updates
        "optim.ema_half_life_images": 2_000.0,
        # As in the paper, but for the number of steps: no shortcut of a config file.
        "search.steps": 40,
        "search.learning_rate": 0.1,
        "search.schedule": "constant",
        "search.start": "prior",
        "search.tiles": 0,
        "train.encoder": False,
        "train.checkpoint_every_images": 20_000,
        "train.sample_images": 16,
    },
    "night": {
        "data.max_validation_images": 400,
        "data.max_test_images": 4_000,
        "network.fmap_base": 128,
        "network.fmap_max": 32,
        "network.latent_size": 64,
        "growth.start_resolution": 8,
        "growth.stable_images": 12_000,
        "growth.fade_images": 8_000,
        "growth.final_images": 20_000,
        # On validation images of digit 8 L' has 0.890 with it, 0.887 with half of it.
        "optim.learning_rate": 0.002,
        "optim.ema_half_life_images": 5_000.0,
        # As good as the paper's 500 steps, docs/search.md.
        "search.start": "encoder",
        "search.schedule": "cosine",
        "search.learning_rate": 0.05,
        "search.steps": 10,
        "train.encoder": True,
        "train.checkpoint_every_images": 60_000,
        "train.sample_images": 16,
    },
}


def variant(config: Config, name: str) -> Config:
    """The variant of a config file that `--config FILE.py:name` asks for.

    All are narrow networks, up to 16 x 16 pixels, or 32 x 32 at "night". "smoke" runs the whole
    path in about a minute on two cores, on a few hundred images. "quick" trains for about a minute
    on one core, so that figures mean something, and "night" for minutes: the runs of `reproduce
    --size quick` and `--size night`.

    Raises:
      ConfigError: there is no such variant.
    """
    if name not in _VARIANTS:
        expected = ", ".join(f":{known}" for known in _VARIANTS if known)
        raise ConfigError(f"--config has the variant {name!r}: expected none, {expected}")
    if not name:
        return config
    side = 32 if name == "night" else 16
    resolution, tiled = min(config.growth.resolution, side), config.data.tile_image_resolution
    small = {
        "growth.resolution": resolution,
        "data.tile_image_resolution": 4 * resolution if tiled else 0,
    }
    return settings.replaced(config, small | _VARIANTS[name])


def find(name: str) -> str:
    """The path of a config: `name` itself, or the file of that name that the package brings.

    A variant (`:smoke`) stays where it is.
    """
    file, colon, variant = name.partition(":")
    # Unlike a `Path`, `isfile` answers for a name of any length.
    if not file or "/" in file or os.path.isfile(file):
        return name
    known = packaged(file.removesuffix(".py"))
    return f"{known}{colon}{variant}" if os.path.isfile(known) else name


def packaged(name: str) -> Path:
    """Where the package has its config of this name, if it has one."""
    package = Path(__file__).parent
    # A wheel holds the folder inside the package, a checkout beside it.
    inside = package / "configs"
    return (inside if inside.is_dir() else package.parent / "configs") / f"{name}.py"


def read_file(path: str) -> Any:
    """The config of a file, which is Python and runs; with a variant, as in `FILE.py:smoke`.

    Raises:
      ConfigError: the file cannot be read.
    """
    # Folders may have a colon in their names.
    stem, colon, variant = path.rpartition(".py:")
    file = f"{stem}.py" if colon else path
    try:
        return runpy.run_path(file)["get_config"](variant if colon else "")
    except OSError as error:
        raise ConfigError(f"{file} is no file that can be read") from error


def changed(config: Config, changes: Sequence[str], *, flag: str = "--set") -> Config:
    """A validated copy of `config` with `section.field=value` settings replaced.

    Args:
      flag: where the user wrote them.

    Raises:
      ConfigError: not of that form, an unknown setting, or a wrong value.
    """
    before, values = settings.values(config), {}
    for change in changes:
        name, equals, text = change.removeprefix("config.").partition("=")
        if not equals or name not in before:
            shown = " ".join(change.split())[:200]
            raise ConfigError(
                f"{flag} {shown}: expected section.field=value, as search.steps=500; "
                "`python -m jax_noisy_anogan.config` lists them"
            )
        # The flags of `train` take `true` as well as Python's own word.
        if isinstance(before[name], bool) and text in ("true", "false"):
            text = text.title()
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text
        # Names of folders may look like numbers.
        if isinstance(before[name], str) and not isinstance(value, str):
            value = text
        values[name] = value
    return validate(settings.replaced(config, values))


def differences(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """Settings, by their names with dots, that differ, with both values."""
    a, b = settings.values(resolved(ours)), settings.values(resolved(theirs))
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def to_json(config: Config) -> str:
    """The config as indented JSON, as written to `config.json` of a run."""
    values = {"format": FORMAT, **dataclasses.asdict(resolved(config))}
    # A config file may compute a setting with NumPy.
    return json.dumps(values, indent=2, default=lambda value: value.item()) + "\n"


def from_json(text: str) -> Config:
    """Rebuild and validate a config from `to_json`'s text.

    Raises:
      ConfigError: the text is not JSON, of another format, or a setting is unknown or wrong.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # too many digits or brackets are no decode error
        raise ConfigError(f"not a JSON config: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config is {type(values).__name__}: expected an object with fields")
    found = values.pop("format", None)
    if found is None and "data" in values:
        raise FormatError(
            "config.json is of version 0.1, whose settings had other names: train again with this "
            "version into another folder, or use version 0.1 for this run"
        )
    if found != FORMAT:
        shown = " ".join(repr(found).split())[:40]
        raise FormatError(
            f"config.format is {shown}: expected {FORMAT}, the format of this version"
        )
    return validate(settings.build(Config, values, "config"))


def load(workdir: Path) -> Config:
    """The config of the run in `workdir`.

    Raises:
      ConfigError: `workdir` holds no readable `config.json`.
    """
    path = workdir / "config.json"
    try:
        return from_json(path.read_text(errors="replace"))
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): --workdir must name the folder of a run"
        ) from error


def main() -> None:
    """Print `docs/settings.md`."""
    print(
        "# Settings\n\n"
        "Written by `python -m jax_noisy_anogan.config`; the settings themselves are stated in "
        "`jax_noisy_anogan/config.py`.\n\n"
        "A command that reads a config file takes a setting as `--config.loss.gamma=0.5`; one that "
        "works on a finished run takes `--set`, as `evaluate --set search.steps=100`.\n"
    )
    for item in dataclasses.fields(Config):
        print(settings.document(type(getattr(Config(), item.name)), item.name))


if __name__ == "__main__":
    main()
