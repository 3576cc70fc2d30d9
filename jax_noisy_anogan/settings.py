"""What all settings have in common: their error, and the checks of type and range."""

import dataclasses
import math
import os
import types
import typing
from typing import Any

import numpy as np

from jax_noisy_anogan.errors import UserError


class ConfigError(UserError, ValueError):
    """A setting is missing, of the wrong type, out of range, or contradicts another one."""


def _fail(name: str, value: Any, expected: str) -> typing.NoReturn:
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to write thousands of digits
        text = "a number of thousands of digits"
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    raise ConfigError(f"config.{name} is {shown}: expected {expected}")


def _require_type(name: str, value: Any, annotation: Any) -> None:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        if not any(_matches(value, option) for option in typing.get_args(annotation)):
            _fail(name, value, " or ".join(str(a) for a in typing.get_args(annotation)))
    elif not _matches(value, annotation):
        _fail(name, value, f"a value of type {annotation if origin else annotation.__name__}")


def _matches(value: Any, annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if origin is dict:
        key_type, value_type = typing.get_args(annotation)
        return isinstance(value, dict) and all(
            _matches(k, key_type) and _matches(v, value_type) for k, v in value.items()
        )
    if origin is tuple:
        item_type = typing.get_args(annotation)[0]
        return isinstance(value, tuple | list) and all(_matches(v, item_type) for v in value)
    return isinstance(value, annotation)


def _check_types(section: Any, prefix: str = "") -> None:
    hints = typing.get_type_hints(type(section))
    for item in dataclasses.fields(section):
        name, value = f"{prefix}{item.name}", getattr(section, item.name)
        if dataclasses.is_dataclass(hints[item.name]):
            _require_type(name, value, hints[item.name])
            _check_types(value, f"{name}.")
        else:
            _require_type(name, value, hints[item.name])
            _check_value(name, value)


def _check_value(name: str, value: Any) -> None:
    """Refuse what no library below can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        _fail(name, value, "a finite number")
    if isinstance(value, int | np.integer) and not -(2**31) <= value < 2**31:
        _fail(name, value, "a number below 2**31")
    if isinstance(value, str) and not _is_path(value):
        _fail(name, value, "text without null bytes and halves of surrogate pairs")
    if isinstance(value, dict | tuple | list):
        for item in [*value, *(value.values() if isinstance(value, dict) else ())]:
            _check_value(name, item)


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        _fail(name, value, "one of " + ", ".join(choices))


def _at_least(name: str, value: float, low: float) -> None:
    if value < low:
        _fail(name, value, f"at least {low}")


def _at_most(name: str, value: int, high: int) -> None:
    if value > high:
        _fail(name, value, f"at most {high}")


def _between(name: str, value: float, low: float, high: float) -> None:
    """`low < value <= high`."""
    if not low < value <= high:
        _fail(name, value, f"above {low} and at most {high}")


def _power_of_two(name: str, value: int, low: int, high: int) -> None:
    if not (low <= value <= high and value & (value - 1) == 0):
        _fail(name, value, f"a power of two from {low} to {high}")


def _build(cls: type, values: Any, name: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{name} is {type(values).__name__}: expected an object with fields")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{name}.{unknown[0]} is unknown: expected one of {', '.join(hints)}")
    built = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            built[key] = _build(typing.cast(type, hint), value, f"{name}.{key}")
        elif typing.get_origin(hint) is tuple and isinstance(value, list):
            built[key] = tuple(value)
        else:
            built[key] = value
    return cls(**built)
