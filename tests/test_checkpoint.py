"""Checkpoints: what was saved is what comes back, or the one before it, and it is said."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from jax_noisy_anogan.runtime import checkpoint, parallel
from jax_noisy_anogan.runtime.checkpoint import CheckpointError, Checkpoints, Position

STEPS = (4, 8, 12)


def _state(step):
    rng = np.random.default_rng(step)
    return {
        "kernel": jnp.asarray(rng.normal(size=(40, 50)).astype(np.float32)),
        "nested": {"bias": jnp.asarray(rng.normal(size=7).astype(np.float32))},
        "step": jnp.asarray(step, jnp.int32),
    }


def _template(_=None, shape=(40, 50)):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        "kernel": (shape, jnp.float32),
        "nested": {"bias": ((7,), jnp.float32)},
        "step": ((), jnp.int32),
    }
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(*leaf, sharding=sharding),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def _position(step):
    return Position(phase=1, step=step, images=8 * step, rollbacks=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in STEPS:
            checkpoints.save(_position(step), _state(step), {"normal": 8 * step})
    return folder


def _restore(folder, **options):
    with Checkpoints(folder, **options) as checkpoints:
        return checkpoints.restore_newest(_template)


def _holds(restored, step):
    assert restored.position == _position(step)
    assert restored.data == {"normal": 8 * step}
    jax.tree.map(np.testing.assert_array_equal, restored.state, _state(step))


@pytest.fixture
def warnings_said(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    return said


def test_the_newest_comes_back_bit_for_bit_and_older_ones_are_deleted(saved):
    _holds(_restore(saved), STEPS[-1])
    assert {path.name for path in (saved / "checkpoints").iterdir()} == {"8", "12"}


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert _restore(tmp_path) is None


@pytest.mark.parametrize("devices", [1, 8])
def test_a_save_holds_the_values_of_its_moment_though_buffers_are_donated(tmp_path, devices):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    everywhere = parallel.REPLICATED

    def mapped(function, **options):
        return parallel.data_parallel(function, mesh, everywhere, everywhere, **options)

    tree = {str(k): jnp.full((256, 256), k + 1.0) for k in range(8)}
    tree = mapped(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree))(tree)
    overwrite = mapped(lambda tree: jax.tree.map(lambda leaf: leaf - 1, tree), donate_argnums=(0,))
    jax.block_until_ready(overwrite(jax.tree.map(jnp.copy, tree)))  # compiled
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(_position(1), tree, {})
        later = overwrite(tree)
        assert tree["0"].is_deleted()  # the update really wrote into what was saved
        for _ in range(20):
            later = overwrite(later)
        jax.block_until_ready(later)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_newest(lambda _: template)
    for k in range(8):
        assert (np.asarray(restored.state[str(k)]) == 2 * (k + 1.0)).all()


def _truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def _empty(file):
    os.truncate(file, 0)


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = [_truncate, _empty, _flip, Path.unlink]


def _values(newest):
    arrays = max(
        (newest / "state/ocdbt.process_0/d").iterdir(), key=lambda file: file.stat().st_size
    )
    return [arrays, newest / "data/metadata", newest / "meta/metadata"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["state", "data", "meta"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_used(
    saved, tmp_path, damage, which, warnings_said
):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    damage(_values(folder / "checkpoints/12")[which])
    _holds(_restore(folder), 8)
    assert "checkpoint 12 is damaged (" in warnings_said[0]
    assert "\n" not in warnings_said[0]
    assert str(folder / "damaged_checkpoints/12.0") in warnings_said[1]
    assert {path.name for path in (folder / "damaged_checkpoints").iterdir()} == {"12.0"}
    # The place is free again, also for a save at the same step.
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(_position(12), _state(12), {"normal": 96})
    _holds(_restore(folder), 12)


def test_damage_to_any_file_never_changes_what_comes_back(saved, tmp_path):
    newest = saved / "checkpoints/12"
    files = [file.relative_to(saved) for file in sorted(newest.rglob("*")) if file.is_file()]
    assert len(files) > 10  # commit markers, sharding and metadata among them
    fallen_back = 0
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        DAMAGES[number % len(DAMAGES)](folder / file)
        restored = _restore(folder)
        _holds(restored, restored.position.step)
        fallen_back += restored.position.step == 8
    assert 0 < fallen_back < len(files)


def test_missing_parts_fall_back_too(saved, tmp_path):
    for name in ("state", "data", "meta", ""):
        folder = tmp_path / (name or "all")
        shutil.copytree(saved, folder)
        shutil.rmtree(folder / "checkpoints/12" / name)
        if not name:
            (folder / "checkpoints/12").mkdir()
        _holds(_restore(folder), 8)


def test_what_a_killed_save_left_is_passed_over_and_removed(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    checkpoints = folder / "checkpoints"
    (checkpoints / "12").rename(checkpoints / "12.orbax-checkpoint-tmp")
    _holds(_restore(folder), 8)
    # orbax removes it in a thread that only the next save waits for.
    deadline = time.monotonic() + 300
    while (left := {path.name for path in checkpoints.iterdir()}) != {"8"}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_when_all_are_damaged_one_line_says_so_and_nothing_moves(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for step in ("8", "12"):
        _empty(_values(folder / "checkpoints" / step)[2])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read .*--workdir") as e:
        _restore(folder)
    assert "\n" not in str(e.value)
    assert not (folder / "damaged_checkpoints").exists()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"8", "12"}


def test_another_architecture_is_named_and_nothing_moves(saved):
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(CheckpointError, match=r"checkpoints/12 holds arrays of other names or shap"),
    ):
        checkpoints.restore_newest(lambda _: _template(shape=(40, 51)))
    assert not (saved / "damaged_checkpoints").exists()
    _holds(_restore(saved), 12)


def test_a_reader_leaves_the_folder_as_it_is(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    _empty(_values(folder / "checkpoints/12")[0])
    (folder / "checkpoints/16.orbax-checkpoint-tmp").mkdir()  # a save that is under way
    before = sorted(folder.rglob("*"))
    _holds(_restore(folder, read_only=True), 8)
    assert sorted(folder.rglob("*")) == before


def test_a_changed_digit_in_the_data_position_is_noticed(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    file = folder / "checkpoints/12/data/metadata"
    file.write_text(json.dumps({"normal": 97}))
    _holds(_restore(folder), 8)


def test_a_save_that_orbax_would_skip_is_an_error(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match="step 11 is not after step 12"),
    ):
        checkpoints.save(_position(11), _state(11), {})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("of a library: write: Disk quota exceeded"),
    ],
)
def test_a_failing_disk_is_one_line_that_says_what_to_do(saved, tmp_path, monkeypatch, error):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)

    def no_room(*_, **__):
        raise error

    with Checkpoints(folder) as checkpoints:
        monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", no_room)
        with pytest.raises(CheckpointError) as e:
            checkpoints.save(_position(16), _state(16), {})
    for part in ("the disk is full", "step 12", "make room", "same command"):
        assert part in str(e.value)
    assert "\n" not in str(e.value)
    _holds(_restore(folder), 12)
    with (
        Checkpoints(tmp_path / "new") as checkpoints,
        pytest.raises(CheckpointError, match=r"disk is full\. None is there yet: make room"),
    ):
        checkpoints.save(_position(4), _state(4), {})


def test_a_folder_is_read_by_a_path_with_dots_and_through_a_link(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    (tmp_path / "notebooks").mkdir()
    for folder in (saved.parent / "notebooks" / ".." / saved.name, tmp_path / "link"):
        restored = _restore(folder, read_only=True)
        assert restored.position == _position(STEPS[-1])
