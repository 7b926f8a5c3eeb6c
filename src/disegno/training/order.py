"""Which rows a step takes: a pure function of (seed, step), so that nothing about the data has to be remembered.

A step's whole batch, over all processes and forward passes, holds one task and one shape. Each (task, shape) is an
endless stream: one permutation of its rows after the other. In a round every task takes one step, in a random order
(CtrLoRA's BatchSchedulerSampler); a task's steps go over its shapes in epochs, each in proportion to its rows.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from disegno.core.errors import RequestError
from disegno.training.base import Examples

Rows = NDArray[np.int64]


class Ordering(Protocol):
    """Says which rows a step takes; the one below is for a fixed set of examples, others bring their own."""

    @property
    def seed(self) -> int: ...

    @property
    def num_rows(self) -> int: ...

    def task(self, step: int) -> str: ...

    def rows(self, step: int) -> Sequence[int]: ...


@lru_cache(maxsize=32)
def _shuffled(key: str, count: int) -> Rows:
    """Return a permutation of range(count), decided by `key`."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little")
    return np.random.default_rng(seed).permutation(count)


@dataclass(frozen=True)
class Order:
    """The order of a training's data. `groups`: each task's rows, one array a shape; `num_rows`: of a whole batch.

    `of`: whose rows, where each process has its own; the tasks come in one order for all.
    """

    seed: int
    num_rows: int
    groups: Mapping[str, tuple[Rows, ...]]
    of: str = ""

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks, sorted."""
        return tuple(sorted(self.groups))

    def task(self, step: int) -> str:
        """Return the task of a step, from 0."""
        turn, place = divmod(step, len(self.tasks))
        return self.tasks[_shuffled(f"{self.seed} tasks {turn}", len(self.tasks))[place]]

    def rows(self, step: int) -> list[int]:
        """Return the indices of a step's whole batch, `num_rows` of them."""
        task = self.task(step)
        group, chunk = self._chunk(task, step // len(self.tasks))
        rows = self.groups[task][group]
        places = range(chunk * self.num_rows, (chunk + 1) * self.num_rows)
        return [self._row(task, group, rows, place) for place in places]

    def _row(self, task: str, group: int, rows: Rows, place: int) -> int:
        turn, rest = divmod(place, len(rows))
        return int(rows[_shuffled(f"{self.seed} {self.of} {task} {group} {turn}", len(rows))[rest]])

    def _chunk(self, task: str, step: int) -> tuple[int, int]:
        """Return the shape of a task's step, and how many of the task's earlier steps had that shape."""
        counts = [len(rows) for rows in self.groups[task]]

        def before(epoch: int) -> int:
            return sum(epoch * count // self.num_rows for count in counts)

        most = (step + len(counts) + 1) * self.num_rows // sum(counts) + 1
        epoch = bisect_right(range(most + 1), step, key=before) - 1
        first = [epoch * count // self.num_rows for count in counts]
        after = [(epoch + 1) * count // self.num_rows for count in counts]
        ends = list(accumulate(b - a for a, b in zip(first, after, strict=True)))  # of each shape's steps in the epoch
        place = int(_shuffled(f"{self.seed} {self.of} {task} epoch {epoch}", ends[-1])[step - before(epoch)])
        group = bisect_right(ends, place)
        return group, first[group] + place - (ends[group - 1] if group else 0)


def order_of(examples: Examples, seed: int, num_rows: int, of: str = "") -> Order:
    """Return the order in which these examples are learned from. Raises RequestError where there are none."""
    found: dict[str, dict[tuple[int, ...], list[int]]] = {}
    for index in range(len(examples)):
        found.setdefault(examples.task(index), {}).setdefault(examples.shape(index), []).append(index)
    if not found:
        raise RequestError("There is nothing to learn from: no pair is left. See `disegno dataset check`.")
    groups = {
        task: tuple(np.array(shapes[shape], dtype=np.int64) for shape in sorted(shapes))
        for task, shapes in found.items()
    }
    return Order(seed, num_rows, groups, of)
