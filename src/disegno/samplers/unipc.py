"""UniPC: a predictor and a corrector of one family, which share their evaluations.

Zhao et al. 2023, data prediction, B(h) = h.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from disegno.diffusion.schedules import NoiseTable, timesteps
from disegno.samplers.base import Plan, Sampling
from disegno.samplers.moves import ask_ratio, out_of_signal_space, signal_space

ORDER = 3


def even_levels(steps: int, table: NoiseTable) -> Tensor:
    """Return sigmas evenly spaced in time down to the table's lowest, (n + 1,), without a final 0.

    UniPC's "time_uniform". A1111 parity: n is the number of its timesteps, which is one more than `steps` where that
    does not divide the table's length.
    """
    size = len(table.sigmas)
    return table.sigma_of(torch.linspace(size - 1, 0, len(timesteps(steps, size)) + 1))


@dataclass(frozen=True)
class Seen:
    """An estimate, and the t = -log ratio where it was made."""

    t: Tensor
    denoised: Tensor  # b c h w


def _weights(places: list[Tensor], h: Tensor) -> Tensor:
    """Return the weights of the estimates' differences at these shares of the step, (k,).

    Zhao et al. 2023, eq. 11, for B(h) = h.
    """
    if len(places) == 1:
        return torch.full((1,), 0.5)
    ks = torch.stack(places).double()
    phi, factorial = (-h.double()).expm1() / -h.double() - 1, 1.0  # h phi_{k+1}(-h), from k = 1
    rows: list[Tensor] = []
    values: list[Tensor] = []
    for k in range(len(places)):
        rows.append(ks**k)
        values.append(phi * factorial / -h.double())
        factorial *= k + 2
        phi = phi / -h.double() - 1 / factorial
    return torch.linalg.solve(torch.stack(rows), torch.stack(values)).float()


def _step(y: Tensor, seen: list[Seen], t_next: Tensor, order: int, found: Tensor | None = None) -> Tensor:
    """Return y at t_next, (b c h w): predicted, or corrected where `found`, the estimate made there, is given.

    `seen`: at least `order` estimates, newest first; y belongs to the newest. Zhao et al. 2023, eq. 3 (UniC) and 9
    (UniP).
    """
    now, h = seen[0], t_next - seen[0].t
    base = (-h).exp() * y - (-h).expm1() * now.denoised
    places = [(old.t - now.t) / h for old in seen[1:order]]
    changes = [(old.denoised - now.denoised) / place for old, place in zip(seen[1:order], places, strict=True)]
    if found is not None:
        places, changes = [*places, torch.ones(())], [*changes, found - now.denoised]
    if not changes:
        return base
    return base + h * sum(
        (w * change for w, change in zip(_weights(places, h), changes, strict=True)), torch.zeros_like(y)
    )


def unipc(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w).

    Zhao et al. 2023, Alg. 1 and 2, order 3, lower at both ends; the last step is not corrected.
    """
    y, ratios = yield from signal_space(x, plan)
    ts = -ratios.log()
    seen: list[Seen] = []
    before: tuple[Tensor, int] | None = None  # y before the last step, and that step's order
    for i, (t, t_next) in enumerate(pairwise(ts)):
        denoised = yield from ask_ratio(y, ratios[i], plan)
        if before is not None:
            y = _step(before[0], seen, t, before[1], found=denoised)
        seen = [Seen(t, denoised), *seen[: ORDER - 1]]
        if t_next.isinf():
            return plan.alpha(plan.sigmas[-1]) * denoised
        order = min(ORDER, len(seen), len(ts) - 1 - i)
        before = (y, order)
        y = _step(y, seen, t_next, order)
    return out_of_signal_space(y, plan)
