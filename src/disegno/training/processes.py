"""The processes of one training: alone, or several that `accelerate launch` started, on one machine or many.

Each takes its share of every step's batch, and the gradients are averaged after it, in one go. That is what
DistributedDataParallel computes; done after the backward passes, a process can say first that it ran out of memory or
was asked to stop, and all act alike. Inside a backward pass the others would wait for it for ever.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from itertools import groupby
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

_WAIT = timedelta(hours=6)  # the first process looks at what was learned, and caches, while the others wait
_BUCKET_BYTES = 64 << 20


class Said(IntEnum):
    """What a process has to say about a step; the greatest counts for all."""

    FINE = 0
    STOP = 1
    NO_MEMORY = 2


@dataclass(frozen=True)
class Processes:
    """This process among `count`. Only the first one writes files and says what happens.

    `local_rank`, `local_count`: the same on this machine.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this process writes and speaks."""
        return self.rank == 0

    def agree(self, said: Said) -> Said:
        """Return the greatest of what all processes said."""
        if self.count == 1:
            return said
        worst = torch.tensor(int(said), device=self.device)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        return Said(int(worst))

    def total(self, number: int) -> int:
        """Return the sum of all processes' numbers."""
        if self.count == 1:
            return number
        summed = torch.tensor(number, device=self.device)
        dist.all_reduce(summed)
        return int(summed)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in place; the same tensors in the same order in each."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            flat /= self.count
            for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def share_tables(self, tables: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the first process's tensors, in every process: kind -> name -> tensor."""
        if self.count == 1:
            return tables
        layout = {kind: {name: _layout(t) for name, t in named.items()} for kind, named in tables.items()}
        told = cast(dict[str, dict[str, list[Any]]], self.tell(layout))
        return {
            kind: {
                name: self._share(tables[kind][name] if self.is_first else None, *found) for name, found in n.items()
            }
            for kind, n in told.items()
        }

    def _share(self, tensor: Tensor | None, shape: list[int], dtype: str) -> Tensor:
        device = self.device or torch.device("cpu")
        shared = (
            torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            if tensor is None
            else tensor.detach().to(device).contiguous()
        )
        dist.broadcast(shared, 0)
        return shared

    def tell(self, value: object) -> object:
        """Return the first process's value (JSON), in every process."""
        if self.count == 1:
            return value
        text = json.dumps(value).encode() if self.is_first else b""
        length = torch.tensor(len(text), device=self.device)
        dist.broadcast(length, 0)
        codes = torch.tensor(list(text.ljust(int(length), b" ")), dtype=torch.uint8, device=self.device)
        dist.broadcast(codes, 0)
        return json.loads(bytes(codes.tolist()))


ALONE = Processes()


def _layout(tensor: Tensor) -> list[Any]:
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]


def _buckets(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """Yield runs of tensors of about one bucket's bytes: one call for many small ones, no copy of all at once."""
    filled, number, numbered = 0, 0, list[tuple[int, Tensor]]()
    for tensor in tensors:
        filled += tensor.numel() * tensor.dtype.itemsize
        numbered.append((number, tensor))
        if filled >= _BUCKET_BYTES:
            filled, number = 0, number + 1
    for _, run in groupby(numbered, key=lambda pair: pair[0]):
        yield [tensor for _, tensor in run]


def join() -> Processes:
    """Return this process among those that `accelerate launch` (or torchrun) started; alone where nothing did."""
    from accelerate import PartialState

    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    state = PartialState(cpu=on_cpu, timeout=_WAIT)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    return Processes(state.process_index, state.num_processes, state.device, state.local_process_index, local)


def leave(processes: Processes) -> None:
    """Say good-bye to the other processes."""
    if processes.count > 1:
        dist.destroy_process_group()
