"""Layers that a net has of another: the other's weights are read where they sit, and what differs is beside them.

    y = W x + up (down x) + b        W: the other's, at this moment; up, down, b: their own, each of which may be absent

So the weights are in memory once, and where a style LoRA stands in for the other's layer, it counts here too. `up down`
is never multiplied out: that would be a matrix as large as W for every layer, at every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.packing import LAYERS, NORMS, weight_shape, weighted

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a layer sits: its parent, and its name there. A copy may stand in for it."""

    parent: nn.Module
    name: str

    @property
    def layer(self) -> nn.Module:
        """Return what sits there now."""
        return getattr(self.parent, self.name)


def places_in(net: nn.Module) -> dict[str, Place]:
    """Return the place of each layer of a net that has a weight, by its name."""
    return {
        f"{outer}.{name}" if outer else name: Place(parent, name)
        for outer, parent in net.named_modules()
        for name, layer in parent.named_children()
        if isinstance(layer, (*LAYERS, *NORMS))
    }


def shapes_of(places: Mapping[str, Place]) -> dict[str, Shape]:
    """Return the shapes of the layers' weights and biases, by the tensors' names."""
    found: dict[str, Shape] = {}
    for name, place in places.items():
        found[f"{name}.weight"] = weight_shape(place.layer)
        if (bias := bias_of(place.layer)) is not None:
            found[f"{name}.bias"] = tuple(bias.shape)
    return found


def bias_of(layer: nn.Module) -> Tensor | None:
    """Return a layer's bias, None where it has none."""
    bias: object = layer.bias
    return bias if isinstance(bias, Tensor) else None


class Borrowed(nn.Module):
    """Another net's layer in the place of one of this net. `like`: what would be there, which tells the sizes.

    `rank`: of the difference, 0: there is none. `biased`: it has a bias of its own. `down` sees what the layer sees.
    """

    bias: nn.Parameter | None
    down: nn.Module | None
    up: nn.Module | None

    def __init__(self, like: nn.Module, place: Place, rank: int = 0, biased: bool = False) -> None:
        super().__init__()
        self.place = place  # a dataclass: the other net is no part of this one
        own = bias_of(like) if biased else None
        self.bias = None if own is None else nn.Parameter(torch.empty_like(own))
        self.down = self.up = None
        if rank and isinstance(like, nn.Linear):
            self.down = nn.Linear(like.in_features, rank, bias=False)
            self.up = nn.Linear(rank, like.out_features, bias=False)
        elif rank and isinstance(like, nn.Conv2d):
            assert not isinstance(like.padding, str), "padding by name has no place here"
            kernel, stride, padding = like.kernel_size, like.stride, like.padding
            self.down = nn.Conv2d(like.in_channels, rank, kernel, stride, padding, bias=False)  # pyright: ignore[reportArgumentType]
            self.up = nn.Conv2d(rank, like.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives, with what is this net's own."""
        layer = self.place.layer
        if isinstance(layer, NORMS):
            return layer(x)
        out = weighted(layer, _widened(x, layer), bias_of(layer) if self.bias is None else self.bias)
        return out if self.up is None or self.down is None else out + self.up(self.down(x))


def _widened(x: Tensor, layer: nn.Module) -> Tensor:
    """Return x with as many channels as a convolution sees, zeros: a model that inpaints or edits sees more."""
    missing = weight_shape(layer)[1] - x.shape[1] if x.ndim == 4 else 0
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
