"""Writes files of weights, at once or not at all."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from disegno.core.files import write_atomically as write_atomically
from disegno.weights.stream import safetensors_bytes


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the tensors (in their dtypes) and the header's words to `path`, at once or not at all.

    The same content gives the same bytes. Raises ResourceError when the disk is full or cannot be written; the old file
    is then as it was.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(safetensors_bytes(tensors, metadata))

    write_atomically(path, write)
