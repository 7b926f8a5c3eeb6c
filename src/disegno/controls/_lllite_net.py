"""ControlNet-LLLite's networks, under their published names."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.controls._squares import whole
from disegno.weights.lllite_files import Sizes


class LayerNet(nn.Module):
    """What one layer is told of the drawing: up(ReLU(mid([drawing, ReLU(down(x))]))), x being the layer's input.

    Facts of kohya-ss/sd-scripts' networks/control_net_lllite.py. Its dropout, between mid and up, is for training.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        convolutions, before = list[nn.Module](), 3
        for channels, side in sizes.squares:
            convolutions += [nn.Conv2d(before, channels, side, stride=side), nn.ReLU()]
            before = channels
        self.pixels = prod(side for _, side in sizes.squares)
        self.conditioning1 = nn.Sequential(*convolutions[:-1])
        layer = partial(nn.Conv2d, kernel_size=1) if sizes.is_conv else nn.Linear
        self.down = nn.Sequential(layer(sizes.width, sizes.hidden), nn.ReLU())
        self.mid = nn.Sequential(layer(sizes.hidden + before, sizes.hidden), nn.ReLU())
        self.up = nn.Sequential(layer(sizes.hidden, sizes.width))

    def embed(self, image: Tensor) -> Tensor:
        """Return the embedding of a drawing (1 3 h w) in [-1, 1]: (1 c h/p w/p), p a level's pixels, rounded up."""
        return self.conditioning1(whole(image, self.pixels))

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Return what is added to x, (r n d) or (r c h w), by the embedding of as many places: (1 n e) or (1 e h w)."""
        at = 1 if x.ndim == 4 else 2
        both = torch.cat([embedded.expand(len(x), *embedded.shape[1:]), self.down(x)], dim=at)
        return self.up(self.mid(both))


@dataclass(frozen=True, eq=False)
class Told:
    """A layer's net and the embedding of one drawing, (1 e h w)."""

    net: LayerNet
    embedded: Tensor

    def __call__(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return what is added to x, (r n d) or (r c h w), at a level of this size.

        Where the embedding has another size, its nearest places. A1111 parity: nearest-exact.
        """
        own = self.embedded
        if tuple(own.shape[2:]) != size:
            own = F.interpolate(own, size, mode="nearest-exact")
        return self.net(x, own if x.ndim == 4 else own.flatten(2).transpose(1, 2))


def build(sizes: Mapping[str, Sizes]) -> nn.ModuleDict:
    """Return a file's nets, by the names that it has."""
    return nn.ModuleDict({name: LayerNet(each) for name, each in sizes.items()})
