"""A tensor whose numbers stay in ggml's blocks until they are asked for: a quarter or half of their memory.

It is a tensor to everybody: what is worked out with it is worked out with its numbers, which are unpacked for that
and given back. Only what moves it, copies it, or takes whole rows of it, gives a packed one again.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from disegno.weights.ggml_blocks import UNPACKED, Blocks


class PackedTensor(Tensor):
    """A frozen tensor of packed numbers. `blocks`: their bytes (uint8, flat); `how`: how they are packed.

    `dtype` is what its numbers are given as; they are rounded to float16 first, as those of a file that is unpacked.
    """

    blocks: Tensor
    how: Blocks

    def __new__(cls, blocks: Tensor, how: Blocks, shape: Sequence[int], dtype: torch.dtype = UNPACKED) -> Self:
        with torch.inference_mode(False):  # made in it, it could not be what `detach` gives back of another
            made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportUnknownVariableType]
                cls, tuple(shape), dtype=dtype, device=blocks.device
            )
        made.blocks, made.how = blocks, how
        return made  # pyright: ignore[reportUnknownVariableType]

    def __init__(self, blocks: Tensor, how: Blocks, shape: Sequence[int], dtype: torch.dtype = UNPACKED) -> None:
        super().__init__()

    @property
    def packed_bytes(self) -> int:
        """How much memory the blocks take."""
        return self.blocks.numel()

    def unpacked(self) -> Tensor:
        """Return the numbers, in memory of their own."""
        return self.how.unpacked(self.blocks).view(self.shape).to(self.dtype)

    def like(
        self,
        blocks: Tensor | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "PackedTensor":
        """Return a packed tensor like this one: of other blocks and another shape, elsewhere, of another dtype."""
        own = self.blocks if blocks is None else blocks
        return PackedTensor(
            own if device is None else own.to(device), self.how, shape or self.shape, dtype or self.dtype
        )

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Blocks, torch.Size, torch.dtype]]:
        """Return what it is made of: then `nn.Module.to` changes its places whole, and not its outside alone."""
        return ["blocks"], (self.how, self.shape, self.dtype)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], told: tuple[Blocks, torch.Size, torch.dtype], _size: Any, _stride: Any
    ) -> "PackedTensor":
        how, shape, dtype = told
        return PackedTensor(inner["blocks"], how, shape, dtype)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MADE_OF_OTHERS:
            return func.decompose(*args, **kwargs)
        if func in _STAYING and (made := _STAYING[func](*args, **kwargs)) is not None:
            return made
        assert not func._schema.is_mutable, f"packed weights are frozen: {func} would change them"
        if func.is_view:  # of the numbers: torch takes it for one of ours, which it refuses of what inference mode made
            with torch.inference_mode(False), torch.no_grad():
                return func(*_unpacked(args), **_unpacked(kwargs))
        return func(*_unpacked(args), **_unpacked(kwargs))


def plain(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the tensor unpacked, its numbers as `dtype`; one that is not packed as it is."""
    return tensor.like(dtype=dtype).unpacked() if isinstance(tensor, PackedTensor) else tensor


def _unpacked(values: Any) -> Any:
    return tree_map_only(PackedTensor, PackedTensor.unpacked, values)


def _same(tensor: PackedTensor, **_: Any) -> PackedTensor:
    return tensor.like()


def _moved(
    tensor: PackedTensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any
) -> PackedTensor | None:
    if dtype is not None and not dtype.is_floating_point:
        return None
    return tensor.like(device=device, dtype=dtype)


def _split(tensor: PackedTensor, rows: int, dim: int = 0) -> list[PackedTensor] | None:
    """Return a tensor's rows, so many at a time; None where they are no whole blocks."""
    row = math.prod(tensor.shape[1:])
    if dim not in (0, -tensor.ndim) or not row or row % tensor.how.num_values:
        return None
    parts = tensor.blocks.split(rows * tensor.how.bytes_of(row))
    return [tensor.like(part, (len(part) // tensor.how.bytes_of(row), *tensor.shape[1:])) for part in parts]


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> PackedTensor | None:
    """Return tensors below each other; None where they are not packed alike."""
    packed = [tensor for tensor in tensors if isinstance(tensor, PackedTensor)]
    first = packed[0]
    alike = [each for each in packed if each.how is first.how and each.shape[1:] == first.shape[1:]]
    if dim not in (0, -first.ndim) or len(alike) < len(tensors):
        return None
    rows = sum(len(each) for each in alike)
    return first.like(torch.cat([each.blocks for each in alike]), (rows, *first.shape[1:]))


_aten = torch.ops.aten
_STAYING: dict[Any, Callable[..., Any]] = {
    _aten.detach.default: _same,
    _aten.alias.default: _same,
    _aten.clone.default: _same,
    _aten._to_copy.default: _moved,
    _aten.split.Tensor: _split,
    _aten.cat.default: _joined,
}
# What arrives as it was called in inference mode only: elsewhere torch has taken it apart before.
_MADE_OF_OTHERS = {_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout, _aten.chunk.default}
