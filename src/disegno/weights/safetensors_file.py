"""The safetensors header, read strictly: the format's own library takes 7 s and 1 GB for a hostile header.

Format: 8 bytes little-endian length, that many bytes of JSON beginning with "{", then the tensors, no hole and no tail.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import struct
from mmap import mmap
from operator import attrgetter
from typing import Any, NoReturn, cast

import torch

from disegno.core.errors import CorruptFile, UnsafeFile
from disegno.weights.limits import MAX_DIM, MAX_HEADER_BYTES, MAX_RANK, MAX_TENSORS
from disegno.weights.tensor_file import Contents, Entry

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_START = attrgetter("start", "num_bytes")
_ENTRY_KEYS = (b'"dtype"', b'"shape"', b'"data_offsets"')


def looks_like(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is safetensors."""
    return len(head) >= 10 and head[8:9] == b"{"


def read(data: mmap) -> Contents:
    """Return what the header says. Raises UnsafeFile or CorruptFile."""
    header, body = _header(data)
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise UnsafeFile(f"The header names {len(header)} tensors; no model has more than {MAX_TENSORS}.")
    entries = {key: _entry(key, value, body) for key, value in header.items()}
    end = body
    for entry in sorted(entries.values(), key=_START):
        if entry.start != end:
            raise CorruptFile(f"A tensor begins at byte {entry.start}, not {end}: the header is damaged or forged.")
        end += entry.num_bytes
    if end != len(data):
        what = "cut short" if end > len(data) else "followed by other bytes"
        raise CorruptFile(f"The file has {len(data)} bytes, its header describes {end}: it is {what}. Fetch it again.")
    return Contents("safetensors", entries, metadata)


def _header(data: mmap) -> tuple[dict[str, object], int]:
    """Return the header, and where the tensors begin."""
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER_BYTES:
        raise UnsafeFile(
            f"The header claims {length} bytes; at most {MAX_HEADER_BYTES} are read. Fetch the file again."
        )
    if 8 + length > len(data):
        raise CorruptFile(f"The header needs {8 + length} bytes, the file has {len(data)}: it is cut short.")
    raw = data[8 : 8 + length]
    if raw[:1] != b"{" or raw.count(b"{") + raw.count(b"[") > 4 * MAX_TENSORS:
        raise CorruptFile("The header is not a table of tensors: the file is damaged. Fetch it again.")
    try:
        header = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
        if _may_repeat(raw, header):
            json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)  # five times as slow
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"The header cannot be read ({str(error)[:120]}): the file is damaged.") from None
    return cast(dict[str, object], header), 8 + length


def _may_repeat(raw: bytes, header: dict[str, object]) -> bool:
    """Return whether a name may come twice: where each comes once, every entry has its three words once."""
    num_metadata = int("__metadata__" in header)
    words_fit = all(raw.count(word) == len(header) - num_metadata for word in _ENTRY_KEYS)
    return not words_fit or raw.count(b'"__metadata__"') != num_metadata


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise CorruptFile("The header names something twice; readers would differ about which one counts.")
    return table


def _no_constant(text: str) -> NoReturn:
    raise CorruptFile(f"The header holds {text}, which is not JSON.")


def _metadata(value: object) -> dict[str, str]:
    table = cast(dict[str, object], value) if isinstance(value, dict) else {"": None}
    texts = {key: text for key, text in table.items() if isinstance(text, str)}
    if len(texts) != len(table):
        raise CorruptFile("The header's metadata must be a table of texts. Write the file again with a current tool.")
    return texts


def _entry(key: str, value: Any, body: int) -> Entry:
    """Return where a tensor lies; its range must fit its shape exactly. The hot loop of a scan of a folder."""
    try:
        told, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        dtype = DTYPES.get(told)
    except (KeyError, TypeError, ValueError):
        raise CorruptFile(f"The header's entry for {key[:80]!r} is not dtype, shape and data_offsets.") from None
    if dtype is None:
        known = ", ".join(DTYPES)
        raise CorruptFile(f"The tensor {key[:80]!r} is of type {str(told)[:20]!r}; this program reads {known}.")
    if type(shape) is not list or len(shape) > MAX_RANK or type(begin) is not int or type(end) is not int or begin < 0:
        raise CorruptFile(f"The tensor {key[:80]!r} has an impossible shape or place: the header is damaged or forged.")
    num_bytes = dtype.itemsize
    for size in shape:
        if type(size) is not int or not 0 <= size < MAX_DIM:
            raise CorruptFile(f"The tensor {key[:80]!r} has an impossible shape: the header is damaged or forged.")
        num_bytes *= size
    if end - begin != num_bytes or len(value) != 3:
        raise CorruptFile(f"The tensor {key[:80]!r} of shape {shape} does not fill bytes {begin} to {end}.")
    return Entry(dtype, tuple(shape), body + begin, num_bytes)
