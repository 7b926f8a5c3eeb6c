"""DPM-Solver++ for the reverse SDE: single-step, 2M and 3M, with noise from each image's Brownian path.

k-diffusion's forms of Lu et al. 2022b; the noise of a step depends on the path, so the same picture comes out at any
number of steps but for the solver's error.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from disegno.diffusion.steps import ancestral_ratios, sigma_of_ratio
from disegno.samplers.base import Plan, Sampling
from disegno.samplers.moves import ask_ratio, brownian, out_of_signal_space, signal_space


def _increment(plan: Plan, ratio: Tensor, ratio_next: Tensor) -> Tensor:
    """Return the normalised noise between two finite ratios, (b c h w)."""
    return brownian(plan)(sigma_of_ratio(ratio, plan.alpha), sigma_of_ratio(ratio_next, plan.alpha))


def dpmpp_sde(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). k-diffusion's sample_dpmpp_sde with r = 1/2.

    The second estimate, at the middle, is all that counts.
    """
    eta = plan.options.eta_or(1.0)
    y, ratios = yield from signal_space(x, plan, eta, brownian(plan))
    for ratio, ratio_next in pairwise(ratios):
        denoised = yield from ask_ratio(y, ratio, plan)
        if ratio_next == 0:
            y = denoised
            continue
        t, t_next = -ratio.log(), -ratio_next.log()
        here, middle, there = ((-t_).exp() for t_ in (t, t + (t_next - t) / 2, t_next))
        down, up = ancestral_ratios(here, middle, eta)
        y_2 = down / here * y - (t + down.log()).expm1() * denoised
        y_2 = y_2 + _increment(plan, here, middle) * up
        denoised_2 = yield from ask_ratio(y_2, middle, plan)
        down, up = ancestral_ratios(here, there, eta)
        y = down / here * y - (t + down.log()).expm1() * denoised_2
        y = y + _increment(plan, here, there) * up
    return out_of_signal_space(y, plan)


def _second_order(h: Tensor, kind: str) -> Tensor:
    """Return the weight of the estimate's change in a step of h = (1 + eta) (log ratio - log ratio_next)."""
    phi_1 = -(-h).expm1()
    return phi_1 / 2 if kind == "midpoint" else 1 - phi_1 / h


def dpmpp_2m_sde(x: Tensor, plan: Plan, kind: str = "midpoint") -> Sampling:
    """Return the picture, (b c h w). k-diffusion's sample_dpmpp_2m_sde; `kind`: midpoint or heun."""
    eta = plan.options.eta_or(1.0)
    y, ratios = yield from signal_space(x, plan, eta, brownian(plan))
    last_denoised: Tensor | None = None
    last_h = ratios.new_zeros(())
    for ratio, ratio_next in pairwise(ratios):
        denoised = yield from ask_ratio(y, ratio, plan)
        if ratio_next == 0:
            y = denoised
            continue
        h = ratio.log() - ratio_next.log()
        y = ratio_next / ratio * (-eta * h).exp() * y - (-(1 + eta) * h).expm1() * denoised
        if last_denoised is not None:
            y = y + _second_order((1 + eta) * h, kind) * (h / last_h) * (denoised - last_denoised)
        if eta:
            y = y + _increment(plan, ratio, ratio_next) * ratio_next * (-(-2 * eta * h).expm1()).sqrt()
        last_denoised, last_h = denoised, h
    return out_of_signal_space(y, plan)


dpmpp_2m_sde_heun = partial(dpmpp_2m_sde, kind="heun")


def _differences(estimates: list[Tensor], steps: list[Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and second divided differences of the last three estimates, newest first.

    `steps`: the h of the last two steps.
    """
    r0, r1 = steps[0] / h, steps[1] / h
    first, before = (estimates[0] - estimates[1]) / r0, (estimates[1] - estimates[2]) / r1
    return first + (first - before) * r0 / (r0 + r1), (first - before) / (r0 + r1)


def dpmpp_3m_sde(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). k-diffusion's sample_dpmpp_3m_sde."""
    eta = plan.options.eta_or(1.0)
    y, ratios = yield from signal_space(x, plan, eta, brownian(plan))
    estimates: list[Tensor] = []  # newest first
    steps: list[Tensor] = []
    for ratio, ratio_next in pairwise(ratios):
        denoised = yield from ask_ratio(y, ratio, plan)
        if ratio_next == 0:
            y = denoised
            continue
        estimates = [denoised, *estimates[:2]]
        h = ratio.log() - ratio_next.log()
        h_eta = h * (eta + 1)
        phi_2 = (-h_eta).expm1() / h_eta + 1
        y = torch.exp(-h_eta) * y - (-h_eta).expm1() * denoised
        if len(estimates) == 3:
            d1, d2 = _differences(estimates, steps, h)
            y = y + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif len(estimates) == 2:
            y = y + phi_2 * (estimates[0] - estimates[1]) / (steps[0] / h)
        if eta:
            y = y + _increment(plan, ratio, ratio_next) * ratio_next * (-(-2 * h * eta).expm1()).sqrt()
        steps = [h, *steps[:1]]
    return out_of_signal_space(y, plan)
