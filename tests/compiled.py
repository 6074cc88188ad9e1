"""Training steps of a model, as they are and compiled in one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Trained = tuple[list[float], dict[str, torch.Tensor]]


def trained(model: Any, batches: Sequence[Any], *, compiled: bool) -> Trained:
    """Losses of a step of SGD on each batch, and the weights after them.

    Compiled, a step that does not fit into one graph, or that is compiled anew after the first, is an error.
    """
    torch._dynamo.reset()
    model.train()
    loss_of = torch.compile(model, fullgraph=True, backend="eager") if compiled else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        model.before_step(0.3 * step + 0.1)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            loss = loss_of(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        losses.append(float(loss.detach()))
    return losses, {key: value.clone() for key, value in model.state_dict().items()}
