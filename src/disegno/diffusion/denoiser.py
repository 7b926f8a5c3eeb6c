"""From a net's raw output to the answer that a sampler waits for: rows to images, guidance, then the x0 estimate.

Pure functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disegno.diffusion.call import Row, Weakness
from disegno.diffusion.guidance import Projection, fit, guide, guide_image, rescale
from disegno.diffusion.prediction import Prediction
from disegno.diffusion.regions import are_regional, negative_in_regions, positive_in_regions


def within(progress: float, start: float, end: float) -> bool:
    """Return whether what acts from one share of the steps to another does so when `progress` of them are done."""
    return (progress > start or not start) and progress < end


@dataclass(frozen=True)
class Away:
    """Guidance away from what a weakened net says: how far, after which share of the steps, and before which."""

    weakness: Weakness
    scale: float
    start: float = 0.0
    end: float = 1.0

    def acts(self, progress: float) -> bool:
        """Return whether it does now. `progress`: the share of the steps that are done."""
        return within(progress, self.start, self.end)


@dataclass(frozen=True)
class Guidance:
    """How the prompt and the negative prompt are weighed.

    `cfg`, `rescale`: one value, or (b,) where requests share a batch. `image_cfg`: of an editing model, how the picture
    is weighed against none. Steps without guidance: the share `start` of them, and below the sigma `lowest` every
    second evaluation, or with `lowest_all` each. `away`: from what a weakened net says. `projection`: what is left out
    of the difference. `fits`: the negative output is scaled to fit. `still`: the first steps, which do not move.
    """

    cfg: Tensor | float = 1.0
    rescale: Tensor | float = 0.0
    image_cfg: float | None = None
    start: float = 0.0
    lowest: float = 0.0
    lowest_all: bool = False
    away: tuple[Away, ...] = ()
    projection: Projection | None = None
    fits: bool = False
    still: int = 0

    def weaknesses(self, progress: float) -> list[Weakness]:
        """Return how the net is weakened now, each in rows of its own."""
        return [away.weakness for away in self.away if away.acts(progress)]

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
    made = estimates(x, sigma, out, rows, prediction, guidance)
    return made.guided, made.negative


@dataclass(frozen=True)
class Estimates:
    """What an evaluation says: x0 estimates, guided and under the negative prompt alone, each (b c h w), float32.

    `running`: what a projection keeps for the next evaluation; None: nothing.
    """

    guided: Tensor
    negative: Tensor
    running: Tensor | None = None


def estimates(
    x: Tensor,
    sigma: Tensor,
    out: Tensor,
    rows: Sequence[Row],
    prediction: Prediction,
    guidance: Guidance,
    before: Tensor | None = None,
) -> Estimates:
    """Return the x0 estimates. Shapes as in `denoised`; `before`: `Estimates.running` of the evaluation before."""
    out, x, num = out.float(), x.float(), x.shape[0]
    told = [i for i, row in enumerate(rows) if row.weakness is None]
    own, strong = ([rows[i] for i in told], out[told]) if len(told) < len(rows) else (rows, out)
    positive, negative = split_rows(strong, own, num)
    weak = [(away.scale, weakened) for away in guidance.away for weakened in _weakened(out, rows, num, away.weakness)]
    # A1111 parity: where the negative prompt is left out, parts still compose, and are not guided
    alone = all(row.positive for row in own)
    if guidance.projection is not None and not alone:
        x0 = prediction.denoise(x, sigma, positive)
        none = prediction.denoise(x, sigma, negative)
        projected = guidance.projection.guide(x0, none, guidance.cfg, before)
        away = sum(scale * (x0 - prediction.denoise(x, sigma, weakened)) for scale, weakened in weak)
        return Estimates(projected.estimate + away, none, projected.running)
    guided = positive if alone else guide(positive, _fitted(negative, positive, guidance), guidance.cfg)
    if guidance.weighs_image():
        guided = guide_image(guided, negative, _blind(strong, own, num), guidance.image_cfg or 0.0)
    guided = guided + sum(scale * (positive - weakened) for scale, weakened in weak) if weak else guided
    if guidance.wants_rescale():
        guided = rescale(guided, positive, guidance.rescale)
    return Estimates(prediction.denoise(x, sigma, guided), prediction.denoise(x, sigma, negative), before)


def _fitted(negative: Tensor, positive: Tensor, guidance: Guidance) -> Tensor:
    return fit(negative, positive) if guidance.fits else negative


def _weakened(out: Tensor, rows: Sequence[Row], num_images: int, weakness: Weakness) -> list[Tensor]:
    """Return what the net says of the prompts, weakened so, (b c h w); none where it was not asked.

    Parts come together as the prompt's own do, over what the whole net says of the negative prompt.
    """
    if not any(row.weakness == weakness for row in rows):
        return []
    told = [i for i, row in enumerate(rows) if row.weakness == weakness or not row.positive]
    return [split_rows(out[told], [rows[i] for i in told], num_images)[0]]
