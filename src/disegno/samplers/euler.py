"""Euler steps: the plain one, and the ancestral one that adds noise after each."""

from itertools import pairwise

from torch import Tensor

from disegno.diffusion.steps import ancestral_ratios
from disegno.samplers.base import Plan, Sampling, ask
from disegno.samplers.moves import ask_ratio, churned, drawn, out_of_signal_space, signal_space


def euler(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). Karras et al. 2022, Alg. 2 without its second-order correction."""
    for sigma, sigma_next in pairwise(plan.sigmas):
        x, sigma_hat = churned(x, sigma, plan)
        denoised = yield from ask(x, sigma_hat)
        d = (x - denoised) / sigma_hat
        x = x + d * (sigma_next - sigma_hat)
    return x


def euler_ancestral(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). k-diffusion's sample_euler_ancestral: DDIM's step with eta 1 (Ho et al. 2020)."""
    eta, noise = plan.options.eta_or(1.0), drawn(plan)
    y, ratios = yield from signal_space(x, plan, eta, noise)
    for ratio, ratio_next in pairwise(ratios):
        denoised = yield from ask_ratio(y, ratio, plan)
        down, up = ancestral_ratios(ratio, ratio_next, eta)
        y = y + (y - denoised) / ratio * (down - ratio)
        if ratio_next > 0:
            y = y + up * noise(ratio, ratio_next)
    return out_of_signal_space(y, plan)
