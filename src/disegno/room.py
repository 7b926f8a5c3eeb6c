"""How much memory is free on a device."""

from pathlib import Path

import torch

_GROUP = Path("/sys/fs/cgroup")  # a container's own limit, which the machine's figures do not show


def free_bytes(device: torch.device) -> int | None:
    """Return what something new could take on the device; None where the device does not say."""
    import psutil

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    group = _free_in_group()
    return free if group is None else min(free, group)


def _free_in_group() -> int | None:
    """Return what the container's limit leaves; None without one. What it only caches on files counts as free."""
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        lines = (line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        cached = {name: int(value) for name, value in lines}
    except (OSError, ValueError):
        return None
    return max(0, limit - used + cached.get("inactive_file", 0))
