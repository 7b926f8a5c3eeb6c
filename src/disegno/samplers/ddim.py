"""DDIM, and its form for CFG++, where the step's direction comes from the negative prompt alone.

A1111 parity: with the automatic schedule they walk over timesteps 1, 1 + stride, ... and end at timestep 1, so that a
trace of noise (sigma 0.04 for Stable Diffusion) stays in the picture.
"""

from itertools import pairwise

from torch import Tensor

from disegno.diffusion.steps import ancestral_ratios
from disegno.samplers.base import Plan, Sampling, ask_split
from disegno.samplers.moves import ask_ratio, drawn, out_of_signal_space, signal_space


def ddim(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). Song et al. 2020, eq. 12 and 16, divided by alpha; eta is 0."""
    eta, noise = plan.options.eta_or(0.0), drawn(plan)
    y, ratios = yield from signal_space(x, plan, eta, noise)
    for ratio, ratio_next in pairwise(ratios):
        denoised = yield from ask_ratio(y, ratio, plan)
        down, up = ancestral_ratios(ratio, ratio_next, eta)
        y = denoised + down * (y - denoised) / ratio
        if eta:
            y = y + up * noise(ratio, ratio_next)
    return out_of_signal_space(y, plan)


def ddim_cfgpp(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w).

    Chung et al. 2024, Alg. 2: x0 is guided, the noise is the negative prompt's; eta is 0.
    """
    eta, noise = plan.options.eta_or(0.0), drawn(plan)
    for sigma, sigma_next in pairwise(plan.sigmas):
        alpha, alpha_next = plan.alpha(sigma), plan.alpha(sigma_next)
        denoised, negative = yield from ask_split(x, sigma)
        n = (x - alpha * negative) / sigma
        down, up = ancestral_ratios(sigma / alpha, sigma_next / alpha_next, eta)
        y = denoised + down * n
        if eta:
            y = y + up * noise(sigma, sigma_next)
        x = alpha_next * y
    return x
