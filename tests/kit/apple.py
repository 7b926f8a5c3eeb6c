"""Tensors that refuse what those on Apple's GPUs refuse, on the CPU."""

from typing import Any

import torch
from torch import Tensor


class Apple(Tensor):
    """A tensor that says it is on an Apple GPU, where there is no float64; `cpu` gives a plain one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what the call gives. Raises TypeError as MPS does."""
        if func is Tensor.double or (func is Tensor.to and torch.float64 in args):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        if func == Tensor.device.__get__:  # pyright: ignore[reportAttributeAccessIssue]
            return torch.device("mps")
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found.as_subclass(Tensor) if func is Tensor.cpu else found
