"""ControlNet Union's files (xinsir, ControlNetPlus): one ControlNet for six kinds of conditions, or for eight (promax).

Published are diffusers' names alone (ControlNetUnionModel), as a file or its folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MECHANISM = "controlnet-union"
_TYPES = "task_embedding"  # (number of kinds, d)


@dataclass(frozen=True)
class Task:
    """What a picture may show: the number of its kind, and the annotator of this program that makes it."""

    number: int
    annotator: str | None = None


# Several pictures are of one kind; the first six are in every file, the last two in promax
TASKS: Mapping[str, Task] = {
    "openpose": Task(0),
    "depth": Task(1),
    "hed": Task(2, "soft_edge"),
    "scribble": Task(2, "scribble"),
    "canny": Task(3, "canny"),
    "lineart": Task(3, "line_art"),
    "mlsd": Task(3, "straight_lines"),
    "normal": Task(4),
    "seg": Task(5, "segments"),
    "tile": Task(6, "tile"),
    "inpainting": Task(7, "inpainting"),
}


def num_types(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many kinds a file knows, 0 where it is no ControlNet Union."""
    return next(iter(shapes.get(_TYPES, ())), 0)


def tasks_of(num: int) -> tuple[str, ...]:
    """Return the conditions of a file that knows so many kinds."""
    return tuple(name for name, task in TASKS.items() if task.number < num)


def tasks_in(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the conditions that a file with these names and shapes knows."""
    return tasks_of(num_types(shapes))
