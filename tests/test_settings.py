"""Settings: stated once, documented, reachable by name, and never misread from an older run."""

import ast
import contextlib
import copy
import dataclasses
import importlib.util
import io
import json
import re
import typing
from pathlib import Path

import pytest

from jax_noisy_anogan import config as config_lib
from jax_noisy_anogan import settings
from jax_noisy_anogan.config import Config, ConfigError, GrowthConfig, LossConfig, validate
from jax_noisy_anogan.runtime import workdir
from jax_noisy_anogan.settings import Rule, setting
from jax_noisy_anogan.training.growth import make_schedule

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
OWN = {
    "ir_mnist": [
        *(f"{kind}{size}" for kind in ("generated", "tiles") for size in ("", "_quick", "_night")),
        "generated_smoke",
    ],
    "magnetic_tile": ["dense"],
    "screw_1024": ["whole"],
}
VARIANTS = {
    f"{path.stem}:{name}": (path, name)
    for path in CONFIGS
    for name in (
        "",
        "smoke",
        "quick",
        "night",
        *OWN.get(path.stem, []),
    )
    if path.stem != "toy2d"
}
# Of config files that need a folder, which exists in no test.
ROOT_GIVEN = ["data.root=folder"]


def _module(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _config(path, name=""):
    return config_lib.changed(_module(path).get_config(name), ROOT_GIVEN)


# ---------------------------------------------------------------------------------------------
# Ranges
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Inner:
    share: float = setting(0.5, "a share", above=0, at_most=1)
    sides: dict[str, int] = setting({}, "sides", at_least=2, keys=("4", "8"))


@dataclasses.dataclass
class _Outer:
    side: int = setting(0, "a side", at_least=4, at_most=64, power_of_two=True, off=0)
    names: tuple[str, ...] = setting(("a",), "names", choices=("a", "b"), remark="(letters)")
    maybe: float | None = setting(None, "a number, or none", at_least=0)
    inner: _Inner = dataclasses.field(default_factory=_Inner)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 2}, "config.side is 2: expected 0, or a power of two from 4 to 64"),
        ({"side": 12}, "config.side is 12: expected 0, or a power of two from 4 to 64"),
        ({"side": 4.0}, "config.side is 4.0: expected a value of type int"),
        ({"side": True}, "config.side is True: expected a value of type int"),
        ({"names": ("a", "c")}, "config.names is 'c': expected one of a, b (letters)"),
        ({"maybe": -1.0}, "config.maybe is -1.0: expected at least 0"),
        ({"maybe": "x"}, "config.maybe is 'x': expected a value of type float or None"),
        ({"inner.share": 0.0}, "config.inner.share is 0.0: expected above 0 and at most 1"),
        ({"inner.sides": {"8": 1}}, "config.inner.sides[8] is 1: expected at least 2"),
        ({"inner.sides": {"5": 2}}, "config.inner.sides is '5': expected resolutions from 4 to 8"),
    ],
)
def test_one_loop_checks_type_and_range_of_every_field_at_every_depth(changes, message):
    settings.check(_Outer())
    with pytest.raises(ConfigError) as error:
        settings.check(settings.replaced(_Outer(), changes))
    assert message in str(error.value)


@pytest.mark.parametrize("value", [0, 4, 64])
def test_bounds_and_the_value_that_switches_off_are_accepted(value):
    settings.check(_Outer(side=value, maybe=0.0, inner=_Inner(share=1.0, sides={"8": 2})))


def test_a_changed_copy_leaves_the_original_and_the_defaults_alone():
    before = _Outer()
    after = settings.replaced(before, {"inner.share": 0.25, "inner.sides": {"4": 2}})
    after.inner.sides["8"] = 3
    assert settings.values(before) == settings.values(_Outer())
    assert settings.values(after)["inner.share"] == 0.25


def test_every_default_lies_in_its_own_range_and_every_setting_has_a_meaning():
    assert settings.values(validate(Config()))["loss.penalty_weight"] == 1.0
    meanings = [rule.meaning for rule in _rules(Config).values()]
    assert min(map(len, meanings)) > 8
    assert len(set(meanings)) == len(meanings)


def _rules(section, prefix=""):
    found = {}
    for item in dataclasses.fields(section):
        hint = typing.get_type_hints(section)[item.name]
        if dataclasses.is_dataclass(hint):
            found |= _rules(hint, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = item.metadata["rule"]
    return found


def test_the_document_of_settings_is_what_the_code_says():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        config_lib.main()
    assert printed.getvalue() == (ROOT / "docs" / "settings.md").read_text(), (
        "run `python -m jax_noisy_anogan.config > docs/settings.md`"
    )
    for name, rule in _rules(Config).items():
        assert isinstance(rule, Rule)
        assert f"| `{name.rpartition('.')[2]}` | " in printed.getvalue()
        assert f"| {rule.meaning} |" in printed.getvalue()


# ---------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------


def test_settings_three_levels_deep_are_set_and_told_apart_by_their_names():
    config = config_lib.changed(Config(), ["data.caltech256.categories=3", "data.digit=4"])
    assert (config.data.caltech256.categories, config.data.digit) == (3, 4)
    assert config_lib.differences(Config(), config) == {
        "data.digit": (0, 4),
        "data.caltech256.categories": (1, 3),
    }


@pytest.mark.parametrize(
    "change",
    ["data.caltech256={'categories': 2}", "data={}", "data.caltech256.digit=1", "data.x=1"],
)
def test_a_section_or_an_unknown_name_is_no_setting(change):
    with pytest.raises(ConfigError, match=r"--set .*expected section\.field=value"):
        config_lib.changed(Config(), [change])


# ---------------------------------------------------------------------------------------------
# Settings that follow others
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        ([], 1.0),
        (["loss.objective=equation_18"], 1.0),
        (["loss.objective=wgan_gp", "loss.penalty=gp"], 10.0),  # Karras et al. 2018, lambda
        (["loss.objective=wgan_gp", "loss.penalty=gp", "loss.penalty_weight=1"], 1.0),
        (["loss.penalty_weight=0"], 0.0),
    ],
)
def test_the_weight_of_the_penalty_follows_the_objective_unless_it_is_given(changes, weight):
    config = config_lib.changed(Config(), changes)
    assert config.loss.weight_of_penalty == config.loss.penalty_weight == weight
    assert json.loads(config_lib.to_json(config))["loss"]["penalty_weight"] == weight


def test_what_a_run_has_written_is_what_the_same_config_asks_for():
    given = Config(loss=LossConfig(objective="wgan_gp", penalty="gp"))
    assert given.loss.penalty_weight is None
    kept = config_lib.from_json(config_lib.to_json(given))
    assert kept.loss.penalty_weight == 10.0
    assert config_lib.differences(kept, given) == {}
    assert given.loss.penalty_weight is None


def test_a_list_of_a_config_file_is_the_tuple_that_its_run_reads_back(tmp_path):
    given = Config()
    given.data.known_abnormal_classes, given.train.writers = ["7"], ["tensorboard"]
    config = validate(given)
    assert config.data.known_abnormal_classes == ("7",)
    assert config_lib.changed(given, ["train.writers=['wandb']"]).train.writers == ("wandb",)
    workdir.settle_config(tmp_path, config)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    assert workdir.changes_of(tmp_path, config) == workdir.changes_of(tmp_path, given) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["data.layout=flat", "data.table=list.csv"], "config.data.table"),
        (["data.layout=mvtec", "data.normal_dirs=ok"], "config.data.normal_dirs"),
        (["data.layout=pairs", "data.abnormal_dirs=ng"], "config.data.abnormal_dirs"),
        (["data.layout=table", "data.table=a.csv", "data.normal_dirs=ok"], "data.normal_dirs"),
        (["data.abnormal_dirs=ng", "data.table=list.csv"], "config.data.table"),
    ],
)
def test_a_setting_that_the_layout_does_not_read_is_refused_with_the_name_of_both(changes, named):
    with pytest.raises(ConfigError, match=named) as error:
        config_lib.changed(Config(), changes)
    assert changes[0].partition("=")[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["2024", "1,2", "None", "True", "[1]"])
def test_a_text_setting_takes_a_text_that_looks_like_a_value(text):
    config = config_lib.changed(Config(), [f"data.normal_dirs={text}", "data.root='2024'"])
    assert (config.data.normal_dirs, config.data.root) == (text, "2024")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_config_keeps_small_minibatches_at_large_resolutions(name):
    config = _config(*VARIANTS[name])
    growth = dataclasses.replace(config.growth, resolution=1024)
    found = {phase.resolution: phase.minibatch for phase in make_schedule(growth).phases}
    assert {size: found[size] for size in (256, 512, 1024)} == {256: 16, 512: 8, 1024: 4}


def test_one_resolution_s_minibatch_is_overridden_without_the_others():
    growth = GrowthConfig(resolution=1024, minibatch={"512": 16}, minibatch_default=32)
    found = {phase.resolution: phase.minibatch for phase in make_schedule(growth).phases}
    assert found == {4: 32, 8: 32, 16: 32, 32: 32, 64: 32, 128: 32, 256: 16, 512: 16, 1024: 4}


# ---------------------------------------------------------------------------------------------
# Runs of other versions
# ---------------------------------------------------------------------------------------------


def _written_by_version_0_1():
    """Its names of the settings that were moved since; the others are as today."""
    values = json.loads(config_lib.to_json(Config()))
    del values["format"]
    for section in ("caltech256", "ir_mnist", "synthetic"):
        del values["data"][section]
    values["data"] |= {"categories": 5, "source_seed": 1, "synthetic_images": 400}
    values["growth"]["minibatch"] = {}
    return json.dumps(values)


@pytest.mark.parametrize("read", [config_lib.load, lambda p: workdir.settle_config(p, Config())])
def test_a_run_of_version_0_1_is_refused_with_what_to_do(tmp_path, read):
    (tmp_path / "config.json").write_text(_written_by_version_0_1())
    with pytest.raises(ConfigError) as error:
        read(tmp_path)
    text = str(error.value)
    assert text.startswith(str(tmp_path))
    assert "is of version 0.1" in text
    assert "train again with this version into another folder, or use version 0.1" in text
    assert "\n" not in text


def test_a_format_of_the_future_is_refused():
    values = json.loads(config_lib.to_json(Config())) | {"format": config_lib.FORMAT + 1}
    with pytest.raises(ConfigError, match=r"config\.format is 3: expected 2"):
        config_lib.from_json(json.dumps(values))


# ---------------------------------------------------------------------------------------------
# Config files
# ---------------------------------------------------------------------------------------------


def _without_one_setting(tree):
    """A config file's syntax tree again and again, each time without one of its settings."""
    for index, node in enumerate(ast.walk(tree)):
        count = 0
        if isinstance(node, ast.Call):
            count = len(node.keywords)
        elif isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name):
            count = len(_targets(node))
        for number in range(count):
            rest = copy.deepcopy(tree)
            other = list(ast.walk(rest))[index]
            if isinstance(other, ast.Call):
                taken = other.keywords.pop(number)
            else:
                targets = _targets(other)
                taken, targets[number] = targets[number], ast.Name("_", ast.Store())
            yield f"line {node.lineno}: {ast.unparse(taken)}", ast.fix_missing_locations(rest)


def _targets(assignment):
    """What is assigned to, as a list that can be changed: of a = b = x, or of a, b = x, y."""
    first = assignment.targets[0]
    return first.elts if isinstance(first, ast.Tuple) else assignment.targets


def _settings_of(tree, variants):
    scope = {}
    exec(compile(tree, "config", "exec"), scope)
    return [settings.values(scope["get_config"](name)) for name in variants]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_line_of_a_config_file_changes_a_setting(path):
    tree = ast.parse(path.read_text())
    names = [name for file, name in VARIANTS.values() if file == path] or ["", "smoke"]
    whole = _settings_of(tree, names)
    trials = list(_without_one_setting(tree))
    assert trials
    assert [line for line, rest in trials if _settings_of(rest, names) == whole] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_says_hardware_time_number_and_command(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    for word in ("Hardware: ", "Time: ", "Expect: "):
        assert f"\n{word}" in text
    command = r"^    (python -m jax_noisy_anogan\.|jax-noisy-anogan )(train|reproduce) "
    assert re.search(command, text, re.MULTILINE)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_a_config_file_is_valid(name):
    assert isinstance(_config(*VARIANTS[name]), Config)
