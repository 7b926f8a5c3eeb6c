"""DPM2.

Steps with the slope at their geometric middle, plain and ancestral. k-diffusion, after DPM-Solver-2 (Lu et al.
2022a).
"""

from itertools import pairwise

from torch import Tensor

from disegno.diffusion.steps import ancestral_ratios
from disegno.samplers.base import Plan, Sampling, ask
from disegno.samplers.moves import ask_ratio, churned, drawn, out_of_signal_space, signal_space


def dpm2(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). k-diffusion's sample_dpm_2."""
    for sigma, sigma_next in pairwise(plan.sigmas):
        x, sigma_hat = churned(x, sigma, plan)
        denoised = yield from ask(x, sigma_hat)
        d = (x - denoised) / sigma_hat
        if sigma_next > 0:
            middle = sigma_hat.log().lerp(sigma_next.log(), 0.5).exp()
            x_2 = x + d * (middle - sigma_hat)
            denoised_2 = yield from ask(x_2, middle)
            d = (x_2 - denoised_2) / middle
        x = x + d * (sigma_next - sigma_hat)
    return x


def dpm2_ancestral(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). k-diffusion's sample_dpm_2_ancestral."""
    eta, noise = plan.options.eta_or(1.0), drawn(plan)
    y, ratios = yield from signal_space(x, plan, eta, noise)
    for ratio, ratio_next in pairwise(ratios):
        denoised = yield from ask_ratio(y, ratio, plan)
        down, up = ancestral_ratios(ratio, ratio_next, eta)
        d = (y - denoised) / ratio
        if down > 0:
            middle = ratio.log().lerp(down.log(), 0.5).exp()
            y_2 = y + d * (middle - ratio)
            denoised_2 = yield from ask_ratio(y_2, middle, plan)
            d = (y_2 - denoised_2) / middle
        y = y + d * (down - ratio)
        if down > 0:
            y = y + up * noise(ratio, ratio_next)
    return out_of_signal_space(y, plan)
