"""How much memory there is for a model's weights."""

from __future__ import annotations

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")


def available(device: torch.device) -> int | None:
    """Bytes that tensors on a device can take at most, swap included; None: not known.

    An upper bound: what others hold back may still be missing.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not _MEMINFO.is_file():
        return None
    facts = {}
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        number = value.split()
        if number and number[0].isdigit():
            facts[name] = int(number[0]) * 1024  # they are in KiB
    if "MemAvailable" not in facts:
        return None
    free = facts["MemAvailable"] + facts.get("SwapFree", 0)
    limit = _left_in_group()
    return free if limit is None else min(free, limit)


def _left_in_group() -> int | None:
    """Bytes that a container may still take (cgroup version 2, then 1); None: there is no limit."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            most, now = (_CGROUPS / limit).read_text().strip(), int((_CGROUPS / used).read_text())
            lines = (_CGROUPS / stat).read_text().splitlines()
        except (OSError, ValueError):
            continue
        if not most.isdigit() or int(most) >= 1 << 60:
            return None
        # what files are cached in is given back when it is needed
        cached = {
            name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()
        }
        files = max(
            cached.get("inactive_file", 0) + cached.get("active_file", 0),
            cached.get("total_inactive_file", 0) + cached.get("total_active_file", 0),
        )
        return int(most) - now + files
    return None


def shown(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
