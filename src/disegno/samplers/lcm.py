"""LCM: a consistency model's sampler, which jumps to x0 and adds noise again. Luo et al. 2023."""

from itertools import pairwise

import torch
from torch import Tensor

from disegno.diffusion.schedules import NoiseTable
from disegno.samplers.base import Plan, Sampling, ask

NUM_LEVELS = 50  # the timesteps that LCM was distilled on
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # Luo et al. 2023, appendix; the boundary condition


def lcm_levels(steps: int, table: NoiseTable) -> Tensor:
    """Return n sigmas evenly spaced over the 50 levels of LCM's distillation, and 0, (n + 1,)."""
    stride = max(len(table.sigmas) // NUM_LEVELS, 1)
    taught = NoiseTable(table.sigmas[stride - 1 :: stride])
    picked = taught.sigma_of(torch.linspace(len(taught.sigmas) - 1, 0, steps))
    return torch.cat([picked, torch.zeros(1)])


def _boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (c_skip, c_out) at timestep t: how much of x stays, and how much of the estimate counts."""
    scaled = t * TIMESTEP_SCALING
    square = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / square, scaled / square.sqrt()


def lcm(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w).

    Luo et al. 2023, Alg. 3; without a table the boundary condition, 1e-5 or less, is left out.
    """
    for sigma, sigma_next in pairwise(plan.sigmas):
        denoised = yield from ask(x, sigma)
        if plan.table is not None:
            c_skip, c_out = _boundary(plan.table.t_of(sigma))
            denoised = c_out * denoised + c_skip * x
        x = plan.alpha(sigma_next) * denoised
        if sigma_next > 0:
            x = x + sigma_next * plan.noise.draw()
    return x
