# SPDX-License-Identifier: Apache-2.0
"""Between nested frozen dataclasses and plain dictionaries: every value is checked against its annotation."""

from __future__ import annotations

import contextlib
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, NoReturn, TypeVar

from secl_models.options.errors import InputError

Section = TypeVar("Section")
_EXAMPLES: dict[type, str] = {int: "3", float: "0.5", bool: "true", str: "auto"}


def to_plain(section: Any) -> dict[str, Any]:
    """A dataclass and all below it as dictionaries, with lists for tuples."""
    return {key: _plain(value) for key, value in asdict(section).items()}


def from_plain(section: type[Section], values: Mapping[str, Any]) -> Section:
    """The exact inverse of `to_plain`; what is absent keeps its default.

    Understands int, float, bool, str, tuples and dicts of these, `| None` and nested dataclasses.

    Raises:
        InputError: An unknown key, with the nearest that exist, or a value of another type, with its key.
    """
    return _convert_section(section, values, "", dotted_names(section))


def dotted_names(section: type) -> list[str]:
    """Names of all options of a dataclass: `seed`, `train.steps`, ..."""
    names = []
    for name, hint in typing.get_type_hints(section).items():
        names += (
            [f"{name}.{below}" for below in dotted_names(hint)]
            if isinstance(hint, type) and is_dataclass(hint)
            else [name]
        )
    return names


def refuse_unknown(key: str, known: list[str]) -> NoReturn:
    """Raise an `InputError` that names the options nearest to an unknown key."""
    last = {name: name.rpartition(".")[2] for name in known}
    wanted = key.rpartition(".")[2]
    similar = difflib.get_close_matches(wanted, set(last.values()), n=3, cutoff=0.7)
    near = [name for word in similar for name in known if last[name] == word]
    near += [name for name in difflib.get_close_matches(key, known, n=3) if name not in near]
    cure = "the nearest are " + ", ".join(near[:4]) if near else "the options are " + ", ".join(known)
    raise InputError(key, rule="an option that exists", got="an unknown name", cure=cure)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _convert_section(section: type[Section], values: Any, key: str, known: list[str]) -> Section:
    if not isinstance(values, Mapping):
        got, cure = f"{values!r} ({type(values).__name__})", "write its options below it, indented"
        raise InputError(key, rule="a section with options", got=got, cure=cure)
    prefix = f"{key}." if key else ""
    hints = typing.get_type_hints(section)
    for name in values:
        if name not in hints:
            refuse_unknown(f"{prefix}{name}", known)
    return section(**{name: _convert(hints[name], value, prefix + name, known) for name, value in values.items()})


def _convert(hint: Any, value: Any, key: str, known: list[str]) -> Any:
    """Check one value against its annotation and make it what the annotation says."""
    if is_dataclass(hint) and isinstance(hint, type):
        return _convert_section(hint, value, key, known)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(choice for choice in hint.__args__ if choice is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return _convert_tuple(typing.get_args(hint), value, key)
    if typing.get_origin(hint) is dict:
        return _convert_dict(typing.get_args(hint), value, key)
    return _convert_scalar(hint, value, key)


def _convert_tuple(hints: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    endless = hints[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (endless or len(value) == len(hints)):
        rule = f"a list of {'' if endless else f'{len(hints)} '}{hints[0].__name__}"
        got = f"{value!r} ({type(value).__name__})"
        raise InputError(key, rule=rule, got=got, cure="write [1, 2], for example")
    kinds = hints[:1] * len(value) if endless else hints
    return tuple(
        _convert_scalar(kind, entry, f"{key}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _convert_dict(hints: tuple[Any, ...], value: Any, key: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        got = f"{value!r} ({type(value).__name__})"
        raise InputError(key, rule="names with values", got=got, cure='write {"torch": "2.13.0"}, for example')
    return {
        _convert_scalar(hints[0], name, key): _convert_scalar(hints[1], entry, f"{key}.{name}")
        for name, entry in value.items()
    }


def _convert_scalar(hint: type, value: Any, key: str) -> Any:
    converted = value
    # yaml 1.1 reads 5e-3, without a dot, as text; true is an int to Python, but not a number to a user.
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            converted = float(value)
    finite = not isinstance(converted, float) or math.isfinite(converted)
    if type(converted) is not hint or not finite:
        got, cure = f"{value!r} ({type(value).__name__})", f"write {_EXAMPLES[hint]}, for example"
        raise InputError(key, rule=f"of type {hint.__name__}", got=got, cure=cure)
    return converted
