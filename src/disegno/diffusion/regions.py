"""Several texts in one picture, each where it holds: their predictions come together cell by cell, before guidance.

At each latent cell the prediction is the mean of those of the texts, weighed by how much each counts there: the
region-based generation of Bar-Tal et al. 2023 (MultiDiffusion, eq. 5, its masks for weights), with the prompts of one
image instead of crops. As guidance is affine in both halves, it may follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from disegno.diffusion.call import Row


def are_regional(rows: Sequence[Row]) -> bool:
    """Return whether a row's text holds in a part of the canvas."""
    return any(row.where is not None for row in rows)


def positive_in_regions(out: Tensor, rows: Sequence[Row], num_images: int) -> Tensor:
    """Return each image's prediction under its texts, (b c h w). `out`: (r c h w), of `rows`."""
    asked = _Asked(out, rows)
    return torch.stack([asked.positive(image) for image in range(num_images)])


def negative_in_regions(out: Tensor, rows: Sequence[Row], num_images: int, is_shown: bool = True) -> Tensor:
    """Return each image's prediction under the negative prompt, (b c h w): under a region's LoRAs where that holds.

    `is_shown`: of the rows that are, or are not, shown the picture that is edited. An image without such rows (no
    guidance) is given its prediction under its texts.
    """
    asked = _Asked(out, rows)
    return torch.stack([asked.negative(image, is_shown) for image in range(num_images)])


@dataclass(frozen=True)
class _Asked:
    """Rows, and what the net said to them, (r c h w)."""

    out: Tensor
    rows: Sequence[Row]

    @cached_property
    def shares(self) -> dict[int, Tensor]:
        """How much each place counts at each cell, (h w), where the net's outputs are."""
        places = {id(row.where): row.where for row in self.rows if row.where is not None}
        return {key: where.share.to(self.out) for key, where in places.items()}

    def texts(self, image: int) -> list[list[int]]:
        """Return the rows of each of an image's texts: those of its parts."""
        found: dict[int, list[int]] = {}
        for i, row in enumerate(self.rows):
            if row.image == image and row.positive:
                found.setdefault(id(row.where), []).append(i)
        return list(found.values())

    def negatives(self, image: int, is_shown: bool = True) -> dict[str, Tensor]:
        """Return what was said to an image's negative prompt, (c h w), by the LoRAs that were on the net."""
        mine = ((i, row) for i, row in enumerate(self.rows) if row.image == image and not row.positive)
        return {row.loras: self.out[i] for i, row in mine if row.is_shown == is_shown}

    def positive(self, image: int) -> Tensor:
        """Return the prediction under an image's texts, (c h w)."""
        negatives = self.negatives(image)
        return self._mean([(parts, self._under(parts, negatives)) for parts in self.texts(image)])

    def negative(self, image: int, is_shown: bool) -> Tensor:
        """Return the prediction under its negative prompt, (c h w)."""
        negatives = self.negatives(image, is_shown)
        if not negatives:
            return self.positive(image)
        if len(negatives) == 1:
            return next(iter(negatives.values()))
        return self._mean([(parts, negatives[self.rows[parts[0]].loras]) for parts in self.texts(image)])

    def _under(self, parts: list[int], negatives: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction under one text, (c h w): of its parts as Liu et al. 2022 compose them, eq. 9."""
        first, out = self.rows[parts[0]], self.out
        if len(parts) == 1 and first.weight == 1.0:
            return out[parts[0]]
        base = negatives.get(first.loras, out[parts[0]])
        return base + torch.stack([self.rows[i].weight * (out[i] - base) for i in parts]).sum(0)

    def _mean(self, told: Sequence[tuple[list[int], Tensor]]) -> Tensor:
        """Return the mean of texts' predictions, (c h w), each weighed by its share; one alone is kept to the bit."""
        if len(told) == 1:
            return told[0][1]
        shares = torch.stack([self.shares[id(self.rows[parts[0]].where)] for parts, _ in told])[:, None]  # n 1 h w
        return (shares * torch.stack([x for _, x in told])).sum(0) / shares.sum(0)
