"""Figure 3 of the paper on a ring of eight Gaussians, one of them abnormal; needs no files.

About 1.5 minutes of CPU time. Expect about 14 % of the generated mass on the abnormal mode at
gamma = 1 and at most 0.2 % at 0.5 and 0.1, with all seven normal modes drawn. `:smoke` is one seed
and fewer steps.

    python -m jax_noisy_anogan.reproduction.figure3 --config configs/toy2d.py --out runs/toy2d
"""

import dataclasses

from jax_noisy_anogan.config import OptimConfig
from jax_noisy_anogan.reproduction.ring import ToyConfig
from jax_noisy_anogan.settings import ConfigError


def get_config(name: str = "") -> ToyConfig:
    config = ToyConfig()
    if name not in ("", "smoke"):
        raise ConfigError(f"--config has the variant {name!r}: expected none or :smoke")
    if name == "smoke":
        config = dataclasses.replace(
            config,
            seeds=1,
            steps=1000,
            batch_size=128,
            samples=4000,
            optim=OptimConfig(learning_rate=0.005, ema_half_life_images=10_000.0),
        )
    return config
