"""What the training stages share: bf16 networks with fp32 masters, a time budget, checkpoints, pictures."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn


def images_to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Return uint8 (b h w 3) as float (b 3 h w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint in one move, so that a stop in between leaves the old one."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def picture(rows: list[Tensor], path: Path, zoom: int = 1) -> None:
    """Save rows of pictures in [-1, 1], each (n 3 h w), one row under the other."""
    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    pixels = ((grid.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def cosine_rate(done: float, flat: float) -> float:
    """Return the share of the peak rate after `done` of the time: flat for `flat`, then a cosine down to 2 %."""
    if done < flat:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - flat) / (1 - flat))))


class FastGroupNorm(torch.autograd.Function):
    """Group norm of a channels-last (b c h w) whose backward is sums and two fused products.

    PyTorch's own backward took 44 % of a VAE step on a CPU; in one run with either, 9 and 32 images/s.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """Return the normalised x."""
        b, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of x, weight and bias."""
        x, weight, mean, rstd = ctx.saved_tensors
        (b, c, h, w), g = x.shape, ctx.groups
        k, count = c // g, h * w * (c // g)
        dy, x = (v.permute(0, 2, 3, 1).reshape(b, h * w, c) for v in (grads[0], x))
        sum_dy = dy.sum(1, dtype=torch.float32).view(b, g, k)
        sum_dyx = (dy * x).sum(1, dtype=torch.float32).view(b, g, k)
        mean, rstd, gain = mean.float().view(b, g, 1), rstd.float().view(b, g, 1), weight.float().view(1, g, k)
        slope = ((sum_dy * gain).sum(2, keepdim=True) * mean - (sum_dyx * gain).sum(2, keepdim=True)) * rstd**3 / count
        shift = -slope * mean - (sum_dy * gain).sum(2, keepdim=True) * rstd / count
        on_dy, on_x, constant = (v.expand(b, g, k).reshape(b, 1, c).to(x.dtype) for v in (rstd * gain, slope, shift))
        dx = torch.addcmul(torch.addcmul(constant, x, on_x), dy, on_dy).view(b, h, w, c).permute(0, 3, 1, 2)
        d_weight = ((sum_dyx - sum_dy * mean) * rstd).sum(0).view(c)
        return dx, d_weight.to(weight.dtype), sum_dy.sum(0).view(c).to(weight.dtype), None, None


def speed_up_norms(network: nn.Module) -> None:
    """Give every group norm of the network the faster backward."""

    def bind(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if x.ndim == 4:
                return FastGroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)

        return forward

    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = bind(module)


class Masters:
    """AdamW on fp32 copies of bf16 parameters (measured: 20 % faster here than autocast), with an optional average."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, average: float | None = None, weight_decay: float = 0.01
    ) -> None:
        self.live = list(parameters)
        self.masters = [nn.Parameter(p.detach().float().clone()) for p in self.live]
        self.optimiser = torch.optim.AdamW(
            self.masters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self.peak, self.decay, self.step_count = lr, average, 0
        self.averages = [p.detach().clone() for p in self.masters] if average is not None else []

    def step(self, rate: float, max_norm: float = 1.0) -> float:
        """Apply the gradients at `rate` of the peak learning rate and return their norm."""
        for master, live in zip(self.masters, self.live, strict=True):
            master.grad = None if live.grad is None else live.grad.float()
            live.grad = None
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters, max_norm))
        for group in self.optimiser.param_groups:
            group["lr"] = self.peak * rate
        self.optimiser.step()
        self.step_count += 1
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.masters)
            if self.decay is not None:
                keep = min(self.decay, (1 + self.step_count) / (10 + self.step_count))
                torch._foreach_lerp_(self.averages, list(self.masters), 1 - keep)
        return norm

    def state(self) -> dict[str, object]:
        """Return what `restore` needs."""
        return {
            "masters": [p.detach() for p in self.masters],
            "averages": self.averages,
            "optimiser": self.optimiser.state_dict(),
            "steps": self.step_count,
        }

    def restore(self, state: dict[str, object]) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.masters), state["masters"])
            torch._foreach_copy_(self.live, self.masters)
            if self.averages:
                torch._foreach_copy_(self.averages, state["averages"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step_count = int(state["steps"])


class Session:
    """A training within a budget of wall time: it resumes, steps, logs and saves."""

    LOG_STEPS, SAVE_SECONDS = 20, 120

    def __init__(self, masters: Masters, checkpoint: Path, minutes: float, warmup_steps: int, flat: float) -> None:
        torch.set_num_threads(os.cpu_count() or 1)  # PyTorch counts physical cores and so left one of two idle
        self.masters, self.checkpoint, self.budget = masters, checkpoint, minutes * 60
        self.warmup_steps, self.flat, self.spent, self.total = warmup_steps, flat, 0.0, 0.0
        if checkpoint.exists():
            state = torch.load(checkpoint)
            masters.restore(state["masters"])
            self.spent = state["spent"]
        torch.manual_seed(masters.step_count)
        self.last = self.mark = time.time()
        self.marks: dict[str, float] = {}
        print(f"{sum(p.numel() for p in masters.live) / 1e6:.2f} M parameters, from step {self.steps}", flush=True)

    @property
    def steps(self) -> int:
        """Return the number of steps taken, resumed ones included."""
        return self.masters.step_count

    @property
    def done(self) -> float:
        """Return the part of the budget that is spent."""
        return self.spent / self.budget

    @property
    def over(self) -> bool:
        """Tell whether the budget is spent."""
        return self.spent >= self.budget

    def step(self, loss: Tensor) -> None:
        """Take one optimiser step down the loss, and print a line now and then."""
        loss.backward()
        self.masters.step(min(1.0, (self.steps + 1) / self.warmup_steps) * cosine_rate(self.done, self.flat))
        self.total += float(loss.detach())
        now = time.time()
        self.spent, self.last = self.spent + now - self.last, now
        if self.steps % self.LOG_STEPS == 0:
            mean, pace = self.total / self.LOG_STEPS, self.LOG_STEPS / (now - self.mark)
            print(f"step {self.steps} loss {mean:.4f} steps/s {pace:.2f} minutes {self.spent / 60:.1f}", flush=True)
            self.total, self.mark = 0.0, now

    def due(self, what: str, seconds: float = SAVE_SECONDS) -> bool:
        """Tell whether `seconds` have passed since this was last due, or the budget is spent."""
        start = self.marks.setdefault(what, time.time())
        if time.time() - start < seconds and not self.over:
            return False
        self.marks[what] = time.time()
        return True

    def save(self, **more: object) -> None:
        """Write the checkpoint."""
        save(self.checkpoint, {"masters": self.masters.state(), "spent": self.spent, **more})
