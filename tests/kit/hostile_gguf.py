"""GGUF files that must be refused: each breaks one rule of the format, or asks for what no model has."""

import struct

import torch

from kit import gguf
from kit.gguf import Stored, Word

_FOUR = gguf.plain(torch.arange(4.0))
_PACKED = gguf.packed(torch.ones(2, 32), gguf.Q8_0)


def _file(table: bytes, num_tensors: int = 1, num_words: int = 0, body: bytes = bytes(32), words: bytes = b"") -> bytes:
    head = gguf.header(num_tensors, num_words) + words + table
    return head + bytes(-len(head) % 32) + body


def _info(stored: Stored = _FOUR, place: int = 0, name: str | bytes = "w") -> bytes:
    return gguf.info(name, stored, place)


def _told(*words: bytes) -> bytes:
    """Return a sound tensor behind these words."""
    return _file(_info(), num_words=len(words), words=b"".join(words), body=_FOUR.data + bytes(16))


def _table(key: str, kind: int, count: int, data: bytes = b"") -> bytes:
    return gguf.text(key) + struct.pack("<IIQ", 9, kind, count) + data


def _shape(name: str, sides: Word) -> bytes:
    return gguf.word(f"comfy.gguf.orig_shape.{name}", sides)


def bad_gguf() -> dict[str, bytes]:
    """Return name -> a file that must be refused."""
    good = gguf.file({"w": _FOUR})
    return _bad_words() | _bad_tables() | {
        "version 1": b"GGUF" + struct.pack("<III", 1, 1, 0) + bytes(64),
        "version 4": gguf.header(1, 0, version=4) + bytes(64),
        "of a big-endian machine": b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + bytes(64),
        "cut short": good[:-17],
        "cut in its header": good[:40],
        "cut behind its magic": good[:16],
        "something behind": good + b"PK\x03\x04",
        "a whole file behind": good + good,
        "zip in front": b"PK\x03\x04" + good,
        "no tensor": gguf.header(0, 0) + bytes(8),
        "2^63 tensors": gguf.header(1 << 63, 0) + bytes(64),
        "more tensors than any model": gguf.header(100_001, 0) + bytes(64),
        "100,000 tensors that are not there": gguf.header(100_000, 0) + bytes(64),
        "2^63 words": gguf.header(1, 1 << 63) + bytes(64),
    }  # fmt: skip


def _bad_words() -> dict[str, bytes]:
    long = struct.pack("<Q", 1 << 62)
    empty = struct.pack("<Q", 0)
    return {
        "a key of 2^62 bytes": _file(_info(), num_words=1, words=long + b"x" * 64),
        "a key that is not UTF-8": _told(gguf.word(b"\xff\xfe", "a")),
        "a text of 2^62 bytes": _told(gguf.text("a") + struct.pack("<I", 8) + long),
        "a text that is not UTF-8": _told(gguf.text("a") + struct.pack("<I", 8) + gguf.text(b"\x80")),
        "a text longer than a header": _told(gguf.word("a", "x" * (17 << 20))),
        "a word twice": _told(gguf.word("a", "1"), gguf.word("a", "2")),
        "a table and a text of one name": _told(gguf.word("a", [1]), gguf.word("a", "2")),
        "a word of an unknown type": _told(gguf.text("a") + struct.pack("<II", 13, 0)),
        "2^62 numbers": _told(_table("a", 10, 1 << 62)),
        "2^62 texts": _told(_table("a", 8, 1 << 62)),
        "3 million texts": _told(_table("a", 8, 3_000_000, empty * 3_000_000)),
        "tables of tables": _told(_table("a", 9, 1, struct.pack("<IQ", 4, 0))),
        "a table of an unknown type": _told(_table("a", 99, 1)),
        "alignment 0": _told(gguf.word("general.alignment", 0)),
        "alignment 24": _told(gguf.word("general.alignment", 24)),
        "alignment 2^31": _told(gguf.word("general.alignment", 1 << 31)),
        "alignment as a fraction": _told(gguf.word("general.alignment", 32.0)),
        "alignment as a text": _told(gguf.word("general.alignment", "32")),
        "alignment as a table": _told(gguf.word("general.alignment", [32])),
        "shape of more numbers": _told(_shape("w", [2, 3])),
        "shape that is negative": _told(_shape("w", [-2, -2])),
        "shape that overflows": _told(_shape("w", [65536, 65536, 65536, 65536])),
        "shape without sides": _told(_shape("w", [])),
        "shape of 9 sides": _told(_shape("w", [4] + [1] * 8)),
        "shape of fractions": _told(_table("comfy.gguf.orig_shape.w", 6, 1, struct.pack("<f", 4))),
        "shape as a text": _told(_shape("w", ["4"])),
        "shape of another tensor": _told(_shape("v", [2, 2])),
    }


def _bad_tables() -> dict[str, bytes]:
    one = Stored((1,), gguf.F32, b"")
    return {
        "named twice": _file(_info() + _info(place=32), 2, body=bytes(64)),
        "a name that is not UTF-8": _file(_info(name=b"\xc3\x28")),
        "a name of 100,000 letters": _file(_info(name="a" * 100_000)),
        "a name of 2^62 bytes": _file(struct.pack("<Q", 1 << 62)),
        "2^32 axes": _file(gguf.text("w") + struct.pack("<I", 0xFFFFFFFF) + bytes(64)),
        "nine axes": _file(_info(Stored((1,) * 9, gguf.F32, b""))),
        "a side of 2^63": _file(_info(Stored((1 << 63,), gguf.F32, b""))),
        "sides that overflow": _file(_info(Stored((1 << 32, 1 << 32), gguf.F32, b""))),
        "1 TiB": _file(_info(Stored((1 << 38,), gguf.F32, b""))),
        "1 TiB of blocks": _file(_info(Stored((1 << 39,), gguf.Q8_0, b""))),
        "a row that is no block": _file(_info(Stored((2, 48), gguf.Q8_0, b"")), body=bytes(128)),
        "blocks without an axis": _file(_info(Stored((), gguf.Q8_0, b""))),
        "a type by its name only": _file(_info(Stored((256,), 16, b"")), body=bytes(96)),
        "a type that there is not": _file(_info(Stored((4,), 99, b""))),
        "overlapping": _file(_info() + _info(place=0, name="v"), 2),
        "overlapping in part": _file(_info(_PACKED) + _info(place=32, name="v"), 2, body=bytes(96)),
        "sixty on one place": _file(b"".join(_info(one, 0, f"w{k}") for k in range(60)), 60),
        "a hole": _file(_info() + _info(place=96, name="v"), 2, body=bytes(128)),
        "does not begin at 0": _file(_info(place=32), body=bytes(64)),
        "not aligned": _file(_info() + _info(place=16, name="v"), 2, body=bytes(32)),
        "place past the end": _file(_info(place=1 << 40)),
        "place of 2^64 - 1": _file(_info(place=(1 << 64) - 1)),
    }
