"""Eight virtual CPU devices, strict shapes, and parsed flags for every test."""

import os

import jax
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
# A silent broadcast between ranks is nearly always a bug in the networks or the losses.
jax.config.update("jax_numpy_rank_promotion", "raise")
# grain and TFDS read flags; outside `absl.app.run` they must be told that nothing is to parse.
flags.FLAGS.mark_as_parsed()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
