"""Whether tensors have the shapes that a kind of file has; what is wrong is said with the tensor's name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from disegno.core.errors import KeyMismatch

_SHOWN = 4


def sides(name: str, tensors: Mapping[str, Tensor | tuple[int, ...]], key: str, num: int) -> tuple[int, ...]:
    """Return a tensor's shape, of `num` sides, none of them 0. Raises KeyError, and KeyMismatch about the file `name`.

    For what tells the sizes of a net, before there is a net to compare with.
    """
    given = tensors[key]
    shape = tuple(given.shape) if isinstance(given, Tensor) else given
    if len(shape) != num or 0 in shape:
        raise KeyMismatch(f"{name}: {key} is {shape}, expected {num} sides, none of them 0. Fetch the file again.")
    return shape


def clip_sizes(name: str, tensors: Mapping[str, Tensor | tuple[int, ...]]) -> tuple[int, int, int, int]:
    """Return how many words and places a CLIP text encoder knows, its width, and that of its layers' inside.

    Raises KeyMismatch about the file `name` where a tensor that tells one of them is missing, or has other sides.
    """
    try:
        words, width = sides(name, tensors, "embeddings.token_embedding.weight", 2)
        places, _ = sides(name, tensors, "embeddings.position_embedding.weight", 2)
        inside, _ = sides(name, tensors, "encoder.layers.0.mlp.fc1.weight", 2)
    except KeyError as error:
        raise KeyMismatch(f"{name} has no tensor {error}: the file is incomplete. Fetch it again.") from error
    return words, places, width, inside


def parts_of_rows(num: int, key: str, tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of a tensor, which holds several, in `num` equal parts. Raises KeyMismatch."""
    if tensor.ndim == 0 or tensor.shape[0] == 0 or tensor.shape[0] % num:
        shape = tuple(tensor.shape)
        raise KeyMismatch(f"{key} is {shape}: its rows are no {num} equal parts. Fetch the file again.")
    return tensor.chunk(num)


def joined(keys: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return tensors below each other, as one. Raises KeyMismatch where one is missing, or they do not fit."""
    if lost := [key for key in keys if key not in tensors]:
        raise KeyMismatch(f"{lost[0]} is missing, which belongs to {keys[0]}: the file is incomplete. Fetch it again.")
    shapes = {key: tuple(tensors[key].shape) for key in keys}
    if () in shapes.values() or len({shape[1:] for shape in shapes.values()}) > 1:
        told = ", ".join(f"{key} is {shape}" for key, shape in shapes.items())
        raise KeyMismatch(f"These tensors do not belong together: {told}. Fetch the file again.")
    return torch.cat([tensors[key] for key in keys])


def require_shapes(name: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise KeyMismatch about the file `name` where a tensor that is there has another shape than it should have."""
    shapes = {key: tuple(tensors[key].shape) for key in wanted if key in tensors}
    wrong = [f"{key} is {shape}, expected {wanted[key]}" for key, shape in shapes.items() if shape != wanted[key]]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise KeyMismatch(f"{name} has tensors of another shape: {', '.join(wrong[:_SHOWN])}{more}. Fetch it again.")
