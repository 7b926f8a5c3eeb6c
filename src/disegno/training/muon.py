"""Muon: a matrix moves by its momentum with all singular values of that made equal (Jordan et al. 2024).

A matrix whose gradients have a few large directions and many small ones learns the small ones as fast as the large. A
convolution is the matrix of its filters, (out, in h w). Each move is as large as AdamW's usual one (0.2 a weight, Liu
et al. 2025, arXiv 2502.16982), so AdamW's rates stand. What is no such matrix (biases, norms, thin layers) moves by
AdamW.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
THINNEST = 16  # a matrix with fewer rows or columns moves by AdamW
TYPICAL = 0.2  # the root of the mean square of an AdamW move, in rates
STEPS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # of the published iteration: steep at 0, and then between 0.7 and 1.2
BETAS, EPS = (0.9, 0.999), 1e-8  # AdamW's


def is_matrix(parameter: Tensor) -> bool:
    """Return whether a weight, of any shape, is a matrix that is thick enough."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= THINNEST


@torch.no_grad()
def orthogonalised(x: Tensor) -> Tensor:
    """Return U V' of each matrix U S V', nearly: singular values of about 0.7 to 1.2. x: (k m n); in bfloat16.

    A Newton-Schulz iteration: products alone, no decomposition. What is below a thousandth of the largest singular
    value stays smaller.
    """
    a, b, c = QUINTIC
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon for matrices, AdamW for the rest, at one rate and one weight decay."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            moving: list[nn.Parameter] = [p for p in group["params"] if p.grad is not None]
            for parameter in moving:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            alike: dict[tuple[int, int, torch.device], list[nn.Parameter]] = {}
            for parameter in moving:
                if is_matrix(parameter):
                    rows, device = parameter.shape[0], parameter.device
                    alike.setdefault((rows, parameter[0].numel(), device), []).append(parameter)
                else:
                    _move(parameter, self.state[parameter], group["lr"])
            for parameters in alike.values():
                self._move_matrices(parameters, group["lr"])

    def _move_matrices(self, parameters: list[nn.Parameter], rate: float) -> None:
        """Move matrices of one shape, all in one product."""
        rows, columns = parameters[0].shape[0], parameters[0][0].numel()
        ahead = torch.stack([self._ahead(parameter).reshape(rows, columns) for parameter in parameters])
        size = TYPICAL * math.sqrt(max(rows, columns))
        for parameter, move in zip(parameters, orthogonalised(ahead), strict=True):
            parameter.add_(move.reshape(parameter.shape).to(parameter), alpha=-rate * size)

    def _ahead(self, parameter: nn.Parameter) -> Tensor:
        """Return where the momentum will be after another such gradient (Nesterov)."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].mul_(MOMENTUM).add_(gradient)
        return gradient.add(momentum, alpha=MOMENTUM)


def _move(parameter: nn.Parameter, state: dict[str, Any], rate: float) -> None:
    """Move what is no matrix as AdamW does (Loshchilov and Hutter 2019)."""
    (beta1, beta2), gradient = BETAS, parameter.grad
    assert gradient is not None
    if not state:
        state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
    state["step"] += 1
    first, second = state["first"], state["second"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second / (1 - beta2 ** state["step"])).sqrt_().add_(EPS)
    parameter.addcdiv_(first, root, value=-rate / (1 - beta1 ** state["step"]))
