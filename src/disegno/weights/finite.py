"""Whether weights are numbers at all: a diverged training gives NaN, and NaN gives black pictures without a word."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from disegno.core.errors import CorruptFile


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or an infinity; integers and meta tensors never do."""
    valued = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.is_meta}
    return [name for name, tensor in valued.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype.itemsize == 1:  # float8 has no arithmetic
        tensor = tensor.to(torch.float32)
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())  # a sum may overflow and be sound


def require_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise CorruptFile naming the tensors of the file `name` that hold NaN or an infinity."""
    refuse_not_finite(name, not_finite(tensors), len(tensors))


def refuse_not_finite(name: str, bad: Sequence[str], num: int) -> None:
    """Raise CorruptFile about the file `name` where some of its `num` tensors are bad."""
    if bad:
        shown = ", ".join(bad[:4]) + (", ..." if len(bad) > 4 else "")
        raise CorruptFile(
            f"{name} holds NaN or infinite numbers in {len(bad)} of {num} tensors: {shown}. "
            "Its training diverged or the file is damaged: use an earlier checkpoint, or fetch it again."
        )
