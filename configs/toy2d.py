"""Figure 3 of the paper on a ring of eight Gaussians, one of them abnormal; needs no files.

`:smoke` is one seed and fewer steps, for `--quick`.

Hardware: a CPU.
Time: 1.5 minutes on one x86-64 core.
Expect: about 14 % of the generated mass on the abnormal mode at gamma = 1 and at most 0.2 % at 0.5
and 0.1, with all seven normal modes generated.

    python -m jax_noisy_anogan.reproduce figure3 --out runs/reproduce
"""

import dataclasses

from jax_noisy_anogan.config import ConfigError, OptimConfig
from jax_noisy_anogan.reproduction.ring import RingConfig


def get_config(name: str = "") -> RingConfig:
    config = RingConfig()
    if name not in ("", "smoke"):
        raise ConfigError(f"configs/toy2d.py has no variant {name!r}: expected none or smoke")
    if name == "smoke":
        config = dataclasses.replace(
            config,
            seeds=1,
            steps=1000,
            batch_size=128,
            samples=4000,
            optim=OptimConfig(learning_rate=0.005),
        )
    return config
