"""torch's zip format (since 1.6): one pickle that describes the tensors, and one uncompressed record for each storage.

Read by our own strict zip index: what torch never writes (compression, a second archive, names that differ between the
two places where zip keeps them) is refused, because readers and scanners disagree about such files.
Sources: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT 4.3 and 4.5.3; torch/csrc/jit/serialization.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

from disegno.core.errors import CorruptFile, UnsafeFile
from disegno.weights.limits import MAX_HEADER_BYTES, MAX_PICKLE_BYTES, MAX_TENSORS
from disegno.weights.pickle_reader import read_pickle
from disegno.weights.pickle_values import StorageRef
from disegno.weights.tensor_file import Contents
from disegno.weights.unwrap import unwrap

_RECORD = re.compile(
    r"[^/\\\0]{1,200}/"
    r"(data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,12})"
)
_PACKED = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf")  # files of weights themselves
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ALLOWED_FLAGS = 0x0808  # sizes behind the record; names in UTF-8
_FULL = 0xFFFFFFFF  # a number too large for 32 bits: it is in the zip64 field


@dataclass(frozen=True, slots=True)
class _Record:
    """One record: its name, and where its bytes lie in the file."""

    name: str
    start: int
    num_bytes: int
    crc: int


def looks_like(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is a zip archive."""
    return head.startswith(b"PK\x03\x04")


def read(data: mmap) -> Contents:
    """Return what the archive's table of tensors says. Raises UnsafeFile or CorruptFile."""
    records = _records(data)
    roots = {name.partition("/")[0] for name in records}
    if len(roots) != 1:
        raise UnsafeFile(f"It holds {len(roots)} archives in one; torch writes one.")
    root = roots.pop()
    table = records.get(f"{root}/data.pkl")
    if table is None or table.num_bytes > MAX_PICKLE_BYTES:
        raise CorruptFile("It is a zip archive without torch's table of tensors.")
    order = records.get(f"{root}/byteorder")
    if order is not None and data[order.start : order.start + min(order.num_bytes, 9)].strip() != b"little":
        raise CorruptFile("It was written on a big-endian machine. Convert it to safetensors there.")
    raw = data[table.start : table.start + table.num_bytes]
    pickle = read_pickle(raw)
    if pickle.end != len(raw) or zlib.crc32(raw) != table.crc:
        raise CorruptFile("Its table of tensors does not have the checksum that it should. Fetch it again.")
    return unwrap("torch-zip", pickle.value, lambda storage: _start(records, root, storage), len(data))


def _start(records: dict[str, _Record], root: str, storage: StorageRef) -> int:
    record = records.get(f"{root}/data/{storage.key}")
    if record is None or record.num_bytes != storage.num_bytes:
        found = "is not there" if record is None else f"has {record.num_bytes} bytes, not {storage.num_bytes}"
        raise CorruptFile(f"Its record {storage.key[:40]!r} {found}. The file is damaged: fetch it again.")
    return record.start


def _records(data: mmap) -> dict[str, _Record]:
    """Return the archive's records by name: each checked in both of its places, none overlapping another."""
    try:
        begin, end, count = _central_directory(data)
        if count > MAX_TENSORS or end - begin > MAX_HEADER_BYTES:
            raise UnsafeFile(f"It holds {count} records; no model has more than {MAX_TENSORS}.")
        found = list(_central(data, begin, end))
    except struct.error:
        raise CorruptFile("Its zip index is damaged. Fetch it again.") from None
    records = {record.name: record for record in found}
    if len(records) != count or len(found) != count:
        raise UnsafeFile("Its zip index names a record twice, or miscounts them: readers would differ.")
    last = 0
    for record in sorted(found, key=lambda r: r.start):
        if record.start < last or record.start + record.num_bytes > begin:
            raise UnsafeFile(f"Its record {record.name[-40:]!r} overlaps another one.")
        last = record.start + record.num_bytes
    return records


def _central_directory(data: mmap) -> tuple[int, int, int]:
    """Return where the index begins and ends, and how many records it names. The file must end with the end record."""
    tail = len(data) - _END.size
    magic, disk, first, here, count, size, begin, comment = _END.unpack_from(data, max(tail, 0))
    if magic != b"PK\x05\x06" or comment or disk or first or here != count:
        raise CorruptFile("It is a zip archive that is cut short, or has something behind its end. Fetch it again.")
    end, locator = tail, tail - _LOCATOR_64.size
    if locator > 0 and data[locator : locator + 4] == b"PK\x06\x07":
        (end,) = struct.unpack_from("<Q", data, locator + 8)
        *_, count, size, begin = _END_64.unpack_from(data, end)
        if data[end : end + 4] != b"PK\x06\x06" or end + _END_64.size != locator:
            raise CorruptFile("Its zip index is damaged. Fetch it again.")
    if begin + size != end:
        raise UnsafeFile("It holds something between its index and its end, or in front of its beginning.")
    return begin, end, count


def _central(data: mmap, pos: int, end: int) -> Iterator[_Record]:
    """Yield the records of the index from `pos` to `end`."""
    while pos < end:
        magic, _, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len, disk, _, _, local = (
            _CENTRAL.unpack_from(data, pos)
        )
        body = pos + _CENTRAL.size
        name = bytes(data[body : body + name_len]).decode("utf-8", "replace")
        extra = data[body + name_len : body + name_len + extra_len]
        if magic != b"PK\x01\x02" or comment_len or disk:
            raise CorruptFile("Its zip index is damaged. Fetch it again.")
        size, packed, local = _widened(extra, (size, packed, local))
        if name.lower().endswith(_PACKED):
            raise CorruptFile(f"It is a zip archive that holds {name[:80]!r}. Unpack it, and give the file in it.")
        if not _RECORD.fullmatch(name):
            raise UnsafeFile(
                f"It holds {name[:80]!r}, which a file of weights does not have (TorchScript is a program)."
            )
        if method or size != packed or flags & ~_ALLOWED_FLAGS:
            raise UnsafeFile(f"Its record {name[:80]!r} is compressed or encrypted, which torch does not write.")
        yield _Record(name, _data_start(data, local, name, flags), size, crc)
        pos = body + name_len + extra_len


def _widened(extra: bytes, numbers: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the three numbers with those that are full taken from the zip64 field, in its order."""
    wide: list[int] = []
    pos = 0
    while pos + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, pos)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{length // 8}Q", extra, pos + 4))
        pos += 4 + length
    a, b, c = (wide.pop(0) if number == _FULL and wide else number for number in numbers)
    return a, b, c


def _data_start(data: mmap, local: int, name: str, flags: int) -> int:
    """Return where a record's bytes begin. Its own header must agree with the index."""
    magic, _, own_flags, method, _, _, _, _, _, name_len, extra_len = _LOCAL.unpack_from(data, local)
    at = local + _LOCAL.size
    if magic != b"PK\x03\x04" or method or own_flags != flags or data[at : at + name_len] != name.encode():
        raise UnsafeFile(
            f"Its record {name[:80]!r} has another name or kind in its second place: readers would differ."
        )
    return at + name_len + extra_len
