"""A decoder with more channels that draws the same pictures, to go on learning from (Net2Net, Chen et al. 2016).

Every channel becomes several copies of itself. What reads them shares its weights out among the copies, unevenly, so
that they learn different things from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from disegno.backbones._autoencoder import DECODER_WIDTHS

UNEVEN = 0.3  # deviation of the copies' shares, around the even one
_ENDS = {"decoder.conv_in": "in", "decoder.conv_out": "out"}  # latents and colours stay as many as they are


@torch.no_grad()
def widened(weights: Mapping[str, Tensor], times: int, generator: Generator) -> dict[str, Tensor]:
    """Return a diffusers decoder's weights, "decoder.…", with `times` as many channels and the same pictures."""
    new: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer = name.rpartition(".")[0]
        x = tensor.float()
        if _ENDS.get(layer) != "out":
            x = x.repeat_interleave(times, dim=0)
        if x.ndim > 1 and _ENDS.get(layer) != "in":
            x = x.repeat_interleave(times, dim=1) * _shares(x, times, generator)
        if layer.endswith(".to_q"):
            x = x * times**-0.5  # a product of queries and keys has `times` terms as many, and is divided by their root
        new[name] = x.contiguous()
    return new


def _shares(x: Tensor, times: int, generator: Generator) -> Tensor:
    """Return what each copy of an input counts, for a weight (out, in, ...): (out, in * times, 1 ...), a sum of 1."""
    out, inputs = x.shape[:2]
    drawn = torch.randn(out, inputs, times, generator=generator) * UNEVEN
    shares = drawn - drawn.mean(dim=2, keepdim=True) + 1 / times
    return shares.reshape(out, inputs * times, *(1,) * (x.ndim - 2))


def widths_of(config: Mapping[str, Any]) -> Sequence[int]:
    """Return an autoencoder's decoder's widths, from its configuration."""
    return config.get(DECODER_WIDTHS) or config["block_out_channels"]


def wide_config(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return an autoencoder's configuration with the widths that its decoder has in these weights."""
    now = widths_of(config)
    times = len(weights["decoder.conv_in.bias"]) // now[-1]
    return dict(config) if times == 1 else {**config, DECODER_WIDTHS: [width * times for width in now]}
