"""Controls that do not look at the noisy image, evaluated once per (condition, text, told, t) and shared.

CtrLoRA's control net sees the condition, the timestep and the text, never x (methods: xyfJASON/ctrlora,
ControlNetFinetune.forward). So all images of a batch, and all later seeds of the same prompt and condition, share its
residuals. This is lossless:
a hit gives back the very tensors that a miss computed, and a miss is always computed for the same rows.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from threading import Lock

import torch

from disegno.controls.base import Control
from disegno.diffusion.call import Call, Residuals


@dataclass
class ResidualCache:
    """The least recently used residuals, within `max_bytes`. Safe to share between threads."""

    max_bytes: int
    hits: int = 0
    misses: int = 0
    num_bytes: int = 0
    _kept: OrderedDict[Hashable, Residuals] = field(default_factory=OrderedDict[Hashable, Residuals])
    _lock: Lock = field(default_factory=Lock)

    def get(self, key: Hashable) -> Residuals | None:
        """Return what was kept under `key`, and mark it as just used."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.misses += 1
                return None
            self._kept.move_to_end(key)
            self.hits += 1
            return found

    def put(self, key: Hashable, residuals: Residuals) -> None:
        """Keep `residuals`, and drop the least recently used ones until everything fits."""
        size = residuals.num_bytes()
        if size > self.max_bytes:
            return
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = residuals
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self.num_bytes = 0


@dataclass(frozen=True)
class Shared:
    """A control with `sees_x = False`, evaluated once for each distinct (text, told, t) of a call's rows."""

    control: Control
    cache: ResidualCache
    sees_x: bool = False

    @property
    def key(self) -> str:
        return self.control.key

    @property
    def positive_only(self) -> bool:
        return self.control.positive_only

    def __call__(self, call: Call) -> Call:
        whats = [(row.text, row.told, t) for row, t in zip(call.rows, call.t.tolist(), strict=True)]
        distinct = list(dict.fromkeys(whats))
        key = (self.control.key, tuple(call.x.shape[2:]), tuple(distinct))
        residuals = self.cache.get(key)
        if residuals is None:
            residuals = self._evaluate(call, [whats.index(what) for what in distinct])
            self.cache.put(key, residuals)
        index = torch.tensor([distinct.index(what) for what in whats], device=call.x.device)
        added = residuals.rows(index)
        return replace(call, residuals=added if call.residuals is None else call.residuals + added)

    def _evaluate(self, call: Call, chosen: list[int]) -> Residuals:
        few = call.take(torch.tensor(chosen, device=call.x.device))
        residuals = self.control(few).residuals
        assert residuals is not None, f"{self.control.key} added no residuals"
        return residuals
