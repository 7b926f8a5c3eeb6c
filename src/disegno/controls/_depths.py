"""How deep in a UNet a layer stands: which of the residuals, shallow to deep, the middle's last, it counts as."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

_SAMPLERS = ("downsamplers", "upsamplers")  # a level's last


@dataclass(frozen=True)
class Depths:
    """A UNet of so many levels, each with so many blocks."""

    levels: int
    blocks: int

    @property
    def num_residuals(self) -> int:
        """How many there are: the skip connections and the middle."""
        return self.levels * (self.blocks + 1) + 1

    def of(self, layer: str) -> int:
        """Return the skip connection behind a layer of the encoder, or before one of the decoder; the middle's."""
        part, first, kind, second, *_ = layer.split(".")
        if part == "mid_block":
            return self.num_residuals - 1
        place = int(first) * (self.blocks + 1) + (self.blocks if kind in _SAMPLERS else int(second))
        return 1 + place if part == "down_blocks" else self.num_residuals - 2 - place


def depths_of(net: nn.Module) -> Depths:
    """Return a net's depths, by its configuration; Stable Diffusion's where it is silent."""
    config: Mapping[str, object] = getattr(net, "config", {})
    levels, blocks = config.get("block_out_channels"), config.get("layers_per_block")
    return Depths(len(levels) if isinstance(levels, list | tuple) else 4, blocks if isinstance(blocks, int) else 2)
