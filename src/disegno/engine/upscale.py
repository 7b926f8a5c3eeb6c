"""Larger pictures: in the latent space, by a filter, or by a network from the library, part by part."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from disegno.core.errors import UnknownName
from disegno.engine.pixels import to_pictures, to_pixels
from disegno.engine.studio import Studio
from disegno.engine.tiles import Tiling, in_parts
from disegno.upscalers.base import Upscaler

NETWORK_TILE = Tiling(192, 32)  # A1111's ESRGAN_tile; its overlap of 8 shows seams with deep networks
_LANCZOS = Image.Resampling.LANCZOS
MAX_TIMES = 3  # A1111 parity: a network is run again while its picture is still too small
_CELL = 8  # A1111 parity: the sides of what is enlarged are cut to whole cells


@dataclass(frozen=True)
class LatentMode:
    """A way to interpolate latents, as torch names it."""

    mode: str
    antialias: bool = False


LATENT_MODES: dict[str, LatentMode] = {
    "Latent": LatentMode("bilinear"),
    "Latent (antialiased)": LatentMode("bilinear", True),
    "Latent (bicubic)": LatentMode("bicubic"),
    "Latent (bicubic antialiased)": LatentMode("bicubic", True),
    "Latent (nearest)": LatentMode("nearest"),
    "Latent (nearest-exact)": LatentMode("nearest-exact"),
}
"""A1111's six, under its names."""

FILTERS: dict[str, Image.Resampling] = {
    "None": Image.Resampling.LANCZOS,  # A1111 parity
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}


def latent_mode(name: str) -> LatentMode | None:
    """Return the way of the latent space of this name, whatever its case; None: the upscaler works on pixels."""
    return next((mode for known, mode in LATENT_MODES.items() if known.lower() == name.strip().lower()), None)


def enlarge_latents(latents: Tensor, height: int, width: int, mode: LatentMode) -> Tensor:
    """Return latents (b c h w) interpolated to height x width."""
    return F.interpolate(latents, size=(height, width), mode=mode.mode, antialias=mode.antialias)


Enlarge = Callable[[Image.Image, int, int], Image.Image]


def find_upscaler(name: str, studio: Studio, cleans: bool = False) -> Enlarge:
    """Return what enlarges a picture to (width, height): a filter, or a network of the library. Raises UnknownName.

    `cleans`: a network works on a picture that keeps its size, too, as in A1111's extras; a hires pass leaves it be.
    """
    resample = next((by for known, by in FILTERS.items() if known.lower() == name.strip().lower()), None)
    if resample is not None:
        return lambda picture, width, height: picture.resize((width, height), resample)
    try:
        network = studio.upscaler(name)
    except UnknownName:
        known = studio.library.called(studio.library.cards("upscaler"))
        raise UnknownName.of("upscaler", name, [*LATENT_MODES, *FILTERS, *known]) from None
    return lambda picture, width, height: _by_network(network, picture, width, height, cleans)


@torch.inference_mode()
def _by_network(network: Upscaler, picture: Image.Image, width: int, height: int, cleans: bool) -> Image.Image:
    once = cleans and picture.width - width < _CELL and picture.height - height < _CELL
    for n in range(MAX_TIMES):
        if picture.width >= width and picture.height >= height and (n or not once):
            break
        within = min(picture.width, width), min(picture.height, height)  # a side that is long enough does not grow on
        shown = picture if within == picture.size else picture.resize(within, _LANCZOS)
        picture = enlarged_once(network, shown)
        if picture.size == shown.size:  # A1111 parity: a network that only cleans is not run again
            break
    return picture.resize((width, height), _LANCZOS)


def enlarged_once(network: Upscaler, picture: Image.Image) -> Image.Image:
    """Return the picture as many times larger as the network makes it, worked through in parts."""
    pixels = to_pixels(picture)
    right, bottom = (-side % network.multiple for side in picture.size)
    padded = F.pad(pixels, (0, right, 0, bottom), mode="replicate")
    large = in_parts(network, padded, NETWORK_TILE, network.scale)
    k = network.scale
    return to_pictures(large[:, :, : picture.height * k, : picture.width * k])[0]
