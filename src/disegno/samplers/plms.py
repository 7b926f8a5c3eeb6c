"""PLMS: Adams and Bashforth's multistep method with fixed weights, as if the steps were even. Liu et al. 2022."""

from itertools import pairwise

from torch import Tensor

from disegno.samplers.base import Plan, Sampling, ask

WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))  # newest first


def plms(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). Liu et al. 2022, Alg. 2: the first step is Heun's, and costs one evaluation more.

    A1111 parity: with the automatic schedule it ends at timestep 1, as DDIM does.
    """
    slopes: list[Tensor] = []  # newest first
    for sigma, sigma_next in pairwise(plan.sigmas):
        denoised = yield from ask(x, sigma)
        d = (x - denoised) / sigma
        slopes = [d, *slopes[: len(WEIGHTS) - 1]]
        if len(slopes) > 1:
            d = sum(
                (w * s for w, s in zip(WEIGHTS[len(slopes) - 1][1:], slopes[1:], strict=True)),
                WEIGHTS[len(slopes) - 1][0] * d,
            )
        elif sigma_next > 0:
            x_2 = x + d * (sigma_next - sigma)
            denoised_2 = yield from ask(x_2, sigma_next)
            d = (d + (x_2 - denoised_2) / sigma_next) / 2
        x = x + d * (sigma_next - sigma)
    return x
