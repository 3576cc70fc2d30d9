"""The latent search with a step rule of one's own, on networks without training.

    python examples/own_search.py

Everything is a pure function: build networks, bind their parameters, search. The image to find
is one that the generator draws, so its latent is known and the loss can fall to 0.
"""

from __future__ import annotations

import argparse

import jax
import optax

from jax_noisy_anogan.config import SearchConfig
from jax_noisy_anogan.latent_search import Judgement, search_latents
from jax_noisy_anogan.networks import build_networks, sample_latents

RESOLUTION, LATENT = 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps

    networks = build_networks(
        resolution=RESOLUTION,
        fading=False,
        channels=1,
        fmap_base=64,
        fmap_max=16,
        latent_size=LATENT,
    )
    params = networks.init(jax.random.key(0))

    def generate(z: jax.Array) -> jax.Array:
        return networks.generate(params.generator, z[None])[0]

    def judge(x: jax.Array) -> Judgement:
        out = networks.discriminate(params.discriminator, x[None], stddev=1.0)
        return Judgement(jax.nn.sigmoid(out.logits[0]), out.logits[0], out.features[4][0])

    hidden = sample_latents(jax.random.key(1), "normal", (4, LATENT))
    images = networks.generate(params.generator, hidden)
    rules = {
        "Adam, the paper's": optax.adam(0.1),
        "Adam, falling to 0": optax.adam(optax.cosine_decay_schedule(0.1, steps)),
        "SGD with momentum": optax.sgd(0.001, momentum=0.9),
    }
    for name, rule in rules.items():
        found = search_latents(
            generate,
            judge,
            images,
            jax.random.key(2),
            search=SearchConfig(steps=steps),
            gamma=1.0,
            prior="normal",
            latent_size=LATENT,
            optimizer=optax.with_extra_args_support(rule),
        )
        print(f"{name}: L' {found.loss.mean():.3f} after {steps} steps")


if __name__ == "__main__":
    main()
