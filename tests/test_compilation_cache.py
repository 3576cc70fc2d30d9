"""Compiled programs are code: they are read only where nobody else could have put them."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jax_noisy_anogan.runtime.parallel import keep_compiled, keep_compiled_privately

_NAMES = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home folder, and a process that keeps no programs yet."""
    before = {name: getattr(jax.config, name) for name in _NAMES}
    monkeypatch.setenv("HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_in_a_folder_that_others_cannot_open(home):
    folder = keep_compiled_privately()
    jax.jit(lambda x: jnp.cos(x) * 3.25)(jnp.ones(7)).block_until_ready()
    assert folder.is_relative_to(home)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [*folder.glob("*-cache")]


def test_programs_are_kept_where_the_user_says_even_after_others_were_compiled(home):
    jax.jit(lambda x: x + 1)(1.0)
    keep_compiled(str(home / "programs"))
    jax.jit(lambda x: jnp.cos(x) * 4.5)(jnp.ones(9)).block_until_ready()
    assert [*(home / "programs").glob("*-cache")]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o740])
def test_a_folder_that_others_can_open_is_not_used(home, mode, caplog):
    folder = keep_compiled_privately()
    jax.config.update("jax_compilation_cache_dir", None)
    folder.chmod(mode)
    assert keep_compiled_privately() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert f"{folder} is not a folder that is yours alone" in caplog.text


def test_a_folder_of_somebody_else_or_a_link_is_not_used(home, monkeypatch):
    folder = keep_compiled_privately()
    jax.config.update("jax_compilation_cache_dir", None)
    user = os.getuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: user + 1)
        assert keep_compiled_privately() is None
    folder.rename(home / "elsewhere")
    folder.symlink_to(home / "elsewhere")
    assert keep_compiled_privately() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_in_use_is_left_alone(home):
    jax.config.update("jax_compilation_cache_dir", str(home / "mine"))
    assert keep_compiled_privately() is None
    assert jax.config.jax_compilation_cache_dir == str(home / "mine")


def test_without_a_place_to_write_nothing_is_kept(home):
    (home / ".cache").write_text("not a folder")
    assert keep_compiled_privately() is None
    assert jax.config.jax_compilation_cache_dir is None
