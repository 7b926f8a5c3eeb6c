"""LMS: Adams and Bashforth's multistep method over the sigmas as they are spaced."""

from collections.abc import Sequence

from numpy.polynomial import Polynomial
from torch import Tensor

from disegno.samplers.base import Plan, Sampling, ask

ORDER = 4  # k-diffusion's default
# How many steps' worth the weights of one step may be together. They grow with the cube of how much longer it is than
# those before it: the last step of a plan of which only the end is walked (a share of 0.005 that is drawn over) reaches
# 1e10, and what rounding leaves of the slopes' differences is the picture. Whole plans of 20 steps stay below 25.
MOST = 1000.0


def weights(sigmas: Sequence[float], i: int, order: int) -> list[float]:
    """Return how much each of the last `order` slopes counts in the step from sigmas[i], newest first.

    Each is the integral over the step of the Lagrange polynomial that is 1 at its own sigma and 0 at the others.
    """
    nodes = [sigmas[i - j] for j in range(order)]
    integrals: list[float] = []
    for j, node in enumerate(nodes):
        lagrange = Polynomial([1.0])
        for other in nodes[:j] + nodes[j + 1 :]:
            lagrange = lagrange * Polynomial([-other, 1.0]) / (node - other)
        antiderivative = lagrange.integ(lbnd=sigmas[i])
        integrals.append(float(antiderivative(sigmas[i + 1])))
    return integrals


def steady(sigmas: Sequence[float], i: int, order: int) -> list[float]:
    """Return the weights of the step from sigmas[i], of the highest order up to this one that stays within MOST."""
    own, step = weights(sigmas, i, order), abs(sigmas[i] - sigmas[i + 1])
    return own if order == 1 or sum(map(abs, own)) <= MOST * step else steady(sigmas, i, order - 1)


def lms(x: Tensor, plan: Plan) -> Sampling:
    """Return the picture, (b c h w). k-diffusion's sample_lms."""
    slopes: list[Tensor] = []  # newest first
    sigmas = plan.sigmas.tolist()
    for i, sigma in enumerate(plan.sigmas[:-1]):
        denoised = yield from ask(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[: ORDER - 1]]
        x = sum((w * d for w, d in zip(steady(sigmas, i, len(slopes)), slopes, strict=False)), start=x)
    return x
