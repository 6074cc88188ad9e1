"""Options handed to a method that may not take all of them: defaults are left out, what was asked for is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def parameters(method: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """The names of a method's parameters, and whether it takes any other keyword as well (so does one that has no
    signature, such as compiled code)."""
    try:
        found = inspect.signature(method).parameters.values()
    except (ValueError, TypeError):
        return frozenset(), True
    return frozenset(p.name for p in found), any(p.kind is p.VAR_KEYWORD for p in found)


def accepted(
    method: Callable[..., Any],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    refuse: Callable[[str], str],
) -> dict[str, Any]:
    """The options that a method is to be called with.

    Args:
        options: by the method's names for them.
        defaults: what counts as not asked for: an option with this value, which the method doesn't take, is left out.
        refuse: what to tell a person who asked for an option (its name) that the method doesn't take.

    Raises:
        ValueError: such an option; it says what `refuse` gives.
    """
    names, takes_any = parameters(method)
    out = {}
    for name, value in options.items():
        if takes_any or name in names:
            out[name] = value
        elif name not in defaults or value != defaults[name]:
            raise ValueError(refuse(name))
    return out
