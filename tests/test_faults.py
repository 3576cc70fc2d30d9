"""Faults in training, through the fault-injection benchmark, and signs of collapse."""

import dataclasses
import json
import random
import shutil
import signal
import sys
from pathlib import Path

import jax
import pytest
from absl import logging

import jax_noisy_anogan
from jax_noisy_anogan import cli
from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan.config import Config, ConfigError, DataConfig, GrowthConfig, TrainConfig
from jax_noisy_anogan.runtime import checkpoint, files, workdir
from jax_noisy_anogan.scoring.calibration import CalibrationError
from jax_noisy_anogan.training import collapse, journal

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import fault_injection as faults


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    return faults.Bench(root, faults.tiny_config(str(root / "cache")))


def _nothing_lost(rows):
    for row in rows:
        assert row.injected > 0, row.fault
        assert row.lost == 0, row.fault


def test_damaged_checkpoints_cost_steps_but_no_bit(bench):
    _nothing_lost(faults.damaged(bench, quick=True))


def test_not_finite_is_noticed_rolled_back_and_given_up_with_the_step(bench):
    _nothing_lost(faults.not_finite(bench, random.Random(0)))


def test_the_fingerprint_sees_single_bits(bench, monkeypatch):
    whole = faults.fingerprint(bench.reference(), bench.config)
    restore = checkpoint.Checkpoints.restore_newest

    def changed(self, template_of):
        restored = restore(self, template_of)
        return restored._replace(data={**restored.data, "normal": restored.data["normal"] + 1})

    monkeypatch.setattr(faults.Checkpoints, "restore_newest", changed)
    assert faults.fingerprint(bench.reference(), bench.config) != whole


def test_killed_between_stages_and_during_a_save_a_run_ends_as_if_it_had_not_been(bench):
    moments = ["between:1", "save:16:0.01"]
    rows = faults.sigkill(bench, [moments])
    _nothing_lost(rows)
    assert [row.injected for row in rows] == [1, 1]
    lines = [
        json.loads(line)
        for line in (bench.root / "kill0" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, 3 * faults.STEPS_PER_PHASE + 1))


def test_sigterm_leaves_a_checkpoint_a_message_and_exit_code_75(bench):
    _nothing_lost(faults.stop_signals(bench, [signal.SIGTERM], random.Random(0)))


@pytest.mark.slow
def test_every_fault_of_the_quick_benchmark_loses_nothing(tmp_path):
    _nothing_lost(faults.run(tmp_path, quick=True))


def test_a_folder_in_use_is_refused(tmp_path):
    with (
        files.locked(tmp_path),
        pytest.raises(files.WorkdirError, match="in use by another training"),
        files.locked(tmp_path),
    ):
        pass
    with files.locked(tmp_path):  # free again
        pass


def test_changed_settings_are_named_and_harmless_ones_allowed(tmp_path):
    workdir.settle_config(tmp_path, Config())
    (tmp_path / "checkpoints/10").mkdir(parents=True)
    harmless = Config(
        data=DataConfig(cache_dir="/elsewhere", max_image_pixels=10**9, on_bad_image="skip"),
        growth=GrowthConfig(microbatch={"32": 4}),
        train=TrainConfig(keep_checkpoints=5),
    )
    workdir.settle_config(tmp_path, harmless)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["keep_checkpoints"] == 5

    changed = dataclasses.replace(harmless, data=DataConfig(digit=8), train=TrainConfig(seed=1))
    with pytest.raises(ConfigError) as error:
        workdir.settle_config(tmp_path, changed)
    for part in ("data.digit was 0, is 8", "train.seed was 0, is 1", "another --workdir"):
        assert part in str(error.value)
    assert "keep_checkpoints" not in str(error.value)
    # The refused start changed nothing.
    assert json.loads((tmp_path / "config.json").read_text())["data"]["digit"] == 0


def test_a_start_that_failed_before_its_first_checkpoint_locks_nothing(tmp_path):
    workdir.settle_config(tmp_path, Config())
    (tmp_path / "checkpoints/10.orbax-checkpoint-tmp").mkdir(parents=True)
    workdir.settle_config(tmp_path, Config(data=DataConfig(validation_fraction=0.4)))
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["data"]["validation_fraction"] == 0.4


def test_a_change_of_what_scores_depend_on_withdraws_the_thresholds_until_they_are_made_again(
    finished_run, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished_run[1], run)
    config = config_lib.load(run)
    more = dataclasses.replace(config.train, keep_checkpoints=5)
    workdir.settle_config(run, dataclasses.replace(config, train=more))
    jax_noisy_anogan.load(run)
    longer = dataclasses.replace(config.search, steps=5)
    # As far as an evaluation with other settings comes that is killed in its search.
    workdir.settle_config(run, dataclasses.replace(config, search=longer))
    with pytest.raises(CalibrationError, match=r"calibration\.json .*evaluate --workdir"):
        jax_noisy_anogan.load(run)


def test_curves_with_flipped_bits_do_not_stop_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\xe9p": 2}\n\xff\xfe\n{"step": 3}\n{"step": 9}\n')
    journal.MetricWriter(tmp_path, from_step=3).close()
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_memory_that_is_not_enough_is_one_line(monkeypatch, capsys):
    def too_much(arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nx")

    with pytest.raises(SystemExit) as ended:
        cli._call(too_much, [])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)" in said
    assert said.count("\n") == 1

    def other(arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        cli._call(other, [])


@pytest.mark.parametrize("text", ["", "{", '{"format": 2, "data": {"unknown": 1}}', "[]"])
def test_a_damaged_config_of_a_run_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json: .*; put it back"):
        workdir.settle_config(tmp_path, Config())


HEALTHY = {
    "d_accuracy_real": 0.8,
    "d_accuracy_fake": 0.6,
    "d_accuracy_abnormal": 0.9,
    "g_spread": 0.3,
    "real_spread": 0.4,
}


def _stream(*parts):
    """Signs that are ongoing after each update of a stream; a part is (updates, changed values)."""
    monitor, seen = collapse.Monitor(), []
    for updates, changes in parts:
        for _ in range(updates):
            monitor = monitor.update(HEALTHY | changes, 100, critic=False)
            seen.append(monitor.ongoing)
    return seen


WINDOW = collapse.WINDOW_IMAGES // 100
CONSTANT_GENERATOR = {"g_spread": 1.0 / 255.0, "real_spread": 0.0}
NEARLY_CONSTANT_GENERATOR = {"g_spread": 0.19 * 0.4}


def test_healthy_training_shows_no_sign():
    assert set(_stream((10 * WINDOW, {}))) == {()}


@pytest.mark.parametrize(
    ("sign", "values"),
    [
        ("generator_constant", CONSTANT_GENERATOR),
        ("generator_constant", NEARLY_CONSTANT_GENERATOR),
        ("discriminator_perfect", {"d_accuracy_real": 1.0, "d_accuracy_fake": 1.0}),
        (
            "discriminator_constant",  # everything is normal to it
            {"d_accuracy_real": 1.0, "d_accuracy_fake": 0.0, "d_accuracy_abnormal": 0.0},
        ),
        (
            "discriminator_constant",  # nothing is
            {"d_accuracy_real": 0.0, "d_accuracy_fake": 1.0, "d_accuracy_abnormal": 1.0},
        ),
    ],
)
def test_a_sign_counts_from_the_end_of_its_window_until_a_healthy_update(sign, values):
    seen = _stream((5, {}), (WINDOW + 7, values), (1, {}), (WINDOW, values))
    expected = [()] * (5 + WINDOW - 1) + [(sign,)] * 8 + [()] * WINDOW + [(sign,)]
    assert seen == expected


def test_one_healthy_update_within_the_window_prevents_it():
    half = WINDOW // 2
    stream = [(half, CONSTANT_GENERATOR), (1, {})] * 20
    assert set(_stream(*stream)) == {()}


def test_generated_images_that_pass_for_normal_are_the_optimum_of_equation_18():
    passing = {"d_accuracy_real": 1.0, "d_accuracy_fake": 0.0, "d_accuracy_abnormal": 1.0}
    assert set(_stream((3 * WINDOW, passing))) == {()}


def test_without_known_abnormal_images_two_accuracies_decide():
    values = {"d_accuracy_real": 1.0, "d_accuracy_fake": 0.0}
    values |= {"g_spread": 0.3, "real_spread": 0.4}
    assert collapse.signs(values, critic=False)["discriminator_constant"]


def test_a_critic_has_no_sign_to_be_pinned():
    values = {"d_accuracy_real": 1.0, "d_accuracy_fake": 1.0} | CONSTANT_GENERATOR
    found = collapse.signs(values, critic=True)
    assert [name for name, holds in found.items() if holds] == ["generator_constant"]


def test_collapse_in_training_is_said_once_and_written_to_the_curves(bench, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    monkeypatch.setattr(collapse, "WINDOW_IMAGES", 5 * faults.MINIBATCH)
    monkeypatch.setattr(collapse, "LEAST_SPREAD", 10.0)  # every image counts as the same
    config = dataclasses.replace(
        bench.config, growth=dataclasses.replace(bench.config.growth, resolution=4)
    )
    folder = bench.root / "collapse"
    bench.train(folder, config)
    said = [text for text in said if "collapse" in text and "generator" in text]
    assert len(said) == 1
    assert "collapse at step 5 (4x4 stable): the generator draws nearly the same image" in said[0]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    marked = [line["step"] for line in lines if "generator_constant" in line.get("collapse", [])]
    assert marked == list(range(5, faults.STEPS_PER_PHASE + 1))
