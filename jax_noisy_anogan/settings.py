"""A setting is stated once: its default, its meaning and its range stand in one line.

`setting` is a dataclass field that carries meaning and range. `check` tests every field of a
section and of the sections below it; `values` lists them by name; `document` writes them as tables.
Rules that cross fields are no matter of this module: they stand beside the sections (`config.py`).
"""

# No `from __future__ import annotations`: sections state types that ml_collections reads.
import copy
import dataclasses
import math
import os
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from jax_noisy_anogan.errors import UserError

_RULE = "rule"


class ConfigError(UserError, ValueError):
    """A setting is missing, of the wrong type, out of range, or contradicts another one."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one setting means and which values it takes; of a tuple or dict, each of its values.

    Attributes:
      meaning: a line of the documentation; units included.
      above, at_least, at_most, below: bounds of a number.
      choices: the only values.
      power_of_two: whether the number must be one.
      off: a value beside the range that switches the setting off.
      keys: the only keys of a dict.
      remark: follows the range in an error, to say why it is so.
    """

    meaning: str
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    power_of_two: bool = False
    off: float | None = None
    keys: tuple[str, ...] = ()
    remark: str = ""

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type lies in the range."""
        if self.off is not None and value == self.off:
            return True
        if self.choices:
            return value in self.choices
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and not (self.power_of_two and value & (value - 1))
        )

    @property
    def range(self) -> str:
        """The range in words, as in "0, or a power of two from 4 to 1024"; "" without one."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        if self.at_least is not None and self.at_most is not None:
            text = f"from {self.at_least} to {self.at_most}"
        elif self.at_least is not None and self.below is not None:
            text = f"from {self.at_least} to below {self.below}"
        else:
            bounds = {
                "above": self.above,
                "at least": self.at_least,
                "below": self.below,
                "at most": self.at_most,
            }
            given = (f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
            text = " and ".join(given)
        text = f"a power of two {text}" if self.power_of_two else text
        return text if self.off is None else f"{self.off}, or {text}"


def setting(default: Any, meaning: str, **rule: Any) -> Any:
    """A field of a section.

    Args:
      default: a dict is copied for every section.
      rule: the range, as `Rule` names it.
    """
    metadata = {_RULE: Rule(meaning=meaning, **rule)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Raise the ConfigError of one setting: one line with its name, value and what was expected."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to write thousands of digits
        text = "a number of thousands of digits"
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    raise ConfigError(f"config.{name} is {shown}: expected {expected}")


def check(section: Any, prefix: str = "") -> None:
    """Check type and range of every setting of a section and of the sections below it.

    Raises:
      ConfigError: names the first setting that is wrong, its value and what was expected.
    """
    hints = typing.get_type_hints(type(section))
    for item in dataclasses.fields(section):
        name, value, hint = f"{prefix}{item.name}", getattr(section, item.name), hints[item.name]
        if not _matches(value, hint):
            refuse(name, value, f"a value of type {_written(hint)}")
        if dataclasses.is_dataclass(hint):
            check(value, f"{name}.")
        else:
            _check_storable(name, value)
            _check_range(name, value, item.metadata[_RULE])


def values(section: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting of a section and of the sections below it, by its name with dots."""
    return {name: getattr(holder, item.name) for name, holder, item in _walk(section, prefix)}


def replaced(section: Any, changes: dict[str, Any]) -> Any:
    """A copy of a section with other values of some settings, by their names with dots."""
    section = copy.deepcopy(section)
    places = {name: (holder, item.name) for name, holder, item in _walk(section)}
    for name, value in changes.items():
        setattr(*places[name], value)
    return section


def build(section: type, given: Any, name: str) -> Any:
    """A section from what JSON holds of it; settings that are missing take their defaults.

    Raises:
      ConfigError: no object, or a setting that does not exist.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"{name} is {type(given).__name__}: expected an object with fields")
    hints = typing.get_type_hints(section)
    unknown = sorted(set(given) - set(hints))
    if unknown:
        raise ConfigError(f"{name}.{unknown[0]} is unknown: expected one of {', '.join(hints)}")
    built = {}
    for key, value in given.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            value = build(typing.cast(type, hint), value, f"{name}.{key}")
        built[key] = value
    return section(**built)


def document(section: type, name: str) -> str:
    """Tables in Markdown of a section and of those below it: field, default, range, meaning."""
    text, below = f"## `{name}`\n\n{_prose(section)}\n", []
    rows = ["| setting | default | range | meaning |", "|---|---|---|---|"]
    hints = typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[item.name]):
            below.append(document(typing.cast(type, hints[item.name]), f"{name}.{item.name}"))
            continue
        rule, default = item.metadata[_RULE], getattr(section(), item.name)
        shown = "" if default in ("", None) else f"`{default}`"
        span = rule.range or _written(hints[item.name])
        if rule.keys:
            span = f"{span} at {rule.keys[0]} to {rule.keys[-1]}"
        rows.append(f"| `{item.name}` | {shown} | {span} | {rule.meaning} |")
    if len(rows) > 2:
        text += "\n" + "\n".join(rows) + "\n"
    return "\n".join([text, *below])


def _walk(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    for item in dataclasses.fields(section):
        value, name = getattr(section, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{name}.")
        else:
            yield name, section, item


def _prose(section: type) -> str:
    return " ".join((section.__doc__ or "").split())


def _written(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_written(option) for option in typing.get_args(hint))
    if hint is types.NoneType:
        return "None"
    return str(hint) if typing.get_origin(hint) else hint.__name__


def _matches(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return any(_matches(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if origin is dict:
        key_type, value_type = typing.get_args(hint)
        return isinstance(value, dict) and all(
            _matches(k, key_type) and _matches(v, value_type) for k, v in value.items()
        )
    if origin is tuple:
        item_type = typing.get_args(hint)[0]
        return isinstance(value, tuple | list) and all(_matches(v, item_type) for v in value)
    return isinstance(value, hint)


def _check_storable(name: str, value: Any) -> None:
    """Refuse what no library below can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        refuse(name, value, "a finite number")
    if isinstance(value, int | np.integer) and not -(2**31) <= value < 2**31:
        refuse(name, value, "a number below 2**31")
    if isinstance(value, str) and not _is_path(value):
        refuse(name, value, "text without null bytes and halves of surrogate pairs")
    if isinstance(value, dict | tuple | list):
        for item in [*value, *(value.values() if isinstance(value, dict) else ())]:
            _check_storable(name, item)


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _check_range(name: str, value: Any, rule: Rule) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in rule.keys:
                expected = f"{rule.keys[0]} to {rule.keys[-1]}"
                refuse(name, key, f"resolutions from {expected} as keys")
            _check_range(f"{name}[{key}]", item, rule)
    elif isinstance(value, tuple | list):
        for item in value:
            _check_range(name, item, rule)
    elif value is not None and not rule.allows(value):
        refuse(name, value, f"{rule.range} {rule.remark}".rstrip())
