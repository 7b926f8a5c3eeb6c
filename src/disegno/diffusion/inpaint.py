"""Drawing a part of a picture anew: what it starts from, and how the rest is held while it is drawn.

The rest is held in the x0 estimate, so that every sampler walks it from the picture, noised, back to the picture.
A mask is (1 1 h w) in latent cells, 1 where the picture is drawn anew. Shapes else: (b c h w).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from disegno.core.request import InpaintFill, MaskMode


@dataclass(frozen=True)
class Inpaint:
    """What is held, and where. `latents`: (1 or b, c h w)."""

    latents: Tensor
    mask: Tensor
    mode: MaskMode = "binary"

    def free(self, progress: float) -> Tensor:
        """Return how much each cell may change when this share of the steps is done, (1 1 h w).

        Differential: a cell of grey value m is free for the last share m of the steps (Levin and Fried 2023, sec. 3.2).
        """
        if self.mode != "differential":
            return self.mask
        return (self.mask >= 1 - progress).to(self.mask)

    def hold(self, denoised: Tensor, progress: float) -> Tensor:
        """Return the x0 estimate with the picture's own latents where it may not change."""
        return _mixed(self.latents, denoised, self.free(progress))

    def finish(self, latents: Tensor) -> Tensor:
        """Return what was drawn, with the picture's own latents where nothing was ever free."""
        return _mixed(
            self.latents, latents, (self.mask > 0).to(self.mask) if self.mode == "differential" else self.mask
        )


def _mixed(held: Tensor, free: Tensor, share: Tensor) -> Tensor:
    """Return `free` where share is 1 and `held` where it is 0, both bit for bit, (b c h w)."""
    held, share = held.to(free), share.to(free)
    mixed = torch.lerp(held.expand_as(free), free, share.expand_as(free))
    return torch.where(share == 1, free, torch.where(share == 0, held, mixed))


FILLS: dict[InpaintFill, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "original": lambda latents, mask, noise: latents,
    "fill": lambda latents, mask, noise: latents,  # its pixels were filled before they were encoded
    "noise": lambda latents, mask, noise: latents * (1 - mask) + noise * mask,
    "nothing": lambda latents, mask, noise: latents * (1 - mask),
}
"""How the masked part begins: (latents, mask, noise of variance 1) -> latents. A1111's inpainting_fill 1, 0, 2, 3."""


def inpainting_channels(mask: Tensor, masked_picture: Tensor) -> Tensor:
    """Return what an inpainting UNet is shown beside x, (1 1+c h w): the mask, and the picture's latents without it.

    Rombach et al. 2022, section 4.5 and its published inpainting model.
    """
    return torch.cat([mask.to(masked_picture), masked_picture], dim=1)
