"""From the regions of a request to where each text holds, in latent cells of what is drawn."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disegno.core.errors import RequestError
from disegno.core.request import Region, Request
from disegno.diffusion.call import Where
from disegno.engine.album import Album
from disegno.engine.masks import Mask, box_mask, mask_of
from disegno.engine.resize import fitted
from disegno.engine.units import Scene

_ROUNDING = 1.5 / 255  # masks that fill a cell together leave this much of it at most: they are of 8 bits


def check_regions(regions: Sequence[Region], album: Album) -> None:
    """Raise BadImage where a region's mask cannot be read, RequestError where it is black everywhere."""
    for n, region in enumerate(regions, 1):
        if region.mask is not None and not mask_of(album.channels(region.mask), binary=False).any():
            named = "" if region.mask.startswith("data:") else f", {region.mask},"
            raise RequestError(
                f"The mask of region {n}{named} is black everywhere, so its words would hold nowhere: paint in white"
                " where they are to hold."
            )


def places_of(request: Request, scene: Scene, size: tuple[int, int]) -> tuple[tuple[Where, ...], tuple[str, ...]]:
    """Return where the prompt and then each region hold, none where there are no regions; and what is doubtful.

    `size`: of the latents, (h, w). A region counts by its mask times its weight; the prompt by `base_weight`, and by
    what the masks together leave of a cell.
    """
    if not request.regions:
        return (), ()
    masks = torch.stack([_cells(_mask(region, scene), size) for region in request.regions])  # r h w
    left = 1 - masks.sum(0)
    base = request.base_weight + left.where(left > _ROUNDING, 0)
    shares = [base, *(region.weight * mask for region, mask in zip(request.regions, masks, strict=True))]
    places = tuple(Where(share) for share in shares)
    doubts = (
        f"Region {n} lies outside of what is drawn, or is too small for it, and does nothing."
        for n, place in enumerate(places)
        if n and not place.holds
    )
    return places, tuple(doubts)


def _mask(region: Region, scene: Scene) -> Mask:
    """Return where the region holds, (h w), at the scene's size: cut and enlarged as the picture is."""
    canvas, covering = scene.canvas, _covering(scene)
    size = canvas.full_size if canvas is not None and canvas.box is not None else covering
    if region.mask is None:
        right, bottom = (
            1.0 if length is None else min(start + length, 1.0)
            for start, length in ((region.x, region.w), (region.y, region.h))
        )
        mask = box_mask((region.x, region.y, right, bottom), *size)
    else:
        way = canvas.resize if canvas is not None and canvas.own is not None else "stretch"
        mask = fitted(mask_of(scene.album.channels(region.mask), binary=False), *size, way)
    if canvas is not None and canvas.box is not None:
        mask = fitted(canvas.box.cut(mask), *covering, "fill")
    return fitted(mask, scene.width, scene.height, "crop")


def _covering(scene: Scene) -> tuple[int, int]:
    """Return (width, height) of the first pass's canvas as it is enlarged to cover the scene, which may be cut off."""
    width, height = scene.first_size
    k = max(scene.width / width, scene.height / height)
    return max(scene.width, round(width * k)), max(scene.height, round(height * k))


def _cells(mask: Mask, size: tuple[int, int]) -> Tensor:
    """Return how much of each latent cell is white, (h w), in [0, 1]."""
    height, width = size
    small = Image.fromarray(mask).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small, dtype=np.float32) / 255)
