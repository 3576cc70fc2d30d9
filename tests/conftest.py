"""Eight virtual CPU devices, strict shapes, parsed flags, and one finished run for every test."""

import os
import tempfile

import jax
import pytest
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

# Most of a test's time is XLA's: tests compile many programs and run each for a moment. Without its
# optimisations a tiny run takes 20 s of CPU time instead of 40 (jax 0.10.2), or 18 instead of 23
# (0.12). `XLA_FLAGS= pytest` tests what users run.
_UNOPTIMISED = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # later ones end the process at this flag
    _UNOPTIMISED.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_UNOPTIMISED))
jax.config.update("jax_num_cpu_devices", 8)
# Compiled programs are shared by all workers and by the commands that tests start: the first
# process that comes here makes the folder, and the others inherit its name.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# A silent broadcast between ranks is nearly always a bug in the networks or the losses.
jax.config.update("jax_numpy_rank_promotion", "raise")
# grain and TFDS read flags; outside `absl.app.run` they must be told that nothing is to parse.
flags.FLAGS.mark_as_parsed()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


_CACHE = tuple(
    name for name in jax.config.values if name.startswith(("jax_compilation", "jax_persistent"))
)


# The files that take longest, first: a worker that begins one of them at the end works alone.
_LONGEST = (
    *("first_steps", "multiprocess", "train_step", "faults", "evaluation", "scoring", "train"),
    *("score_files", "places", "memory", "export", "remembered", "examples", "encoder"),
)


def pytest_collection_modifyitems(items):
    """Begin with the longest files; the others keep their order."""
    first = {f"test_{name}.py": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_shared():
    """A test that keeps programs elsewhere does so for its own file only."""
    before = {name: jax.config.values[name] for name in _CACHE}
    yield
    if before != {name: jax.config.values[name] for name in _CACHE}:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Config and folder of a run on digits: one update of 8 x 8 networks with encoder; evaluated.

    Tests that write into the folder copy it first.
    """
    import tiny

    from jax_noisy_anogan import config as config_lib
    from jax_noisy_anogan import experiment

    root = tmp_path_factory.mktemp("finished")
    config = tiny.config(
        data=config_lib.DataConfig(cache_dir=str(root / "cache"), max_test_images=40),
        growth=config_lib.GrowthConfig(
            start_resolution=8, resolution=8, final_images=32, minibatch_default=32
        ),
        search=config_lib.SearchConfig(steps=4, batch_size=8),
        train=config_lib.TrainConfig(sample_images=4, encoder=True),
    )
    experiment.run(config, root / "run", progress=False)
    return config, root / "run"
