"""From a net's raw output to the answer that a sampler waits for: rows to images, guidance, then the x0 estimate.

Pure functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disegno.diffusion.call import Row
from disegno.diffusion.guidance import guide, guide_image, rescale
from disegno.diffusion.prediction import Prediction
from disegno.diffusion.regions import are_regional, negative_in_regions, positive_in_regions


@dataclass(frozen=True)
class Guidance:
    """How the prompt and the negative prompt are weighed.

    `cfg`, `rescale`: one value, or (b,) where requests share a batch. `image_cfg`: of an editing model, how the picture
    is weighed against none. Steps without guidance: the share `start` of them, and below the sigma `lowest` every
    second evaluation, or with `lowest_all` each.
    """

    cfg: Tensor | float = 1.0
    rescale: Tensor | float = 0.0
    image_cfg: float | None = None
    start: float = 0.0
    lowest: float = 0.0
    lowest_all: bool = False

    def may_pause(self) -> bool:
        """Return whether there can be an evaluation without guidance."""
        return bool(self.start or self.lowest) and not self.weighs_image()

    def pauses(self, sigma: float, progress: float, evaluation: int) -> bool:
        """Return whether there is no guidance now. `progress`: the share of steps done; `evaluation`: counted from 0.

        A1111 parity: skip_early_cond, s_min_uncond and s_min_uncond_all, where its editing models know the first alone.
        """
        if not self.may_pause():
            return False
        if self.start and progress <= self.start:
            return True
        return sigma < self.lowest and (self.lowest_all or evaluation % 2 == 1)

    def wants_rescale(self) -> bool:
        """Return whether any image's contrast is put back."""
        return bool(torch.as_tensor(self.rescale).any())

    def weighs_image(self) -> bool:
        """Return whether an evaluation without the picture decides anything."""
        return self.image_cfg is not None and self.image_cfg != 1.0


def split_rows(out: Tensor, rows: Sequence[Row], num_images: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the positive and of the negative prompts, each (b c h w), image by image. `out`: (r c h w).

    An image that has no negative row (no guidance) is given its positive one, the first of several. The parts of a
    prompt come together as negative + sum(weight (part - negative)): Liu et al. 2022, eq. 9, before guidance. Rows that
    hold in a part of the canvas come together there (`diffusion.regions`).
    """
    if are_regional(rows):
        return positive_in_regions(out, rows, num_images), negative_in_regions(out, rows, num_images)
    positive = {row.image: i for i, row in reversed([*enumerate(rows)]) if row.positive}
    negative = positive | {row.image: i for i, row in enumerate(rows) if not row.positive and row.is_shown}
    return _composed(out, rows, _picked(out, positive, num_images), _picked(out, negative, num_images))


def _composed(out: Tensor, rows: Sequence[Row], positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return the halves, with the parts of each prompt that has several, or a weight, in the positive one."""
    parts: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if row.positive:
            parts.setdefault(row.image, []).append(i)
    composed = [image for image, some in parts.items() if len(some) > 1 or rows[some[0]].weight != 1.0]
    if composed:
        positive = positive.clone()
    for image in composed:
        base = negative[image]
        positive[image] = base + sum(rows[i].weight * (out[i] - base) for i in parts[image])
    return positive, negative


def _picked(out: Tensor, places: Mapping[int, int], num_images: int) -> Tensor:
    index = torch.tensor([places[image] for image in range(num_images)], device=out.device)
    return out.index_select(0, index)


def _blind(out: Tensor, rows: Sequence[Row], num_images: int) -> Tensor:
    """Return the rows that were not shown the picture, (b c h w)."""
    if are_regional(rows):
        return negative_in_regions(out, rows, num_images, is_shown=False)
    return _picked(out, {row.image: i for i, row in enumerate(rows) if not row.is_shown}, num_images)


def denoised(
    x: Tensor, sigma: Tensor, out: Tensor, rows: Sequence[Row], prediction: Prediction, guidance: Guidance
) -> Tensor:
    """Return the guided x0 estimate, (b c h w), float32.

    x: (b c h w); sigma: scalar or (b,); out: (r c h w), in any dtype, with `rows` saying which image and prompt each
    row is.
    """
    return denoised_pair(x, sigma, out, rows, prediction, guidance)[0]


def denoised_pair(
    x: Tensor, sigma: Tensor, out: Tensor, rows: Sequence[Row], prediction: Prediction, guidance: Guidance
) -> tuple[Tensor, Tensor]:
    """Return the x0 estimates, guided and under the negative prompt alone, each (b c h w), float32.

    The answer to a split question.
    """
    out = out.float()
    positive, negative = split_rows(out, rows, x.shape[0])
    # A1111 parity: where the negative prompt is left out, parts still compose, and are not guided
    guided = positive if all(row.positive for row in rows) else guide(positive, negative, guidance.cfg)
    if guidance.weighs_image():
        guided = guide_image(guided, negative, _blind(out, rows, x.shape[0]), guidance.image_cfg or 0.0)
    if guidance.wants_rescale():
        guided = rescale(guided, positive, guidance.rescale)
    x = x.float()
    return prediction.denoise(x, sigma, guided), prediction.denoise(x, sigma, negative)
