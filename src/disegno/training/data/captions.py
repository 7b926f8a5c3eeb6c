"""Captions as text: what their bytes mean, and what is no caption."""

import codecs
import re

from disegno.core.errors import BadData

MAX_CAPTION_CHARS = 10_000
"""About thirty times what any text encoder here reads; more is another file that took the caption's place."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class CaptionFault(BadData):
    """What was given is no caption. `kind`: of `problems.KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def decode_caption(data: bytes) -> str:
    """Return the text of a caption file: UTF-8, or UTF-16 where it begins with its mark. Raises CaptionFault."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return check_caption(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise CaptionFault("bad_caption", "The caption is not UTF-8 text. Save it as UTF-8.") from error


def check_caption(text: str) -> str:
    """Return the caption on one line. Raises CaptionFault when it is too long, or holds characters that no text has."""
    if len(text) > MAX_CAPTION_CHARS:
        raise CaptionFault(
            "long_caption", f"The caption has {len(text)} characters; at most {MAX_CAPTION_CHARS} are one."
        )
    line = re.sub(r"\s+", " ", text).strip()
    if any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in line):
        raise CaptionFault("bad_caption", "The caption holds control characters. Save it as plain UTF-8 text.")
    return line


def num_words(caption: str) -> int:
    """Return a lower bound of how many tokens a text encoder makes of the caption: its words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", caption))
