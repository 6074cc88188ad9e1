"""HTML that is put together from Python calls: every text is escaped, unless it is `Markup` already.

    tag("a", caption, href=address, class_="card")

So a caption with a script in it is text on the page, wherever it comes from.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

_EMPTY = frozenset(["br", "hr", "img", "input", "link", "meta", "source"])  # elements without an end


class Markup(str):
    """Text that is HTML. What is added to it is escaped."""

    __slots__ = ()

    def __add__(self, other: Any) -> Markup:
        return Markup(str.__add__(self, escape(other)))


def escape(value: Any) -> Markup:
    """A value as HTML: None is nothing, `Markup` stays as it is, lists are joined, all else is escaped text."""
    if value is None or value is False:
        return Markup()
    if isinstance(value, Markup):
        return value
    if isinstance(value, Iterable) and not isinstance(value, str):
        return Markup("".join(map(escape, value)))
    return Markup(html.escape(str(value), quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: such as "p". children: its content, see `escape`.
        **attributes: `class_` is class, `data_id` is data-id; None and False leave one out, True names it alone.

    Raises:
        ValueError: content in an element that can have none.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(str(value), quote=True)}"')
    start = Markup(f"<{' '.join(parts)}>")
    if name in _EMPTY:
        if children:
            raise ValueError(f"<{name}> has no content")
        return start
    return Markup(f"{start}{escape(children)}</{name}>")
