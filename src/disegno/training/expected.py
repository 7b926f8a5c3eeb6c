"""What a training will take, in words and in a table."""

from collections.abc import Mapping, Sequence

from disegno.training.base import Estimate
from disegno.training.machine import duration

GPU_GIB = (6, 8, 12, 24)
COMPUTED = "computed, not measured"


def gib(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 1 << 29 else f"{num_bytes / 2**20:.0f} MiB"


def parts_of(found: Estimate) -> str:
    """Return what the memory is for."""
    parts = {
        "weights": found.weights,
        "optimiser": found.optimiser,
        "a step": found.step,
        "libraries": found.reserve,
    }
    return ", ".join(f"{name} {gib(num_bytes)}" for name, num_bytes in parts.items())


def expectation(found: Estimate, num_steps: int) -> str:
    """Return what a training of so many steps takes, as a sentence."""
    free = "" if found.available is None else f" of {gib(found.available)} free"
    memory = f"about {gib(found.total)} of memory{free} ({parts_of(found)})"
    if found.seconds is None:
        return f"It will take {memory}."
    time = f"about {duration(found.seconds * num_steps)} for {num_steps} steps of {found.seconds:.2f} s, looks aside"
    return f"It will take {time}, and {memory}."


def gpu_table(
    rows: Mapping[tuple[str, ...], Estimate], heads: Sequence[str], sizes: Sequence[int] = GPU_GIB
) -> str:  # fmt: skip
    """Return a Markdown table of what fits on which GPU. rows: what is asked for, a cell a head -> what it takes."""
    head = [*heads, "memory", *(f"{size} GB" for size in sizes)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for cells, found in rows.items():
        fits = ("yes" if found.total <= size << 30 else "" for size in sizes)
        lines.append(f"| {' | '.join((*cells, gib(found.total), *fits))} |")
    return "\n".join(lines)
