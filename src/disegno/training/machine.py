"""What a training or an evaluation runs on, and what it took of it, in words."""

import os
import platform

import torch

from disegno import __version__
from disegno.core.settings import Settings
from disegno.memory import decide


def machine_facts(settings: Settings) -> dict[str, str]:
    """Return what this process runs on, by name."""
    policy = decide(settings)
    gpu = torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else ""
    return {
        "disegno": __version__,
        "torch": torch.__version__,
        "device": " ".join(part for part in (str(policy.device), gpu) if part),
        "dtype": str(policy.dtype).removeprefix("torch."),
        "processor": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def peak_memory() -> str:
    """Return the most memory that this process has held, and that its GPU has; "" where the system does not tell."""
    parts: list[str] = []
    if os.name == "posix":
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
        parts.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a time for people: `41 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
