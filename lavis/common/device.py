"""One policy for device and precision: what runs where, and in which number format.

    device  auto: the CUDA device of this rank, else Apple's MPS, else the CPU.
    auto    fp32 on CPU and MPS; bf16 on CUDA devices that have it, else fp16.
    fast    as auto, but bf16 on CPUs that are known to compute in it quicker than in fp32.

Weights and optimizer states stay in float32 whatever the precision; it is the format of the arithmetic
inside `autocast`. fp16 needs a loss scaler, bf16 does not.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
from pathlib import Path
from typing import Any

import torch

from lavis.common import dist

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fast", "fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _has_mps() -> bool:
    return torch.backends.mps.is_built() and torch.backends.mps.is_available()


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device to run on.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1" or "mps". "cuda" without a number is this rank's device. A
            device that this machine lacks falls back to "auto" with one line of warning, so recipes that
            say `device: cuda` run on a laptop.

    Raises:
        ValueError: the name is none of these, or the CUDA number does not exist.
    """
    try:
        device = None if str(name) == "auto" else torch.device(name)
    except RuntimeError as e:
        raise ValueError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:<number> or mps") from e
    if device is not None and device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:<number> or mps")
    if device is not None and (
        (device.type == "cuda" and not torch.cuda.is_available()) or (device.type == "mps" and not _has_mps())
    ):
        logger.warning("device %s is not available here; choosing one automatically", name)
        device = None
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = device.index if device.index is not None else dist.local_rank()
        if index >= count:
            raise ValueError(f"device cuda:{index} does not exist; this machine has {count} CUDA device(s)")
        device = torch.device("cuda", index)
    return device


@functools.cache
def cpu_maker() -> str:
    """ "AMD" or "Intel" for a CPU with AVX-512, on which products were measured (docs/log.md), else ""."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return ""
    info = Path("/proc/cpuinfo")
    name = info.read_text() if info.is_file() else platform.processor()
    return "AMD" if "AuthenticAMD" in name else "Intel" if "GenuineIntel" in name else ""


def bfloat16_is_quick() -> bool:
    """Whether this CPU's large products are known to be quicker in bfloat16 than in float32.

    AMD's with AVX-512 BF16 were seen to be (1.6 times in training small models), Intel's without AMX not to be (0.6);
    those with AMX have units of their own for it and are taken for quick untested.
    """
    if _has("amx_tile"):
        return True
    return cpu_maker() == "AMD" and _has("avx512_bf16")


@functools.cache
def _has(instructions: str) -> bool:
    supported = getattr(torch.cpu, f"_is_{instructions}_supported", None)  # not in every version of PyTorch
    return supported is not None and bool(supported())


def bfloat16_is_slow() -> bool:
    """Whether they are known to be slower."""
    return cpu_maker() == "Intel" and not bfloat16_is_quick()


def pick_precision(device: torch.device, name: str = "auto") -> str:
    """The precision to compute in: "fp32", "bf16" or "fp16".

    Args:
        device: where the model runs.
        name: one of `PRECISIONS`; "auto" and "fast" follow the policy at the top of this file.

    Raises:
        ValueError: the name is unknown, or the device cannot compute in it.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown; use one of {', '.join(PRECISIONS)}")
    if name in ("auto", "fast"):
        if device.type != "cuda":
            return "bf16" if name == "fast" and device.type == "cpu" and bfloat16_is_quick() else "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision 'fp16' is for GPUs; on a CPU use fp32 or bf16")
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        gpu = torch.cuda.get_device_name(device)
        raise ValueError(f"precision 'bf16' is not supported by {gpu}; use fp16")
    return name


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Context in which matrix products run in `precision` ("fp32": nothing changes)."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """The loss scaler: active for fp16 only, a pass-through otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors inside dicts, lists and tuples (named ones, too) moved to a device; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        if not any(isinstance(v, (torch.Tensor, dict, list, tuple)) for v in value):
            return value
        moved = [to_device(v, device) for v in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    return value
