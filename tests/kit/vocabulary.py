"""A small Unigram vocabulary with T5's special tokens, trained here; and the same as a SentencePiece file."""

import json
import struct
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

SENTENCES = (
    "a red car on a city street", "a blue car by the sea, at night", "a photo of a cat in a hat",
    "an old house (by the sea), very very old", "seven green bottles stand on the wall", "blur, noise, bad drawing",
)  # fmt: skip
SPECIAL = ("<pad>", "</s>", "<unk>")


@cache
def trained() -> Tokenizer:
    """Return the tokenizer: at most 200 pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=[AddedToken(word) for word in SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    return tokenizer


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def write_spiece(path: Path) -> Path:
    """Return `path`, now the vocabulary as SentencePiece writes it (normalisation left out)."""
    pieces: list[list[object]] = json.loads(trained().to_str())["model"]["vocab"]
    kinds = {"<unk>": 2, "<pad>": 3, "</s>": 3}
    data = b""
    for text, score in pieces:
        score_field = _varint(2 << 3 | 5) + struct.pack("<f", float(str(score)))
        kind = _varint(3 << 3) + _varint(kinds.get(str(text), 1))
        data += _bytes_field(1, _bytes_field(1, str(text).encode()) + score_field + kind)
    path.write_bytes(data + _bytes_field(3, _bytes_field(1, b"identity")))
    return path
