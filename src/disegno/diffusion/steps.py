"""The arithmetic of a step between two noise levels, for x = alpha x0 + sigma n.

`alpha` is what `Prediction.alpha` is: 1 at every sigma (k-diffusion's convention), or 1 - sigma (flow). Both are
affine, 1 - b sigma, and for both the probability flow is dx / dsigma = (x - x0) / sigma. Solvers that work in
log(sigma / alpha) see x / alpha = x0 + ratio n, with ratio = sigma / alpha: there all families are one. Shapes: x,
denoised: (b c h w); sigma, ratio: scalars.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Alpha = Callable[[Tensor], Tensor]


def ratio_of(sigma: Tensor, alpha: Alpha) -> Tensor:
    """Return the noise-to-signal ratio sigma / alpha(sigma), of sigma's shape.

    Infinite where nothing is left of the signal.
    """
    return sigma / alpha(sigma)


def sigma_of_ratio(ratio: Tensor, alpha: Alpha) -> Tensor:
    """Return the noise level of a finite noise-to-signal ratio: the inverse of `ratio_of`."""
    return ratio / (1 + (1 - alpha(torch.ones_like(ratio))) * ratio)


def ancestral_ratios(ratio: Tensor, ratio_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Return (down, up): step down to `down` without noise, then add `up` times noise.

    Ho et al. 2020; k-diffusion's ancestral step. up = eta ratio_next sqrt(1 - (ratio_next / ratio)^2), no more than
    ratio_next; down^2 + up^2 = ratio_next^2.
    """
    if not eta:
        return ratio_next, torch.zeros_like(ratio_next)
    up = torch.minimum(ratio_next, eta * ratio_next * (1 - (ratio_next / ratio) ** 2).sqrt())
    return (ratio_next**2 - up**2).sqrt(), up


def raise_noise(x: Tensor, sigma: Tensor, sigma_up: Tensor, noise: Tensor, alpha: Alpha) -> Tensor:
    """Return x with fresh noise added until its level is sigma_up > sigma, (b c h w)."""
    if alpha(sigma_up) == 0:
        return noise
    ratio, ratio_up = ratio_of(sigma, alpha), ratio_of(sigma_up, alpha)
    return alpha(sigma_up) * (x / alpha(sigma) + noise * (ratio_up**2 - ratio**2).sqrt())
