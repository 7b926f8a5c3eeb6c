"""Classifier-free guidance, and its gentler relatives.

How far to go from the estimate under the negative prompt towards the one under the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-8


def _over_rows(value: Tensor | float, like: Tensor) -> Tensor | float:
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value


def guide(positive: Tensor, negative: Tensor, cfg: Tensor | float) -> Tensor:
    """Return negative + cfg (positive - negative), (b c h w). `cfg`: scalar or (b,).

    Ho and Salimans 2022, eq. 6, with cfg = 1 + w. Holds for net outputs and for x0 estimates alike, which are affine
    in them.
    """
    return negative + _over_rows(cfg, positive) * (positive - negative)


def guide_image(guided: Tensor, negative: Tensor, blind: Tensor, image_cfg: float) -> Tensor:
    """Return blind + image_cfg (negative - blind) + cfg (positive - negative), (b c h w). Brooks et al. 2023, eq. 3.

    `guided`: negative + cfg (positive - negative). `blind`: the output of the negative prompt without the picture.
    """
    return guided + (image_cfg - 1) * (negative - blind)


def rescale(guided: Tensor, positive: Tensor, share: Tensor | float) -> Tensor:
    """Return the guided output with `share` of its contrast put back to the positive one's, (b c h w).

    Lin et al. 2023, eq. 15-16. `guided`, `positive`: net outputs; the standard deviation is over each image. `share`:
    scalar or (b,), 0 changes nothing.
    """
    axes = tuple(range(1, guided.ndim))
    restored = guided * (positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return guided + _over_rows(share, guided) * (restored - guided)


def fit(negative: Tensor, positive: Tensor) -> Tensor:
    """Return the negative velocity, scaled to lie as near to the positive one as it can, (b c h w).

    CFG-Zero* (Fan et al. 2025, eq. 12): s = <positive, negative> / |negative|^2 of each image.
    """
    axes = tuple(range(1, positive.ndim))
    along = (positive * negative).sum(dim=axes, keepdim=True)
    return negative * (along / ((negative * negative).sum(dim=axes, keepdim=True) + _LEAST))


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1), of x0 estimates.

    `norm`: the most that an image's difference may measure; 0: no limit. `momentum`: of the differences before.
    `parallel`: how much is kept of the part that points where the estimate does.
    """

    norm: float = 15.0
    momentum: float = -0.5
    parallel: float = 0.0

    def guide(self, positive: Tensor, negative: Tensor, cfg: Tensor | float, before: Tensor | None) -> "Projected":
        """Return positive + (cfg - 1) (orthogonal + parallel share of the difference), (b c h w).

        `before`: the running difference that the last evaluation returned; None: there was none.
        """
        axes = tuple(range(1, positive.ndim))
        running = positive - negative
        if before is not None and self.momentum:
            running = running + self.momentum * before
        exact = torch.float32 if running.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
        difference = running.to(exact)
        if self.norm:
            size = difference.square().sum(dim=axes, keepdim=True).sqrt()
            difference = difference * (self.norm / size.clamp_min(_LEAST)).clamp_max(1.0)
        along = positive.to(exact)
        along = along / along.square().sum(dim=axes, keepdim=True).sqrt().clamp_min(_LEAST)
        shared = (difference * along).sum(dim=axes, keepdim=True) * along
        kept = (difference - (1 - self.parallel) * shared).to(positive.dtype)
        return Projected(positive + (_over_rows(cfg, positive) - 1) * kept, running)


@dataclass(frozen=True)
class Projected:
    """A guided x0 estimate, and the running difference of prompt and negative prompt, each (b c h w)."""

    estimate: Tensor
    running: Tensor
