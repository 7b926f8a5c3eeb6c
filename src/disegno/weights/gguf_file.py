"""GGUF, the format of llama.cpp and of ComfyUI-GGUF, read strictly: its header, words and table of tensors.

    "GGUF", version (u32), number of tensors (u64), number of words (u64)
    words: key (text), type (u32), value            text: length (u64), that many bytes of UTF-8
    tensors: name (text), axes (u32), sides (u64 each, the innermost first), type (u32), place (u64)
    padding to a multiple of general.alignment (32), from where places are counted; after each tensor again

Little-endian. Source: ggml's docs/gguf.md. A tensor that had to be reshaped before it was packed has its own shape in
the word `comfy.gguf.orig_shape.NAME` (facts of ComfyUI-GGUF's tools/convert.py). Packed numbers: see `ggml_blocks.py`.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

from disegno.core.errors import CorruptFile, UnsafeFile
from disegno.weights.ggml_blocks import OTHERS, PACKED, PLAIN, UNPACKED
from disegno.weights.limits import MAX_DICT_ITEMS, MAX_DIM, MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS
from disegno.weights.tensor_file import Contents, Entry, Table, TensorFile

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT, _MAX_ALIGNMENT = 32, 1 << 16
_ALIGNMENT_KEY, _SHAPE_KEY = "general.alignment", "comfy.gguf.orig_shape."
_PARTS_KEY = "split.count"
_BOOL, _TEXT, _ARRAY = 7, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_INTEGERS = "BbHhIiQq"
_LENGTH = struct.Struct("<Q")


def looks_like(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is GGUF."""
    return head.startswith(_MAGIC)


def read(data: mmap) -> Contents:
    """Return what the header says. Raises UnsafeFile or CorruptFile."""
    cursor = _Cursor(data)
    num_tensors, num_words = _counts(cursor)
    words = _Words()
    for _ in range(num_words):
        words.add(cursor)
    infos = dict[str, _Info]()
    for _ in range(num_tensors):
        name, info = _info(cursor)
        if name in infos:
            raise CorruptFile(f"It names the tensor {name[:80]!r} twice; readers would differ about which one counts.")
        infos[name] = info
    if (num := words.texts.get(_PARTS_KEY, "1")) not in ("0", "1"):
        raise CorruptFile(f"It is one of {num} parts of a model. Join them with llama.cpp's gguf-split --merge.")
    body = _padded(cursor.at, words.alignment)
    if strange := next((name for name in words.shapes if name not in infos), None):
        raise CorruptFile(f"It tells the shape of {strange[:80]!r}, which it does not have: the file is damaged.")
    entries = {name: _entry(name, info, words.shapes.get(name), body) for name, info in infos.items()}
    _check_places(entries, body, words.alignment, len(data))
    left = tuple(f"{key[:MAX_NAME_BYTES]}: a table of {table.num}" for key, table in words.tables.items())
    return Contents("gguf", entries, words.texts, left, words.tables)


def texts_of(file: TensorFile, key: str) -> list[str]:
    """Return a table of texts of an open file; [] where there is none of this name. Raises CorruptFile."""
    table = file.contents.tables.get(key)
    if table is None or table.letter:
        return []
    cursor = _Cursor(file.data, table.start)
    return [cursor.text() for _ in range(table.num)]


def numbers_of(file: TensorFile, key: str) -> Sequence[float]:
    """Return a table of numbers of an open file; () where there is none of this name."""
    table = file.contents.tables.get(key)
    if table is None or not table.letter:
        return ()
    return struct.unpack_from(f"<{table.num}{table.letter}", file.data, table.start)


@dataclass
class _Cursor:
    """Where the header is being read. Nothing is read behind its end, or behind what a header may have."""

    data: mmap
    at: int = len(_MAGIC)

    def skip(self, num_bytes: int) -> int:
        """Return where the next bytes begin, and go behind them. Raises CorruptFile, UnsafeFile."""
        begin, self.at = self.at, self.at + num_bytes
        if self.at > len(self.data):
            raise CorruptFile(f"Its header needs {self.at} bytes, the file has {len(self.data)}: it is cut short.")
        if self.at > MAX_HEADER_BYTES:
            raise UnsafeFile(f"Its header claims more than the {MAX_HEADER_BYTES} bytes that are read.")
        return begin

    def number(self, kind: str) -> Any:
        """Return the next number, of struct's kind."""
        return struct.unpack_from(f"<{kind}", self.data, self.skip(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        """Return the next text. Raises CorruptFile where it is no UTF-8."""
        num_bytes = int(self.number("Q"))
        begin = self.skip(num_bytes)
        try:
            return self.data[begin : begin + num_bytes].decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFile(f"A text at byte {begin} of its header is not UTF-8: the file is damaged.") from None

    def skip_texts(self, count: int) -> None:
        """Go behind so many texts. A vocabulary has tens of thousands: they are not looked at."""
        for _ in range(count):
            self.skip(_LENGTH.unpack_from(self.data, self.skip(_LENGTH.size))[0])


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """Return how many tensors and words there are."""
    version = int(cursor.number("I"))
    if version and not version & 0xFFFF:
        raise CorruptFile("It was written on a big-endian machine. Convert it to safetensors there.")
    if version not in _VERSIONS:
        raise CorruptFile(f"It is GGUF of version {version}; versions 2 and 3 are read. Fetch it as one of these.")
    num_tensors, num_words = int(cursor.number("Q")), int(cursor.number("Q"))
    if num_tensors > MAX_TENSORS:
        raise UnsafeFile(f"Its header names {num_tensors} tensors; no model has more than {MAX_TENSORS}.")
    if num_words > MAX_DICT_ITEMS:
        raise UnsafeFile(f"Its header has {num_words} words; no model has more than {MAX_DICT_ITEMS}.")
    return num_tensors, num_words


@dataclass
class _Words:
    """What the header says beside its tensors. `shapes`: of reshaped tensors; `tables`: the others, not looked at."""

    texts: dict[str, str] = field(default_factory=dict[str, str])
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    tables: dict[str, Table] = field(default_factory=dict[str, Table])
    alignment: int = _ALIGNMENT
    seen: set[str] = field(default_factory=set[str])

    def add(self, cursor: _Cursor) -> None:
        """Read one word. Raises CorruptFile."""
        key, kind = cursor.text(), int(cursor.number("I"))
        if key in self.seen:
            raise CorruptFile(f"Its header says {key[:80]!r} twice; readers would differ about which one counts.")
        self.seen.add(key)
        value: object = None
        if kind == _ARRAY:
            self._add_table(key, cursor)
        elif kind == _TEXT or kind in _NUMBERS:
            value = cursor.text() if kind == _TEXT else cursor.number(_NUMBERS[kind])
            self.texts[key] = str(value)
        else:
            raise CorruptFile(f"Its header's word {key[:80]!r} is of an unknown type, {kind}: the file is damaged.")
        if key == _ALIGNMENT_KEY:
            self.alignment = _alignment(value)

    def _add_table(self, key: str, cursor: _Cursor) -> None:
        kind, count = int(cursor.number("I")), int(cursor.number("Q"))
        letter, begin = _NUMBERS.get(kind, ""), cursor.at
        if kind == _TEXT:
            cursor.skip_texts(count)
        elif kind in _NUMBERS:
            cursor.skip(count * struct.calcsize(f"<{letter}"))
            if key.startswith(_SHAPE_KEY) and letter in _INTEGERS:
                self.shapes[key.removeprefix(_SHAPE_KEY)] = _sides(key, cursor.data, begin, letter, count)
                return
        else:
            raise CorruptFile(f"Its header's table {key[:80]!r} holds things of the type {kind}, which is none.")
        if key.startswith(_SHAPE_KEY):
            raise CorruptFile(f"Its header's {key[:120]!r} is no table of whole numbers: the file is damaged.")
        self.tables[key] = Table(letter, count, begin)


def _alignment(value: object) -> int:
    if type(value) is not int or not 8 <= value <= _MAX_ALIGNMENT or value & value - 1:
        raise CorruptFile(
            f"Its {_ALIGNMENT_KEY} is {value!r}; a power of two from 8 to {_MAX_ALIGNMENT} was expected: the file is"
            " damaged or forged."
        )
    return value


def _sides(key: str, data: mmap, begin: int, letter: str, count: int) -> tuple[int, ...]:
    if not 0 < count <= MAX_RANK:
        raise CorruptFile(f"Its header's {key[:120]!r} has {count} sides; a tensor has 1 to {MAX_RANK}.")
    return struct.unpack_from(f"<{count}{letter}", data, begin)


@dataclass(frozen=True)
class _Info:
    """A tensor in the table: its sides, the outermost first; ggml's number of its type; where it begins."""

    shape: tuple[int, ...]
    kind: int
    place: int


def _info(cursor: _Cursor) -> tuple[str, _Info]:
    name, num_axes = cursor.text(), int(cursor.number("I"))
    if num_axes > MAX_RANK or len(name.encode()) > MAX_NAME_BYTES:
        raise CorruptFile(
            f"The tensor {name[:80]!r} has {num_axes} axes; at most {MAX_RANK} are read, and names of up to"
            f" {MAX_NAME_BYTES} bytes."
        )
    sides = tuple(int(cursor.number("Q")) for _ in range(num_axes))
    return name, _Info(sides[::-1], int(cursor.number("I")), int(cursor.number("Q")))


def _entry(name: str, info: _Info, original: tuple[int, ...] | None, body: int) -> Entry:
    """Return where a tensor lies. `original`: its shape before it was reshaped to be packed."""
    shape, count = info.shape, math.prod(info.shape)
    if any(side >= MAX_DIM for side in shape) or count >= MAX_DIM or info.place >= MAX_DIM:
        raise CorruptFile(f"The tensor {name[:80]!r} has an impossible shape or place: the file is damaged or forged.")
    if original is not None and (min(original) < 0 or math.prod(original) != count):
        raise CorruptFile(f"The tensor {name[:80]!r} of shape {shape} was never of the shape {original}, as is told.")
    told, start = original or shape, body + info.place
    if (dtype := PLAIN.get(info.kind)) is not None:
        return Entry(dtype, told, start, count * dtype.itemsize)
    if (packed := PACKED.get(info.kind)) is None:
        known = ", ".join([*("F32", "F16", "BF16"), *(one.name for one in PACKED.values())])
        kind = OTHERS.get(info.kind, f"number {info.kind}")
        raise CorruptFile(f"The tensor {name[:80]!r} is of type {kind}; this program reads {known}.")
    if not shape or shape[-1] % packed.num_values:
        raise CorruptFile(
            f"The tensor {name[:80]!r} of shape {shape} cannot be of type {packed.name}, whose rows are multiples of"
            f" {packed.num_values}: the file is damaged."
        )
    return Entry(UNPACKED, told, start, packed.bytes_of(count), packed=packed)


def _padded(at: int, alignment: int) -> int:
    return at + -at % alignment


def _check_places(entries: dict[str, Entry], body: int, alignment: int, file_bytes: int) -> None:
    """Raise CorruptFile unless the tensors fill the file: each at its place behind the one before it, none outside."""
    end = body
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if entry.start != _padded(end, alignment):
            raise CorruptFile(
                f"The tensor {name[:80]!r} begins at byte {entry.start}, not {_padded(end, alignment)}: the header is"
                " damaged or forged."
            )
        end = entry.start + entry.num_bytes
    if not end <= file_bytes <= _padded(end, alignment):
        what = "cut short" if end > file_bytes else "followed by other bytes"
        raise CorruptFile(f"The file has {file_bytes} bytes, its header describes {end}: it is {what}. Fetch it again.")
