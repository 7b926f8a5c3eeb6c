"""The tensors of OpenCLIP's text towers and those of transformers' CLIPTextModel.

    original                                    here
    token_embedding.weight                      embeddings.token_embedding.weight
    positional_embedding                        embeddings.position_embedding.weight
    transformer.resblocks.n.ln_1 / .ln_2        encoder.layers.n.layer_norm1 / .layer_norm2
    ....attn.in_proj_weight, .in_proj_bias      ....self_attn.{q,k,v}_proj: one after the other in the original
    ....attn.out_proj                           ....self_attn.out_proj
    ....mlp.c_fc / .c_proj                      ....mlp.fc1 / .fc2
    ln_final                                    final_layer_norm

    text_projection                             text_projection.weight, transposed (SDXL; others do not use it)

Source: Ilharco et al. 2021, open_clip. What else lies beside the tower (`logit_scale`) is left out.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from disegno.weights.shapes import joined, parts_of_rows

_PROJECTION, _PROJECTION_HERE = "text_projection", "text_projection.weight"
PREFIX = "cond_stage_model.model."  # in a Stable Diffusion 2.x file
SGM_PREFIX = "conditioner.embedders.0.model."  # in SD-Turbo's, which a later program of the authors' wrote
_ENDS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BACK = {new: old for old, new in _IN_LAYER.items()}
_THREE = ("q_proj", "k_proj", "v_proj")
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_NEW_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def num_layers(names: Mapping[str, object]) -> int:
    """Return how many layers a tower with these original names has."""
    return 1 + max((int(match[1]) for name in names if (match := _LAYER.fullmatch(name))), default=-1)


def from_openclip(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return the first `layers` layers and the ends, by CLIPTextModel's names, bit by bit. `tensors`: no prefix."""
    found = {new: tensors[old] for old, new in _ENDS.items() if old in tensors}
    for name, tensor in tensors.items():
        fused, plain = _FUSED.fullmatch(name), _LAYER.fullmatch(name)
        if fused and int(fused[1]) < layers:
            parts = zip(_THREE, parts_of_rows(3, name, tensor), strict=True)
            found |= {f"encoder.layers.{fused[1]}.self_attn.{part}.{fused[2]}": some for part, some in parts}
        elif plain and int(plain[1]) < layers and plain[2] in _IN_LAYER:
            found[f"encoder.layers.{plain[1]}.{_IN_LAYER[plain[2]]}.{plain[3]}"] = tensor
    return found


CONVERTED_LAYERS = 23  # of files that were made from diffusers' folders: without the layer that is never used


def used(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Stable Diffusion 2's text encoder: the tower without its last layer, by CLIPTextModel's names.

    The penultimate layer is what the UNet attends to (Rombach et al. 2022, the model card).
    """
    return from_openclip(tensors, _num_used(tensors))


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SDXL's text encoder: all of the tower and its projection, by CLIPTextModelWithProjection's names."""
    found = from_openclip(tensors, num_layers(tensors))
    if (turned := tensors.get(_PROJECTION_HERE)) is not None:  # as some merging programs write it
        found[_PROJECTION_HERE] = turned
    if (projection := tensors.get(_PROJECTION)) is not None:
        found[_PROJECTION_HERE] = projection.T.contiguous()
    return found


def from_whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the original's tensors of a tower and its projection, bit by bit: the inverse of `whole`."""
    found = to_openclip(tensors, spare_layer=False)
    if (projection := tensors.get(_PROJECTION_HERE)) is not None:
        found[_PROJECTION] = projection.T.contiguous()
    return found


def whole_names(names: Mapping[str, object]) -> list[str]:
    """Return the original names of what `whole` takes."""
    layers = ((name, _LAYER.fullmatch(name)) for name in names)
    in_layers = [name for name, match in layers if match and match[2] in _IN_LAYER]
    return [
        *in_layers,
        *(name for name in names if name in (*_ENDS, _PROJECTION, _PROJECTION_HERE) or _FUSED.fullmatch(name)),
    ]


def used_names(names: Mapping[str, object]) -> list[str]:
    """Return the original names of what `used` takes."""
    last = _num_used(names)
    layers = ((name, _LAYER.fullmatch(name) or _FUSED.fullmatch(name)) for name in names)
    return [name for name, match in layers if (int(match[1]) < last if match else name in _ENDS)]


def _num_used(names: Mapping[str, object]) -> int:
    num = num_layers(names)
    return num if num == CONVERTED_LAYERS else num - 1


def to_openclip(tensors: Mapping[str, Tensor], spare_layer: bool = True) -> dict[str, Tensor]:
    """Return the original's tensors, bit by bit: the inverse of `from_openclip`.

    `spare_layer`: write the last layer twice. The original has one that is never used, of which nothing is known here.
    """
    back = {new: old for old, new in _ENDS.items()}
    found = {back[name]: tensor for name, tensor in tensors.items() if name in back}
    layers: set[int] = set()
    for name, tensor in tensors.items():
        match = _NEW_LAYER.fullmatch(name)
        if match is None:
            continue
        layers.add(int(match[1]))
        stem, end = f"transformer.resblocks.{match[1]}", match[3]
        if match[2] in _BACK:
            found[f"{stem}.{_BACK[match[2]]}.{end}"] = tensor
        elif match[2].removeprefix("self_attn.") in _THREE and f"{stem}.attn.in_proj_{end}" not in found:
            three = [f"encoder.layers.{match[1]}.self_attn.{part}.{end}" for part in _THREE]
            found[f"{stem}.attn.in_proj_{end}"] = joined(three, tensors)
    if spare_layer and layers:
        last = f"transformer.resblocks.{max(layers)}."
        spare = f"transformer.resblocks.{max(layers) + 1}."
        found |= {name.replace(last, spare): tensor for name, tensor in found.items() if name.startswith(last)}
    return found
