"""A small Unigram vocabulary with T5's special tokens, trained here; and the same as a SentencePiece file."""

import json
import struct
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from kit import gguf

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


def pieces() -> list[tuple[str, float, int]]:
    """Return each piece's text, score and SentencePiece's number of its type."""
    known: list[list[object]] = json.loads(trained().to_str())["model"]["vocab"]
    kinds = {"<unk>": 2, "<pad>": 3, "</s>": 3}
    return [(str(text), float(str(score)), kinds.get(str(text), 1)) for text, score in known]


def write_spiece(path: Path) -> Path:
    """Return `path`, now the vocabulary as SentencePiece writes it (normalisation left out)."""
    data = b""
    for text, score, kind in pieces():
        fields = _varint(2 << 3 | 5) + struct.pack("<f", score) + _varint(3 << 3) + _varint(kind)
        data += _bytes_field(1, _bytes_field(1, text.encode()) + fields)
    path.write_bytes(data + _bytes_field(3, _bytes_field(1, b"identity")))
    return path


def gguf_words() -> dict[str, gguf.Word]:
    """Return the vocabulary as llama.cpp writes it: added and unused pieces behind the others."""
    own = [*pieces(), ("<extra_id_0>", -1000.0, 4), ("[PAD1]", -1000.0, 5), ("[PAD2]", -1000.0, 5)]
    texts, scores, kinds = zip(*own, strict=True)
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
    }
