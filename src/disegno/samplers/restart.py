"""Restart: Heun's method that goes back up to a noisier level and comes down again. Xu et al. 2023."""

from itertools import pairwise

import torch
from torch import Tensor

from disegno.diffusion.steps import raise_noise, ratio_of
from disegno.samplers.base import Plan, Sampling
from disegno.samplers.moves import heun_step

LOW, HIGH = 0.1, 2.0  # between which noise-to-signal ratios it goes up and down; A1111's


def _karras(n: int, low: Tensor, high: Tensor) -> Tensor:
    """Return n sigmas from high to low, both included. Karras et al. 2022, eq. 5, rho 7."""
    ramp = torch.linspace(0, 1, n)
    return (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7


def _budget(num_steps: int) -> tuple[int, int]:
    """Return (steps of one restart, number of restarts), A1111's: none below 20 steps."""
    if num_steps < 20:
        return 0, 0
    return (num_steps // 4, 2) if num_steps >= 36 else (9, 1)


def _runs(sigmas: Tensor, ratios: Tensor, count: int, times: int) -> list[Tensor]:
    """Return the runs of descending sigmas that are walked in turn.

    `sigmas`, `ratios`: (n + 1,), the same noise levels.
    """
    at_low, at_high = (int((ratios - ratio).abs().argmin()) for ratio in (LOW, HIGH))
    if not times or at_high >= at_low:
        return [sigmas]
    again = _karras(count + 1, sigmas[at_low], sigmas[at_high])
    again[-1] = sigmas[at_low]  # exactly: the rest of the schedule goes on from there without new noise
    return [sigmas[: at_low + 1], *[again] * times, sigmas[at_low:]]


def restart(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w).

    A1111's restart_sampler: from 20 steps on the schedule is Karras's, shorter by what restarts cost.
    """
    sigmas = plan.sigmas
    count, times = _budget(len(sigmas) - 1)
    if times:
        sigmas = torch.cat([_karras(len(sigmas) - 1 - count * times, sigmas[-2], sigmas[0]), sigmas[-1:]])
    runs = _runs(sigmas, ratio_of(sigmas, plan.alpha), count, times)
    for last_run, run in zip([runs[0], *runs], runs, strict=False):
        if run[0] > last_run[-1] and run is not runs[0]:
            noise = plan.noise.draw() * plan.options.s_noise
            x = raise_noise(x, last_run[-1], run[0], noise, plan.alpha)
        for sigma, sigma_next in pairwise(run):
            x = yield from heun_step(x, sigma, sigma_next)
    return x
