"""AdamW whose two moments are kept in 8 bits each: 2 bytes a weight instead of 8 (Dettmers et al. 2022, 2110.02861).

Each block of 256 numbers has its own scale, and the 256 codes are spaced by the paper's dynamic tree: dense near zero,
where moments are. It is torch's own operations, so that it runs on every device that torch does.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

BLOCK = 256
SMALLEST = 4096  # tensors of fewer numbers keep 32-bit moments: norms and biases, whose errors would show (section 2.3)
_DECADES = 7


@cache
def codebook(signed: bool) -> Tensor:
    """Return the 256 numbers that the codes stand for, rising, the largest 1; without a zero where they have no sign.

    Decade by decade from 1e-7 up, each with twice as many steps as the one below it. A second moment never becomes
    zero: the move is divided by its root.
    """
    values: list[Tensor] = []
    for decade in range(_DECADES):
        steps = 2 ** (decade + (0 if signed else 1))
        edges = torch.linspace(0.1, 1.0, steps + 1, dtype=torch.float64)
        values.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - _DECADES + 1))
    positive = torch.cat([*values, torch.ones(1, dtype=torch.float64)])
    if signed:
        return torch.cat([-positive[:-1].flip(0), torch.zeros(1, dtype=torch.float64), positive]).float()
    smaller = positive[:1] / 4 if len(positive) < 256 else positive[:0]
    return torch.cat([smaller, positive]).float()


def pack(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Return the nearest codes (n,) uint8, and each block's scale, float32, of numbers of any shape."""
    flat = values.reshape(-1)
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)  # of each block
    relative = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    bits = relative.bfloat16().view(torch.int16).view(-1).int() + (1 << 15)
    return _nearest(signed, values.device).index_select(0, bits)[: len(flat)], scales


@cache
def _nearest(signed: bool, device: torch.device) -> Tensor:
    """Return the code nearest to each bfloat16 number, by its bits: a look-up is 10 times faster than a search.

    What bfloat16 rounds away (0.4 %) is little beside the distance of two codes (1.4 % at the largest).
    """
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).float().nan_to_num()
    book = codebook(signed)
    return torch.bucketize(numbers, (book[1:] + book[:-1]) / 2).to(device, torch.uint8)


def unpack(codes: Tensor, scales: Tensor, signed: bool, shape: torch.Size) -> Tensor:
    """Return the numbers that codes and scales stand for."""
    padded = F.pad(codes, (0, -len(codes) % BLOCK)).int()
    relative = _book(signed, codes.device).index_select(0, padded).view(-1, BLOCK)
    return (relative * scales[:, None]).view(-1)[: len(codes)].view(shape)


@cache
def _book(signed: bool, device: torch.device) -> Tensor:
    return codebook(signed).to(device)


class AdamW8bit(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) on 8-bit moments, with torch's defaults."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _move(parameter, self.state[parameter], group)


def _move(parameter: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
    (beta1, beta2), gradient = group["betas"], parameter.grad
    assert gradient is not None
    state["step"] = state.get("step", 0) + 1
    first, second = _moments(parameter, state)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.addcdiv_(first, root, value=-group["lr"] / (1 - beta1 ** state["step"]))
    if parameter.numel() < SMALLEST:
        state["first"], state["second"] = first, second
        return
    state["first"], state["first_scales"] = pack(first, signed=True)
    state["second"], state["second_scales"] = pack(second, signed=False)


def _moments(parameter: nn.Parameter, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return both moments in float32."""
    if state["step"] == 1:
        return torch.zeros_like(parameter), torch.zeros_like(parameter)
    if parameter.numel() < SMALLEST:
        return state["first"], state["second"]
    shape = parameter.shape
    first = unpack(state["first"], state["first_scales"], True, shape)
    return first, unpack(state["second"], state["second_scales"], False, shape)
