"""What tables of names do with tensors."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor


def renamed(tensors: Mapping[str, Tensor], names: Callable[[str], Sequence[str]]) -> dict[str, Tensor]:
    """Return the tensors under their new names; one that has several is cut into as many, one without is left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = names(name)
        found |= zip(new, tensor.chunk(len(new)) if len(new) > 1 else [tensor] * len(new), strict=True)
    return found
