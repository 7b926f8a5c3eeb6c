"""SentencePiece's model files (spiece.model), read into a tokenizer: only what T5's needs, a Unigram model.

The file is a protocol buffer: `pieces` is field 1, each a text (1), a score (2) and a type (3); `normalizer_spec` is
field 3, whose `precompiled_charsmap` is field 2. Source: sentencepiece_model.proto, google/sentencepiece.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from disegno.core.errors import CorruptFile

MAX_BYTES = 64 << 20
NUM_SENTINELS = 100  # <extra_id_99> ... <extra_id_0>, which the file itself leaves out
_FIXED_WIDTHS = {1: 8, 5: 4}
_UNKNOWN = 2  # of a piece's types


def read_unigram(path: Path) -> Tokenizer:
    """Return T5's tokenizer from its spiece.model, without special tokens of its own. Raises CorruptFile."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
        fields = list(_fields(data))
        pieces = [_piece(value) for number, value in fields if number == 1]
        unknown = next(i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN)
    except (OSError, ValueError, IndexError, struct.error, StopIteration) as error:
        raise CorruptFile(f"{path} is no SentencePiece model ({error!r:.80}). Fetch it again.") from error
    vocabulary = [(text, score) for text, score, _ in pieces]
    vocabulary += [(f"<extra_id_{n}>", 0.0) for n in reversed(range(NUM_SENTINELS))]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    charsmap = next((v for number, value in fields if number == 3 for n, v in _fields(value) if n == 2), b"")
    if charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    return tokenizer


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each field's number and its bytes; a number's are little-endian."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value.to_bytes(10, "little")
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in _FIXED_WIDTHS:
            length = _FIXED_WIDTHS[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("cut short")
        yield number, data[at : at + length]
        at += length


def _piece(data: bytes) -> tuple[str, float, int]:
    """Return a piece's text, score and type."""
    fields = dict(_fields(data))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    return fields.get(1, b"").decode("utf-8"), float(score), int.from_bytes(fields.get(3, b"\x01"), "little")
