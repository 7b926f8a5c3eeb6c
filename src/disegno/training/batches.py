"""A step's rows, read ahead and stacked. How many threads read, and how far ahead, changes no number."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch

from disegno.training.base import Batch, Example, Examples, row_seed
from disegno.training.order import Ordering
from disegno.training.processes import ALONE, Processes

HELD_OUT = -1  # the step of the held-out rows' seeds: no step of the training has it
_AHEAD = 2


@dataclass
class Reader:
    """Reads this process's share of each step. `workers`: threads that read ahead; 0 reads when asked.

    `owns`: the examples and their order are this process's own, not all processes'.
    """

    examples: Examples
    order: Ordering
    processes: Processes = ALONE
    workers: int = 2
    owns: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _pool: ThreadPoolExecutor | None = None
    _asked: dict[int, list[Future[Example]]] = field(default_factory=dict[int, list[Future[Example]]])

    def __post_init__(self) -> None:
        if self.workers:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="examples")

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def read(self, step: int, last: int) -> Batch:
        """Return this process's rows of a step, and ask for those of the next ones before `last`."""
        share = self._num_rows
        first = share * self.processes.rank
        seeds = tuple(row_seed(self.order.seed, step, place) for place in range(first, first + share))
        return stack(self._rows(step, last), seeds, self.order.task(step), step, self.device)

    def _rows(self, step: int, last: int) -> list[Example]:
        if self._pool is None:
            return [self.examples[index] for index in self._share(step)]
        for ahead in range(step, min(step + _AHEAD + 1, last)):
            if ahead not in self._asked:
                self._asked[ahead] = [self._pool.submit(self.examples.__getitem__, i) for i in self._share(ahead)]
        self._asked = {asked: rows for asked, rows in self._asked.items() if asked >= step}
        return [row.result() for row in self._asked.pop(step)]

    def _share(self, step: int) -> Sequence[int]:
        rows = self.order.rows(step)
        first = 0 if self.owns else self._num_rows * self.processes.rank
        return rows[first : first + self._num_rows]

    @property
    def _num_rows(self) -> int:
        return self.order.num_rows if self.owns else self.order.num_rows // self.processes.count


def stack(rows: Sequence[Example], seeds: tuple[int, ...], task: str, step: int, device: torch.device) -> Batch:
    """Return the rows as one batch on a device."""
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}  # b ...
    return Batch({name: t.to(device, non_blocking=True) for name, t in stacked.items()}, seeds, task, step)


def parts(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield a batch in parts of at most `size` rows: what goes through the net at once."""
    for begin in range(0, len(batch.seeds), size):
        end = begin + size
        rows = {name: tensor[begin:end] for name, tensor in batch.rows.items()}
        yield replace(batch, rows=rows, seeds=batch.seeds[begin:end])


def held_out(examples: Examples, indices: Sequence[int], seed: int, size: int, device: torch.device) -> Iterator[Batch]:
    """Yield the held-out rows, always the same with the same seeds; neighbours of one task and shape together."""
    asked = sorted(indices, key=lambda index: (examples.task(index), examples.shape(index), index))
    runs: list[list[int]] = []
    for index in asked:
        alike = runs and _kind(examples, runs[-1][0]) == _kind(examples, index)
        if alike and len(runs[-1]) < size:
            runs[-1].append(index)
        else:
            runs.append([index])
    for run in runs:
        seeds = tuple(row_seed(seed, HELD_OUT, index) for index in run)
        yield stack([examples[index] for index in run], seeds, examples.task(run[0]), 0, device)


def _kind(examples: Examples, index: int) -> tuple[str, tuple[int, ...]]:
    return examples.task(index), examples.shape(index)
