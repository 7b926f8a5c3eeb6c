"""SentencePiece's model files (spiece.model), read into a tokenizer: only what T5's needs, a Unigram model. The same
from the tables of a GGUF file.

The file is a protocol buffer: `pieces` is field 1, each a text (1), a score (2) and a type (3); `normalizer_spec` is
field 3, whose `precompiled_charsmap` is field 2. Source: sentencepiece_model.proto, google/sentencepiece.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from disegno.core.errors import CorruptFile
from disegno.weights.gguf_file import numbers_of, texts_of
from disegno.weights.tensor_file import TensorFile

MAX_BYTES = 64 << 20
NUM_SENTINELS = 100  # <extra_id_99> ... <extra_id_0>, which the file itself leaves out
_FIXED_WIDTHS = {1: 8, 5: 4}
_UNKNOWN = 2  # of a piece's types
_BEHIND = (4, 5)  # of those types: defined by the user, unused
_GGML = "tokenizer.ggml"


def read_unigram(path: Path) -> Tokenizer:
    """Return T5's tokenizer from its spiece.model, without special tokens of its own. Raises CorruptFile."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
        fields = list(_fields(data))
        pieces = [_piece(value) for number, value in fields if number == 1]
        charsmap = next((v for number, value in fields if number == 3 for n, v in _fields(value) if n == 2), b"")
        return _unigram(pieces, charsmap)
    except (OSError, ValueError, IndexError, struct.error, StopIteration) as error:
        raise CorruptFile(f"{path} is no SentencePiece model ({error!r:.80}). Fetch it again.") from error


def unigram_in(file: TensorFile) -> Tokenizer | None:
    """Return T5's tokenizer from the tables of a GGUF file, the same as `read_unigram`'s; None: it has none.

    Facts of llama.cpp's convert_hf_to_gguf.py, `T5Model.set_vocab`: the pieces are those of spiece.model, and behind
    them are added ones and unused ones, up to the net's number. Raises CorruptFile.
    """
    texts = texts_of(file, f"{_GGML}.tokens")
    scores, kinds = (numbers_of(file, f"{_GGML}.{name}") for name in ("scores", "token_type"))
    if file.metadata.get(f"{_GGML}.model") != "t5" or not texts:
        return None
    try:
        pieces = [(text, float(score), int(kind)) for text, score, kind in zip(texts, scores, kinds, strict=True)]
        while pieces and pieces[-1][2] in _BEHIND:
            pieces.pop()
        if not all(math.isfinite(score) for _, score, _ in pieces):
            raise ValueError("a score that is no number")
        charsmap = bytes(int(number) & 0xFF for number in numbers_of(file, f"{_GGML}.precompiled_charsmap"))
        return _unigram(pieces, charsmap)
    except (ValueError, OverflowError, StopIteration) as error:
        raise CorruptFile(f"{file.path.name}: its vocabulary is damaged ({error!r:.80}). Fetch it again.") from error


def _unigram(pieces: Sequence[tuple[str, float, int]], charsmap: bytes) -> Tokenizer:
    """Return the tokenizer of pieces: text, score, type.

    Raises StopIteration where none of them is the unknown one, ValueError where the map of letters is none.
    """
    unknown = next(i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN)
    vocabulary = [(text, score) for text, score, _ in pieces]
    vocabulary += [(f"<extra_id_{n}>", 0.0) for n in reversed(range(NUM_SENTINELS))]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    if charsmap:
        tokenizer.normalizer = _letters(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    return tokenizer


def _letters(charsmap: bytes) -> normalizers.Normalizer:
    try:
        return normalizers.Precompiled(charsmap)
    except Exception as error:  # tokenizers raises nothing more particular
        raise ValueError(str(error)) from error


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
