"""ESRGAN (Wang et al. 2018) and Real-ESRGAN (Wang et al. 2021): residual in residual dense blocks.

Files under the names of the first ESRGAN ("model.1.sub..."), of its later code ("RRDB_trunk...") and of Real-ESRGAN
("body..."), for 1, 2, 4 or 8 times; sizes are read from the tensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.core.errors import UnknownKind
from disegno.memory import Memory
from disegno.upscalers.base import Upscaler, renamed, unwrapped
from disegno.weights.card import FileCard
from disegno.weights.load import open_file

SLOPE = 0.2  # of the leaky rectifiers, and what each block's change is multiplied by
_BLOCK = r"(\d+)\.(?:RDB|rdb)([123])\.conv([1-5])"
_RULES = (
    (r"conv_first\.(\w+)", r"first.\1"),
    (rf"(?:body|RRDB_trunk)\.{_BLOCK}\.(\w+)", r"body.\1.\2.\3.\4"),
    (r"(?:conv_body|trunk_conv)\.(\w+)", r"trunk.\1"),
    (r"(?:conv_up|upconv)(\d)\.(\w+)", r"up.\1.\2"),
    (r"(?:conv_hr|HRconv)\.(\w+)", r"hr.\1"),
    (r"conv_last\.(\w+)", r"last.\1"),
    (r"model\.0\.(\w+)", r"first.\1"),
    (rf"model\.1\.sub\.{_BLOCK}\.0\.(\w+)", r"body.\1.\2.\3.\4"),
    (r"model\.1\.sub\.\d+\.(weight|bias)", r"trunk.\1"),
    (r"model\.(\d+)\.(\w+)", r"tail.\1.\2"),
)


class Dense(nn.Module):
    """Five convolutions, each of which sees the results of all before it. Wang et al. 2018, fig. 4."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        inner = [nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(4)]
        self.convs = nn.ModuleList([*inner, nn.Conv2d(width + 4 * growth, width, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), SLOPE)], dim=1)  # b c h w -> b (c + growth) h w
        return x + SLOPE * self.convs[-1](seen)


class Block(nn.Module):
    """Three dense blocks, and a residual around them."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Dense(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for part in self.parts:
            out = part(out)
        return x + SLOPE * out


class Rrdb(nn.Module):
    """The network. `shuffle`: squares of this side become channels first (Real-ESRGAN's small scales)."""

    def __init__(self, width: int, growth: int, num_blocks: int, num_ups: int, shuffle: int) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.first = nn.Conv2d(3 * shuffle**2, width, 3, padding=1)
        self.body = nn.ModuleList(Block(width, growth) for _ in range(num_blocks))
        self.trunk = nn.Conv2d(width, width, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(num_ups))
        self.hr = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b 3 kh kw) of (b 3 h w)."""
        x = self.first(F.pixel_unshuffle(x, self.shuffle))  # b 3 h w -> b c h/s w/s
        out = x
        for block in self.body:
            out = block(out)
        x = x + self.trunk(out)
        for up in self.ups:
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2.0, mode="nearest")), SLOPE)  # b c h w -> b c 2h 2w
        return self.last(F.leaky_relu(self.hr(x), SLOPE))


def recognises(card: FileCard) -> bool:
    """Return whether the file is an ESRGAN."""
    return card.mechanism == "esrgan"


def open(path: Path, memory: Memory) -> Upscaler:
    """Return the upscaler in this file. Raises UnknownKind, KeyMismatch, CorruptFile."""
    with open_file(path) as file:
        tensors = _named(path.name, unwrapped(file))
    first = tensors["first.weight"]
    shuffle = int((first.shape[1] // 3) ** 0.5)
    if first.shape[1] != 3 * shuffle**2:
        raise UnknownKind(f"{path.name} takes pictures of {first.shape[1]} channels; 3, 12 and 48 are known.")
    num_ups = sum(name.startswith("ups.") and name.endswith("weight") for name in tensors)
    num_blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))
    growth = tensors["body.0.parts.0.convs.0.weight"].shape[0]

    def make() -> Rrdb:
        return Rrdb(first.shape[0], growth, num_blocks, num_ups, shuffle)

    net = memory.build(make, tensors, path.name, torch.float32)
    return Upscaler(path.stem, 2**num_ups // shuffle, net, shuffle)


def _named(name: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by this module's names. Raises UnknownKind."""
    tensors = renamed(name, given, _RULES)
    tail = sorted({int(key.split(".")[1]) for key in tensors if key.startswith("tail.")})
    if tail:  # the first ESRGAN's names: the last two numbers are hr and last, the ones before them enlarge
        ends = dict(zip(tail, [*(f"ups.{i}" for i in range(len(tail) - 2)), "hr", "last"], strict=True))
        tensors = {re.sub(r"tail\.(\d+)", lambda m: ends[int(m[1])], key): t for key, t in tensors.items()}
    tensors = {re.sub(r"^up\.(\d)", lambda m: f"ups.{int(m[1]) - 1}", key): t for key, t in tensors.items()}
    inner = re.compile(r"body\.(\d+)\.(\d)\.(\d)\.")
    return {
        inner.sub(lambda m: f"body.{m[1]}.parts.{int(m[2]) - 1}.convs.{int(m[3]) - 1}.", key): tensor
        for key, tensor in tensors.items()
    }
