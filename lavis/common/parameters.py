"""Groups of parameters by patterns of their names: what is frozen, learns slower, decays otherwise.

A list of rules, as in Big Vision: the first whose pattern is a parameter's whole name decides about it alone; what it
does not say stays as it is, and so does a parameter that no rule names. Layer-wise decay is such a list, too
(`layer_decay`). A tied parameter has several names; a rule applies to it by any of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lavis.common.values import typed

if TYPE_CHECKING:
    from torch import nn

Groups = list[dict[str, Any]]  # an optimizer's: "params", "weight_decay", "lr_scale"


@dataclass(frozen=True)
class ParameterRule:
    """What holds for some parameters.

    Attributes:
        match: regular expression; the whole name of a parameter must match.
        freeze: it is not trained: no gradient, no state of the optimizer. Modules of which all parameters are frozen
            are in evaluation mode while the rest is trained: no dropout or drop path, no new statistics of a batch.
        lr_scale: its learning rate is the schedule's times this, and times what `run.lr_layer_decay` gives.
        weight_decay: in place of the one that it would have; None: that one.
    """

    match: str
    freeze: bool = False
    lr_scale: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as e:
            raise ValueError(f"match is {self.match!r}, which is no regular expression: {e}") from e
        if self.freeze and (self.lr_scale != 1 or self.weight_decay is not None):
            raise ValueError("freeze leaves nothing for lr_scale and weight_decay to change")
        if not (self.freeze or self.lr_scale != 1 or self.weight_decay is not None):
            raise ValueError(
                "one of freeze, lr_scale and weight_decay must say what holds for the parameters"
            )
        if not self.lr_scale > 0:
            raise ValueError(f"lr_scale is {self.lr_scale}; it must be above 0 (freeze: true trains nothing)")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or more")

    def applies(self, names: Iterable[str]) -> bool:
        return any(re.fullmatch(self.match, name) for name in names)


def read_rules(values: Sequence[Mapping[str, Any]], where: str = "run.parameters") -> list[ParameterRule]:
    """The rules of a recipe.

    Raises:
        ValueError: an unknown key, a value that does not fit, or a rule without an effect.
    """
    rules = []
    for i, value in enumerate(values):
        if "match" not in value:
            raise ValueError(f"{where}[{i}] has no match, the pattern of the names that it is about")
        try:
            rules.append(typed(ParameterRule, value, prefix=f"{where}[{i}]."))
        except ValueError as e:
            text = str(e)
            raise ValueError(text if where in text else f"{where}[{i}]: {text}") from e
    return rules


def layer_decay(model: nn.Module, blocks: str, decay: float) -> list[ParameterRule]:
    """Layer-wise decay of an image encoder's learning rate (Clark et al. 2020; BEiT), as in the original.

    Its last block, and what follows, has `decay`, the block before it decay², and so on; what comes before the first
    has one factor more. The rest of the model has 1.

    Args:
        blocks: name of the list of blocks, such as "visual_encoder.blocks"; the encoder is the first part of it.
    """
    depth, encoder = len(model.get_submodule(blocks)), re.escape(blocks.partition(".")[0])  # type: ignore[arg-type]
    factors = {
        **{rf"{re.escape(blocks)}\.{i}\..*": decay ** (depth - i) for i in range(depth)},
        rf"{encoder}\.((.*\.)?(norm|pool)\..*|proj)": decay,
        rf"{encoder}\..*": decay ** (depth + 1),
    }
    return [ParameterRule(match, lr_scale=factor) for match, factor in factors.items() if factor != 1]


def names_of(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter with all its names."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def deciding(model: nn.Module, rules: Sequence[ParameterRule]) -> dict[nn.Parameter, ParameterRule]:
    """Of each parameter that a rule is about, the rule that decides."""
    found = {}
    for parameter, names in names_of(model).items():
        rule = next((rule for rule in rules if rule.applies(names)), None)
        if rule is not None:
            found[parameter] = rule
    return found


def check(model: nn.Module, rules: Sequence[ParameterRule], where: str = "run.parameters") -> None:
    """Refuse rules that decide about nothing that is trained.

    Raises:
        ValueError: with similar names, or the rule that comes first.
    """
    names = names_of(model)
    decided = deciding(model, rules)
    for i, rule in enumerate(rules):
        about = [p for p, its in names.items() if rule.applies(its) and (p.requires_grad or rule.freeze)]
        if not about:
            trained = [its[0] for p, its in names.items() if p.requires_grad]
            inside = [n for n in trained if n.startswith(f"{rule.match}.")]
            hint = near(rule.match, trained)
            if inside:
                hint = f" It must match the whole name: {rule.match}\\..* matches {len(inside)}, such as {inside[0]!r}."
            raise ValueError(f"{where}[{i}].match {rule.match!r} matches no parameter that is trained.{hint}")
        if not any(decided[p] is rule for p in about):
            first = rules.index(decided[about[0]])
            raise ValueError(
                f"{where}[{i}].match {rule.match!r} has no effect: the first rule that matches decides, and {where}"
                f"[{first}].match {rules[first].match!r} comes before it. Put the special before the general"
            )


def near(pattern: str, names: Sequence[str]) -> str:
    """What a pattern may mean: similar names and modules, or the modules that there are."""
    plain = re.sub(r"\\([.\-_])", r"\1", pattern)
    plain = re.sub(r"[.\\]?[*+?()\[\]|^$]+", "", plain)
    found = difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
    prefixes = {n.rsplit(".", depth)[0] for n in names for depth in (1, 2, 3, 4)}
    found += [
        f"{p}\\..*" for p in difflib.get_close_matches(plain, sorted(prefixes - set(names)), n=2, cutoff=0.5)
    ]
    if found:
        return " Similar: " + ", ".join(map(repr, found)) + "."
    return " The model has " + ", ".join(sorted({n.partition(".")[0] for n in names})) + "."


def grouped(groups: Groups, model: nn.Module, rules: Sequence[ParameterRule]) -> Groups:
    """An optimizer's groups, split where rules ask for another rate or decay, without what is frozen."""
    if not rules:
        return groups
    decided = deciding(model, rules)
    out: Groups = []
    for group in groups:
        parts: dict[ParameterRule | None, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(decided.get(parameter), []).append(parameter)
        for rule, parameters in parts.items():
            if rule is None:
                out.append({**group, "params": parameters})
            elif not rule.freeze:
                decay = group["weight_decay"] if rule.weight_decay is None else rule.weight_decay
                scale = group.get("lr_scale", 1.0) * rule.lr_scale
                out.append({**group, "params": parameters, "lr_scale": scale, "weight_decay": decay})
    return out


class Frozen:
    """What rules freeze of a model, until `close`; `hold`, after `model.train()`, keeps it in evaluation mode."""

    def __init__(self, model: nn.Module, rules: Sequence[ParameterRule]) -> None:
        frozen = {p for p, rule in deciding(model, rules).items() if rule.freeze}
        self.modules = list(_whole(model, frozen))
        self.parameters = [p for p in frozen if p.requires_grad]
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def hold(self) -> None:
        for module in self.modules:
            module.eval()

    def close(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def _whole(module: nn.Module, frozen: set[nn.Parameter]) -> Iterator[nn.Module]:
    """The largest modules that have nothing but frozen parameters."""
    parameters = list(module.parameters())
    if parameters and all(p in frozen for p in parameters):
        yield module
        return
    for child in module.children():
        yield from _whole(child, frozen)
