"""Figure 3 of the paper on 2-D data; `reproduction.figure3` is its command.

The images' losses (`losses.py`) train small networks on a ring of Gaussians, one of which is
abnormal and hides among the normal training data. Here p_d, p_an and the optimum p_g* of Eq. 23 are
known, so that "the anomalies are subtracted from what G can draw" can be counted.
"""

# No `from __future__ import annotations`: ml_collections reads the fields' types, as in `config`.
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.colors import LinearSegmentedColormap

from jax_noisy_anogan import losses
from jax_noisy_anogan.config import PRIORS, Config, OptimConfig, validate
from jax_noisy_anogan.networks import NetworkParams, Params, sample_latents
from jax_noisy_anogan.networks.mlp import Mlp
from jax_noisy_anogan.settings import ConfigError, _at_least, _between, _check_types, _fail, _one_of
from jax_noisy_anogan.training.state import ema_decay_for, make_optimizer

# A Wasserstein critic has no D in [0, 1], and this figure no need of one.
OBJECTIVES = ("equation_15", "equation_18")
# A point belongs to the nearest mode if it lies within this many standard deviations.
MODE_RADIUS = 3.0
# A mode counts as drawn if it gets at least this share of what p_g* gives it.
COVERED = 0.5
# What "subtracted" means: the abnormal share relative to that of plain AnoGAN (gamma = 1).
SUBTRACTED = 0.1

_GRID = 160  # cells along a side of the pictures' grids
_SHOWN = 1200  # points in a panel
_SHOWN_KNOWN = 25
_NORMAL, _ABNORMAL, _OUTSIDE = "#1f5fa8", "#d1352b", "#8a8a8a"
_D_COLORS = LinearSegmentedColormap.from_list("d", ["#f6c9bd", "#fdfdfb", "#bcdcc9"])

Points = Float[np.ndarray, "points 2"]


@dataclass
class ToyConfig:
    """The 2-D experiment.

    Attributes:
      modes: Gaussians on the ring, one of them abnormal.
      radius, mode_std: of the ring, and of every Gaussian.
      contamination: share of the abnormal mode in the "normal" training data.
      gammas: weights of Eq. 15, each trained; 1 (plain AnoGAN) must be among them.
      seeds: independent trainings of each gamma and objective, `seed`, `seed + 1`, ...
      batch_size: points of each kind (normal, drawn, known abnormal) in a step.
      width, depth: hidden layers of both networks.
      penalty_weight: of R1. `equation_15` weights the real term by gamma, so a penalty weighs
        1 / gamma times as much there: at 0.02 and gamma = 0.1 it lost two normal modes of seven.
      samples: points drawn from each trained generator to measure it.
    """

    modes: int = 8
    radius: float = 2.0
    mode_std: float = 0.2
    contamination: float = 0.15
    gammas: tuple[float, ...] = (1.0, 0.5, 0.1)
    objectives: tuple[str, ...] = OBJECTIVES
    seeds: int = 3
    seed: int = 0
    steps: int = 3000
    batch_size: int = 256
    width: int = 64
    depth: int = 3
    latent_size: int = 3
    prior: str = "uniform"
    penalty_weight: float = 0.005
    samples: int = 20_000
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(ema_half_life_images=50_000.0))


class Mixture(NamedTuple):
    """Gaussians of equal width; the last one is the abnormal mode.

    Attributes:
      weights: of each mode in p_d, the contaminated "normal" data.
    """

    centers: Float[np.ndarray, "modes 2"]
    weights: Float[np.ndarray, " modes"]
    std: float


class Row(NamedTuple):
    """What the generators of one objective and gamma draw, and what p_g* would.

    Attributes:
      abnormal, abnormal_std: share of the drawn points on the abnormal mode, over seeds.
      optimum: the same share of p_g*.
      ratio: `abnormal` relative to gamma = 1; None if nothing is drawn there at gamma = 1.
      normal, outside: share on all normal modes together, and on no mode.
      weakest, weakest_std: the least drawn normal mode relative to its share of p_g*.
      covered: normal modes with at least `COVERED` of that share, in the worst seed.
      distance: total variation between the shares and those of p_g*.
      shares: of every mode, the abnormal one last, and of the outside.
      subtracted: `ratio` is at most `SUBTRACTED` and every normal mode is covered; None at
        gamma = 1.
    """

    objective: str
    gamma: float
    abnormal: float
    abnormal_std: float
    optimum: float
    ratio: float | None
    normal: float
    outside: float
    weakest: float
    weakest_std: float
    covered: int
    distance: float
    shares: list[float]
    subtracted: bool | None


def validate_toy(config: Any) -> ToyConfig:
    """Check every field, as `config.validate` does for images.

    Raises:
      ConfigError: names the first field that is wrong, its value and what was expected.
    """
    if not isinstance(config, ToyConfig):
        raise ConfigError(
            f"the config file returned {type(config).__name__}: expected "
            "jax_noisy_anogan.reproduction.ring.ToyConfig, as configs/toy2d.py does"
        )
    _check_types(config)
    for name, low in (
        ("modes", 3),
        ("seeds", 1),
        ("seed", 0),
        ("steps", 1),
        ("batch_size", 2),
        ("width", 1),
        ("depth", 1),
        ("latent_size", 2),
        ("penalty_weight", 0.0),
        ("samples", 100),
    ):
        _at_least(name, getattr(config, name), low)
    if config.seed + config.seeds >= 2**31:
        _fail("seed", config.seed, "below 2**31")
    if not 0.0 < config.contamination < 1.0:
        _fail("contamination", config.contamination, "above 0 and below 1")
    _between("radius", config.radius, 0.0, 100.0)
    # Half the distance of neighbours: the circles in which points are counted must not overlap.
    widest = config.radius * np.sin(np.pi / config.modes) / MODE_RADIUS
    if not 0.0 < config.mode_std <= widest:
        _fail("mode_std", config.mode_std, f"above 0 and at most {widest:.3g}, so that modes part")
    for gamma in config.gammas:
        _between("gammas", gamma, 0.0, 1.0)
    if 1.0 not in config.gammas:
        _fail("gammas", config.gammas, "1.0 among them, which the others are compared with")
    for name in ("gammas", "objectives"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            _fail(name, values, "at least one value, each once")
    for objective in config.objectives:
        _one_of("objectives", objective, OBJECTIVES)
    _one_of("prior", config.prior, PRIORS)
    validate(Config(optim=config.optim))
    return config


# ---------------------------------------------------------------------------------------------
# Distributions
# ---------------------------------------------------------------------------------------------


def make_mixture(config: ToyConfig) -> Mixture:
    """p_d: a ring of modes, of which the last is abnormal and the others share the rest evenly."""
    angle = 2.0 * np.pi * np.arange(1, config.modes + 1) / config.modes
    centers = config.radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    weights = np.full(config.modes, (1.0 - config.contamination) / (config.modes - 1))
    weights[-1] = config.contamination
    return Mixture(centers, weights, config.mode_std)


def mode_densities(points: Points, mixture: Mixture) -> Float[np.ndarray, "points modes"]:
    """Density of every mode (of weight 1) at every point; the last column is p_an."""
    square = np.square(points[:, None] - mixture.centers).sum(axis=2) / mixture.std**2
    return np.exp(-0.5 * square) / (2.0 * np.pi * mixture.std**2)


def optimal_density(
    p_d: Float[np.ndarray, " points"],
    p_an: Float[np.ndarray, " points"],
    gamma: float,
    cell: float,
) -> Float[np.ndarray, " points"]:
    """p_g* of Eq. 23, clipped at zero where it asks for negative mass and scaled to mass 1.

    p_g* = max(0, c p_d - (1 - gamma) / gamma p_an), with c such that p_g* integrates to 1. Where
    nothing is clipped c = 1 / gamma, which is Eq. 23. The scale belongs inside: D* is constant
    wherever p_g* > 0 only if p_N is proportional to p_d there, and that is what leaves G nothing to
    gain. The condition is the same for `equation_15`, whose weight of p_d is absorbed by c; its D*
    differs, its p_g* does not.

    Args:
      p_d, p_an: densities at the points of a grid that holds nearly all of their mass.
      cell: area of a grid cell.
    """
    removed = (1.0 - gamma) / gamma * p_an
    low, high = 0.0, 1.0 / gamma / (p_d.sum() * cell) + removed.sum() * cell
    for _ in range(100):
        c = 0.5 * (low + high)
        mass = np.maximum(0.0, c * p_d - removed).sum() * cell
        low, high = (c, high) if mass < 1.0 else (low, c)
    return np.maximum(0.0, c * p_d - removed)


def make_grid(mixture: Mixture, side: int) -> tuple[Points, float]:
    """Cell centres of a square grid around the ring, row by row, and the area of a cell."""
    reach = np.abs(mixture.centers).max() + 5.0 * mixture.std
    edges = np.linspace(-reach, reach, side + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    x, y = np.meshgrid(middle, middle)
    return np.stack([x.ravel(), y.ravel()], axis=1), float(edges[1] - edges[0]) ** 2


def optimal_mass(
    mixture: Mixture, gamma: float, side: int
) -> tuple[Points, Float[np.ndarray, " points"]]:
    """The points of `make_grid` and the mass of p_g* in each cell."""
    points, cell = make_grid(mixture, side)
    densities = mode_densities(points, mixture)
    p_d, p_an = densities @ mixture.weights, densities[:, -1]
    return points, cell * optimal_density(p_d, p_an, gamma, cell)


def nearest_modes(points: Points, mixture: Mixture) -> Int[np.ndarray, " points"]:
    """Index of every point's mode; `len(centers)` for points outside of all."""
    distance = np.linalg.norm(points[:, None] - mixture.centers, axis=2)
    nearest = distance.argmin(axis=1)
    inside = distance.min(axis=1) <= MODE_RADIUS * mixture.std
    return np.where(inside, nearest, len(mixture.centers))


def mode_shares(
    points: Points, mixture: Mixture, mass: Float[np.ndarray, " points"] | None = None
) -> Float[np.ndarray, " modes+1"]:
    """Share of the points, or of their `mass`, on each mode; the last entry is outside of all."""
    return np.bincount(
        nearest_modes(points, mixture),
        weights=np.full(len(points), 1.0 / len(points)) if mass is None else mass,
        minlength=len(mixture.centers) + 1,
    )


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


def make_networks(config: ToyConfig) -> tuple[Mlp, Mlp]:
    """Generator and discriminator."""
    return Mlp(2, config.width, config.depth), Mlp(1, config.width, config.depth)


def draw(
    config: ToyConfig, params: Params, key: PRNGKeyArray, count: int
) -> Float[Array, "count 2"]:
    """`count` points G(z)."""
    z = sample_latents(key, config.prior, (count, config.latent_size))
    return make_networks(config)[0].apply({"params": params}, z)


def discriminate(
    config: ToyConfig, params: Params, points: Float[Array, "batch 2"]
) -> Float[Array, " batch"]:
    """Logits of D."""
    return make_networks(config)[1].apply({"params": params}, points)[:, 0]


def train(config: ToyConfig, objective: str) -> NetworkParams:
    """Train one pair of networks for each gamma and seed, all at once.

    Returns:
      Averaged parameters; every leaf has leading axes [gammas, seeds].
    """
    gammas = jnp.asarray(config.gammas, jnp.float32)
    keys = jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds))
    one = make_training(config, objective)
    return jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(gammas, keys)


def make_training(config: ToyConfig, objective: str):
    """Build the pure function `(gamma, key) -> averaged parameters` of one whole training."""
    generator, discriminator = make_networks(config)
    optimizer = make_optimizer(config.optim)
    decay = ema_decay_for(config.optim.ema_half_life_images, config.batch_size)
    mixture = make_mixture(config)
    centers, weights = jnp.asarray(mixture.centers), jnp.log(jnp.asarray(mixture.weights))

    def points_of(modes, key):
        return centers[modes] + mixture.std * jax.random.normal(key, (config.batch_size, 2))

    def discriminator_objective(params, gamma, real, fake, abnormal):
        def critic(points):
            return discriminate(config, params, points)

        logits = critic(jnp.concatenate([real, fake, abnormal])).reshape(3, -1)
        terms = losses.DISCRIMINATOR_LOSSES[objective](logits[0], logits[1], logits[2], gamma)
        return terms.total + config.penalty_weight * losses.r1_penalty(critic, real)

    def generator_objective(params, params_d, key):
        fake = draw(config, params, key, config.batch_size)
        return losses.GENERATOR_LOSSES[objective](discriminate(config, params_d, fake))

    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def run(gamma, key):
        def step(carry, index):
            params, optimizers, average = carry
            key_mode, key_real, key_abnormal, key_z = jax.random.split(
                jax.random.fold_in(key, index), 4
            )
            shape = (config.batch_size,)
            real = points_of(jax.random.categorical(key_mode, weights, shape=shape), key_real)
            abnormal = points_of(jnp.full(shape, config.modes - 1), key_abnormal)
            fake = draw(config, params.generator, key_z, config.batch_size)
            gradients = jax.grad(discriminator_objective)(
                params.discriminator, gamma, real, fake, abnormal
            )
            params_d, state_d = update(gradients, optimizers.discriminator, params.discriminator)
            gradients = jax.grad(generator_objective)(params.generator, params_d, key_z)
            params_g, state_g = update(gradients, optimizers.generator, params.generator)
            params = NetworkParams(params_g, params_d)
            average = optax.incremental_update(params, average, 1.0 - decay)
            return (params, NetworkParams(state_g, state_d), average), None

        key_g, key_d = jax.random.split(jax.random.fold_in(key, config.steps))
        params = NetworkParams(
            generator.init(key_g, jnp.zeros((1, config.latent_size)))["params"],
            discriminator.init(key_d, jnp.zeros((1, 2)))["params"],
        )
        optimizers = NetworkParams(*map(optimizer.init, params))
        carry, _ = lax.scan(step, (params, optimizers, params), jnp.arange(config.steps))
        return carry[2]

    return run


# ---------------------------------------------------------------------------------------------
# Measurement
# ---------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """What one objective drew, with leading axes [gammas, seeds], and D of the first seed.

    Attributes:
      shares: of every mode and of the outside, see `mode_shares`.
      points: drawn by the first seed, per gamma.
      logits: of the first seed's D on the picture's grid, per gamma.
    """

    shares: Float[np.ndarray, "gammas seeds modes+1"]
    points: Float[np.ndarray, "gammas samples 2"]
    logits: Float[np.ndarray, "gammas cells"]


def measure(config: ToyConfig, params: NetworkParams) -> Result:
    """Draw `config.samples` points from every trained generator and count them.

    Args:
      params: from `train`.
    """
    mixture = make_mixture(config)
    key = jax.random.key(config.seed + config.seeds)
    points = jax.jit(jax.vmap(jax.vmap(lambda tree: draw(config, tree, key, config.samples))))(
        params.generator
    )
    points = np.asarray(points, np.float64)
    first = jax.tree.map(lambda leaf: leaf[:, 0], params.discriminator)
    grid, _ = make_grid(mixture, _GRID)
    logits = jax.jit(jax.vmap(lambda tree: discriminate(config, tree, jnp.asarray(grid))))(first)
    shares = np.array([[mode_shares(drawn, mixture) for drawn in seeds] for seeds in points])
    return Result(shares, points[:, 0], np.asarray(logits))


def summarize(
    config: ToyConfig, objective: str, shares: Float[np.ndarray, "gammas seeds modes+1"]
) -> list[Row]:
    """One row for each gamma; see `measure` for the shares."""
    mixture = make_mixture(config)
    abnormal = config.modes - 1
    plain = shares[config.gammas.index(1.0), :, abnormal].mean()
    rows = []
    for gamma, drawn in zip(config.gammas, shares, strict=True):
        points, mass = optimal_mass(mixture, gamma, side=400)
        optimum = mode_shares(points, mixture, mass)
        relative = drawn[:, :abnormal] / optimum[:abnormal]
        covered = int((relative >= COVERED).sum(axis=1).min())
        ratio = float(drawn[:, abnormal].mean() / plain) if plain > 0.0 else None
        subtracted = ratio is not None and ratio <= SUBTRACTED and covered == abnormal
        rows.append(
            Row(
                objective=objective,
                gamma=float(gamma),
                abnormal=float(drawn[:, abnormal].mean()),
                abnormal_std=float(drawn[:, abnormal].std()),
                optimum=float(optimum[abnormal]),
                ratio=ratio,
                normal=float(drawn[:, :abnormal].sum(axis=1).mean()),
                outside=float(drawn[:, -1].mean()),
                weakest=float(relative.min(axis=1).mean()),
                weakest_std=float(relative.min(axis=1).std()),
                covered=covered,
                distance=float(0.5 * np.abs(drawn - optimum).sum(axis=1).mean()),
                shares=drawn.mean(axis=0).tolist(),
                subtracted=None if gamma == 1.0 else subtracted,
            )
        )
    return rows
