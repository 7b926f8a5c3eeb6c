"""A detector of the world's things: which noun is where, and in which colour. It judges what the model draws.

A head on ImageNet's features that looks for centres (Zhou et al. 2019, "Objects as Points"): one heat map a noun over
16 x 16 cells, and a colour a cell. It learns from the composer's exact labels, in pictures of which half have been
through the model's autoencoder and half are blurred, as a young model's are. Its own accuracy on held-out scenes, as
the autoencoder leaves them, is the ceiling of every figure that it gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from disegno.memory import Memory
from disegno.training.base import Batch, Facts, Turn
from disegno.training.efficientnet import EfficientNetLite0, open_efficientnet
from disegno.training.encoder import masters_of
from disegno.weights.load import open_file
from disegno.weights.save import save_safetensors

from .world.labels import CELLS, COLOUR_NAMES, NO_COLOUR, NO_NOUN
from .world.vocabulary import nouns

SIDE = 160  # pictures are looked at in this size
SEEN = (40, 112, 320)  # channels of the trunk's maps at 1/8, 1/16, 1/32
WIDTH = 192
RARE = -4.6  # the heat's bias at first: a hundredth, since most cells hold nothing
FOCUS = 2  # the focal loss's exponent (Lin et al. 2017)
BLURRED_SHARE = 0.5


class Detector(nn.Module):
    """Pictures (b 3 h w) in [-1, 1] to heat (b nouns 16 16) and colours (b colours 16 16), before squashing.

    The trunk, EfficientNet-Lite0 as ImageNet taught it, is frozen and no part of the file; the head learns.
    """

    def __init__(self, trunk: EfficientNetLite0, generator: Generator | None = None) -> None:
        super().__init__()
        self._trunk = (trunk,)
        self.narrow = nn.ModuleList(nn.Conv2d(width, WIDTH // 2, 1) for width in SEEN)
        self.pixels = nn.Conv2d(3, 32, 1)  # colours, which ImageNet's features care little for
        self.mix = nn.Sequential(
            nn.Conv2d(3 * WIDTH // 2 + 32, WIDTH, 3, 1, 1), nn.GroupNorm(8, WIDTH), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.GroupNorm(8, WIDTH), nn.ReLU(),
        )  # fmt: skip
        self.heat = nn.Conv2d(WIDTH, len(nouns()), 1)
        self.colour = nn.Conv2d(WIDTH, len(COLOUR_NAMES), 1)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.heat.weight, std=0.01, generator=generator)
        nn.init.constant_(self.heat.bias, RARE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return heat and colours."""
        x = F.interpolate(x, size=(SIDE, SIDE), mode="area")
        with torch.no_grad():
            seen = self._trunk[0].maps(x)
        grids = [_on_grid(F.relu(layer(level))) for layer, level in zip(self.narrow, seen, strict=True)]
        mixed = self.mix(torch.cat([*grids, self.pixels(_on_grid(x))], dim=1))  # b 192 16 16
        return self.heat(mixed), self.colour(mixed)


def _on_grid(x: Tensor) -> Tensor:
    """Return a map with 16 x 16 cells."""
    how = "area" if x.shape[-1] > CELLS else "bilinear"
    return F.interpolate(x, size=(CELLS, CELLS), mode=how)


class Detecting(nn.Module):
    """Its call gives each row's loss, (b,): focal over the heat, cross entropy over the colours that are known."""

    def __init__(self, net: Detector, memory: Memory) -> None:
        super().__init__()
        self.net, self.policy = net, memory.policy

    def forward(self, batch: Batch, turn: str = "") -> Tensor:
        """Return each row's loss, (b,), float32."""
        noun, colour = batch.rows["noun"], batch.rows["colour"].long()
        heat, colours = self.net(self._shown(batch))
        wanted = torch.zeros_like(heat).scatter_(1, noun.clamp(min=0)[:, None].long(), 1.0)
        wanted = wanted * (noun != NO_NOUN)[:, None]
        said = heat.float().sigmoid().clamp(1e-5, 1 - 1e-5)
        hits = wanted * (1 - said) ** FOCUS * said.log()
        misses = (1 - wanted) * said**FOCUS * (1 - said).log()
        count = (noun != NO_NOUN).flatten(1).sum(dim=1).clamp(min=1)
        focal = -(hits + misses).flatten(1).sum(dim=1) / count
        entropy = F.cross_entropy(colours.float(), colour, ignore_index=NO_COLOUR, reduction="none")
        return focal + entropy.flatten(1).sum(dim=1) / count

    def _shown(self, batch: Batch) -> Tensor:
        """Return the pictures as they are looked at; half of them have lost their fine detail."""
        x = batch.rows["target"].float() / 127.5 - 1
        x = F.interpolate(x, size=(SIDE, SIDE), mode="area")
        small = F.interpolate(
            F.interpolate(x, size=(SIDE // 2, SIDE // 2), mode="area"), size=(SIDE, SIDE), mode="bilinear"
        )
        blurred = torch.tensor([seed % 1000 < 1000 * BLURRED_SHARE for seed in batch.seeds], device=x.device)
        return torch.where(blurred.view(-1, 1, 1, 1), small, x)


@dataclass(frozen=True)
class DetectorLearner:
    """A detector in training."""

    module: Detecting
    turns: tuple[Turn, ...]

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the detector's file."""
        tensors = {name: t.detach() for name, t in (weights or self.turns[0].parameters).items()}
        save_safetensors(path, tensors, {"disegno.steps": str(facts.steps)})


def open_learner(memory: Memory, rate: float, seed: int, start: str | None = None) -> DetectorLearner:
    """Return a new detector, to be taught, or the one of a file (`start`), to be taught on."""
    masters = masters_of(memory)
    trunk = masters.place(open_efficientnet())
    net = Detector(trunk, Generator().manual_seed(seed))
    if start is not None:
        with open_file(Path(start)) as file:
            net.load_state_dict(dict(file.tensors()))
    net = masters.place(net).requires_grad_(True).train()
    return DetectorLearner(Detecting(net, memory), (Turn("detector", dict(net.named_parameters()), rate),))


def open_detector(path: Path) -> Detector:
    """Return the detector in a file."""
    with open_file(path) as file:
        tensors = file.tensors()
    net = Detector(open_efficientnet())
    net.load_state_dict(dict(tensors))
    return net.eval().requires_grad_(False)


# ---- what it says


@dataclass(frozen=True)
class Found:
    """A thing that was found. `x`, `y`: the middle of it, as parts of the picture."""

    noun: int
    score: float
    x: float
    y: float
    colour: str


@torch.inference_mode()
def detect(net: Detector, pictures: Sequence[NDArray[np.uint8]], threshold: float = 0.25) -> list[list[Found]]:
    """Return what is in each picture, (h w 3) uint8, the surest first: peaks of the heat, one a neighbourhood."""
    found: list[list[Found]] = []
    for picture in pictures:
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        heat, colours = net(x)
        best, noun = heat.sigmoid()[0].max(dim=0)  # 16 16
        peaks = (best == F.max_pool2d(best[None, None], 3, 1, 1)[0, 0]) & (best > threshold)
        here = [
            Found(int(noun[r, c]), float(best[r, c]), (c + 0.5) / CELLS, (r + 0.5) / CELLS, _colour(colours, r, c))
            for r, c in peaks.nonzero().tolist()
        ]
        found.append(sorted(here, key=lambda each: -each.score))
    return found


def _colour(colours: Tensor, row: int, column: int) -> str:
    return COLOUR_NAMES[int(colours[0, :, row, column].argmax())]
