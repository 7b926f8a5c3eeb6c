"""T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): features of a condition, added to the model's encoder.

They depend on the condition alone, so they are made once a picture: a step costs no more than without. Each is added
to the output of a level's last residual block (and its attention), and so to the skip connection, too: eq. 3.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.models.adapter import AdapterBlock, LightAdapterBlock
from torch import Tensor, nn

from disegno.controls._net import weight_of
from disegno.controls.base import Body, Condition, Host, Layers, key_of
from disegno.core.errors import KeyMismatch, WrongFamily
from disegno.diffusion.call import Call, Stream
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.shapes import sides
from disegno.weights.t2i_files import MECHANISM, PIXELS, read_t2i

families = ("sd1", "sd2", "diorama")
SOFT = (0.25, 0.62, 0.825, 1.0)  # A1111 parity: of four levels, where a mode puts the prompt first


def recognises(card: FileCard) -> bool:
    """Return whether the file is a T2I-Adapter."""
    return card.mechanism == MECHANISM


class AdapterNet(nn.Module):
    """The net: pixels become channels, then a level of residual blocks for each of the model's, halving between them.

    `each`: residual blocks of a level. The light one has a quarter of the width inside, and no convolution before.
    """

    def __init__(self, channels: int, widths: Sequence[int], each: int, is_light: bool) -> None:
        super().__init__()
        self.channels = channels
        self.unshuffle = nn.PixelUnshuffle(PIXELS)
        pixels, block = channels * PIXELS**2, LightAdapterBlock if is_light else AdapterBlock
        self.conv_in = nn.Identity() if is_light else nn.Conv2d(pixels, widths[0], 3, padding=1)
        before = (pixels if is_light else widths[0], *widths[:-1])
        self.body = nn.ModuleList(
            block(a, b, each, down=i > 0) for i, (a, b) in enumerate(zip(before, widths, strict=True))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return a feature for each level, (b c h w), shallow to deep. image: (b 1|3 h w), in [0, 1]."""
        x, features = self.conv_in(self.unshuffle(image)), list[Tensor]()
        for block in self.body:
            features.append(x := block(x))
        return features


class Features:
    """One evaluation: what is added to the model's blocks. `at`: place of the block -> the feature, (1 c h w)."""

    def __init__(self, at: Mapping[int, Tensor]) -> None:
        self.at = at

    def encoded(self, k: int, h: Tensor) -> Tensor | None:
        """Return what is added to the model's k-th block."""
        own = self.at.get(k)
        return None if own is None else own.expand(len(h), *own.shape[1:])

    def corrected(self, k: int, h: Tensor) -> None:
        """See nothing."""

    def middle(self, h: Tensor) -> None:
        """Add nothing to the middle."""

    def decoding(self, k: int) -> None:
        """Add nothing to the decoder."""


@dataclass(frozen=True, eq=False)
class T2iAdapter:
    """A prepared T2I-Adapter. `features`: of each level, (1 c h w); `places`: the model's blocks that they go to."""

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
        at = Features(dict(zip(self.places, self.features, strict=True)))
        return Stream(lambda *_: at, rows, len(self.places), places=self.places, soft=SOFT[-len(self.places) :])


@dataclass(frozen=True)
class T2iController:
    """A T2I-Adapter's weights, open."""

    name: str
    annotator: str | None
    net: AdapterNet
    places: tuple[int, ...]
    fingerprint: str

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh: levels."""
        return Layers(len(self.places), "adds to {} levels of this model", "shallow to deep")

    def prepare(self, condition: Condition) -> T2iAdapter:
        """Return the control for one condition."""
        image = condition.image[:, : self.net.channels]  # A1111 parity: of a picture for a grey one, the red
        with torch.no_grad():
            features = tuple(self.net(image.to(weight_of(self.net))))
        return T2iAdapter(features, self.places, key_of(MECHANISM, self.fingerprint, condition.key))


def open(path: Path, backbone: Host, memory: Memory) -> T2iController:
    """Return the T2I-Adapter in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    file = read_t2i(path, len(widths_of(backbone)))
    net = open_adapter(path.name, file.tensors, backbone, memory)
    return T2iController(path.stem, file.words.get("disegno.annotator"), net, places_of(backbone), file.fingerprint)


def open_adapter(name: str, tensors: Mapping[str, Tensor], backbone: Body, memory: Memory) -> AdapterNet:
    """Return the net with these weights (our names), frozen and placed. Raises WrongFamily, KeyMismatch."""
    is_light, wanted = "conv_in.weight" not in tensors, widths_of(backbone)
    try:
        ours = tuple(_width(name, tensors, level, is_light) for level in range(_count(tensors, r"body\.(\d+)\.")))
        pixels = sides(name, tensors, "body.0.in_conv.weight" if is_light else "conv_in.weight", 4)[1]
    except KeyError as error:
        raise KeyMismatch(f"{name} is an incomplete T2I-Adapter: it has no tensor {error}. Fetch it again.") from error
    if ours != wanted or pixels not in (PIXELS**2, 3 * PIXELS**2):
        raise WrongFamily(
            f"{name} does not fit the open model {backbone.name} ({backbone.family}): it looks at {pixels} numbers a"
            f" place and adds to levels of the widths {ours}; the model has {3 * PIXELS**2} (grey: {PIXELS**2}) and"
            f" {wanted}. Choose an adapter that was made for {backbone.family}."
        )
    each = _count(tensors, r"body\.0\.resnets\.(\d+)\.")
    return memory.build(lambda: AdapterNet(pixels // PIXELS**2, wanted, each, is_light), tensors, name)


def _width(name: str, tensors: Mapping[str, Tensor], level: int, is_light: bool) -> int:
    """Return the width of a level's feature."""
    last = "out_conv" if is_light else "resnets.0.block2"
    return sides(name, tensors, f"body.{level}.{last}.weight", 4)[0]


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def widths_of(backbone: Body) -> tuple[int, ...]:
    """Return the widths of the levels of a backbone's net, () where it has none."""
    widths = getattr(backbone.net, "config", {}).get("block_out_channels")
    return tuple(int(width) for width in widths) if isinstance(widths, list | tuple) else ()


def places_of(backbone: Body) -> tuple[int, ...]:
    """Return which of the encoder's blocks are the last of a level before the halving; the 0th is `conv_in`."""
    each = int(str(getattr(backbone.net, "config", {}).get("layers_per_block", 2)))
    return tuple(level * (each + 1) + each for level in range(len(widths_of(backbone))))
