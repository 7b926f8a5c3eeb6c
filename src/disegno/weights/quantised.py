"""Row-wise int8 weights: a quarter of the bytes of float32, and exact enough for a frozen network.

A matrix or convolution `X` is stored as int8 `X` and float16 `X.scale`, one scale for each row of its first
dimension; smaller tensors (biases, norms) are stored as float16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from disegno.core.errors import KeyMismatch

SCALE_SUFFIX = ".scale"
MIN_ELEMENTS = 4096  # below this a tensor weighs too little to be worth a scale
INT8_PEAK = 127
SMALLEST_SCALE = 2.0**-24  # float16's smallest positive number: a row of zeros divides by it


def quantise_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the stored form. Tensors that are not floating point pass unchanged."""
    stored: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            stored[key] = tensor
        elif tensor.ndim < 2 or tensor.numel() < MIN_ELEMENTS:
            stored[key] = tensor.to(torch.float16)
        else:
            rows = tensor.float().flatten(1)
            scale = (rows.abs().amax(dim=1) / INT8_PEAK).clamp_min(SMALLEST_SCALE).to(torch.float16)
            steps = (rows / scale.float()[:, None]).round().clamp(-INT8_PEAK, INT8_PEAK)
            stored[key] = steps.to(torch.int8).reshape(tensor.shape)
            stored[key + SCALE_SUFFIX] = scale
    return stored


def dequantise_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the stored tensors as float32. Integer tensors without a scale pass unchanged.

    Raises KeyMismatch where a scale has no tensor, or not a number for each of its rows.
    """
    plain: dict[str, Tensor] = {}
    scales = {key for key in tensors if key.endswith(SCALE_SUFFIX)}
    for key in scales:
        owner = key.removesuffix(SCALE_SUFFIX)
        rows = tuple(tensors[owner].shape[:1]) if owner in tensors else None
        if rows is None or tuple(tensors[key].shape) != rows:
            what = f"no tensor {owner}" if rows is None else f"not a number for each row of {owner}"
            raise KeyMismatch(f"{key} has {what} to scale: the file is damaged, or is not row-wise int8.")
    for key, tensor in tensors.items():
        if key in scales:
            continue
        if key + SCALE_SUFFIX in scales:
            scale = tensors[key + SCALE_SUFFIX].float()
            plain[key] = tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))
        else:
            plain[key] = tensor.float() if tensor.is_floating_point() else tensor
    return plain
