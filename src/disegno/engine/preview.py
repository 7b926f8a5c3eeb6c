"""Pictures of what is being drawn, cheaply: a linear map from latents to colours, or a tiny decoder.

The map is fitted to each VAE by least squares, on coloured scenes that the VAE itself encodes (a second for the
built-in model's), and kept in the cache folder. Nothing here changes what is drawn.
"""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from disegno.backbones._tiny_decoder import open_tiny_decoder
from disegno.backbones.base import Backbone
from disegno.core.errors import ResourceError
from disegno.core.files import write_atomically
from disegno.core.settings import Settings
from disegno.engine.batch import Run
from disegno.engine.pixels import to_pictures
from disegno.memory import Memory

log = logging.getLogger(__name__)

Decoder = Callable[[Tensor], Tensor]  # latents (b c h w) -> pictures (b 3 kh kw) in [0, 1]

NUM_SCENES, SCENE_PX, NUM_PATCHES = 16, 128, 16  # 4096 cells for 111 numbers
_GRIDS = (2, 3, 4, 8)  # how coarse a background's colours are
# Cells on a side that a colour is worked out from. Over 8 estimates of 4 pictures of the built-in model 0.71 of the
# variance of their mean colours is explained; 0.65 with one cell, 0.62 where the map is fitted to the scenes as drawn.
REACH = 3
RIDGE = 1e-6  # keeps what the scenes do not decide at 0
_CACHE = "previews.json"


@dataclass(frozen=True)
class LatentRgb:
    """A linear map from cells' latents to a colour. `weight`: (3 c 3 3), `bias`: (3,); a cell is `k` pixels wide."""

    weight: Tensor
    bias: Tensor
    k: int

    def __call__(self, latents: Tensor) -> Tensor:
        """Return pictures (b 3 kh kw), in [0, 1]: one colour a cell, smoothly enlarged."""
        colours = F.conv2d(_padded(latents.float().cpu()), self.weight, self.bias)  # b c h w -> b 3 h w
        return F.interpolate(colours, scale_factor=float(self.k), mode="bilinear").clamp(0, 1)


def _padded(latents: Tensor) -> Tensor:
    return F.pad(latents, (REACH // 2,) * 4, mode="replicate")


def _scenes() -> Tensor:
    """Return pictures of soft colours with patches on them, (NUM_SCENES 3 SCENE_PX SCENE_PX), in [0, 1]."""
    generator = torch.Generator().manual_seed(0)

    def drawn(low: int, high: int) -> tuple[int, int]:
        a, b = torch.randint(low, high, (2,), generator=generator).tolist()
        return a, b

    scenes: list[Tensor] = []
    for i in range(NUM_SCENES):
        grid = _GRIDS[i % len(_GRIDS)]
        colours = torch.rand(1, 3, grid, grid, generator=generator)
        scene = F.interpolate(colours, size=(SCENE_PX, SCENE_PX), mode="bilinear").clone()
        for _ in range(NUM_PATCHES):
            (top, left), (height, width) = drawn(0, SCENE_PX - 16), drawn(6, SCENE_PX // 2)
            scene[:, :, top : top + height, left : left + width] = torch.rand(1, 3, 1, 1, generator=generator)
        scenes.append(scene)
    return torch.cat(scenes)


@torch.inference_mode()
def fit(backbone: Backbone) -> LatentRgb:
    """Return the map that says best what mean colour the VAE makes of each cell of the scenes, by least squares."""
    k = backbone.downscale
    latents = torch.cat([backbone.encode_image(one[None] * 2 - 1) for one in _scenes()])
    drawn = torch.cat([backbone.decode(one[None]) for one in latents]).float().cpu()
    latents = latents.float().cpu()
    seen = F.unfold(_padded(latents), REACH).movedim(1, -1).flatten(0, 1)  # b 9c hw -> n 9c
    colours = F.avg_pool2d(drawn, k).movedim(1, -1).flatten(0, 2)  # n 3
    known = torch.cat([seen, torch.ones(len(seen), 1)], dim=1).double()  # n 9c+1
    ridge = RIDGE * len(known) * torch.eye(known.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(known.T @ known + ridge, known.T @ colours.double()).float()  # 9c+1 3
    return LatentRgb(solved[:-1].T.reshape(3, -1, REACH, REACH).contiguous(), solved[-1], k)


def open_decoder(backbone: Backbone, settings: Settings, memory: Memory) -> Decoder:
    """Return what shows a model's latents: the settings' tiny decoder, the model's own, or the map, fitted once."""
    tiny = settings.preview_decoder or backbone.preview
    if tiny is not None:
        return open_tiny_decoder(tiny, backbone.latent_channels, memory, backbone.family)
    path = settings.cache_dir / _CACHE
    kept = _read(path)
    if len(kept.get(backbone.fingerprint, ())) != 3 * (backbone.latent_channels * REACH**2 + 1):
        fitted = fit(backbone)
        kept[backbone.fingerprint] = [*fitted.weight.flatten().tolist(), *fitted.bias.tolist()]
        _write(path, kept)
    values = torch.tensor(kept[backbone.fingerprint])
    return LatentRgb(values[:-3].reshape(3, -1, REACH, REACH), values[-3:], backbone.downscale)


def _read(path: Path) -> dict[str, list[float]]:
    """Return the maps that are kept; none where the file is missing or is no such table."""
    try:
        table = json.loads(path.read_text("utf-8"))
        return {str(name): [float(value) for value in values] for name, values in table.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, table: dict[str, list[float]]) -> None:
    """Keep the maps; a folder that cannot be written costs the fit at the next start, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(table), "utf-8"))
    except (OSError, ResourceError) as error:
        log.info("the preview's map is not kept: %s", error)


@torch.inference_mode()
def previews_of(runs: Iterable[Run], decoder: Decoder) -> tuple[Image.Image, ...]:
    """Return what each image of these runs looks like by now, as the net believes; none before the first answer."""
    shown = [
        (image, picture)
        for run in runs
        if run.estimate is not None
        for image, picture in zip(run.images, to_pictures(decoder(run.estimate)), strict=True)
    ]
    return tuple(picture for _, picture in sorted(shown, key=lambda pair: pair[0]))
