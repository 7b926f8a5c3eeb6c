"""GGUF files for tests: written word by word and tensor by tensor, sound or not, with numbers packed as ggml does.

What is written, and where, follows ggml's docs/gguf.md; how numbers are packed, its `quantize_row_*_ref`. The K types
are not worked out but drawn: every pattern of bits is some numbers.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

F32, F16, Q4_0, Q8_0, Q4_K, BF16 = 0, 1, 2, 8, 12, 30
SIZES = {2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84), 11: (256, 110),
         12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136)}  # fmt: skip
SCALES = {2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 8: (0,), 10: (80, 82), 11: (108,), 12: (0, 2), 13: (0, 2),
          14: (208,), 20: (0,), 23: (0,)}  # fmt: skip
Word = str | int | float | bool | Sequence[int] | Sequence[float] | Sequence[str]
_PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor as it is written: its shape, the outermost side first; ggml's number of its type; its bytes."""

    shape: tuple[int, ...]
    kind: int
    data: bytes


def text(value: str | bytes) -> bytes:
    """Return a text as GGUF has it."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def word(key: str | bytes, value: Word) -> bytes:
    """Return a word of the header."""
    return text(key) + _value(value)


def _value(value: Word) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    kind, letter = {str: (8, ""), float: (6, "f")}.get(type(value[0]) if value else int, (5, "i"))
    items = [text(item) if isinstance(item, str) else struct.pack(f"<{letter}", item) for item in value]
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)


def info(name: str | bytes, stored: Stored, place: int) -> bytes:
    """Return a tensor's line in the table."""
    sides = struct.pack(f"<I{len(stored.shape)}Q", len(stored.shape), *reversed(stored.shape))
    return text(name) + sides + struct.pack("<IQ", stored.kind, place)


def header(num_tensors: int, num_words: int, version: int = 3) -> bytes:
    """Return the first 24 bytes."""
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_words)


def file(tensors: Mapping[str, Stored], words: Mapping[str, Word] | None = None, alignment: int = 32) -> bytes:
    """Return a sound file. `alignment` is told where it is not the usual one."""
    told = dict(words or {}) | ({"general.alignment": alignment} if alignment != 32 else {})
    table, body = b"", b""
    for name, stored in tensors.items():
        table += info(name, stored, len(body))
        body += stored.data + bytes(-len(stored.data) % alignment)
    head = header(len(tensors), len(told)) + b"".join(word(key, value) for key, value in told.items()) + table
    return head + bytes(-len(head) % alignment) + body


def plain(tensor: Tensor, kind: int = F32) -> Stored:
    """Return a tensor's numbers as they are."""
    flat = tensor.to(_PLAIN[kind]).contiguous().reshape(-1)
    return Stored(tuple(tensor.shape), kind, flat.view(torch.uint8).numpy().tobytes())


def _scaled(rows: NDArray[np.float32], steps: float) -> tuple[bytes, NDArray[np.float32]]:
    scales = (np.abs(rows).max(1, keepdims=True) / steps).astype(np.float16)
    return scales.tobytes(), rows / np.maximum(scales.astype(np.float32), 1e-12)


def _in_eight(rows: NDArray[np.float32]) -> list[bytes]:
    scales, numbers = _scaled(rows, 127)
    found = np.clip(np.round(numbers), -127, 127).astype(np.int8)
    return [scales[2 * i : 2 * i + 2] + row.tobytes() for i, row in enumerate(found)]


def _in_four(rows: NDArray[np.float32]) -> list[bytes]:
    scales, numbers = _scaled(rows, 7)
    found = (np.clip(np.round(numbers), -8, 7) + 8).astype(np.uint8)
    halves = found[:, :16] | found[:, 16:] << 4
    return [scales[2 * i : 2 * i + 2] + row.tobytes() for i, row in enumerate(halves)]


_PACKERS: dict[int, Callable[[NDArray[np.float32]], list[bytes]]] = {Q8_0: _in_eight, Q4_0: _in_four}


def packed(tensor: Tensor, kind: int) -> Stored:
    """Return a tensor's numbers, packed. Its last side is a multiple of 32."""
    rows = tensor.float().reshape(-1, 32).numpy()
    return Stored(tuple(tensor.shape), kind, b"".join(_PACKERS[kind](rows)))


def as_converted(
    tensors: Mapping[str, Tensor], kind: int, reshapes: bool = False
) -> tuple[dict[str, Stored], dict[str, Word]]:
    """Return tensors and words as ComfyUI-GGUF's convert.py and llama-quantize make them of a net.

    Vectors and what has no whole blocks stay as they are. `reshapes`: of SD 1.x and XL, rows of 256 are made of what
    has none.
    """
    stored, words = dict[str, Stored](), dict[str, Word]()
    for name, tensor in tensors.items():
        rows = tensor
        if reshapes and tensor.ndim > 1 and tensor.numel() % 256 == 0 and tensor.shape[-1] % 256:
            rows = tensor.reshape(-1, 256)
            words[f"comfy.gguf.orig_shape.{name}"] = list(tensor.shape)
        is_packed = rows.ndim == 2 and rows.shape[-1] % 32 == 0
        stored[name] = packed(rows, kind) if is_packed else plain(rows, F32 if rows.ndim == 1 else F16)
    return stored, words


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]], kind: int, architecture: str) -> Path:
    """Return `path`, now a sparse file of these shapes: matrices of whole blocks packed so, reshaped as SD 1.x's and
    XL's are, the rest in half precision.
    """
    values, size = SIZES[kind]
    words: dict[str, Word] = {"general.architecture": architecture}
    table, place = b"", 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        rows = (count // 256, 256) if len(shape) > 1 and count % 256 == 0 and shape[-1] % 256 else shape
        if rows != shape:
            words[f"comfy.gguf.orig_shape.{name}"] = list(shape)
        is_packed = len(rows) == 2 and rows[-1] % values == 0
        table += info(name, Stored(rows, kind if is_packed else F16, b""), place)
        num_bytes = count // values * size if is_packed else 2 * count
        place += num_bytes + -num_bytes % 32
    head = header(len(shapes), len(words)) + b"".join(word(key, value) for key, value in words.items()) + table
    with path.open("wb") as out:
        out.write(head)
        out.truncate(len(head) + -len(head) % 32 + place)
    return path


def drawn(kind: int, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Stored:
    """Return blocks of random bits of any packed type, their scales up to `scale`."""
    values, size = SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // values, size), np.uint8)
    for at in SCALES[kind]:
        halves = (rng.uniform(0.2, 1, len(blocks)) * scale).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return Stored(shape, kind, blocks.tobytes())


def write(path: Path, tensors: Mapping[str, Stored], words: Mapping[str, Word] | None = None) -> Path:
    """Return `path`, now such a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file(tensors, words))
    return path
