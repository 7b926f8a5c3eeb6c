"""Real-ESRGAN's compact network (SRVGGNetCompact): plain convolutions, and pixels shuffled at the end."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.core.errors import UnknownKind
from disegno.memory import Memory
from disegno.upscalers.base import Upscaler, unwrapped
from disegno.weights.card import FileCard
from disegno.weights.load import open_file


class Compact(nn.Module):
    """The network: convolutions with learned rectifiers between them; what it says is added to the picture."""

    def __init__(self, widths: tuple[int, ...], scale: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.PReLU(after)]
        self.body = nn.ModuleList(layers[:-1])
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return (b 3 kh kw) of (b 3 h w)."""
        out = x
        for layer in self.body:
            out = layer(out)
        enlarged = F.interpolate(x, scale_factor=float(self.scale), mode="nearest")
        return F.pixel_shuffle(out, self.scale) + enlarged  # b 3kk h w -> b 3 kh kw


def recognises(card: FileCard) -> bool:
    """Return whether the file is a compact network."""
    return card.mechanism == "compact"


def open(path: Path, memory: Memory) -> Upscaler:
    """Return the upscaler in this file. Raises UnknownKind, KeyMismatch, CorruptFile."""
    with open_file(path) as file:
        tensors = unwrapped(file)
    convolutions = sorted(
        (int(key.split(".")[1]), tensor.shape)
        for key, tensor in tensors.items()
        if tensor.ndim == 4 and key[:5] == "body."
    )
    if not convolutions:
        raise UnknownKind(f"{path.name} has no convolutions. Give a compact upscaler's file.")
    widths = (convolutions[0][1][1], *(shape[0] for _, shape in convolutions))
    scale = int((widths[-1] // 3) ** 0.5)
    if widths[0] != 3 or widths[-1] != 3 * scale**2:
        raise UnknownKind(f"{path.name} takes {widths[0]} channels and gives {widths[-1]}; an upscaler takes 3.")
    return Upscaler(path.stem, scale, memory.build(lambda: Compact(widths, scale), tensors, path.name, torch.float32))
