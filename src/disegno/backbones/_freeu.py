"""The rows of a call in which a UNet's decoder weighs anew what it joins: its own features and its skip connections.

FreeU (Si et al. 2023, eq. 2-6): half of the features' channels are multiplied, and of the skip connections what
varies slowly. It is told by their number of channels which features are those of the two deep levels, four times
and twice the net's narrowest, as in the authors' code; Stable Diffusion 1's have 1280 and 640.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from disegno.core.errors import RequestError
from disegno.diffusion.call import Joins, Row

Hook = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]


def check_joins(net: Any, name: str) -> None:
    """Raise RequestError where a UNet has no level that FreeU knows."""
    if not _places(net):
        raise RequestError(f"freeu acts on levels twice and four times as wide as the first, and {name} has none.")


@contextmanager
def joining(net: Any, rows: Sequence[Row]) -> Generator[None]:
    """Within, a UNet's decoder joins as the rows say. One thread at a time."""
    groups: dict[Joins, list[int]] = {}
    for i, row in enumerate(rows):
        if row.joins is not None:
            groups.setdefault(row.joins, []).append(i)
    places = _places(net) if groups else []
    handles = [block.register_forward_pre_hook(_hook(own, level, groups)) for block, own, level in places]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(net: Any) -> list[tuple[nn.Module, int, int]]:
    """Return the decoder's blocks that join, each with its number of own channels and its level: 0 the deeper, or 1."""
    widths, layers = net.config["block_out_channels"], net.config["layers_per_block"]
    layers = [layers] * len(widths) if isinstance(layers, int) else list(layers)
    skips = [widths[0]]  # channels of the skip connections, shallow to deep
    for i, (width, num) in enumerate(zip(widths, layers, strict=True)):
        skips += [width] * (num + (i < len(widths) - 1))
    levels = {4 * widths[0]: 0, 2 * widths[0]: 1}
    blocks = [block for level in net.up_blocks for block in level.resnets]
    found = [(block, block.in_channels - skip) for block, skip in zip(blocks, reversed(skips), strict=True)]
    return [(block, own, levels[own]) for block, own in found if own in levels]


def _hook(num_own: int, level: int, groups: dict[Joins, list[int]]) -> Hook:
    """Return the hook of a block that is given its own features and, behind them, its skip connection, (b c h w)."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        joined = args[0].clone()
        for joins, rows in groups.items():
            own, skip = joined[rows].split([num_own, joined.shape[1] - num_own], dim=1)
            own, skip = lifted(own, joins.own[level], joins.adapts), smoothed(skip, joins.skips[level])
            joined[rows] = torch.cat([own, skip], dim=1).to(joined.dtype)
        return joined, *args[1:]

    return hook


def lifted(x: Tensor, factor: float, adapts: bool) -> Tensor:
    """Return features (b c h w) whose first half of channels is multiplied; `adapts`: where they are strong.

    Si et al. 2023, eq. 2-4: by 1 + (factor - 1) m, where m is the channels' mean at each place, from 0 at its least in
    the picture to 1 at its most.
    """
    half, factors = x.shape[1] // 2, x.new_tensor(factor)
    if adapts:
        mean = x.float().mean(dim=1, keepdim=True)  # b 1 h w
        least, most = mean.amin(dim=(1, 2, 3), keepdim=True), mean.amax(dim=(1, 2, 3), keepdim=True)
        factors = (1 + (factor - 1) * (mean - least) / (most - least).clamp_min(1e-12)).to(x.dtype)
    return torch.cat([x[:, :half] * factors, x[:, half:]], dim=1)


def smoothed(x: Tensor, factor: float) -> Tensor:
    """Return features (b c h w), float32, with their lowest frequencies multiplied (eq. 5-6).

    Those of 0 and -1 cycles in height and in width, as the authors' code cuts them out of the centred transform; it
    keeps the real part. Written as a sum over few waves, which needs no transform.
    """
    height, width = x.shape[-2:]
    y, z = (torch.arange(side, device=x.device, dtype=torch.float32) / side for side in (height, width))
    cycles = [(a, b) for a in range(min(2, height)) for b in range(min(2, width))]  # a single cell has none but 0
    turns = torch.stack([a * y[:, None] + b * z[None, :] for a, b in cycles]) * (2 * torch.pi)  # 4 h w
    waves = torch.cat([turns.cos(), turns[1:].sin()]).flatten(1) / (height * width) ** 0.5  # 7 hw
    own = x.float().flatten(2)  # b c hw
    return (own + (factor - 1) * (own @ waves.T) @ waves).reshape(x.shape)
