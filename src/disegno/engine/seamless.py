"""Pictures that repeat without a seam: what a convolution wants beyond an edge is what lies at the opposite one.

A1111's Tiling. Attention sees the whole canvas anyway, and knows no places; so a UNet of convolutions and its VAE draw
on a torus as soon as their padding goes round. A control's own net keeps its padding, as in A1111.
"""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

from disegno.backbones.base import Backbone
from disegno.core.errors import RequestError
from disegno.core.request import Request
from disegno.packing import PackedConv2d

_ROUND, _ZEROS = "circular", "zeros"


def _padded(net: nn.Module) -> list[nn.Conv2d | PackedConv2d]:
    """Return the convolutions that see zeros beyond an edge."""
    return [each for each in net.modules() if isinstance(each, nn.Conv2d | PackedConv2d) and _pads(each)]


def _pads(conv: nn.Conv2d | PackedConv2d) -> bool:
    padding = conv.padding if isinstance(conv, nn.Conv2d) else conv.how[1]
    return conv.padding_mode == _ZEROS and (isinstance(padding, str) or any(padding))


def require_edges(request: Request, backbone: Backbone) -> None:
    """Raise RequestError where no seam is wanted of a net that is no net of convolutions.

    A transformer over patches knows the places of its tokens.
    """
    if request.seamless and not _padded(backbone.net):
        raise RequestError(
            f"{backbone.name} draws patch by patch and cannot leave out the seam. Choose a model of Stable Diffusion"
            " 1, 2 or XL, or leave out seamless."
        )


@contextmanager
def going_round(net: nn.Module, on: bool) -> Generator[None]:
    """Within, the net's padding goes round where `on`; afterwards it is of zeros again. One thread at a time."""
    layers = _padded(net) if on else []
    try:
        for layer in layers:
            layer.padding_mode = _ROUND
        yield
    finally:
        for layer in layers:
            layer.padding_mode = _ZEROS
