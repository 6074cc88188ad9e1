"""Small functions of the original's `lavis.common.utils`, `dist_utils`, `optims` and `data_utils`, for programs that
import them from there; see `lavis.common.moved`."""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common import dist, hub
from lavis.common.registry import registry

MAX_INT = registry.get("MAX_INT")


# ------------------------------------------------------------------------------------------ utils
def now() -> str:
    """The time to the second, as the name of a run's folder."""
    return time.strftime("%Y%m%d%H%M%S")


def is_url(url_or_filename: str) -> bool:
    return re.match(r"https?://", str(url_or_filename), re.IGNORECASE) is not None


def get_abs_path(rel_path: str) -> str:
    """A path from this package's folder."""
    return str(Path(str(registry.get_path("library_root"))) / rel_path)


def get_cache_path(rel_path: str) -> str:
    """A path from the cache's folder."""
    return str((Path(str(registry.get_path("cache_root"))) / rel_path).expanduser())


def abspath(resource_path: str) -> str:
    """An absolute path; what has a scheme, such as a URL, stays."""
    return resource_path if re.match(r"\w+://", resource_path) else str(Path(resource_path).absolute())


def load_json(filename: str | Path) -> Any:
    return json.loads(Path(filename).read_text(encoding="utf-8"))


def makedir(dir_path: str | Path) -> bool:
    Path(dir_path).mkdir(parents=True, exist_ok=True)
    return True


def get_file_size(filename: str | Path) -> float:
    """In MiB."""
    return Path(filename).stat().st_size / 2**20


def is_serializable(value: Any) -> bool:
    """Whether JSON can hold a value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def is_convertible_to_int(value: Any) -> bool:
    return re.fullmatch(r"-?\d+", str(value)) is not None


def download_cached_file(url: str, check_hash: bool = True, progress: bool = False) -> str:
    """The local path of a URL's file, fetched once, by rank 0 alone; what is known of its digest is checked."""
    if dist.is_main():
        hub.fetch(url)
    dist.barrier()
    return str(hub.fetch(url))


# ------------------------------------------------------------------------------------------ dist_utils
def is_dist_avail_and_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def get_dist_info() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return dist.rank(), dist.world_size()


def init_distributed_mode(args: Any) -> None:
    """Join the processes that torchrun started, if it did, and write `distributed`, `rank`, `world_size` and `gpu`
    into `args`."""
    backend = "gloo" if str(getattr(args, "device", "auto")) == "cpu" else None
    args.distributed = dist.init_from_env(backend=backend)
    args.rank, args.world_size, args.gpu = dist.rank(), dist.world_size(), dist.local_rank()


def main_process(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let rank 0 alone run a function; it gives None on the others."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if dist.is_main() else None

    return wrapped


# ------------------------------------------------------------------------------------------ data_utils
def apply_to_sample(f: Callable[[torch.Tensor], Any], sample: Any) -> Any:
    """A sample with a function applied to each of its tensors."""
    if isinstance(sample, torch.Tensor):
        return f(sample)
    if isinstance(sample, Mapping):
        return {key: apply_to_sample(f, value) for key, value in sample.items()}
    if isinstance(sample, (list, tuple)):
        return [apply_to_sample(f, value) for value in sample]
    return sample


def move_to_cuda(sample: Any) -> Any:
    return apply_to_sample(lambda tensor: tensor.cuda(), sample)


def prepare_sample(samples: Any, cuda_enabled: bool = True) -> Any:
    """A batch on the GPU, where there is one and it is wanted."""
    return move_to_cuda(samples) if cuda_enabled and torch.cuda.is_available() else samples


def reorg_datasets_by_split(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{name: {split: data set}} as {split: [data sets]}."""
    out: dict[str, list[Any]] = {}
    for splits in datasets.values():
        for split, dataset in splits.items():
            out.setdefault(split, []).append(dataset)
    return out


# ------------------------------------------------------------------------------------------ optims
def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine_lr_schedule(
    optimizer: torch.optim.Optimizer, epoch: int, max_epoch: int, init_lr: float, min_lr: float
) -> None:
    """Half a cosine from `init_lr` at epoch 0 to `min_lr` at `max_epoch`."""
    share = (1 + math.cos(math.pi * epoch / max_epoch)) / 2
    _set_rate(optimizer, min_lr + (init_lr - min_lr) * share)


def warmup_lr_schedule(
    optimizer: torch.optim.Optimizer, step: int, max_step: int, init_lr: float, max_lr: float
) -> None:
    """A line from `init_lr` to `max_lr` at `max_step`, and no further."""
    _set_rate(optimizer, min(max_lr, init_lr + (max_lr - init_lr) * step / max(max_step, 1)))


def step_lr_schedule(
    optimizer: torch.optim.Optimizer, epoch: int, init_lr: float, min_lr: float, decay_rate: float
) -> None:
    """`init_lr` times `decay_rate` per epoch, at least `min_lr`."""
    _set_rate(optimizer, max(min_lr, init_lr * decay_rate**epoch))


# ------------------------------------------------------------------------------------------ models, logger
def tile(x: torch.Tensor, dim: int, n_tile: int) -> torch.Tensor:
    """Each slice of a dimension `n_tile` times, copies next to one another."""
    return x.repeat_interleave(n_tile, dim=dim)


class AttrDict(dict[str, Any]):
    """A dict whose keys are attributes, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self
