"""How much memory a device has, how much of it is free, and what is said when there is none left."""

from pathlib import Path

import torch

_GROUP = Path("/sys/fs/cgroup")  # a container's own limit, which the machine's figures do not show
_FULL = (
    *("out of memory", "can't allocate memory", "Cannot allocate memory"),  # CUDA's and others', torch's CPU's
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether this is what torch raises when a device, or the machine, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def total_bytes(device: torch.device) -> int | None:
    """Return how much memory the device has; None where it does not say."""
    import psutil

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu":
        return None
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int((_GROUP / "memory.max").read_text()))
    except (OSError, ValueError):
        return total


def free_bytes(device: torch.device) -> int | None:
    """Return what something new could take on the device; None where the device does not say.

    What torch has taken of a CUDA device and does not use counts as free: it gives that to whatever comes next.
    """
    import psutil

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
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
