"""ControlNet-LLLites in miniature: files of random numbers for the layers of a net, by their published names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from disegno.weights.save import save_safetensors

QUERIES = ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn2_to_q")
# Of each part of the published files' names: where it is in diffusers' net, and the sides of its squares of pixels
Places = Mapping[str, tuple[str, tuple[int, ...]]]
SDXL: Places = {
    "input_blocks_4_1": ("down_blocks.1.attentions.0", (4, 4)),
    "input_blocks_5_1": ("down_blocks.1.attentions.1", (4, 4)),
    "input_blocks_7_1": ("down_blocks.2.attentions.0", (4, 4, 2)),
    "input_blocks_8_1": ("down_blocks.2.attentions.1", (4, 4, 2)),
    "middle_block_1": ("mid_block.attentions.0", (4, 4, 2)),
}
SD1: Places = {  # of the miniature's two levels
    "input_blocks_1_1": ("down_blocks.0.attentions.0", (4, 2)),
    "input_blocks_3_1": ("down_blocks.1.attentions.0", (4, 4)),
    "middle_block_1": ("mid_block.attentions.0", (4, 4)),
}


def attended(net: nn.Module, places: Places) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the published name, without `lllite_unet_`, of each attention's layer; the net's; and its squares."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for original, (ours, squares) in places.items():
        for i in range(len(net.get_submodule(f"{ours}.transformer_blocks"))):  # pyright: ignore[reportArgumentType]
            for query in QUERIES:
                layer = f"{ours}.transformer_blocks.{i}.{query[:5]}.{query[6:]}"
                found[f"{original}_transformer_blocks_{i}_{query}"] = (layer, squares)
    return found


def shapes(
    width: int, squares: Sequence[int], embedded: int = 8, hidden: int = 12, is_conv: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of one layer's net."""
    own: dict[str, tuple[int, ...]] = {}
    before = 3
    for i, side in enumerate(squares):
        channels = embedded if i == len(squares) - 1 else embedded // 2
        own |= {f"conditioning1.{2 * i}.weight": (channels, before, side, side)}
        own |= {f"conditioning1.{2 * i}.bias": (channels,)}
        before = channels
    ones = (1, 1) if is_conv else ()
    for part, out, into in (("down", hidden, width), ("mid", hidden, hidden + embedded), ("up", width, hidden)):
        own |= {f"{part}.0.weight": (out, into, *ones), f"{part}.0.bias": (out,)}
    return own


def tensors(
    net: nn.Module, layers: Mapping[str, tuple[str, tuple[int, ...]]], seed: int = 0, size: float = 0.5
) -> dict[str, Tensor]:
    """Return a file's tensors, drawn, for the layers of a net. `size`: of what is added, about."""
    generator, drawn = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name, (layer, squares) in layers.items():
        weight = net.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        for part, shape in shapes(weight.shape[1], squares, is_conv=weight.ndim == 4).items():
            noise = torch.randn(shape, generator=generator)
            scale = (2 / max(1, noise[0].numel())) ** 0.5 if noise.ndim > 1 else 0.1
            drawn[f"lllite_unet_{name}.{part}"] = noise * scale * (size if part.startswith("up") else 1)
    return drawn


def write(path: Path, flat: Mapping[str, Tensor], words: Mapping[str, str] | None = None) -> Path:
    """Return `path`, now a ControlNet-LLLite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(path, flat, words or {})
    return path
