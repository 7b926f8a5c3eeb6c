"""Linear layers whose frozen weights lie in 8 bits: a quarter of float32's memory, worked out in the input's dtype.

Row-wise: weight = int8 x the row's scale (`weights/quantised.py`). Measured on the miniature's T5: the states differ
by 3 % of their size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.weights.packed_tensor import plain
from disegno.weights.quantised import SCALE_SUFFIX, quantise_rows


class EightBitLinear(nn.Module):
    """A frozen linear layer. x: (... i) -> (... o)."""

    weight: Tensor  # o i, int8
    scale: Tensor  # o

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        device = linear.weight.device
        self.register_buffer("weight", torch.empty(linear.weight.shape, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.empty(len(linear.weight), dtype=torch.float16, device=device))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype)[:, None], self.bias)


def _layers(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def in_eight_bits(module: nn.Module, least: int) -> None:
    """Put layers of 8 bits in the place of the module's linear ones with `least` weights or more."""
    for name, layer in _layers(module).items():
        if layer.weight.numel() >= least:
            parent, _, own = name.rpartition(".")
            module.get_submodule(parent).add_module(own, EightBitLinear(layer))


def stored_in_eight_bits(module: nn.Module, tensors: Mapping[str, Tensor], least: int) -> dict[str, Tensor]:
    """Return the tensors that such a module is loaded with; `module`: as it was before `in_eight_bits`."""
    found = dict(tensors)
    for name, layer in _layers(module).items():
        key = f"{name}.weight"
        if layer.weight.numel() >= least and key in tensors:
            stored = quantise_rows({key: plain(tensors[key])})
            found |= {key: stored[key], f"{name}.scale": stored[key + SCALE_SUFFIX]}
    return found
