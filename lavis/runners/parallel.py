"""A model on several processes: replicated (DDP), or with its state spread over them (FSDP2).

With FSDP2 (`run.parallel: fsdp`) each process keeps a part of the parameters, of the EMA, of the gradients and of the
optimizer's state; what a block of the image encoder needs is gathered when it is its turn, the rest for the length of
a step. Models know nothing of it. Checkpoints hold whole tensors, as ever: a run may go on in another way.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lavis.common import dist

# every rank computes the same buffers; the option that says so has another name in newer versions of torch
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False
}


# FSDP is imported where it is used: not every build of PyTorch has it, and it takes its time.
def is_spread(part: nn.Module | torch.Tensor) -> bool:
    """Whether a module's parameters, or a tensor, are spread over the processes (`FSDPModule`, `DTensor`)."""
    return hasattr(part, "unshard" if isinstance(part, nn.Module) else "full_tensor")


# ------------------------------------------------------------------------------------------ before training
def replicated(model: nn.Module, device: torch.device, find_unused: bool) -> nn.Module:
    """The model as it is called in training: on several processes each has all of it, and gradients are averaged."""
    if not dist.is_on() or is_spread(model):
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        **_OWN_BUFFERS,
        gradient_as_bucket_view=True,
        find_unused_parameters=find_unused or bool(getattr(model, "find_unused_parameters", False)),
    )


@torch.no_grad()
def shard(model: nn.Module, device: torch.device) -> None:
    """Spread a model over all processes, in place, before there is an optimizer; all begin as rank 0's.

    It stays spread: `whole` gives it back for as long as something else than its `forward` is called.
    """
    if not dist.is_on() or is_spread(model):
        return
    from torch.distributed import broadcast
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for tensor in (*model.parameters(), *model.buffers()):
        broadcast(tensor, src=0)
    # frozen parts in a shorter number format, which cannot be spread together with the rest: each process has them
    whole = {p for p in model.parameters() if not p.requires_grad and p.dtype != torch.float32}
    # images come back as views, which nobody writes into
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    modules, blocks = dict(model.named_modules()), getattr(model, "IMAGE_BLOCKS", "none")
    encoder, _, inside = blocks.partition(".")
    for name in (blocks, f"{encoder}_m.{inside}"):  # of the EMA, too
        found = modules.get(name)
        for block in found if isinstance(found, (nn.ModuleList, nn.Sequential)) else ():
            if not whole.issuperset(block.parameters()):
                fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)


# ------------------------------------------------------------------------------------------ between steps
@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """A model with all of its parameters on every process, to predict with; they are not to be changed.

    Inside, no process waits for another, so each may predict as often as it has something to predict.
    """
    parts: list[Any] = [module for module in model.modules() if is_spread(module)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


def full(value: Any) -> Any:
    """The whole of a tensor that is spread over the processes, which all have to ask; anything else as it is.

    Of dicts and lists, and what is in them, too.
    """
    if isinstance(value, torch.Tensor):
        return value.full_tensor().detach() if is_spread(value) else value  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {key: full(part) for key, part in value.items()}
    return [full(part) for part in value] if isinstance(value, list) else value


def full_state(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The whole entries of a model that is spread over the processes, which all have to ask; None of another one.

    Tied entries are one tensor.
    """
    if not is_spread(model):
        return None
    found: dict[int, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for value in state.values():
        if id(value) not in found:
            found[id(value)] = full(value)
    return {key: found[id(value)] for key, value in state.items()}


def part_like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor as the other one is: spread over the processes, or not."""
    if not is_spread(other):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
