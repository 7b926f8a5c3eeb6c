"""Brownian paths whose normals an NVIDIA card would draw, for the samplers that follow an SDE.

A path is known at the ends of an interval; in its middle it is what they say and a normal of the interval's own, and so
on, until a level is a middle. The intervals and the seeds of their normals are those of torchsde.BrownianTree, whose
normals are the CPU's. A1111 parity: of randn_source NV, and so of GPU on an NVIDIA card, they are that card's.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from disegno.diffusion.philox import nv_normals

_POOL = 24  # torchsde's pool_size
_KEPT = 4  # levels whose values are kept: a step asks for what the one before ended at


@dataclass(frozen=True)
class _Half:
    """An interval that is halved, and the seed of its normal."""

    start: float
    middle: float
    end: float
    seed: int


class NvPath:
    """One image's path from `low` to `high`, (c h w), float64: its own seed's. `digits`: what levels are rounded to."""

    def __init__(
        self,
        ends: tuple[float, float],
        shape: tuple[int, ...],
        seed: int,
        digits: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.seed, self.digits = shape, seed, digits
        kind = torch.device(device).type
        self.device = device if kind == "cuda" else "cpu"  # Apple's GPUs have no float64
        low, high = ends
        self.start, self.end = round(low, digits), round(high, digits)
        self.whole = self._normals([self._seed()])[0] * math.sqrt(high - low)
        self._kept: OrderedDict[float, Tensor] = OrderedDict()

    def between(self, low: float, high: float) -> Tensor:
        """Return the increment from one level to a higher one, (c h w), float64."""
        return self._at(round(high, self.digits)) - self._at(round(low, self.digits))

    def _seed(self, *place: int) -> int:
        """Return the seed of an interval's normal. `place`: its number at its depth, and the depth; none: the ends'."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=place, pool_size=_POOL)
        return int(sequence.generate_state(1)[0])

    def _normals(self, seeds: list[int]) -> Tensor:
        return nv_normals(seeds, self.shape, device=self.device).double()

    def _at(self, level: float) -> Tensor:
        """Return the path's value at a level, which is 0 at its start."""
        if level <= self.start:
            return torch.zeros_like(self.whole)
        if level >= self.end:
            return self.whole
        if level not in self._kept:
            self._kept[level] = self._worked_out(level)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(level)
        return self._kept[level]

    def _halves(self, level: float) -> list[_Half]:
        """Return the intervals that are halved, from the whole on, until the level is a middle."""
        start, end, number, halves = self.start, self.end, 0, list[_Half]()
        while True:
            middle = round(0.5 * (end + start), self.digits)
            halves.append(_Half(start, middle, end, self._seed(number, len(halves))))
            if level == middle or not start < middle < end:
                return halves
            number = 2 * number + (level > middle)
            start, end = (middle, end) if level > middle else (start, middle)

    def _worked_out(self, level: float) -> Tensor:
        halves = self._halves(level)
        value, within = torch.zeros_like(self.whole), self.whole
        for half, normal in zip(halves, self._normals([half.seed for half in halves]), strict=True):
            left, right = half.middle - half.start, half.end - half.middle
            share = 1 / (half.end - half.start)
            first = left * share * within + math.sqrt(left * right * share) * normal
            if level >= half.middle:
                value, within = value + first, within - first
            else:
                within = first
        return value
