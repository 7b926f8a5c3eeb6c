"""CLIP's byte pair tokenizer; no torch, so that a prompt can be counted without a model.

Cleaning and splitting are those of the first CLIP tokenizer (ftfy, one space for any white space, lower case), which
the models were trained and are prompted with; Radford et al. 2021, section 2.4.
"""

import gzip
import re
from functools import cache
from importlib.resources import files

from ftfy import fix_text
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE

START, END = "<|startoftext|>", "<|endoftext|>"
COMMA_ID = 267
LENGTH = 77  # tokens of one chunk, start and end included

# Contractions, runs of letters, single digits, runs of anything else that is not white space.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def _alphabet() -> list[str]:
    """Return the character that stands for each byte, in the vocabulary's order: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


@cache
def tokenizer() -> Tokenizer:
    """Return CLIP's tokenizer, 49,408 tokens; built once. It wants cleaned text: see `clean`."""
    lines = (
        gzip.decompress(files("disegno.text").joinpath("data/clip_merges.txt.gz").read_bytes()).decode().splitlines()
    )
    merges = [(a, b) for a, _, b in (line.partition(" ") for line in lines)]
    letters = _alphabet()
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    model = BPE({word: n for n, word in enumerate(words)}, merges, unk_token=END, end_of_word_suffix="</w>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.add_special_tokens([AddedToken(START), AddedToken(END)])
    return made


def clean(text: str) -> str:
    """Return the text as CLIP's tokenizer reads it: mended by ftfy, one space for any white space, lower case."""
    return re.sub(r"\s+", " ", fix_text(text)).strip().lower()


def encoding_of(text: str) -> Encoding:
    """Return the text's tokens, without start and end, of any length."""
    return tokenizer().encode(clean(text), add_special_tokens=False)


def token_ids(text: str) -> list[int]:
    """Return the text's token ids, without start and end, of any length."""
    return encoding_of(text).ids
