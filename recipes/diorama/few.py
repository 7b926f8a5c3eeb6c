"""Few steps: a net that goes in one step as far as the net that it learns from goes in several, guided.

Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512) with guidance built in (Meng et al. 2023, arXiv
2210.03142), for the very levels that are drawn with (those of the schedule Turbo): the teacher takes SUBSTEPS steps of
DDIM under guidance from one of them to the next, the student must arrive there in one, without guidance. v prediction
with zero terminal SNR begins at noise alone. What differs between the two is a LoRA on every linear layer and
convolution (Luo et al. 2023, arXiv 2311.05556), in peft's names: any prompt can ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
STEPS = 4
SUBSTEPS = 2  # of the teacher's, for each of the student's


def levels_of(size: int) -> list[int]:
    """Return the levels that are drawn with, of a table of so many: 249, 499, 749 and 999 of 1000."""
    return [(k + 1) * size // STEPS - 1 for k in range(STEPS)]


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
        """Return each row's loss, (b,), float32: what the two differ by, as an error of v."""
        x0 = batch.rows["latent"].float()
        tokens = batch.rows["tokens"].to(self.policy.dtype)
        draws = self.objective.draw(batch.seeds, x0.shape[1:])
        sigmas = self.table.sigmas.to(x0.device)
        levels = torch.tensor(levels_of(len(sigmas)), device=x0.device)
        t = levels[draws.level * STEPS // len(sigmas)]
        noised = x0 + _per_row(sigmas[t]) * draws.noise
        with torch.no_grad():
            target = arrival(lambda x, at, here: self._guided(x, at, here, tokens), noised, t, sigmas)
        made = self._estimate(self.net, noised, sigmas[t], t, tokens)
        of_v = 1 + sigmas[t] ** -2  # v = (alpha noise - x0) / sigma', so an error of x0 counts by the inverse of sigma'
        return (made - target).square().flatten(1).mean(dim=1) * of_v

    def _guided(self, x: Tensor, sigma: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return the teacher's estimate of x0; both halves in one call."""
        both = torch.cat([tokens, self.empty.expand_as(tokens)])
        told, untold = self._estimate(self._teacher[0], x.repeat(2, 1, 1, 1), sigma.repeat(2), t.repeat(2), both).chunk(
            2
        )
        return untold + GUIDANCE * (told - untold)

    def _estimate(self, net: nn.Module, x: Tensor, sigma: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return x0 as a net says it, (b c h w), float32."""
        shown = placed(self.prediction.scale(x, sigma), self.policy)
        out = net(shown, t.float(), encoder_hidden_states=tokens, return_dict=False)[0]
        return self.prediction.denoise(x, sigma, out.float())


def arrival(guided: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, t: Tensor, sigmas: Tensor) -> Tensor:
    """Return the x0 with which one step of DDIM, from t to the next of the levels, ends where the teacher's several do.

    `guided`: the teacher's estimate of x0 from (x, sigma, level). x: (b c h w), x0 + sigma noise. t: (b,).
    """
    step = len(sigmas) // STEPS
    begin, at, here = x, sigmas[t], t
    for k in range(1, SUBSTEPS + 1):
        there = t - k * step // SUBSTEPS
        to = torch.where(there >= 0, sigmas[there.clamp(min=0)], torch.zeros_like(at))
        estimate = guided(x, at, here)
        x = estimate + _per_row(to / at) * (x - estimate)
        at, here = to, there.clamp(min=0)
    share = _per_row(at / sigmas[t])
    return (x - share * begin) / (1 - share)


def _per_row(x: Tensor) -> Tensor:
    """Return (b,) as (b 1 1 1)."""
    return x.view(-1, 1, 1, 1)


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
