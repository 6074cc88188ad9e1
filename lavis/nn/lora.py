"""Low-rank adapters (LoRA, Hu et al. 2021): a linear layer's weight W is left as it is, and W + s·B·A is computed.

A (rank, in) and B (out, rank) are trained, s = alpha / rank; B starts at zero, so that nothing changes at the start. An
adapted layer keeps its class's forward, its names of entries (`weight`, `bias`) and its hooks, and has `lora_a` and
`lora_b` beside them; it still is an `nn.Linear`. Models are not asked: whatever calls its layers can be adapted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lavis.nn import cpu

ATTENTION = r".*\.(query|value|qkv|q_proj|v_proj)"  # as in the paper: queries and values of every attention
_NAMES = ("lora_a", "lora_b")


@dataclass(frozen=True)
class LoraConfig:
    """What is adapted, and how.

    Attributes:
        rank: of the update of a matrix.
        alpha: the update is multiplied by alpha / rank, so that a learning rate suits any rank.
        dropout: of the adapter's input, in training.
        targets: the linear layers: a regular expression for their whole names, or a list of names or of their ends
            (["query", "value"]).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | list[str] = ATTENTION

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 1 << 16:
            raise ValueError(f"rank is {self.rank}; it must be 1 or more")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be from 0 to below 1")
        try:
            re.compile(self.targets if isinstance(self.targets, str) else "")
        except re.error as e:
            raise ValueError(f"targets is {self.targets!r}, which is no regular expression: {e}") from e

    def means(self, name: str) -> bool:
        """Whether a layer of this name is adapted."""
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, name) is not None
        return any(name == end or name.endswith(f".{end}") for end in self.targets)


class LoraLinear(nn.Linear):
    """The adapted form of a linear layer; of a subclass of `nn.Linear` it is made by `_adapted`."""

    lora_a: nn.Parameter  # (rank, in)
    lora_b: nn.Parameter  # (out, rank)
    lora_scale: float
    lora_dropout: float
    plain_class: type[nn.Linear]  # of the layer without its adapter

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input)
        x = F.dropout(input, self.lora_dropout, self.training).to(self.lora_a.dtype)
        update = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return out + (self.lora_scale * update).to(out.dtype)

    def update(self) -> torch.Tensor:
        """s·B·A, as large as the weight."""
        return self.lora_scale * (self.lora_b.detach().float() @ self.lora_a.detach().float())

    def __reduce__(self) -> Any:  # the classes of `_adapted` have no name to be found by
        return _blank, (_plain_class(self),), self.__dict__


_classes: dict[type[nn.Linear], type[LoraLinear]] = {}


def _adapted(kind: type[nn.Linear]) -> type[LoraLinear]:
    """The adapted form of a class of linear layers."""
    if kind not in _classes:
        _classes[kind] = type(f"Lora{kind.__name__}", (LoraLinear, kind), {"plain_class": kind})
    return _classes[kind]


def _plain_class(layer: LoraLinear) -> type[nn.Linear]:
    return type(layer).plain_class


def _blank(kind: type[nn.Linear]) -> LoraLinear:
    cls = _adapted(kind)
    return cls.__new__(cls)


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by their names; empty where there are none."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def is_adapter(entry: str) -> bool:
    """Whether an entry of a state dict is an adapter's."""
    return entry.rpartition(".")[2] in _NAMES


def lora_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' entries of a model's state dict."""
    return {key: tensor for key, tensor in model.state_dict().items() if is_adapter(key)}


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers, without those that somebody else's adapter (peft's) has taken inside."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".base_layer." not in f".{name}.":
            yield name, module


def add_lora(
    model: nn.Module,
    config: LoraConfig,
    trained: Sequence[str] = (),
    ema: Mapping[str, str] | None = None,
) -> nn.Module:
    """Adapt layers of a model, in place; nothing else is trained from now on.

    Args:
        trained: names of parameters that are trained beside the adapters, such as those of a new head.
        ema: {name of a module: name of its EMA}; the EMA is adapted as its module, and follows it.

    Returns:
        The model.

    Raises:
        ValueError: no layer is meant, or there are adapters already.
    """
    cpu.undo(model)  # an adapted layer is of its plain class
    if adapted_layers(model):
        raise ValueError("there are adapters already; merge_lora or remove_lora comes first")
    copies = tuple(f"{name}." for name in (ema or {}).values())
    layers = {
        n: m for n, m in _linear_layers(model) if config.means(n) and not n.startswith(copies or ("\0",))
    }
    if not layers:
        ends = sorted({name.rpartition(".")[2] for name, _ in _linear_layers(model)})
        raise ValueError(
            f"lora.targets {config.targets!r} names no linear layer; there are {', '.join(ends)}"
        )
    model.requires_grad_(False)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in trained:
            parameter.requires_grad_(True)
    for layer in layers.values():
        _adapt(layer, config)
    for name, copy in (ema or {}).items():
        for inside, layer in adapted_layers(model.get_submodule(name)).items():
            slow: Any = model.get_submodule(f"{copy}.{inside}")
            _adapt(slow, config)
            slow.lora_a.data.copy_(layer.lora_a)
            slow.requires_grad_(False)
    return model


def _adapt(layer: nn.Linear, config: LoraConfig) -> None:
    weight = layer.weight
    # trained in float32, also of a frozen weight in a shorter format
    a = torch.empty(config.rank, layer.in_features, device=weight.device)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    layer.__class__ = _adapted(type(layer))
    assert isinstance(layer, LoraLinear)
    layer.lora_a = nn.Parameter(a)
    layer.lora_b = nn.Parameter(torch.zeros(layer.out_features, config.rank, device=weight.device))
    layer.lora_scale, layer.lora_dropout = config.alpha / config.rank, config.dropout


def remove_lora(model: nn.Module) -> nn.Module:
    """Take the adapters away, in place: the model computes what it did before them. What is frozen stays so."""
    for layer in adapted_layers(model).values():
        layer.__class__ = _plain_class(layer)  # type: ignore[assignment]
        for name in _NAMES:
            delattr(layer, name)
        del layer.lora_scale, layer.lora_dropout
    return model


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Add the adapters to the weights and take them away, in place: the same results without their time."""
    for layer in adapted_layers(model).values():
        layer.weight.copy_(layer.weight.float() + layer.update())
    return remove_lora(model)
