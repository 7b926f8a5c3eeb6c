"""torch's older format (before 1.6): five pickles (magic, version, machine, object, storage keys), then storages.

Source: torch/serialization.py, `_legacy_save`.
"""

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import cast

from disegno.core.errors import CorruptFile
from disegno.weights.limits import MAX_TENSORS
from disegno.weights.pickle_reader import read_pickle
from disegno.weights.pickle_values import StorageRef
from disegno.weights.tensor_file import Contents
from disegno.weights.unwrap import unwrap

_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950A86A20F9469CFC6C
_VERSION = 1001


def looks_like(head: bytes) -> bool:
    """Return whether a file that begins with these bytes is a torch checkpoint of the older format."""
    return head.startswith(_MAGIC)


def read(data: mmap) -> Contents:
    """Return what the object pickle says. Raises UnsafeFile or CorruptFile."""
    version = read_pickle(data, len(_MAGIC))
    machine = read_pickle(data, version.end)
    table = cast(dict[object, object], machine.value) if isinstance(machine.value, dict) else {}
    if version.value != _VERSION or table.get("little_endian") is not True:
        raise CorruptFile("It is of another version of the format, or of a big-endian machine. Convert it there.")
    objects = read_pickle(data, machine.end)
    keys = read_pickle(data, objects.end)
    starts = dict(_storages(data, keys.end, keys.value, objects.storages))
    if objects.storages.keys() - starts.keys():
        raise CorruptFile("It points to storages that are not in it. Fetch it again.")
    return unwrap("torch-legacy", objects.value, lambda storage: starts[storage.key], len(data))


def _storages(data: mmap, pos: int, keys: object, known: dict[str, StorageRef]) -> Iterator[tuple[str, int]]:
    """Yield each storage's key and first byte. They lie in the order of `keys`, each behind its number of elements."""
    names = [key for key in cast(list[object], keys) if isinstance(key, str)] if isinstance(keys, list) else None
    if names is None or len(names) > MAX_TENSORS or len(set(names)) != len(cast(list[object], keys)):
        raise CorruptFile("Its list of storages is damaged. Fetch it again.")
    for key in names:
        ref = known.get(key)
        if ref is None or pos + 8 > len(data) or struct.unpack_from("<q", data, pos)[0] != ref.num_elements:
            raise CorruptFile(f"Its storage {key[:40]!r} is not as long as its table says. Fetch it again.")
        yield ref.key, pos + 8
        pos += 8 + ref.num_bytes
    if pos != len(data):
        what = "cut short" if pos > len(data) else "followed by other bytes"
        raise CorruptFile(f"The file has {len(data)} bytes, its table describes {pos}: it is {what}. Fetch it again.")
