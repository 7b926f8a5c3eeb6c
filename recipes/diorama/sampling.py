"""Sampling for the recipes' own pictures: DDIM on v-prediction, with an optional control."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

BETA_START, BETA_END, STEPS = 0.00085, 0.012, 1000  # Stable Diffusion's "scaled linear"
PROMPTS = (
    "a red car on a city street",
    "a castle at night",
    "a dog and a cat in a meadow",
    "a cup to the left of a book on a table",
    "a penguin in the snow",
    "a palm tree on a beach",
    "a blue automobile on a street in a city",
    "an elephant in a meadow",
    "a rocket in the sky",
    "a sailboat on the sea",
    "a strawberry on a table",
    "a yellow balloon in the sky",
)
Residuals = tuple[list[Tensor], Tensor]
Control = Callable[[Tensor, Tensor], Residuals]  # (timesteps, text states) to down and mid residuals


def alphas_cumprod() -> Tensor:
    """Return the 1000 cumulative alphas of the schedule."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def sample(
    unet: UNet2DConditionModel,
    text: Tensor,
    empty: Tensor,
    seed: int,
    steps: int = 20,
    guidance: float = 4.5,
    control: Control | None = None,
) -> Tensor:
    """Return scaled latents (b 4 16 16): DDIM, eta 0, steps spaced back from the last (Song et al. 2021, eq. 12)."""
    size = unet.config.sample_size
    x = torch.randn(len(text), 4, size, size, generator=torch.Generator().manual_seed(seed))
    both = torch.cat([text, empty.expand_as(text)])
    times = torch.linspace(STEPS - 1, STEPS / steps - 1, steps).round().long()
    alpha_bars = alphas_cumprod()
    for k, t in enumerate(times):
        at = t.expand(len(both))
        down, mid = control(at, both) if control is not None else (None, None)
        with torch.no_grad():
            v = unet(
                torch.cat([x, x]), at, both, down_block_additional_residuals=down, mid_block_additional_residual=mid
            ).sample
        conditional, plain = v.chunk(2)
        v = plain + guidance * (conditional - plain)
        alpha, sigma = alpha_bars[t].sqrt(), (1 - alpha_bars[t]).sqrt()
        x0, eps = alpha * x - sigma * v, sigma * x + alpha * v
        alpha_bar = alpha_bars[times[k + 1]] if k + 1 < steps else torch.tensor(1.0)
        x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    return x
