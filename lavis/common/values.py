"""Plain values, as recipes and commands have them, as typed fields; and near names for those that are unknown."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

D = TypeVar("D")


def suggest(name: object, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" (with a leading space), or the known names if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if near:
        return " Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return " Known: " + ", ".join(known) + "."


def type_name(kind: Any) -> str:
    """An annotation as people say it: "whole number"."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"list of {type_name(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return f"mapping of names to {type_name(typing.get_args(kind)[1])}"
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(str(a) for a in typing.get_args(kind))
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(kind, str(kind))


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, str):
        try:  # YAML reads 2e-5 (no dot) as text
            return int(value) if re.fullmatch(r"[+-]?\d+", value.strip()) else float(value)
        except ValueError:
            return None
    return None


def convert(value: Any, kind: Any) -> Any:
    """`value` as an instance of the annotation `kind`; raises a bare ValueError if it is none."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for a in args:
            if a is not type(None):
                try:
                    return convert(value, a)
                except ValueError:
                    continue
        raise ValueError
    if origin is typing.Literal:
        if value in args:
            return value
        raise ValueError
    if origin is list:
        if isinstance(value, str) or not isinstance(value, Iterable):
            value = [value]  # `train_splits: train`
        return [convert(v, args[0]) for v in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError
        return {str(k): convert(v, args[1]) for k, v in value.items()}
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError
    if kind in (int, float):
        number = _number(value)
        if number is None or (kind is int and number != int(number)):
            raise ValueError
        return kind(number)
    if kind is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, Path):
            return str(value)
        raise ValueError
    if isinstance(value, kind):
        return value
    raise ValueError


def typed(
    cls: type[D], values: Mapping[str, Any], where: Mapping[str, str] | str = "", prefix: str = ""
) -> D:
    """An instance of a dataclass from plain values, each converted to the type of its field.

    Args:
        cls: a dataclass. A `__post_init__` may raise ValueError for values that do not fit together.
        values: field name to value; text such as "2e-5" counts as a number where a number is due.
        where: the source named in errors: one for all, or one per dotted key.
        prefix: put before a key in errors, such as "run.".

    Raises:
        ValueError: an unknown key, or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    out = {}
    for key, value in values.items():
        place = where if isinstance(where, str) else where.get(prefix + key, "")
        place = f"{place}: " if place else ""
        if key not in fields:
            raise ValueError(f"{place}{prefix}{key} is no known key.{suggest(key, fields)}")
        try:
            out[key] = convert(value, hints[key])
        except (ValueError, OverflowError) as e:
            expected = type_name(hints[key])
            raise ValueError(f"{place}{prefix}{key} is {value!r}; expected {expected}") from e
    return cls(**out)
