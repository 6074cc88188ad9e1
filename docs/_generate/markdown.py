"""Small helpers for writing Markdown, and for reading what docstrings say about the keys of a dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

_CODE = re.compile(r"(`+[^`]*`+)")
_URL = re.compile(r"(?<![<(\[`\w])(https?://[^\s<>`]+[^\s<>`.,;:)])")


def escaped(text: str) -> str:
    """Plain text (with `code` in backticks) as Markdown: nothing else in it is markup."""
    parts = _CODE.split(text)
    return "".join(p if p.startswith("`") else re.sub(r"([<>*_\[\]{}\\|#])", r"\\\1", p) for p in parts)


def linked(text: str) -> str:
    """Bare addresses as links."""
    parts = _CODE.split(text)
    return "".join(p if p.startswith("`") else _URL.sub(r"<\1>", p) for p in parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell.replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def term(name: str, text: str) -> str:
    """An entry of a definition list."""
    return f"{name}\n: {text}\n"


def type_name(kind: Any) -> str:
    """An annotation for people, as errors about recipes name it."""
    from lavis.common import values

    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "list"
    if dataclasses.is_dataclass(kind):
        return "mapping"
    return values.type_name(kind)


def value(default: Any) -> str:
    """A default as it stands in a recipe."""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, (list, tuple)):
        return "[" + ", ".join(map(value, default)) + "]"
    return '""' if default == "" else str(default)


def default_of(field: dataclasses.Field[Any]) -> str:
    """A field's default as it stands in a recipe; "" where it has none."""
    if field.default is not dataclasses.MISSING:
        return value(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return value(field.default_factory())
    return ""


def described(cls: type, more: str = "") -> dict[str, str]:
    """What the docstrings of a dataclass and its bases (and a further text) say of each field.

    In them a description is "name: text" or "name, other: text", one after the other on a line or each on its own.
    A field without a description of its own gets that in which it is named.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    found = _described(inspect.cleandoc(more), names)
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("lavis.") and base.__doc__:
            found.update(_described(inspect.cleandoc(base.__doc__), names))
    for name in names:
        if name not in found:
            near = [k for k, text in found.items() if re.search(rf"\b{name}\b", text)]
            if near:
                found[name] = f"see `{near[0]}`"
    return found


def _described(doc: str, names: Sequence[str]) -> dict[str, str]:
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    one = rf"(?:`(?:{one})`|\b(?:{one}))"
    start = re.compile(rf"(?:(?<=^)|(?<=[.;:)\n] )|(?<=\n)|(?<=\* ))({one}(?:, {one})*):\s", re.M)
    text = re.sub(r"[ \t]+", " ", doc)
    text = re.sub(r"\n (?=\S)", "\n", text)
    hits = list(start.finditer(text))
    out = {}
    for hit, following in zip(hits, [*hits[1:], None]):
        said = text[hit.end() : following.start() if following else len(text)]
        said = " ".join(said.split("\n\n")[0].split()).rstrip(".; ")
        said = said.split("**")[0].strip()
        for name in hit[1].replace("`", "").split(", "):
            out[name] = said
    return out


def keys(cls: type, more: str = "") -> str:
    """A definition list of a dataclass's fields: type, default, meaning; `more`: see `described`."""
    hints = typing.get_type_hints(cls)
    meanings = described(cls, more)
    out = []
    for f in dataclasses.fields(cls):
        default = default_of(f)
        kind = escaped(type_name(hints[f.name]))
        facts = f"*{kind}*" + (f", default `{default}`" if default else "")
        said = meanings.get(f.name, "")
        out.append(
            term(
                f"`{f.name}`",
                facts + (f". {escaped(said)[:1].upper()}{escaped(said)[1:]}." if said else "."),
            )
        )
    return "\n".join(out)


def first_sentence(doc: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((doc or "").strip().split("\n\n")[0].split())
