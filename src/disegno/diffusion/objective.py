"""What a denoiser is taught with: noise levels drawn, latents noised, and each row's loss against its target.

Ho et al. 2020, eq. 14, for whatever the net's output means (`prediction.py`): the mean square of the difference between
what it says and what it should have said. Everything random about a row comes from its own seed, drawn on the CPU in
one order, so that neither the batch nor an option changes the other numbers. Shapes: x0, noise: (b c h w); the rest: b.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disegno.core.teach import TimeDraw
from disegno.diffusion.prediction import Prediction
from disegno.diffusion.schedules import NoiseTable

HIGH_NOISE_SHARE = 0.5  # of the rows take the noisier of two levels: the layout of a picture is decided there
_UNIFORMS = 4  # a row's first numbers: two levels, which of them, whether its caption is dropped


@dataclass(frozen=True)
class Draws:
    """What was drawn for each row. `level`: an index of the table; `drops`: whether the caption is left out."""

    level: Tensor  # b, int64
    noise: Tensor  # b c h w, float32
    drops: Tensor  # b, bool


@dataclass(frozen=True)
class Noised:
    """A batch, ready for the net. `x`: as `Prediction.scale` shows it; `t`: float32; `weight`: of each row's loss."""

    x: Tensor  # b c h w
    t: Tensor  # b
    target: Tensor  # b c h w
    weight: Tensor  # b


@dataclass(frozen=True)
class Objective:
    """How a model is taught. `min_snr`: gamma; 0 is off, as are an `offset_noise` and a `caption_dropout` of 0."""

    prediction: Prediction
    table: NoiseTable
    timesteps: TimeDraw = "auto"
    min_snr: float = 0.0
    offset_noise: float = 0.0
    caption_dropout: float = 0.0

    def draw(self, seeds: Sequence[int], shape: Sequence[int]) -> Draws:
        """Return what is random about these rows, each from its seed. shape: c h w."""
        rows = [self._draw_row(seed, tuple(shape)) for seed in seeds]
        levels, noises, drops = zip(*rows, strict=True)
        return Draws(torch.tensor(levels), torch.stack(noises), torch.tensor(drops))

    def _draw_row(self, seed: int, shape: tuple[int, ...]) -> tuple[int, Tensor, bool]:
        generator = torch.Generator().manual_seed(seed)
        u = torch.rand(_UNIFORMS, generator=generator, dtype=torch.float64)
        noise = torch.randn(shape, generator=generator)
        offset = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
        if self.offset_noise:
            noise = noise + self.offset_noise * offset  # N. Guttenberg 2023: one number a channel
        share = _SHARES[self._timesteps](u)
        last = len(self.table.sigmas) - 1
        return min(int(share * (last + 1)), last), noise, bool(u[3] < self.caption_dropout)

    @property
    def _timesteps(self) -> TimeDraw:
        if self.timesteps != "auto":
            return self.timesteps
        return "logit-normal" if self.prediction.name == "flow" else "uniform"

    def noised(self, x0: Tensor, draws: Draws) -> Noised:
        """Return the latents with their noise, and what the net should say about them."""
        sigma = self.table.sigmas.to(x0.device)[draws.level.to(x0.device)]  # b
        noise = draws.noise.to(x0)
        by_row = (-1, *[1] * (x0.ndim - 1))
        x = self.prediction.alpha(sigma).view(by_row) * x0 + sigma.view(by_row) * noise
        return Noised(
            x=self.prediction.scale(x, sigma),
            t=self.table.net_t(sigma) if self.table.is_flow else draws.level.to(x0.device, torch.float32),
            target=self.prediction.target(x0, noise, sigma),
            weight=self._weight(sigma),
        )

    def _weight(self, sigma: Tensor) -> Tensor:
        """Return the weight of each row's loss. Hang et al. 2023, min-SNR: an x0 loss is weighed min(SNR, gamma)."""
        if not self.min_snr:
            return torch.ones_like(sigma)
        snr = (self.prediction.alpha(sigma) / sigma) ** 2
        return snr.clamp(max=self.min_snr) / _X0_LOSSES[self.prediction.name](sigma, snr)


def losses(out: Tensor, noised: Noised) -> Tensor:
    """Return each row's loss, (b,), float32. out: the net's output, (b c h w), in any dtype."""
    difference = out.float() - noised.target
    return noised.weight * difference.square().flatten(1).mean(dim=1)


def _uniform(u: Tensor) -> float:
    return float(u[0])


def _logit_normal(u: Tensor) -> float:
    """Esser et al. 2024, section 3.1, with mean 0 and deviation 1: the middle levels more often than the ends."""
    return float(torch.special.ndtri(u[0]).sigmoid())


def _high_noise(u: Tensor) -> float:
    return float(torch.maximum(u[0], u[1]) if u[2] < HIGH_NOISE_SHARE else u[0])


_SHARES: dict[str, Callable[[Tensor], float]] = {
    "uniform": _uniform,
    "logit-normal": _logit_normal,
    "high-noise": _high_noise,
}
# The loss in the net's own terms, divided by the loss of the x0 estimate that it stands for (`Prediction.denoise`).
_X0_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "epsilon": lambda sigma, snr: snr,
    "v": lambda sigma, snr: snr + 1,
    "flow": lambda sigma, snr: sigma**-2,
}
