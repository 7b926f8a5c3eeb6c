"""How much memory a computation takes, found without taking it: it runs on meta tensors, whose bytes are written down.

A meta tensor has a shape and no numbers, so that every operation of a real training step, backward pass and
recomputation included, runs in a moment on any machine; what it makes and lets go is counted as it would be.
"""

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import _scoped_library  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

META = torch.device("meta")

_ATTENTION = "scaled_dot_product_attention"


class Ledger(TorchDispatchMode):
    """Counts the bytes of a device's tensors that live: `live` now, and `peak`, the most since `mark`."""

    def __init__(self, device: str = META.type) -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0
        self._known: set[int] = set()

    def mark(self) -> int:
        """Return what lives now, and begin a new peak there."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what the operation makes, counted."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self.count(tensor)
        return made

    def count(self, tensor: Tensor) -> None:
        """Add a tensor's storage if it is new; views and in-place results share one that is known."""
        storage = tensor.untyped_storage()
        key = id(storage)  # the object stays the same for as long as the storage lives
        if key in self._known:
            return
        num_bytes = storage.nbytes()
        self._known.add(key)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes


@contextmanager
def counting(num_plain: int = 0) -> Generator[Ledger]:
    """Count inside, with attention as fused kernels do it: meta tensors have none, and would keep all scores.

    `num_plain`: so many scores of a head are made without them; 0 where they always are there.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
        if q.shape[-2] * k.shape[-2] <= num_plain:
            return (q @ k.mT).softmax(-1) @ v
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]

    with _scoped_library("aten", "IMPL") as library, Ledger() as ledger:  # of no effect on other tensors than meta's
        library.impl(_ATTENTION, attend, "AutogradMeta")
        yield ledger
