"""What layers and models return: named fields, read as transformers' outputs are.

R texts, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree


class Output:
    """Base of frozen output dataclasses, read as transformers' outputs are.

    A field is `out.loss` or `out["loss"]`; the fields that are set, in their order, are `.keys()`, `.values()`,
    `.items()`, `len(out)`, `.to_tuple()`, and `out[0]` or `out[:2]` by position.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _pytree.register_pytree_node(
            cls,
            lambda out: ([getattr(out, n) for n in out.__dataclass_fields__], type(out)),
            lambda values, kind: kind(*values),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def keys(self) -> list[str]:
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def values(self) -> list[Any]:
        return list(self.to_tuple())

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, key) for key in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, (int, slice)):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} has no {key!r}; it has {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def items(self) -> list[tuple[str, Any]]:
        return [(k, getattr(self, k)) for k in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self.keys() else default

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass(frozen=True)
class EncoderOutput(Output):
    """last_hidden_state (R, T, D): a text's states after its last layer."""

    last_hidden_state: torch.Tensor | None = None


@dataclass(frozen=True)
class DecoderOutput(Output):
    """loss: scalar, or (texts,) before weighting; logits: (texts, T, V)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class QueryOutput(Output):
    """What a Q-Former of Q queries and T tokens of text gives.

    last_hidden_state (R, Q + T, D); past_key_values: of the queries, for texts after them; attentions: of each layer
    the weights (R, H, Q + T, N) of self-attention; cross_attentions: (R, H, Q, image tokens) of the layers that have
    them, None of others.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Any = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor | None, ...] | None = None
