"""T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): features of a condition, added to the model's encoder.

They depend on the condition alone, so they are made once a picture: a step costs no more than without. Each is added
to the output of a level's last residual block (and its attention), and so to the skip connection, too: eq. 3. Where a
level has no attention it is added behind its halving, and in SDXL there is one more, for the middle: diffusers parity.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.adapter import AdapterBlock, LightAdapterBlock
from torch import Tensor, nn

from disegno.controls._net import weight_of
from disegno.controls._squares import whole
from disegno.controls.base import Body, Condition, Host, Layers, key_of
from disegno.core.errors import KeyMismatch, WrongFamily
from disegno.diffusion.call import Call, Stream
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.shapes import sides
from disegno.weights.t2i_files import MECHANISM, PIXELS, XL_PIXELS, read_t2i

families = ("sd1", "sd2", "sdxl", "diorama")
SOFT = (0.25, 0.62, 0.825, 1.0)  # A1111 parity: of four features, where a mode puts the prompt first


def recognises(card: FileCard) -> bool:
    """Return whether the file is a T2I-Adapter."""
    return card.mechanism == MECHANISM


@dataclass(frozen=True)
class Layout:
    """How an adapter fits a model: of each feature its width, and the place that it is added at.

    `places`: of the encoder's blocks, `conv_in` is the 0th, the middle the last. `halved`: whether a feature is half as
    large as the one before. `pixels`: a side of the square of pixels that becomes one place of the first.
    """

    widths: tuple[int, ...]
    places: tuple[int, ...]
    halved: tuple[bool, ...]
    pixels: int = PIXELS


def layout_of(backbone: Body) -> Layout:
    """Return how an adapter for this model is made; without features where its net has no levels."""
    config: Mapping[str, Any] = getattr(backbone.net, "config", {})
    widths: tuple[int, ...] = tuple(config.get("block_out_channels", ()))
    kinds: tuple[str, ...] = tuple(config.get("down_block_types", ()))
    each, last = int(config.get("layers_per_block", 2)), len(widths) - 1
    places = [i * (each + 1) + each + (i < last and "Attn" not in kinds[i]) for i in range(len(widths))]
    if config.get("addition_embed_type") != "text_time":
        return Layout(widths, tuple(places), tuple(i > 0 for i in range(len(widths))))
    middle = len(widths) * (each + 1)
    halved = tuple(1 < i <= last for i in range(len(widths) + 1))
    return Layout((*widths, widths[-1]), (*places, middle), halved, XL_PIXELS)


class AdapterNet(nn.Module):
    """The net: pixels become channels, then residual blocks for each feature, halving where the layout says so.

    `each`: residual blocks of a feature. The light one has a quarter of the width inside, and no convolution before.
    """

    def __init__(self, channels: int, layout: Layout, each: int, is_light: bool) -> None:
        super().__init__()
        self.channels = channels
        self.unshuffle = nn.PixelUnshuffle(layout.pixels)
        pixels, block = channels * layout.pixels**2, LightAdapterBlock if is_light else AdapterBlock
        widths = layout.widths
        self.conv_in = nn.Identity() if is_light else nn.Conv2d(pixels, widths[0], 3, padding=1)
        before = (pixels if is_light else widths[0], *widths[:-1])
        made = zip(before, widths, layout.halved, strict=True)
        self.body = nn.ModuleList(block(a, b, each, down=halves) for a, b, halves in made)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features, (b c h w), shallow to deep. image: (b 1|3 h w), in [0, 1]."""
        x, features = self.conv_in(self.unshuffle(whole(image, self.unshuffle.downscale_factor))), list[Tensor]()
        for block in self.body:
            features.append(x := block(x))
        return features


class Features:
    """One evaluation: what is added to the model's blocks. `at`: place of the block -> the feature, (1 c h w).

    The middle's place is the one behind the encoder's last.
    """

    embedded = None

    def __init__(self, at: Mapping[int, Tensor]) -> None:
        self.at = at
        self.num_seen = 0

    def encoded(self, k: int, h: Tensor) -> Tensor | None:
        """Return what is added to the model's k-th block."""
        self.num_seen = k + 1
        own = self.at.get(k)
        return None if own is None else own.expand(len(h), *own.shape[1:])

    def corrected(self, k: int, h: Tensor) -> None:
        """See nothing."""

    def middle(self, h: Tensor) -> Tensor | None:
        """Return what is added to the middle."""
        return self.encoded(self.num_seen, h)

    def decoding(self, k: int) -> None:
        """Add nothing to the decoder."""


@dataclass(frozen=True, eq=False)
class T2iAdapter:
    """A prepared T2I-Adapter. `features`: (1 c h w) each; `places`: the model's blocks that they go to."""

    features: tuple[Tensor, ...]
    places: tuple[int, ...]
    key: str
    sees_x: bool = True  # nothing to share: the features are made once
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with the features beside the model's encoder."""
        rows = torch.arange(len(call.rows), device=call.x.device)
        return replace(call, streams=(*call.streams, self.stream(rows)))

    def stream(self, rows: Tensor) -> Stream:
        """Return the features as what runs beside the model's net at these rows (r,)."""
        at = dict(zip(self.places, self.features, strict=True))
        return Stream(
            lambda *_: Features(at), rows, len(self.places), places=self.places, soft=SOFT[-len(self.places) :]
        )


@dataclass(frozen=True)
class T2iController:
    """A T2I-Adapter's weights, open."""

    name: str
    annotator: str | None
    net: AdapterNet
    places: tuple[int, ...]
    fingerprint: str

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh: features."""
        return Layers(len(self.places), "adds {} features to this model", "shallow to deep")

    def prepare(self, condition: Condition) -> T2iAdapter:
        """Return the control for one condition."""
        image = condition.image[:, : self.net.channels]  # A1111 parity: of a picture for a grey one, the red
        with torch.no_grad():
            features = tuple(self.net(image.to(weight_of(self.net))))
        return T2iAdapter(features, self.places, key_of(MECHANISM, self.fingerprint, condition.key))


def open(path: Path, backbone: Host, memory: Memory) -> T2iController:
    """Return the T2I-Adapter in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    layout = layout_of(backbone)
    file = read_t2i(path, len(layout.widths))
    net = open_adapter(path.name, file.tensors, backbone, memory)
    return T2iController(path.stem, file.words.get("disegno.annotator"), net, layout.places, file.fingerprint)


def open_adapter(name: str, tensors: Mapping[str, Tensor], backbone: Body, memory: Memory) -> AdapterNet:
    """Return the net with these weights (our names), frozen and placed. Raises WrongFamily, KeyMismatch."""
    is_light, layout = "conv_in.weight" not in tensors, layout_of(backbone)
    grey = layout.pixels**2
    try:
        ours = tuple(_width(name, tensors, i, is_light) for i in range(_count(tensors, r"body\.(\d+)\.")))
        pixels = sides(name, tensors, "body.0.in_conv.weight" if is_light else "conv_in.weight", 4)[1]
    except KeyError as error:
        raise KeyMismatch(f"{name} is an incomplete T2I-Adapter: it has no tensor {error}. Fetch it again.") from error
    if ours != layout.widths or pixels not in (grey, 3 * grey):
        raise WrongFamily(
            f"{name} does not fit the open model {backbone.name} ({backbone.family}): it looks at {pixels} numbers a"
            f" place and adds features of the widths {ours}; the model wants {3 * grey} (grey: {grey}) and"
            f" {layout.widths}. Choose an adapter that was made for {backbone.family}."
        )
    each = _count(tensors, r"body\.0\.resnets\.(\d+)\.")
    return memory.build(lambda: AdapterNet(pixels // grey, layout, each, is_light), tensors, name)


def _width(name: str, tensors: Mapping[str, Tensor], i: int, is_light: bool) -> int:
    """Return the width of the i-th feature."""
    last = "out_conv" if is_light else "resnets.0.block2"
    return sides(name, tensors, f"body.{i}.{last}.weight", 4)[0]


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)
