"""Process groups that may be absent: every function works, and costs nothing, with one process.

Start N processes with `torchrun --nproc_per_node=N …`; `init_from_env` then joins them.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_control: Any = None  # a group on the CPU, for what must not wait for a GPU


def is_on() -> bool:
    """Whether a process group with more than one rank exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def init_from_env(backend: str | None = None, timeout_minutes: float = 30) -> bool:
    """Join the group that torchrun describes in the environment. Returns whether there is one.

    The time limit is finite on purpose: when a rank dies, the others end with an error instead
    of waiting for it.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return False
    if backend is None:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=timeout_minutes))
    atexit.register(shutdown)
    return True


def shutdown() -> None:
    """Leave the group. Runs by itself at exit: a group whose threads outlive it aborts the process."""
    global _control
    _control = None
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # a wrapped model that is part of a cycle would keep the group alive
        dist.destroy_process_group()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What all ranks do; says what it means when one of them is gone.

    Raises:
        RuntimeError: a rank did not take part.
    """
    try:
        yield
    except RuntimeError as error:  # of gloo and of NCCL, and of the time limit
        raise RuntimeError(
            f"rank {rank()} of {world_size()} can't reach the others: most often one of them has ended or hangs, which "
            "its own output, or the system's log if it was killed for memory, explains; a training goes on with "
            f"run.resume_ckpt_path=auto ({error})"
        ) from error


def barrier() -> None:
    if is_on():
        with _together():
            dist.barrier()


def all_gather_objects(value: Any) -> list[Any]:
    """Every rank's picklable `value`, in rank order, on every rank."""
    if not is_on():
        return [value]
    out: list[Any] = [None] * world_size()
    with _together():
        dist.all_gather_object(out, value)
    return out


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if not is_on():
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def from_main(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank; where it fails, every rank raises its error."""
    if not is_on():
        return work()
    done: tuple[bool, Any] = (True, None)
    if is_main():
        try:
            done = True, work()
        except Exception as e:  # noqa: BLE001  raised below, on every rank
            done = False, e
    good, value = broadcast_object(done)
    if not good:
        raise value
    result: T = value
    return result


def largest(values: Sequence[int]) -> list[int]:
    """The largest of all ranks' numbers, place by place. Between CPUs: nothing waits for a GPU's queue."""
    global _control
    if not is_on():
        return list(values)
    with _together():
        if _control is None:
            _control = dist.new_group(backend="gloo")
        numbers = torch.tensor(values, dtype=torch.long)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_control)
    return [int(n) for n in numbers.tolist()]


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over ranks, outside autograd."""
    if not is_on():
        return value
    value = value.detach().clone()
    with _together():
        dist.all_reduce(value)
    return value / world_size()


def all_gather(value: torch.Tensor) -> torch.Tensor:
    """Concatenation over ranks along dimension 0, outside autograd; every rank's shape is the same."""
    if not is_on():
        return value.detach()
    value = value.detach().contiguous()
    out = [torch.empty_like(value) for _ in range(world_size())]
    with _together():
        dist.all_gather(out, value)
    return torch.cat(out, dim=0)


def all_gather_with_grad(value: torch.Tensor) -> torch.Tensor:
    """Concatenation over ranks along dimension 0, through which gradients flow back to each rank."""
    if not is_on():
        return value
    gathered: torch.Tensor = _GatherWithGrad.apply(value)
    return gathered


class _GatherWithGrad(torch.autograd.Function):
    """Its gradient: each rank gets the sum of what all ranks' results depend on its rows with."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return all_gather(value)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        with _together():
            dist.all_reduce(total)
        return total.chunk(world_size())[rank()]
