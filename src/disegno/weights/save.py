"""Writes files of weights, at once or not at all."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from disegno.core.errors import RequestError
from disegno.core.files import make_folder
from disegno.core.files import write_atomically as write_atomically
from disegno.weights.stream import safetensors_bytes

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")  # by which other programs choose torch's reader
SUFFIXES = (".safetensors", ".sft", *TORCH_SUFFIXES)  # of what is written


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the tensors in the form that the suffix promises to other programs: torch's, or safetensors.

    A checkpoint of torch's has no header: the words are lost. Its folder is made where there is none. Raises
    RequestError where the suffix is none of a file of weights, and ResourceError as `save_safetensors` does.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"{path} is no name of a file of weights: end it in one of {', '.join(SUFFIXES)}.")
    make_folder(path.parent)
    if path.suffix.lower() not in TORCH_SUFFIXES:
        save_safetensors(path, tensors, metadata)
        return
    alone = {name: tensor.detach().clone() for name, tensor in tensors.items()}  # not all of the storage of a view
    write_atomically(path, lambda temporary: torch.save(alone, temporary))


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the tensors (in their dtypes) and the header's words to `path`, at once or not at all.

    The same content gives the same bytes. Raises ResourceError when the disk is full or cannot be written; the old file
    is then as it was.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(safetensors_bytes(tensors, metadata))

    write_atomically(path, write)
