"""The tensors of Stable Diffusion 3's transformer (MMDiT): Stability AI's names and diffusers' SD3Transformer2DModel's.

    original                                        here
    pos_embed, x_embedder.proj                      pos_embed.pos_embed, pos_embed.proj
    t_embedder.mlp.0 / .2                           time_text_embed.timestep_embedder.linear_1 / linear_2
    y_embedder.mlp.0 / .2                           time_text_embed.text_embedder.linear_1 / linear_2
    joint_blocks.i.x_block.attn.qkv                 transformer_blocks.i.attn.to_q, to_k, to_v: one after the other
    joint_blocks.i.context_block.attn.qkv           ....attn.add_q_proj, add_k_proj, add_v_proj
    joint_blocks.i.x_block.attn2...                 ....attn2...: the second attention of SD 3.5 medium's first blocks
    ....adaLN_modulation.1                          ....norm1.linear, norm1_context.linear
    final_layer.linear, .adaLN_modulation.1         proj_out, norm_out.linear

Shift and scale stand the other way round in diffusers' `norm_out`, and in the last block's `norm1_context`. Every
tensor keeps its bits. Esser et al. 2024, figure 2.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disegno.core.errors import KeyMismatch
from disegno.weights.shapes import joined, parts_of_rows, sides

PREFIX = "model.diffusion_model."
HEAD_WIDTH = 64
_WHAT = "The transformer"

_FIXED = {
    "pos_embed": ("pos_embed.pos_embed",),
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "context_embedder": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
_NAME = re.compile(r"joint_blocks\.(\d+)\.(.+)\.(weight|bias)")
_NEW_NAME = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class _Place:
    """Where an original tensor goes: these names, its parts in their order; or its halves exchanged."""

    names: tuple[str, ...]
    swaps: bool = False


def _place(name: str, last: int) -> _Place | None:
    module, _, end = name.rpartition(".")
    if name in _FIXED:
        return _Place(_FIXED[name])
    if module in _FIXED:
        return _Place(tuple(f"{new}.{end}" for new in _FIXED[module]), swaps=module.endswith("adaLN_modulation.1"))
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in _BLOCK:
        return None
    swaps = int(match[1]) == last and match[2] == "context_block.adaLN_modulation.1"
    return _Place(tuple(f"transformer_blocks.{match[1]}.{new}.{match[3]}" for new in _BLOCK[match[2]]), swaps)


def _swapped(name: str, tensor: Tensor) -> Tensor:
    return torch.cat(list(reversed(parts_of_rows(2, name, tensor))))


def num_blocks(names: Mapping[str, object]) -> int:
    """Return how many blocks a transformer with these names, of either form, has."""
    found = (match for name in names if (match := _NAME.fullmatch(name) or _NEW_NAME.fullmatch(name)))
    return 1 + max((int(match[1]) for match in found), default=-1)


def unknown_names(names: Mapping[str, object]) -> list[str]:
    """Return the original names that have no place."""
    last = num_blocks(names) - 1
    return [name for name in names if _place(name, last) is None]


@dataclass(frozen=True)
class Joined:
    """A module of the original, and those of diffusers' that it is: one or, of queries, keys and values, three.

    `swaps`: the halves of its rows stand the other way round.
    """

    original: str
    names: tuple[str, ...]
    swaps: bool


def joined_modules(names: Mapping[str, object]) -> list[Joined]:
    """Return the original's modules of a transformer with these of diffusers' names, each ending in `.weight`."""
    blocks, found = num_blocks(names), list[Joined]()
    for original in _originals(blocks):
        place = _place(original, blocks - 1)
        if place is not None and original.endswith(".weight") and all(name in names for name in place.names):
            own = tuple(name.removesuffix(".weight") for name in place.names)
            found.append(Joined(original.removesuffix(".weight"), own, place.swaps))
    return found


def from_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by diffusers' names; those without a place are left out. `tensors`: no prefix."""
    last, found = num_blocks(tensors) - 1, dict[str, Tensor]()
    for name, tensor in tensors.items():
        place = _place(name, last)
        if place is None:
            continue
        tensor = _swapped(name, tensor) if place.swaps else tensor
        if name == "pos_embed" and tensor.ndim == 2:  # GGUF leaves out an outermost side of 1
            tensor = tensor[None]
        num = len(place.names)
        found |= zip(place.names, parts_of_rows(num, name, tensor) if num > 1 else [tensor], strict=True)
    return found


def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the original's tensors: the inverse of `from_original`."""
    last, found = num_blocks(tensors) - 1, dict[str, Tensor]()
    for name in _originals(last + 1):
        place = _place(name, last)
        assert place is not None
        if all(new in tensors for new in place.names):
            first = tensors[place.names[0]]
            found[name] = (
                _swapped(name, first)
                if place.swaps
                else first
                if len(place.names) == 1
                else joined(place.names, tensors)
            )
    return found


def _originals(blocks: int) -> list[str]:
    modules = [*_FIXED, *(f"joint_blocks.{i}.{module}" for i in range(blocks) for module in _BLOCK)]
    return ["pos_embed", *(f"{module}.{end}" for module in modules[1:] for end in ("weight", "bias"))]


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return SD3Transformer2DModel's configuration from its tensors' shapes, by diffusers' names.

    Heads are 64 channels wide. Raises KeyMismatch where a tensor that tells a size is missing.
    """
    try:
        width, in_channels, patch, _ = sides(_WHAT, shapes, "pos_embed.proj.weight", 4)
        caption, joint = sides(_WHAT, shapes, "context_embedder.weight", 2)
        last, _ = sides(_WHAT, shapes, "proj_out.weight", 2)
        _, pooled = sides(_WHAT, shapes, "time_text_embed.text_embedder.linear_1.weight", 2)
        _, places, _ = sides(_WHAT, shapes, "pos_embed.pos_embed", 3)
    except KeyError as error:
        raise KeyMismatch(f"{_WHAT} has no tensor {error}: the file is incomplete. Fetch it again.") from error
    dual = {int(match[1]) for name in shapes if (match := re.match(r"transformer_blocks\.(\d+)\.attn2\.", name))}
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": in_channels,
        "out_channels": last // patch**2,
        "num_layers": num_blocks(shapes),
        "attention_head_dim": HEAD_WIDTH,
        "num_attention_heads": width // HEAD_WIDTH,
        "joint_attention_dim": joint,
        "caption_projection_dim": caption,
        "pooled_projection_dim": pooled,
        "pos_embed_max_size": round(places**0.5),
        "dual_attention_layers": tuple(sorted(dual)),
        "qk_norm": "rms_norm" if any(name.endswith(".attn.norm_q.weight") for name in shapes) else None,
    }
