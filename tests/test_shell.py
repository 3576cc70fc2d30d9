"""`jax-noisy-anogan`: one name for all commands, help, version, configs by name."""

import commands
import pytest

from jax_noisy_anogan import __main__ as shell
from jax_noisy_anogan import config


def _run(*arguments, cwd):
    return commands.command("", *arguments, cwd=cwd)


def test_a_config_is_found_by_its_name_wherever_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, colon, variant = config.find("mnist5k:smoke").rpartition(":")
    assert (colon, variant) == (":", "smoke")
    assert found.endswith("configs/mnist5k.py")
    assert config.find("no_such_config") == "no_such_config"
    # A file of the user's own comes first.
    (tmp_path / "mnist5k.py").touch()
    assert config.find("mnist5k.py:smoke") == "mnist5k.py:smoke"


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".py:smoke"])
def test_a_config_name_of_any_length_is_one_line(tmp_path, name):
    assert config.find(name) == name
    wrong = _run("describe", "--config", name, cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "is no file that can be read" in wrong.stderr


def test_help_lists_every_command_and_an_unknown_one_is_one_line(tmp_path):
    listed = _run("--help", cwd=tmp_path)
    assert listed.returncode == 0
    assert all(f"  {name} " in listed.stdout for name in shell.COMMANDS)
    unknown = _run("trian", cwd=tmp_path)
    assert unknown.returncode == 1
    assert unknown.stderr.count("\n") == 1
    assert "'trian'" in unknown.stderr


@pytest.mark.parametrize("command", ["score", "describe"])
def test_help_of_a_command_lists_its_flags_and_no_other(tmp_path, command):
    helped = _run(command, "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    flag = {"score": "--threshold: ", "describe": "--config: "}[command]
    assert flag in helped.stdout
    assert "--logtostderr" not in helped.stdout
    assert f"python -m jax_noisy_anogan.{command} " in helped.stdout


def test_a_wrong_setting_ends_with_the_one_line_that_the_module_prints(tmp_path):
    wrong = _run(
        "describe", "--config", "mnist5k", "--config.loss.gamma=2", "--nonsense", cwd=tmp_path
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("describe: ")
    assert wrong.stderr.count("\n") == 1
