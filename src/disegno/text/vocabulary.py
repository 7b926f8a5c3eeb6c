"""Vocabularies of text encoders, read from files of the library tokenizers."""

from pathlib import Path

from tokenizers import Tokenizer

from disegno.core.errors import CorruptFile


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json, which cuts and pads nothing. Raises CorruptFile."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more particular
        raise CorruptFile(f"{path} is no tokenizer ({str(error)[:80]}). Fetch it again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
