"""Heun's method: an Euler step, and its correction by the slope at its end."""

from itertools import pairwise

from torch import Tensor

from disegno.samplers.base import Plan, Sampling
from disegno.samplers.moves import churned, heun_step


def heun(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). Karras et al. 2022, Alg. 2."""
    for sigma, sigma_next in pairwise(plan.sigmas):
        x, sigma_hat = churned(x, sigma, plan)
        x = yield from heun_step(x, sigma_hat, sigma_next)
    return x
