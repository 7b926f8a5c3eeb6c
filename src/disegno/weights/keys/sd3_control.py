"""The tensors of Stability AI's ControlNets for Stable Diffusion 3.5 large, in their own files and in diffusers' class.

    original                                     here
    transformer_blocks.i.attn.qkv                transformer_blocks.i.attn.to_q, to_k, to_v: one after the other
    transformer_blocks.i.attn.proj               ....attn.to_out.0
    transformer_blocks.i.mlp.fc1 / .fc2          ....ff.net.0.proj / .ff.net.2
    transformer_blocks.i.adaLN_modulation.1      ....norm1.linear
    t_embedder.mlp.0 / .2                        time_text_embed.timestep_embedder.linear_1 / linear_2, or as here
    y_embedder.mlp.0 / .2                        time_text_embed.text_embedder.linear_1 / linear_2, or as here
    control_type                                 (what the net was made for: see CONTROL_TYPES)

`controlnet_blocks` and `pos_embed_input` are called alike. A net for 3.5 large has no patches of its own (`pos_embed`):
it sees the model's. Where its file has some, they decide nothing.
"""

import re
from collections.abc import Mapping, Set

import torch
from torch import Tensor

from disegno.weights.keys._renaming import renamed

MARK = "transformer_blocks.0.attn.qkv.weight"
CONTROL_TYPE = "control_type"
CONTROL_TYPES = ("blur", "canny", "depth")  # by the number in a file
_MODULES = {
    "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.proj": ("attn.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}
_EMBEDDERS = {
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
}
_ALIKE = ("controlnet_blocks.", "pos_embed_input.", "time_text_embed.")
_NAME = re.compile(r"(transformer_blocks\.\d+)\.(.+)\.(weight|bias)")
_THREE = _MODULES["attn.qkv"]


def _names(name: str) -> tuple[str, ...]:
    """Return where an original tensor goes, its parts in their order; () for what has no place."""
    module, _, end = name.rpartition(".")
    if name.startswith(_ALIKE):
        return (name,)
    if module in _EMBEDDERS:
        return (f"{_EMBEDDERS[module]}.{end}",)
    match = _NAME.fullmatch(name)
    return () if match is None else tuple(f"{match[1]}.{new}.{match[3]}" for new in _MODULES.get(match[2], ()))


def placed(names: Mapping[str, object]) -> Set[str]:
    """Return the original names that have a place."""
    return {name for name in names if _names(name)}


def from_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names of SD3ControlNetModel; those without a place are left out."""
    return renamed(tensors, _names)


def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the original's tensors: the inverse of `from_original`. The embedders keep diffusers' names."""
    back = {new: old for old, names in _MODULES.items() for new in names}
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(_ALIKE)}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in back:
            continue
        original = f"{match[1]}.{back[match[2]]}.{match[3]}"
        if match[2] not in _THREE:
            found[original] = tensor
        elif match[2] == _THREE[0]:
            found[original] = torch.cat([tensors[f"{match[1]}.{part}.{match[3]}"] for part in _THREE])
    return found


def kept(names: Mapping[str, object]) -> Set[str]:
    """Return the names of SD3ControlNetModel's tensors that have a place in the original."""
    inner = {new for names_of in _MODULES.values() for new in names_of}
    matches = {name: _NAME.fullmatch(name) for name in names}
    return {
        name for name, match in matches.items() if name.startswith(_ALIKE) or (match is not None and match[2] in inner)
    }
