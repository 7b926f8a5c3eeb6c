"""What a checkpoint's pickle may hold beside plain Python values: names and places, none of which can do anything."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True, slots=True)
class Name:
    """A name in the pickle, never resolved."""

    text: str


@dataclass(frozen=True, slots=True)
class Inert:
    """What a placeholder's call gives: it only remembers of what."""

    text: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of elements elsewhere in the file, by its key there."""

    dtype: torch.dtype
    key: str
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Return its length."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor: a view of a storage. Its numbers are checked against the file by whoever opens it."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unpickled:
    """A pickle's value, where it ends, and every storage that it points to, by key."""

    value: object
    end: int
    storages: dict[str, StorageRef]


@runtime_checkable
class Stateful(Protocol):
    """A value that a pickle may give a state to; it runs nothing of it."""

    def set_state(self, state: object) -> None: ...


class Parameters(dict[str, object]):
    """A torch ParameterDict: filled by the `_parameters` of its state."""
