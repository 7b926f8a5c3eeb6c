"""The moves that several samplers make: churn, a Heun step, and stepping in the space where all families look alike.

The probability flow of epsilon, v and flow models is dx / dsigma = (x - x0) / sigma, so Euler, Heun and multistep
methods over sigma need nothing else. Solvers in log(sigma / alpha) step y = x / alpha = x0 + ratio n instead;
`signal_space` takes them there.
"""

import math
from collections.abc import Callable, Generator

from torch import Tensor

from disegno.diffusion.steps import ancestral_ratios, raise_noise, ratio_of, sigma_of_ratio
from disegno.samplers.base import Answer, Eval, Plan, Sampling, ask

MAX_GAMMA = math.sqrt(2) - 1  # Karras et al. 2022, Alg. 2

NoiseBetween = Callable[[Tensor, Tensor], Tensor]


def churned(x: Tensor, sigma: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return x with its noise raised as the options say, and its new level. Karras et al. 2022, Alg. 2, lines 4-6.

    Noise is drawn at every step while churn is on, as k-diffusion does, also where the step is outside [s_tmin,
    s_tmax].
    """
    options = plan.options
    if not options.s_churn or plan.alpha(sigma) == 0:  # pure noise cannot be raised
        return x, sigma
    noise = plan.noise.draw()
    if not options.s_tmin <= float(sigma) <= (options.s_tmax or math.inf):
        return x, sigma
    gamma = min(options.s_churn / (len(plan.sigmas) - 1), MAX_GAMMA)
    sigma_hat = sigma_of_ratio(ratio_of(sigma, plan.alpha) * (gamma + 1), plan.alpha)
    return raise_noise(x, sigma, sigma_hat, noise * options.s_noise, plan.alpha), sigma_hat


def heun_step(x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Sampling:
    """Return x at sigma_next, (b c h w), by two evaluations; by one, an Euler step, where sigma_next is 0.

    Karras et al. 2022, Alg. 2.
    """
    denoised = yield from ask(x, sigma)
    d = (x - denoised) / sigma
    dt = sigma_next - sigma
    if sigma_next == 0:
        return x + d * dt
    x_2 = x + d * dt
    denoised_2 = yield from ask(x_2, sigma_next)
    d_2 = (x_2 - denoised_2) / sigma_next
    return x + (d + d_2) / 2 * dt


def drawn(plan: Plan) -> NoiseBetween:
    """Return noise that forgets where it is: each call is the next draw."""
    return lambda sigma, sigma_next: plan.noise.draw() * plan.options.s_noise


def brownian(plan: Plan) -> NoiseBetween:
    """Return the normalised increments of the images' Brownian paths, between two noise levels."""
    return lambda sigma, sigma_next: plan.noise.between(sigma, sigma_next) * plan.options.s_noise


def signal_space(
    x: Tensor, plan: Plan, eta: float = 0.0, noise: NoiseBetween | None = None
) -> Generator[Eval, Answer, tuple[Tensor, Tensor]]:
    """Return (y, ratios).

    Y = x / alpha, (b c h w), and the noise-to-signal ratios of the steps that are left, (n + 1,). For epsilon and v
    models these are x and the sigmas. A flow model that starts from pure noise (sigma 1, ratio infinite) first takes
    one step to the next level: the limit of DDIM's step with this eta, to which every solver in log(sigma / alpha)
    tends there.
    """
    ratios = ratio_of(plan.sigmas, plan.alpha)
    if ratios[0].isfinite():
        return x / plan.alpha(plan.sigmas[0]), ratios
    denoised = yield from ask(x, plan.sigmas[0])
    down, up = ancestral_ratios(ratios[0], ratios[1], eta)
    y = denoised + down * (x / plan.sigmas[0])
    if noise is not None and ratios[1] > 0:
        y = y + up * noise(plan.sigmas[0], plan.sigmas[1])
    return y, ratios[1:]


def ask_ratio(y: Tensor, ratio: Tensor, plan: Plan) -> Sampling:
    """Return the x0 estimate of y at a finite ratio, (b c h w), float32."""
    sigma = sigma_of_ratio(ratio, plan.alpha)
    return (yield from ask(plan.alpha(sigma) * y, sigma))


def out_of_signal_space(y: Tensor, plan: Plan) -> Tensor:
    """Return x = alpha y at the plan's last noise level, (b c h w)."""
    return plan.alpha(plan.sigmas[-1]) * y
