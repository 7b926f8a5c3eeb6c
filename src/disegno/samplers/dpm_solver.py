"""DPM-Solver with a fixed budget (fast) and with steps it chooses itself (adaptive).

Lu et al. 2022a, in t = -log(sigma / alpha). Both run from the first noise level to the model's lowest and do not look
at the levels between; k-diffusion's sample_dpm_fast and sample_dpm_adaptive, with A1111's eta of 1.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from disegno.diffusion.steps import ancestral_ratios, ratio_of
from disegno.samplers.base import Answer, Eval, Plan, Sampling
from disegno.samplers.moves import ask_ratio, drawn, out_of_signal_space, signal_space

RTOL, ATOL, H_INIT, ACCEPT_SAFETY = 0.05, 0.0078, 0.05, 0.81  # k-diffusion's; Lu et al. 2022a, appendix C


@dataclass(frozen=True)
class Point:
    """Where a step starts: y at t, and the noise that the net sees there."""

    y: Tensor  # b c h w
    t: Tensor
    eps: Tensor  # b c h w


def _sigma(t: Tensor) -> Tensor:
    return (-t).exp()


def _eps(y: Tensor, t: Tensor, plan: Plan) -> Sampling:
    """Return the noise that the net sees in y at t, (b c h w)."""
    denoised = yield from ask_ratio(y, _sigma(t), plan)
    return (y - denoised) / _sigma(t)


def _first_order(point: Point, t_next: Tensor) -> Tensor:
    """Return y at t_next, (b c h w). Lu et al. 2022a, eq. 3.7: DDIM's step."""
    return point.y - _sigma(t_next) * (t_next - point.t).expm1() * point.eps


def _second_order(point: Point, t_next: Tensor, eps_r: Tensor, r: float) -> Tensor:
    """Return y at t_next, (b c h w), with the noise seen at the share r of the step. Lu et al. 2022a, Alg. 4."""
    h = t_next - point.t
    return _first_order(point, t_next) - _sigma(t_next) / (2 * r) * h.expm1() * (eps_r - point.eps)


def _inner(point: Point, t_next: Tensor, r: float, plan: Plan) -> Sampling:
    """Return the noise seen at the share r of the step, (b c h w), reached by a first-order step."""
    t = point.t + r * (t_next - point.t)
    return (yield from _eps(_first_order(point, t), t, plan))


def _third_order(point: Point, t_next: Tensor, eps_1: Tensor, plan: Plan) -> Sampling:
    """Return y at t_next, (b c h w), given the noise seen at a third of the step.

    Lu et al. 2022a, Alg. 2, r1 = 1/3, r2 = 2/3.
    """
    r1, r2 = 1 / 3, 2 / 3
    h = t_next - point.t
    t_2 = point.t + r2 * h
    bend = _sigma(t_2) * (r2 / r1) * ((r2 * h).expm1() / (r2 * h) - 1)
    eps_2 = yield from _eps(_first_order(point, t_2) - bend * (eps_1 - point.eps), t_2, plan)
    return _first_order(point, t_next) - _sigma(t_next) / r2 * (h.expm1() / h - 1) * (eps_2 - point.eps)


def _step_1(point: Point, t_next: Tensor, plan: Plan) -> Sampling:
    yield from ()
    return _first_order(point, t_next)


def _step_2(point: Point, t_next: Tensor, plan: Plan) -> Sampling:
    eps_1 = yield from _inner(point, t_next, 1 / 2, plan)
    return _second_order(point, t_next, eps_1, 1 / 2)


def _step_3(point: Point, t_next: Tensor, plan: Plan) -> Sampling:
    eps_1 = yield from _inner(point, t_next, 1 / 3, plan)
    return (yield from _third_order(point, t_next, eps_1, plan))


_STEPS: dict[int, Callable[[Point, Tensor, Plan], Sampling]] = {1: _step_1, 2: _step_2, 3: _step_3}


def _orders(num_evals: int) -> list[int]:
    """Return the orders of the steps that use up the budget. Lu et al. 2022a, section 3.4."""
    num_steps = num_evals // 3 + 1
    return [3] * (num_steps - 2) + [2, 1] if num_evals % 3 == 0 else [3] * (num_steps - 1) + [num_evals % 3]


def _down_up(t: Tensor, t_next: Tensor, t_end: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Return (t_down, up).

    Where to step without noise, past t_next but not past the end, and how much noise comes back to t_next.
    """
    down, _ = ancestral_ratios(_sigma(t), _sigma(t_next), eta)
    t_down = torch.minimum(t_end, -down.log())
    return t_down, (_sigma(t_next) ** 2 - _sigma(t_down) ** 2).clamp(min=0).sqrt()


def _span(x: Tensor, plan: Plan) -> Generator[Eval, Answer, tuple[Tensor, Tensor, Tensor, int]]:
    """Return (y, t_start, t_end, number of evaluations left).

    T_end is not above t_start where there is nothing left to do.
    """
    y, ratios = yield from signal_space(x, plan, plan.options.eta_or(1.0), drawn(plan))
    lowest = plan.table.sigma_min if plan.table else plan.sigmas[plan.sigmas > 0].min()
    return y, -ratios[0].log(), -ratio_of(lowest, plan.alpha).log(), len(ratios) - 1


def dpm_fast(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture at the model's lowest noise level, (b c h w), by as many evaluations as the plan has steps."""
    eta, noise = plan.options.eta_or(1.0), drawn(plan)
    y, t_start, t_end, num_evals = yield from _span(x, plan)
    if t_end <= t_start:
        return out_of_signal_space(y, plan)
    orders = _orders(num_evals)
    ts = torch.linspace(float(t_start), float(t_end), len(orders) + 1)
    for order, t, t_next in zip(orders, ts[:-1], ts[1:], strict=True):
        t_down, up = _down_up(t, t_next, t_end, eta) if eta else (t_next, torch.zeros(()))
        eps = yield from _eps(y, t, plan)
        y = yield from _STEPS[order](Point(y, t, eps), t_down, plan)
        y = y + up * noise(_sigma(t), _sigma(t_next))
    return out_of_signal_space(y, plan)


def _error(low: Tensor, high: Tensor, last: Tensor) -> float:
    """Return how far the two orders differ, in units of what is tolerated. Lu et al. 2022a, appendix C."""
    delta = (RTOL * torch.maximum(low.abs(), last.abs())).clamp(min=ATOL)
    return float(((low - high) / delta).norm()) / low.numel() ** 0.5


def dpm_adaptive(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture at the model's lowest noise level, (b c h w), in steps as long as the tolerance lets them be.

    The steps are chosen by the whole batch x, so a driver gives each image its own coroutine.
    """
    eta, noise = plan.options.eta_or(1.0), drawn(plan)
    y, s, t_end, _ = yield from _span(x, plan)
    last, h, order = y, H_INIT, 1.5 if eta else 3
    while s < t_end - 1e-5:
        t = torch.minimum(t_end, s + h)
        t_down, up = _down_up(s, t, t_end, eta) if eta else (t, torch.zeros(()))
        point = Point(y, s, (yield from _eps(y, s, plan)))
        eps_1 = yield from _inner(point, t_down, 1 / 3, plan)
        low = _second_order(point, t_down, eps_1, 1 / 3)
        high = yield from _third_order(point, t_down, eps_1, plan)
        error = _error(low, high, last)
        if not math.isfinite(error):  # the net no longer gives numbers: no step would be short enough
            return out_of_signal_space(high, plan)
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / order) - 1)
        h *= factor
        if factor >= ACCEPT_SAFETY:
            y = high + up * noise(_sigma(s), _sigma(t))
            last, s = low, t
    return out_of_signal_space(y, plan)
