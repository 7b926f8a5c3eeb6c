"""The tensors of MiDaS's DPT-hybrid as they lie in Stable Diffusion 2's depth model, and transformers' names.

    original (behind `depth_model.model.`)          here
    pretrained.model.patch_embed.backbone.stem      dpt.embeddings.backbone.bit.embedder: conv is convolution
    ....patch_embed.backbone.stages.i.blocks.j      ....bit.encoder.stages.i.layers.j
    ....patch_embed.proj, .cls_token, .pos_embed    dpt.embeddings.projection, .cls_token, .position_embeddings
    pretrained.model.blocks.i                       dpt.encoder.layer.i; queries, keys, values one after the other
    pretrained.model.norm                           dpt.layernorm
    pretrained.act_postprocess3 / 4                 neck.reassemble_stage, its layers 2 and 3
    scratch.layerN_rn                               neck.convs.(N - 1)
    scratch.refinenetN                              neck.fusion_stage.layers.(4 - N)
    scratch.output_conv                             head.head

Ranftl et al. 2021. What classifies (`pretrained.model.head`) has no place.
"""

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from disegno.weights.keys._renaming import renamed

PREFIX = "depth_model.model."
_LAYER = {
    "norm1": ("layernorm_before",),
    "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
_FIXED = {
    "pretrained.model.patch_embed.backbone.stem.conv": "dpt.embeddings.backbone.bit.embedder.convolution",
    "pretrained.model.patch_embed.backbone.stem.norm": "dpt.embeddings.backbone.bit.embedder.norm",
    "pretrained.model.patch_embed.proj": "dpt.embeddings.projection",
    "pretrained.model.norm": "dpt.layernorm",
    "pretrained.act_postprocess4.4": "neck.reassemble_stage.layers.3.resize",
    **{f"pretrained.act_postprocess{n}.0.project.0": f"neck.reassemble_stage.readout_projects.{n - 1}.0"
       for n in (3, 4)},
    **{f"pretrained.act_postprocess{n}.3": f"neck.reassemble_stage.layers.{n - 1}.projection" for n in (3, 4)},
    **{f"scratch.layer{n}_rn": f"neck.convs.{n - 1}" for n in (1, 2, 3, 4)},
    **{f"scratch.output_conv.{n}": f"head.head.{n}" for n in (0, 2, 4)},
    **{f"scratch.refinenet{n}.out_conv": f"neck.fusion_stage.layers.{4 - n}.projection" for n in (1, 2, 3, 4)},
    **{f"scratch.refinenet{n}.resConfUnit{unit}.conv{k}":
       f"neck.fusion_stage.layers.{4 - n}.residual_layer{unit}.convolution{k}"
       for n in (1, 2, 3, 4) for unit in (1, 2) for k in (1, 2)},
}  # fmt: skip
_WHOLE = {
    "pretrained.model.cls_token": "dpt.embeddings.cls_token",
    "pretrained.model.pos_embed": "dpt.embeddings.position_embeddings",
}
_STAGE = re.compile(r"pretrained\.model\.patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(.+)")
_BLOCK = re.compile(r"pretrained\.model\.blocks\.(\d+)\.(.+)\.(weight|bias)")
_NEW_STAGE = re.compile(r"dpt\.embeddings\.backbone\.bit\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)")
_NEW_BLOCK = re.compile(r"dpt\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_FROM_LAYER = {new: old for old, names in _LAYER.items() for new in names}
_FROM_FIXED = {new: old for old, new in _FIXED.items()}
_FROM_WHOLE = {new: old for old, new in _WHOLE.items()}
_HEAD_WIDTH, _PATCH = 64, 16  # of ViT-B
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "DPTImageProcessor",
    "do_resize": True,
    "resample": 2,
    "ensure_multiple_of": 1,
    "keep_aspect_ratio": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""How a picture is prepared, but for its size: the published folder's, which the original resizes alike but keeps its
shape."""


def _names(name: str) -> tuple[str, ...]:
    """Return where an original tensor goes, its parts in their order; () for what has no place."""
    if name in _WHOLE:
        return (_WHOLE[name],)
    if match := _STAGE.fullmatch(name):
        return (f"dpt.embeddings.backbone.bit.encoder.stages.{match[1]}.layers.{match[2]}.{match[3]}",)
    if match := _BLOCK.fullmatch(name):
        return tuple(f"dpt.encoder.layer.{match[1]}.{new}.{match[3]}" for new in _LAYER.get(match[2], ()))
    module, _, end = name.rpartition(".")
    return (f"{_FIXED[module]}.{end}",) if module in _FIXED else ()


def from_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names of DPTForDepthEstimation. `tensors`: no prefix."""
    return renamed(tensors, _names)


def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the original's tensors: the inverse of `from_original`. Those without a place are left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        old = _original(name)
        if old is None:
            continue
        new = _names(old)
        if name == new[0] and all(part in tensors for part in new):
            found[old] = tensor if len(new) == 1 else torch.cat([tensors[part] for part in new])
    return found


def _original(name: str) -> str | None:
    """Return where a tensor of DPTForDepthEstimation's comes from."""
    module, _, end = name.rpartition(".")
    if match := _NEW_STAGE.fullmatch(name):
        return f"pretrained.model.patch_embed.backbone.stages.{match[1]}.blocks.{match[2]}.{match[3]}"
    if (match := _NEW_BLOCK.fullmatch(name)) and match[2] in _FROM_LAYER:
        return f"pretrained.model.blocks.{match[1]}.{_FROM_LAYER[match[2]]}.{match[3]}"
    if name in _FROM_WHOLE:
        return _FROM_WHOLE[name]
    return f"{_FROM_FIXED[module]}.{end}" if module in _FROM_FIXED else None


def placed(names: Mapping[str, object]) -> Set[str]:
    """Return the original names that have a place."""
    return {name for name in names if _names(name)}


def kept(names: Mapping[str, object]) -> Set[str]:
    """Return the names of DPTForDepthEstimation's tensors that have a place in the original."""
    return {name for name in names if _original(name) is not None}


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return DPTConfig's fields from the shapes of tensors by its names. Raises KeyError where one is missing."""
    hidden, feature = shapes["dpt.embeddings.projection.weight"][:2]
    side = round((shapes["dpt.embeddings.position_embeddings"][1] - 1) ** 0.5)
    layers = _count(shapes, r"dpt\.encoder\.layer\.(\d+)\.")
    return {
        "architectures": ["DPTForDepthEstimation"],
        "model_type": "dpt",
        "is_hybrid": True,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // _HEAD_WIDTH),
        "intermediate_size": shapes["dpt.encoder.layer.0.intermediate.dense.weight"][0],
        "image_size": side * _PATCH,
        "patch_size": _PATCH,
        "backbone_featmap_shape": [1, feature, side, side],
        "backbone_out_indices": [2, 5, layers * 3 // 4 - 1, layers - 1],  # the first two come from the stages
        "neck_hidden_sizes": [shapes[f"neck.convs.{n}.weight"][1] for n in range(4)],
        "fusion_hidden_size": shapes["neck.convs.0.weight"][0],
        "reassemble_factors": [1, 1, 1, 0.5],
        "backbone_config": _stages_of(shapes),
    }


def _stages_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return BitConfig's fields likewise."""
    start = "dpt.embeddings.backbone.bit"
    num = _count(shapes, re.escape(start) + r"\.encoder\.stages\.(\d+)\.")
    return {
        "model_type": "bit",
        "embedding_size": shapes[f"{start}.embedder.convolution.weight"][0],
        "hidden_sizes": [shapes[f"{start}.encoder.stages.{s}.layers.0.conv3.weight"][0] for s in range(num)],
        "depths": [_count(shapes, re.escape(f"{start}.encoder.stages.{s}.layers.") + r"(\d+)\.") for s in range(num)],
        "layer_type": "bottleneck",
        "global_padding": "SAME",
        "embedding_dynamic_padding": True,
        "out_features": [f"stage{s + 1}" for s in range(num)],
    }


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)
