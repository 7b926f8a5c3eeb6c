"""The networks of Uni-ControlNet's adapters (Zhao et al. 2023, section 3), under their published names."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.weights.shapes import sides

GROUPS, EPS = 32, 1e-5
DROPOUTS = (0.1, 0.3)
_EXTRACTOR = "The feature extractor"


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride)


def _activated(widths: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    """Return convolutions, each followed by SiLU."""
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(pairwise(widths), strides, strict=True):
        layers += [conv(inputs, outputs, stride), nn.SiLU()]
    return nn.Sequential(*layers)


class FeatureExtractor(nn.Module):
    """Pictures of all conditions in one stack -> a map of features for each level of the encoder."""

    def __init__(self, channels: int, widths: Sequence[int], first: Sequence[int] = (32, 64, 64, 128, 128)) -> None:
        super().__init__()
        self.pre_extractor = _activated((channels, *first), (1, 2, 1, 2, 1))
        chain = (first[-1], *widths)
        self.extractors = nn.ModuleList(_activated(pair, (2,)) for pair in pairwise(chain))
        self.zero_convs = nn.ModuleList(conv(width, width) for width in widths)

    def forward(self, stack: Tensor) -> list[Tensor]:
        """Return the features, shallow to deep. stack: (b 21 h w), RGB in [0, 1], zeros where a condition is absent."""
        h, features = self.pre_extractor(stack), list[Tensor]()
        for extractor, zero in zip(self.extractors, self.zero_convs, strict=True):
            h = extractor(h)
            features.append(zero(h))
        return features


def extractor_of(tensors: Mapping[str, Tensor]) -> FeatureExtractor:
    """Return the empty extractor that these tensors fit, whatever its widths."""
    first = [sides(_EXTRACTOR, tensors, f"pre_extractor.{i}.weight", 4) for i in (0, 2, 4, 6, 8)]
    num = sum(name.startswith("zero_convs.") and name.endswith(".weight") for name in tensors)
    widths = [sides(_EXTRACTOR, tensors, f"zero_convs.{i}.weight", 4)[0] for i in range(num)]
    return FeatureExtractor(first[0][1], widths, [shape[0] for shape in first])


class Modulation(nn.Module):
    """What a replaced norm makes of its level's features: gamma and beta, at the size of the features."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.conv_gamma, self.conv_beta = conv(features, width), conv(features, width)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma and beta, each (b c h w)."""
        return self.conv_gamma(features), self.conv_beta(features)


class FeatureNorm(nn.Module):
    """FDN (eq. 3): the norm of a residual block, with gamma and beta at every place. They are given for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gamma", torch.zeros(1), persistent=False)
        self.register_buffer("beta", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x, scaled and shifted, (b c h w)."""
        return F.group_norm(x, GROUPS, eps=EPS) * (1 + self.get_buffer("gamma")) + self.get_buffer("beta")


class GlobalAdapter(nn.Module):
    """What CLIP sees in a picture (b d) -> tokens behind the text (b m n)."""

    def __init__(self, seen: int, middle: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(seen), nn.LayerNorm(middle)
        self.ff1 = FeedForward(seen, middle, activation_fn="geglu", dropout=DROPOUTS[0])
        self.ff2 = FeedForward(middle, out, activation_fn="geglu", dropout=DROPOUTS[1])

    def forward(self, seen: Tensor) -> Tensor:
        """Return all tokens in one vector, (b m*n)."""
        return self.ff2(self.norm2(self.ff1(self.norm1(seen))))


def global_of(tensors: Mapping[str, Tensor]) -> GlobalAdapter:
    """Return the empty global adapter that these tensors fit."""
    telling = (("norm1.weight", 1), ("norm2.weight", 1), ("ff2.net.2.weight", 2))
    return GlobalAdapter(*(sides("The global adapter", tensors, name, num)[0] for name, num in telling))
