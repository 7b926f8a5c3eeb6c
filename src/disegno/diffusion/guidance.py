"""Classifier-free guidance.

How far to go from the estimate under the negative prompt towards the one under the prompt.
"""

from torch import Tensor


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
