"""Counts what makes a program wait for its device: the values of a tensor wanted on the host.

On a CPU nothing waits, but the same calls are made as on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch

WAITS = (
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__array__", "cpu", "numpy", "nonzero",
    "masked_select", "unique", "equal", "is_nonzero",
)  # fmt: skip


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """A list to which every wait inside is added by its name; one that another makes is not counted again."""
    found: list[str] = []
    inside = False

    def counting(name: str, method: Any) -> Any:
        @wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            outer, inside = inside, True
            if not outer:
                found.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                inside = outer

        return wrapped

    def indexed(method: Any) -> Any:
        """x[mask] and x[mask] = … count the mask's True."""

        @wraps(method)
        def wrapped(self: torch.Tensor, index: Any, *value: Any) -> Any:
            parts = index if isinstance(index, tuple) else (index,)
            flags = [p for p in parts if isinstance(p, torch.Tensor) and p.dtype in (torch.bool, torch.uint8)]
            if flags and not inside and not (value and not isinstance(value[0], torch.Tensor)):
                found.append("index by a mask")
            return method(self, index, *value)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in WAITS:
            patch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
        for name in ("__getitem__", "__setitem__"):
            patch.setattr(torch.Tensor, name, indexed(getattr(torch.Tensor, name)))
        patch.setattr(torch, "nonzero", counting("nonzero", torch.nonzero))
        yield found
