"""What a net's output means: how a noise level enters the net, and how its output becomes the denoised estimate.

Epsilon and v models are driven in k-diffusion's convention, x = x0 + sigma n; flow models in their own,
x = (1 - sigma) x0 + sigma n.
Sources: Karras et al. 2022, Table 1; Salimans and Ho 2022 (v); Lipman et al. 2023, Esser et al. 2024 (flow).
Shapes: x, noise, out: (b c h w); sigma: scalar or (b,), spread over the last axes here.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.device).reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma.to(x.device)


class Prediction(Protocol):
    """The meaning of a net's output."""

    @property
    def name(self) -> str:
        """Return its name: epsilon, v or flow."""
        ...

    def alpha(self, sigma: Tensor) -> Tensor:
        """Return the signal's coefficient at sigma, of sigma's shape: x = alpha x0 + sigma n."""
        ...

    def scale(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return what the net is shown, (b c h w)."""
        ...

    def denoise(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """Return the x0 estimate that the net's output stands for, (b c h w)."""
        ...

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return what the net should have said, (b c h w): the training target."""
        ...


@dataclass(frozen=True)
class Epsilon:
    """The net says the noise. `denoise(scale(x)) = x - sigma out` (Ho et al. 2020)."""

    name: str = "epsilon"

    def alpha(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def scale(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (_like(sigma, x) ** 2 + 1).sqrt()

    def denoise(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        return x - _like(sigma, x) * out

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise


@dataclass(frozen=True)
class Velocity:
    """The net says v = (noise - sigma x0) / sqrt(sigma^2 + 1) (Salimans and Ho 2022, appendix D)."""

    name: str = "v"

    def alpha(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def scale(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (_like(sigma, x) ** 2 + 1).sqrt()

    def denoise(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        s = _like(sigma, x)
        return x / (s**2 + 1) - out * s / (s**2 + 1).sqrt()

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        s = _like(sigma, x0)
        return (noise - s * x0) / (s**2 + 1).sqrt()


@dataclass(frozen=True)
class Flow:
    """The net says the velocity of the straight path, noise - x0 (Esser et al. 2024, eq. 13)."""

    name: str = "flow"

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 - sigma

    def scale(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def denoise(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        return x - _like(sigma, x) * out

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0


PREDICTIONS: dict[str, Prediction] = {"epsilon": Epsilon(), "v": Velocity(), "flow": Flow()}
