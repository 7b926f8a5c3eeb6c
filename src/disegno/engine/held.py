"""How much memory what is open holds on a device: a model, a control."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from disegno.weights.packed_tensor import PackedTensor

_OTHERS = ("backbone", "base")  # what a control stands on: open, and counted, by itself


def held_bytes(value: object, device: torch.device) -> int:
    """Return how many bytes the tensors of a value take on a device, each piece of memory once.

    Looked at are its networks, and what lies in its fields, if need be in mappings and sequences.
    """
    found = {_place(tensor): _size(tensor) for tensor in _tensors(value) if tensor.device.type == device.type}
    return sum(found.values())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
        for part in value.modules():
            yield from (own for own in vars(part).values() if isinstance(own, Tensor))  # packed for oneDNN
    elif isinstance(value, Mapping):
        for inner in list(value.values()):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            yield from _tensors(inner)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list | tuple):
        for inner in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _tensors(inner)  # pyright: ignore[reportUnknownArgumentType]
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            if each.name not in _OTHERS:
                yield from _tensors(getattr(value, each.name))


def _place(tensor: Tensor) -> object:
    """Return what tensors of the same memory have in common."""
    if isinstance(tensor, PackedTensor):
        return _place(tensor.blocks)
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _size(tensor: Tensor) -> int:
    if isinstance(tensor, PackedTensor):
        return _size(tensor.blocks)
    return tensor.numel() * tensor.element_size() if tensor.is_mkldnn else tensor.untyped_storage().nbytes()
