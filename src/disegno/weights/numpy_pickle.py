"""Arrays out of a bare pickle of nested dicts of numpy arrays, as JAX and Flax programs write them. Nothing is run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from disegno.core.errors import CorruptFile, ModelFileError, UnsafeFile
from disegno.weights.finite import require_finite
from disegno.weights.limits import MAX_DIM, MAX_PICKLE_BYTES, MAX_RANK
from disegno.weights.pickle_reader import Call, read_pickle

_DTYPES = {name: np.dtype(f"<{name}") for name in ("f2", "f4", "f8")}


@dataclass(slots=True)
class _Kind:
    """A numpy dtype that the pickle names; its state may only say that it is little-endian."""

    name: str

    def set_state(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] == "<"):
            raise CorruptFile("It has an array whose bytes are not in the usual order.")


@dataclass(slots=True)
class _Array:
    """A numpy array that the pickle makes: empty first, then filled by its state."""

    values: np.ndarray | None = None

    def set_state(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _Kind(name), bool(fortran), bytes(data)):
                self.values = _filled(cast(tuple[object, ...], shape), name, fortran, data)
            case _:
                raise CorruptFile("It has an array without shape, type or bytes.")


def _filled(shape: tuple[object, ...], name: str, fortran: bool, data: bytes) -> np.ndarray:
    sides = [side for side in shape if isinstance(side, int) and 0 <= side < MAX_DIM]
    if len(sides) != len(shape) or len(sides) > MAX_RANK or prod(sides) * _DTYPES[name].itemsize != len(data):
        raise CorruptFile("It has an array whose shape does not fit its bytes.")
    return np.frombuffer(data, _DTYPES[name]).reshape(sides, order="F" if fortran else "C")


def _kind(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (str(name), *_) if name.lstrip("<") in _DTYPES:
            return _Kind(name.lstrip("<"))
        case _:
            raise UnsafeFile(f"It has an array of {str(arguments[:1])[:40]}; numbers were expected. Nothing was run.")


_CALLS: Mapping[str, Call] = {
    "numpy.dtype": _kind,
    "numpy.core.multiarray._reconstruct": lambda _: _Array(),
    "numpy._core.multiarray._reconstruct": lambda _: _Array(),
}


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Return the file's arrays, float32, by their keys joined with dots.

    Raises ModelFileError where it cannot be opened, UnsafeFile, and CorruptFile where it holds anything else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PICKLE_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be opened ({error.strerror}). Check the path.") from error
    if len(data) > MAX_PICKLE_BYTES:
        raise UnsafeFile(f"{path.name} has more than {MAX_PICKLE_BYTES} bytes.")
    try:
        arrays = dict(_named(read_pickle(data, calls=_CALLS, max_text=MAX_PICKLE_BYTES).value))
    except ModelFileError as error:
        raise type(error)(f"{path.name}: {error}") from None
    require_finite(path.name, arrays)
    return arrays


def _named(root: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every array below a dict of dicts, with its name."""
    waiting: list[tuple[str, object]] = [("", root)]
    seen: set[int] = set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, _Array) and value.values is not None:
            yield name, torch.from_numpy(value.values.astype(np.float32, order="C"))
            continue
        if not isinstance(value, dict) or id(cast(object, value)) in seen:
            raise CorruptFile(f"{name or 'It'} is no table of arrays.")
        table = cast(dict[object, object], value)
        seen.add(id(table))
        waiting += [(f"{name}.{key}" if name else str(key), inner) for key, inner in reversed(table.items())]
