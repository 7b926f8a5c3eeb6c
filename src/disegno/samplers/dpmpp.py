"""DPM-Solver++: the multistep 2M, and the single-step 2S with ancestral noise. Lu et al. 2022b."""

from itertools import pairwise

from torch import Tensor

from disegno.diffusion.steps import ancestral_ratios
from disegno.samplers.base import Plan, Sampling
from disegno.samplers.moves import ask_ratio, drawn, out_of_signal_space, signal_space


def dpmpp_2m(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). Lu et al. 2022b, Alg. 2; k-diffusion's sample_dpmpp_2m."""
    y, ratios = yield from signal_space(x, plan)
    last_denoised: Tensor | None = None
    last_h = ratios.new_zeros(())
    for ratio, ratio_next in pairwise(ratios):
        denoised = yield from ask_ratio(y, ratio, plan)
        h = ratio.log() - ratio_next.log()
        estimate = denoised
        if last_denoised is not None and ratio_next > 0:
            r = last_h / h
            estimate = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * last_denoised
        y = ratio_next / ratio * y - (-h).expm1() * estimate
        last_denoised, last_h = denoised, h
    return out_of_signal_space(y, plan)


def dpmpp_2s_ancestral(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w).

    Lu et al. 2022b, Alg. 1 with r = 1/2, and noise; k-diffusion's sample_dpmpp_2s_ancestral.
    """
    eta, noise = plan.options.eta_or(1.0), drawn(plan)
    y, ratios = yield from signal_space(x, plan, eta, noise)
    for ratio, ratio_next in pairwise(ratios):
        denoised = yield from ask_ratio(y, ratio, plan)
        down, up = ancestral_ratios(ratio, ratio_next, eta)
        if down > 0:
            h = ratio.log() - down.log()
            middle = (ratio.log() - h / 2).exp()
            y_2 = middle / ratio * y - (-h / 2).expm1() * denoised
            denoised = yield from ask_ratio(y_2, middle, plan)
            y = down / ratio * y - (-h).expm1() * denoised
        else:
            y = y + (y - denoised) / ratio * (down - ratio)
        if ratio_next > 0:
            y = y + up * noise(ratio, ratio_next)
    return out_of_signal_space(y, plan)
