"""Hostile settings and wrong flags: an answer or one clear line."""

import ast
import dataclasses
import functools
import math
import os

import commands
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import settings as settings_lib
from jax_noisy_anogan.config import Config, ConfigError
from jax_noisy_anogan.runtime import processes
from jax_noisy_anogan.training.growth import make_schedule

FIELDS = [*settings_lib.values(Config()), "data", "data.caltech256"]

EXTREMES = st.sampled_from(
    [
        0, -1, 1, 2, 3, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30, 10**400,
        0.0, -0.0, 1e-320, 1.0, 1.5, -1e308, 1e308, math.inf, -math.inf, math.nan,
        True, False, None, "", "0", "1", "\0", "\ud800", "../../etc", "a" * 10_000, "é\n",
        b"bytes", (), [], {}, [1], ["x"], {"4": 8}, {"4": -1}, {"five": 1}, {4: 8}, {1, 2},
        1j, ..., [[]] * 3, object,
    ]
)  # fmt: skip
# Numbers up to the size where a valid setting is only slow to use, not to check.
VALUES = EXTREMES | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=4)


def _clear(error):
    text = str(error)
    assert text
    assert "\n" not in text
    return text


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=3))
def test_any_value_in_any_field_is_accepted_or_named(changes):
    config = Config()
    for name, value in changes:
        *path, item = name.split(".")
        holder = functools.reduce(lambda section, part: getattr(section, part, None), path, config)
        if dataclasses.is_dataclass(holder):  # not replaced itself by another change
            setattr(holder, item, value)
    try:
        config = config_lib.validate(config)
    except ConfigError as error:
        text = _clear(error)
        # A combination may be reported under its other field.
        assert any(name.partition(".")[0] in text for name, _ in changes), text
        return
    make_schedule(config.growth)
    assert config_lib.from_json(config_lib.to_json(config)) == config


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FIELDS), VALUES | st.text(alphabet="()[]{}'\"\\0123456789.,:-_eEjx \n\0"))
def test_any_text_of_set_is_accepted_or_answered_in_one_line(field, value):
    text = value if isinstance(value, str) else repr(value)
    try:
        changed = config_lib.changed(Config(), [f"{field}={text}"])
    except ConfigError as error:
        _clear(error)
        return
    kept = settings_lib.values(changed)[field]
    expected = settings_lib.values(config_lib.validate(Config()))[field]
    number = int | float
    assert isinstance(kept, number if isinstance(expected, number) else type(expected))


@pytest.mark.parametrize("text", ["true", "True"])
def test_a_switch_is_set_in_either_spelling(text):
    assert config_lib.changed(Config(), [f"data.flip_vertical={text}"]).data.flip_vertical is True
    assert config_lib.changed(Config(), ["data.root=true"]).data.root == "true"


@pytest.mark.parametrize(
    "change",
    [
        "",
        "=",
        "data",
        "data=1",
        "data.=1",
        ".digit=1",
        "data.nothing=1",
        "nothing.digit=1",
        "data.digit",
        "data.digit=" + "(" * 5000,
        "data.digit=" + "9" * 5000,
        "data.digit=__import__('os')",
        "growth.minibatch={4: 8}",
        "growth.minibatch={'4': {1, 2}}",
        "data.known_abnormal_classes={1, 2}",
        "config.config.data.digit=1",
    ],
)
def test_malformed_changes_are_one_line(change):
    with pytest.raises(ConfigError) as error:
        config_lib.changed(Config(), [change])
    _clear(error.value)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.text(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["data", "digit", "loss", "x", ""]), inner)
        ),
    )
)
def test_any_config_file_of_a_run_is_accepted_or_one_line(content):
    import json

    text = content if isinstance(content, str) else json.dumps(content)
    try:
        assert isinstance(config_lib.from_json(text), Config)
    except ConfigError as error:
        _clear(error)


MISTAKES = [
    (
        "train",
        ["--config", "configs/mnist5k.py", "--config.loss.gamma=2", "--workdir=w"],
        "config.loss.gamma is 2",
    ),
    (
        "train",
        ["--config", "configs/mnist5k.py", "--workdir=w", "--process_index=1"],
        "belong together",
    ),
    (
        "train",
        [
            "--config=mnist5k",
            "--config.data.local_contrast=None",
            "--config.loss.gamma=None",
            "--workdir=w",
        ],
        "config.loss.gamma is None: expected a value of type float",
    ),
    ("evaluate", ["--workdir=nowhere"], "nowhere/config.json cannot be read"),
    ("train", ["--config=mnist5k", "--workdir="], "--workdir is empty"),
    ("score", ["--workdir=w", "--images=a.png", "--out="], "--out is empty"),
    ("score", ["--workdir=w", "--images=", "--out=o"], "--images is empty"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the commands say, and the folder that they ran in."""
    folder = tmp_path_factory.mktemp("mistakes")
    configs = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")
    (folder / "configs").symlink_to(configs)
    said = [commands.command(name, *given, cwd=folder) for name, given, _ in MISTAKES]
    return said, folder


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_commands_answer_in_one_line_with_exit_code_2(answers, number):
    done, folder = answers[0][number], answers[1]
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert MISTAKES[number][2] in lines[0]
    assert not (folder / "w").exists()


@pytest.mark.parametrize("platform", ["cuda", "foo"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, platform, finished_run):
    given = f"--workdir={finished_run[1]}"
    done = commands.command("evaluate", given, cwd=tmp_path, JAX_PLATFORMS=platform)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"JAX_PLATFORMS is {platform!r}, and no such device can be used" in done.stderr


HOMELESS = """
    import os, pwd, runpy, sys

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    pwd.getpwuid = unknown
    os.environ.pop("HOME", None)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"jax_noisy_anogan.{sys.argv[0]}", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["prepare", "--config=mnist5k"], "config.data.cache_dir is ~/.cache/jax_noisy_anogan"),
        (["evaluate", "--workdir=~/run"], "--workdir is ~/run"),
    ],
)
def test_a_user_without_a_home_folder_gets_one_line(tmp_path, arguments, named):
    done = commands.run("-c", HOMELESS, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"{named}: this user has no home folder for ~" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"coordinator": "host:1"}, "give all three"),
        ({"coordinator": "host", "process_count": 2, "process_index": 0}, "expected HOST:PORT"),
        ({"coordinator": "h:1", "process_count": 2, "process_index": 2}, "expected 0 to 1"),
        ({"coordinator": "h:1", "process_count": 0, "process_index": 0}, "--process_count"),
    ],
)
def test_incomplete_process_settings_are_named(arguments, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        processes.start_processes(**arguments)
    _clear(error.value)


def test_process_settings_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES=two in the environment"):
        processes.start_processes()


def test_alone_nothing_is_started(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    processes.start_processes()
    assert processes.any_process(True)
    assert not processes.any_process(False)
    with pytest.raises(OSError, match="mine"):
        processes.on_first_process(_raise)


def _raise():
    raise OSError("mine")


def test_literals_of_set_are_python_literals():
    changed = config_lib.changed(Config(), ["growth.minibatch={'8': 32}", "loss.gamma=1"])
    assert changed.growth.minibatch == ast.literal_eval("{'8': 32}")
    assert changed.loss.gamma == 1
