"""ComfyUI's files of scaled 8-bit numbers: a weight is float8, and what it is multiplied by lies beside it.

    x.weight          float8
    x.scale_weight    one number, or one for each row; newer files call it x.weight_scale
    scaled_fp8        marks a network
    x.scale_input, x.input_scale, x.comfy_quant    for a calculation in 8 bits: not used

Source: comfy/ops.py, `scaled_fp8_ops`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from disegno.core.errors import UnknownKind

_SCALES = (".scale_weight", ".weight_scale")
_BESIDE = (*_SCALES, ".scale_input", ".input_scale", ".comfy_quant")
_MARK = "scaled_fp8"


def unscaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, each with a scale multiplied by it: bfloat16, which holds float8's digits and more.

    Files without scales come back as they are. Raises UnknownKind where a scale is of a block of numbers.
    """
    found = ((name, end) for name in tensors for end in _SCALES if name.endswith(end))
    scales = {name.removesuffix(end) + ".weight": tensors[name] for name, end in found}
    if not scales and not any(name.rpartition(".")[2] == _MARK for name in tensors):
        return dict(tensors)
    kept = {name: one for name, one in tensors.items() if not name.endswith((*_BESIDE, _MARK))}
    return {name: _times(name, one, scales[name]) if name in scales else one for name, one in kept.items()}


def _times(name: str, weight: Tensor, scale: Tensor) -> Tensor:
    if scale.numel() != 1 and scale.numel() != (len(weight) if weight.ndim else 1):
        raise UnknownKind(
            f"{name} {tuple(weight.shape)} has scales {tuple(scale.shape)}: one, or one for each row, is read here, and"
            " none for blocks (NVFP4, MXFP8). Use the model's file in float8, float16 or GGUF."
        )
    factor = scale.float().reshape(-1, *[1] * (weight.ndim - 1)) if scale.numel() > 1 else scale.float().reshape(())
    return (weight.float() * factor).to(torch.bfloat16)
