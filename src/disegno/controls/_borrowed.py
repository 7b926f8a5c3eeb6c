"""Layers that a net has of another: the other's weights are read where they sit, and what differs is beside them.

    y = W x + up (down x) + b        W: the other's, at this moment; up, down, b: their own, each of which may be absent

So the weights are in memory once, and where a style LoRA stands in for the other's layer, it counts here too. Where x
has many places, (W + up down) x is fewer operations: then that is what is done, and the sum is given up at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.packing import LAYERS, NORMS, weight_shape, weighted

Shape = tuple[int, ...]
_PLAIN = (nn.Linear, nn.Conv2d)  # not packed


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
        bias = bias_of(layer) if self.bias is None else self.bias
        if self.up is None or self.down is None:
            return weighted(layer, _widened(x, layer), bias)
        if isinstance(layer, _PLAIN) and isinstance(self.down, _PLAIN) and _has_many_places(x, layer):
            return weighted(layer, _widened(x, layer), bias, self._summed(layer))
        return weighted(layer, _widened(x, layer), bias) + self.up(self.down(x))

    def _summed(self, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """Return W + up down, made now."""
        assert self.up is not None and self.down is not None
        up, down = self.up.get_parameter("weight"), _widened(self.down.get_parameter("weight"), layer)
        return torch.addmm(layer.weight.flatten(1), up.flatten(1), down.flatten(1)).reshape(layer.weight.shape)


def _has_many_places(x: Tensor, layer: nn.Linear | nn.Conv2d) -> bool:
    """Return whether up (down x) is more operations than up down: r n (i + o) than r i o, of n places."""
    out, *inner = layer.weight.shape
    places = x.numel() // x.shape[-1] if isinstance(layer, nn.Linear) else x[:, 0].numel() // math.prod(layer.stride)
    return places * (out + math.prod(inner)) > out * math.prod(inner)


def _widened(x: Tensor, layer: nn.Module) -> Tensor:
    """Return x with as many channels as a convolution sees, zeros: a model that inpaints or edits sees more."""
    missing = weight_shape(layer)[1] - x.shape[1] if x.ndim == 4 else 0
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
