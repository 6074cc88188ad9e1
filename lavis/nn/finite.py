"""What a model computes is checked before anybody uses it: NaN and infinity are errors that name the input.

A caption of NaN is "", its best class the first one, and its place in an index nowhere; nobody would see it. The check
reads a result where it is copied to the CPU anyway, so that a GPU is not waited for once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

T = TypeVar("T")
R = TypeVar("R")
_NAMED = 3  # places that a message names


class NonFiniteError(ValueError):
    """A model computed NaN or infinity.

    Attributes:
        kind: what the results are of: "image", "video", "text".
        places: which of the batch, from 0.
        total: how many there are in the batch.
        reason: what is known of the cause; "" until `explained` has looked.
    """

    def __init__(self, places: Sequence[int], total: int, kind: str = "image") -> None:
        super().__init__()
        self.places, self.total, self.kind = list(places), total, kind
        self.reason = ""

    def __str__(self) -> str:
        if self.total == 1:
            where = f"for the {self.kind}"
        elif len(self.places) == self.total:
            where = f"for all {self.total} {self.kind}s of the batch"
        else:
            named = ", ".join(str(place + 1) for place in self.places[:_NAMED])
            more = ", …" if len(self.places) > _NAMED else ""
            where = f"for {self.kind} {named}{more} of the {self.total} of the batch"
        reason = self.reason or "its weights may be damaged, or the input tensor may hold NaN"
        return f"the model computed NaN or infinity {where}: {reason}"


def check_finite(result: Any, total: int | None = None, kind: str = "image") -> None:
    """Refuse a result that holds NaN or infinity.

    Args:
        result: a tensor, an array or a number, or an output object, a mapping or a sequence of such; other things in
            it are passed over. Rows (the first dimension) belong to the inputs, equally many to each, in order.
        total: how many inputs there are; None: as many as rows.
        kind: what they are, for the message.

    Raises:
        NonFiniteError: naming the inputs.
    """
    values = [v for v in _pytree.tree_leaves(result) if _is_number(v)]
    flags: dict[torch.device, list[torch.Tensor]] = {}
    for value in values:
        if isinstance(value, torch.Tensor):
            flags.setdefault(value.device, []).append(value.isfinite().all())
    tensors_good = all(bool(torch.stack(each).all()) for each in flags.values())  # one wait for each device
    others = [v for v in values if not isinstance(v, torch.Tensor)]
    if tensors_good and all(bool(np.isfinite(v).all()) for v in others):
        return
    bad: set[int] = set()
    for value in values:
        rows = torch.as_tensor(value).detach()
        rows = rows.reshape(rows.shape[0] if rows.ndim else 1, -1)
        each = max(1, len(rows) // total) if total else 1
        bad |= {row // each for row in (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()}
        total = total or len(rows)
    raise NonFiniteError(sorted(place for place in bad if place < (total or 1)) or [0], total or 1, kind)


def check_logprobs(values: Sequence[float], total: int, kind: str = "image") -> None:
    """`check_finite` of numbers that are on the CPU already: `len(values) / total` of each input."""
    if not all(map(math.isfinite, values)):
        check_finite(torch.tensor(values), total, kind)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and value.numel() > 0 and not value.is_meta
    if isinstance(value, np.ndarray):
        return bool(np.issubdtype(value.dtype, np.floating)) and value.size > 0
    return isinstance(value, float)


@contextmanager
def explained(model: nn.Module, samples: Any = None) -> Iterator[None]:
    """Say in a `NonFiniteError` that is raised inside what its cause is, as far as it can be seen.

    Args:
        model: what computed. samples: what it was given, tensors under names.
    """
    try:
        yield
    except NonFiniteError as e:
        e.reason = e.reason or _cause(model, samples)
        raise


def _cause(model: nn.Module, samples: Any) -> str:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return (
                f"its weights are damaged ({name} holds NaN or infinity); load a checkpoint from before the training "
                "diverged, or download the file again"
            )
    given = samples.items() if isinstance(samples, Mapping) else [("the input", samples)]
    for name, tensor in given:
        if _is_number(tensor) and not bool(torch.as_tensor(tensor).isfinite().all()):
            return f"{name!r} holds NaN or infinity already; look at what prepared it"
    halves = (torch.float16, torch.bfloat16)
    kinds = {p.device.type for p in model.parameters()}
    if any(map(torch.is_autocast_enabled, kinds)) or any(p.dtype in halves for p in model.parameters()):
        return "weights and inputs are finite, so the half precision overflowed; use precision fp32"
    return "weights and inputs are finite, so a product overflowed; the weights may be of a training that diverged"


def usable(
    run: Callable[[list[T]], R], items: Sequence[T]
) -> tuple[R | None, list[T], list[tuple[T, NonFiniteError]]]:
    """Run a model on a batch; where it computes NaN for some images or videos, once more on the others.

    Args:
        run: the model. items: what it is given, in the batch's order.

    Returns:
        what `run` gave (None if nothing was left), the items that it gave it of, and the others with their errors.

    Raises:
        NonFiniteError: what is wrong is not one of the items.
    """
    left, bad = list(items), []
    while left:
        try:
            return run(left), left, bad
        except NonFiniteError as e:
            if e.kind not in ("image", "video") or e.total != len(left):
                raise
            here = set(e.places)
            for place in sorted(here):
                alone = NonFiniteError([0], 1, e.kind)
                alone.reason = e.reason
                bad.append((left[place], alone))
            left = [item for place, item in enumerate(left) if place not in here]
    return None, [], bad
