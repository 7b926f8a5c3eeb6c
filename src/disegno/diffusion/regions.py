"""Several texts in one picture, each where it holds: their predictions come together cell by cell, before guidance.

At each latent cell the prediction is the mean of those of the texts, weighed by how much each counts there: the
region-based generation of Bar-Tal et al. 2023 (MultiDiffusion, eq. 5, its masks for weights), with the prompts of one
image instead of crops. As guidance is affine in both halves, it may follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from disegno.diffusion.call import Row, Where


def are_regional(rows: Sequence[Row]) -> bool:
    """Return whether a row's text holds in a part of the canvas."""
    return any(row.where is not None for row in rows)


def positive_in_regions(out: Tensor, rows: Sequence[Row], num_images: int) -> Tensor:
    """Return each image's prediction under its texts, (b c h w). `out`: (r c h w), of `rows`."""
    images = (_Rows(out, rows, image) for image in range(num_images))
    return torch.stack([_mean([(where, some.under(texts)) for where, texts in some.texts]) for some in images])


def negative_in_regions(out: Tensor, rows: Sequence[Row], num_images: int, is_shown: bool = True) -> Tensor:
    """Return each image's prediction under the negative prompt, (b c h w): under a region's LoRAs where that holds.

    `is_shown`: of the rows that are, or are not, shown the picture that is edited. An image without such rows (no
    guidance) is given its prediction under its texts.
    """
    images = [_Rows(out, rows, image, is_shown) for image in range(num_images)]
    if not images[0].negatives:
        return positive_in_regions(out, rows, num_images)
    return torch.stack([some.negative() for some in images])


@dataclass
class _Rows:
    """The rows of one image, and what the net said to them."""

    out: Tensor
    rows: Sequence[Row]
    image: int
    is_shown: bool = True

    @cached_property
    def texts(self) -> list[tuple[Where | None, list[int]]]:
        """The rows of each text: where it holds, and the rows of its parts."""
        found: dict[int, tuple[Where | None, list[int]]] = {}
        for i, row in enumerate(self.rows):
            if row.image == self.image and row.positive:
                found.setdefault(id(row.where), (row.where, []))[1].append(i)
        return list(found.values())

    @cached_property
    def negatives(self) -> dict[str, Tensor]:
        """What was said to the negative prompt, (c h w), by the LoRAs that were on the net."""
        mine = ((i, row) for i, row in enumerate(self.rows) if row.image == self.image and not row.positive)
        return {row.loras: self.out[i] for i, row in mine if row.is_shown == self.is_shown}

    def under(self, parts: list[int]) -> Tensor:
        """Return the prediction under one text, (c h w): of its parts as Liu et al. 2022 compose them, eq. 9."""
        first = self.rows[parts[0]]
        if len(parts) == 1 and first.weight == 1.0:
            return self.out[parts[0]]
        base = self.negatives.get(first.loras, self.out[parts[0]])
        return base + torch.stack([self.rows[i].weight * (self.out[i] - base) for i in parts]).sum(0)

    def negative(self) -> Tensor:
        """Return the prediction under the negative prompt, (c h w)."""
        if len(self.negatives) == 1:
            return next(iter(self.negatives.values()))
        return _mean([(where, self.negatives[self.rows[parts[0]].loras]) for where, parts in self.texts])


def _mean(told: Sequence[tuple[Where | None, Tensor]]) -> Tensor:
    """Return the mean of predictions, (c h w), each weighed by its share at each cell; one alone is kept to the bit."""
    if len(told) == 1:
        return told[0][1]
    shares = [torch.ones_like(x[0]) if where is None else where.share.to(x) for where, x in told]  # h w
    total = torch.stack([share * x for share, (_, x) in zip(shares, told, strict=True)]).sum(0)
    return total / torch.stack(shares).sum(0)
