"""Tensors as the bytes of a safetensors file, piece by piece: the same bytes every time, and never all in memory.

The format's own library writes the header's words in another order in every process, so that two files of the same
content had different hashes; and it says "full disk" as text. Format: see `safetensors_file.py`.
"""

import json
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from disegno.core.errors import KeyMismatch
from disegno.weights.safetensors_file import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield a file's bytes: the header, then each tensor's (its dtype is kept). Raises KeyMismatch for other dtypes."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # wide ones first: all are aligned
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise KeyMismatch(f"{name} is {tensor.dtype}, which safetensors has no name for. Convert it first.")
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield _bytes_of(tensors[name])


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, of its elements in order; without a copy where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
