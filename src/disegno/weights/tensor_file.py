"""A file of weights, opened: an index of what lies where, and the file mapped into memory. Tensors are read on demand.

All formats of the field (safetensors, torch's zip, torch's older format, GGUF) come down to the same index, so one
reader serves them, on the one open file that was checked: a file put in its place afterwards changes nothing.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from disegno.core.errors import CorruptFile, KeyMismatch
from disegno.weights.ggml_blocks import Blocks
from disegno.weights.limits import MAX_DIM, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS
from disegno.weights.packed_tensor import PackedTensor


class Entry(NamedTuple):
    """Where one tensor lies: its storage in bytes of the file, and its view into the storage in elements.

    `packed`: how the numbers of a quantised tensor are packed; it has neither offset nor strides, and `dtype` is what
    is unpacked.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # the storage's first byte in the file
    num_bytes: int  # of the storage
    offset: int = 0
    strides: tuple[int, ...] | None = None  # None: contiguous
    packed: Blocks | None = None

    def check(self, key: str, file_bytes: int) -> None:
        """Raise CorruptFile where the view leaves its storage, the storage the file, or a number all reason."""
        numbers = (*self.shape, *(self.strides or ()), self.offset, self.start, self.num_bytes)
        sane = all(type(n) is int and 0 <= n < MAX_DIM for n in numbers) and len(self.shape) <= MAX_RANK
        if not sane or len(self.strides or self.shape) != len(self.shape):
            raise CorruptFile(f"The tensor {key[:80]!r} has an impossible shape or place: the file is damaged.")
        if self.start + self.num_bytes > file_bytes or self._needed() > self.num_bytes:
            raise CorruptFile(f"The tensor {key[:80]!r} reaches past its bytes: the file is cut short or damaged.")

    def _needed(self) -> int:
        """Return how many bytes of the storage the view needs."""
        reach = self._reach()
        return self.packed.bytes_of(reach) if self.packed else reach * self.dtype.itemsize

    def _reach(self) -> int:
        """Return how many elements of the storage the view needs; no fewer than it has, so that none is repeated."""
        count = math.prod(self.shape)
        if not count:
            return 0
        if self.strides is None:
            return self.offset + count
        reach = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return max(self.offset + reach + 1, count)


class Table(NamedTuple):
    """A table of a GGUF header's, which is read on demand: texts, or numbers of struct's kind `letter`."""

    letter: str  # "": texts
    num: int
    start: int  # of its first item, in bytes of the file


@dataclass(frozen=True)
class Contents:
    """What a file holds. `ignored`: what was not taken over, being no tensor. `tables`: of a GGUF header."""

    format: str  # safetensors, torch-zip, torch-legacy, gguf
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    ignored: tuple[str, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict[str, Table])

    def check(self) -> None:
        """Raise CorruptFile where there is no tensor, or more or longer names than any model has."""
        if not self.entries:
            raise CorruptFile("There are no tensors in this file: it is not a file of weights.")
        if len(self.entries) > MAX_TENSORS:
            raise CorruptFile(f"The file names {len(self.entries)} tensors; no model has more than {MAX_TENSORS}.")
        longest = max(self.entries, key=len)
        if len(longest.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise CorruptFile(f"A tensor's name is longer than {MAX_NAME_BYTES} bytes: {longest[:80]!r}...")


@dataclass(frozen=True)
class TensorFile:
    """An open file of weights. Tensors are views of the mapped file (private: writing to them changes no file).

    Packed ones are unpacked when they are asked for, into memory of their own; of a `lazy` file, when their numbers
    are.
    """

    path: Path
    contents: Contents
    data: mmap
    lazy: bool = False

    def lazily(self) -> "TensorFile":
        """Return the same file, whose packed tensors stay packed (`PackedTensor`), for `Memory.build`."""
        return replace(self, lazy=True)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return the header's own words (safetensors and GGUF only), text by text."""
        return self.contents.metadata

    @property
    def ignored(self) -> tuple[str, ...]:
        """Return what is in the file beside tensors."""
        return self.contents.ignored

    @property
    def num_bytes(self) -> int:
        """Return the file's size."""
        return len(self.data)

    def keys(self) -> list[str]:
        """Return the tensors' names, in the file's order."""
        return list(self.contents.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.contents.entries

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape, from the header."""
        return self._entry(key).shape

    def dtype(self, key: str) -> torch.dtype:
        """Return the dtype that a tensor is read as, from the header."""
        return self._entry(key).dtype

    def tensor(self, key: str) -> Tensor:
        """Return one tensor, on the CPU, in the file's dtype; a packed one in float16."""
        entry = self._entry(key)
        if entry.packed and math.prod(entry.shape):
            raw = torch.frombuffer(self.data, dtype=torch.uint8, count=entry.num_bytes, offset=entry.start)
            packed = PackedTensor(raw, entry.packed, entry.shape)
            return packed if self.lazy else packed.unpacked()
        count = entry.num_bytes // entry.dtype.itemsize
        if not math.prod(entry.shape):
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.start % entry.dtype.itemsize:  # a misaligned pointer is undefined behaviour: take a copy
            flat = torch.frombuffer(
                bytearray(self.data[entry.start : entry.start + entry.num_bytes]), dtype=entry.dtype
            )
        else:
            flat = torch.frombuffer(self.data, dtype=entry.dtype, count=count, offset=entry.start)
        if entry.strides is None:
            return flat[entry.offset : entry.offset + math.prod(entry.shape)].view(entry.shape)
        return flat.as_strided(entry.shape, entry.strides, entry.offset)

    def tensors(self, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return these tensors by name; all of them without `keys`."""
        return {key: self.tensor(key) for key in (self.contents.entries if keys is None else keys)}

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def sha256(self) -> str:
        """Return the hash of the file's bytes, in hex; worked out once."""
        return self._digest

    def _entry(self, key: str) -> Entry:
        try:
            return self.contents.entries[key]
        except KeyError:
            raise KeyMismatch(
                f"{self.path.name} has no tensor named {key!r}; it has {len(self.contents.entries)} others."
            ) from None

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo: the mapping lives as long as a tensor taken from it, and no descriptor stays open."""
