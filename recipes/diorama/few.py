"""Few steps: a net that goes from any noise to the picture at once, taught by the net that needs many.

Latent consistency distillation (Song et al. 2023; Luo et al. 2023, arXiv 2310.04378): the teacher takes one step of
DDIM under guidance, from t to an earlier s; the student must say at t what it says at s. Guidance is so built in. With
v prediction and zero terminal SNR the student's estimate is x itself where there is no noise, so the boundary holds
without skip weights, and the first of the few steps starts from pure noise. What differs between the two is a LoRA on
every linear layer and convolution (Luo et al. 2023, arXiv 2311.05556), in peft's names: any prompt can ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import net_of, objective_of, placed
from disegno.training.encoder import masters_of
from disegno.training.layers import install
from disegno.training.recipe import Opening
from disegno.training.result import told
from disegno.weights.save import save_safetensors

from .device_draws import DeviceObjective

GUIDANCE = 4.5
NUM_LEVELS = 40  # the student meets every 25th of 1000 levels, of which Turbo visits four
HUBER = 0.03  # of the pseudo-Huber loss, times the root of a row's size (Song and Dhariwal 2023, section 3.3)


class Distilling(nn.Module):
    """Its call gives each row's loss, (b,)."""

    def __init__(self, student: UNet2DConditionModel, teacher: nn.Module, opening: Opening) -> None:
        super().__init__()
        assert opening.empty is not None
        self.net, self._teacher = student, (teacher,)
        self.policy = opening.memory.policy
        self.objective = DeviceObjective(objective_of(opening), self.policy.device)
        self.prediction, self.table = opening.model.prediction, opening.model.table
        self.empty = opening.empty.to(self.policy.device, self.policy.dtype)

    def forward(self, batch: Batch, turn: str = "") -> Tensor:
        """Return each row's loss, (b,), float32: the difference of the student's estimates at two levels."""
        x0 = batch.rows["latent"].float()
        tokens = batch.rows["tokens"].to(self.policy.dtype)
        draws = self.objective.draw(batch.seeds, x0.shape[1:])
        step = len(self.table.sigmas) // NUM_LEVELS
        t = (draws.level // step + 1) * step - 1
        s = t - step
        sigmas = self.table.sigmas.to(x0.device)
        at, to = sigmas[t], torch.where(s >= 0, sigmas[s.clamp(min=0)], torch.zeros_like(sigmas[0]))
        noised = x0 + at.view(-1, 1, 1, 1) * draws.noise
        with torch.no_grad():
            guided = self._guided(noised, at, t, tokens)
            direction = (noised - guided) / at.view(-1, 1, 1, 1)
            nearer = guided + to.view(-1, 1, 1, 1) * direction
            target = torch.where(
                (s >= 0).view(-1, 1, 1, 1), self._estimate(self.net, nearer, to, s.clamp(min=0), tokens), nearer
            )
        made = self._estimate(self.net, noised, at, t, tokens)
        squares = (made - target).square().flatten(1).sum(dim=1)
        slack = HUBER * made[0].numel() ** 0.5
        return (squares + slack**2).sqrt() - slack

    def _guided(self, x: Tensor, sigma: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        teacher = self._teacher[0]
        told = self._estimate(teacher, x, sigma, t, tokens)
        untold = self._estimate(teacher, x, sigma, t, self.empty.expand_as(tokens))
        return untold + GUIDANCE * (told - untold)

    def _estimate(self, net: nn.Module, x: Tensor, sigma: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return x0 as a net says it, (b c h w), float32."""
        shown = placed(self.prediction.scale(x, sigma), self.policy)
        out = net(shown, t.float(), encoder_hidden_states=tokens, return_dict=False)[0]
        return self.prediction.denoise(x, sigma, out.float())


class Delta(nn.Module):
    """A weight and its LoRA. `down`: (r, inputs of one output); `up`: (out, r), at first zero."""

    def __init__(self, weight: Tensor, rank: int, generator: Generator) -> None:
        super().__init__()
        inputs = weight[0].numel()
        drawn = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        self.down = nn.Parameter(drawn.to(weight.device))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view(weight.shape)


def wear(net: nn.Module, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Give every linear layer and convolution a LoRA; return its parameters by peft's names."""
    generator = Generator().manual_seed(seed)
    worn: dict[str, nn.Parameter] = {}
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            delta = Delta(layer.weight.detach(), rank, generator)
            parametrize.register_parametrization(layer, "weight", delta)
            worn |= {f"unet.{name}.lora_A.weight": delta.down, f"unet.{name}.lora_B.weight": delta.up}
    return worn


def in_file(name: str, matrix: Tensor, net: nn.Module) -> Tensor:
    """Return a matrix as a file has it: a convolution's with its kernel."""
    layer = net.get_submodule(name.removeprefix("unet.").rpartition(".lora_")[0])
    kernel = tuple(layer.kernel_size) if isinstance(layer, nn.Conv2d) else ()
    if not kernel:
        return matrix
    return matrix.view(len(matrix), -1, *kernel) if ".lora_A." in name else matrix.view(*matrix.shape, 1, 1)


@dataclass(frozen=True)
class FewLearner:
    """A LoRA with which a net needs few steps."""

    module: Distilling
    turns: tuple[Turn, ...]
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the LoRA's file, in 16 bits."""
        tensors = dict(weights or self.turns[0].parameters)
        halves = {n: in_file(n, t.detach(), self.module.net).half().contiguous() for n, t in tensors.items()}
        save_safetensors(path, halves, {"format": "pt", **told(facts, None, self.family)})


def open_few(opening: Opening, rate: float) -> FewLearner:
    """Return the student, the model's net and a LoRA on it, which is what trains; the teacher stays as it is."""
    teacher = opening.memory.place(deepcopy(net_of(opening))).requires_grad_(False)
    student = masters_of(opening.memory).place(net_of(opening)).requires_grad_(False)
    for net in (teacher, student):
        install(net)
    worn = wear(student, opening.request.rank, opening.request.seed)
    module = Distilling(student, teacher, opening)
    return FewLearner(module.train(), (Turn("lora", worn, rate),), opening.model.family)
