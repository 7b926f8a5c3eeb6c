"""Captions as text: what their bytes mean, and what is no caption."""

import codecs
import re

from disegno.training.data.problems import Fault

MAX_CAPTION_CHARS = 10_000
"""About thirty times what any text encoder here reads; more is another file that took the caption's place."""

MAX_CAPTION_BYTES = 4 * MAX_CAPTION_CHARS

_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")
"""Control characters, halves of letters, and what stands for letters that were lost."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_caption(data: bytes) -> str:
    """Return the text of a caption file: UTF-8, or UTF-16 where it begins with its mark. Raises Fault."""
    if len(data) > MAX_CAPTION_BYTES:
        raise Fault("long_caption", f"The caption has more than {MAX_CAPTION_BYTES} bytes; so long is none.")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return check_caption(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise Fault("bad_caption", "The caption is not UTF-8 text. Save it as UTF-8.") from error


def check_caption(text: str) -> str:
    """Return the caption on one line. Raises Fault when it is too long, or holds characters that no text has."""
    if len(text) > MAX_CAPTION_CHARS:
        raise Fault("long_caption", f"The caption has {len(text)} characters; at most {MAX_CAPTION_CHARS} are one.")
    line = re.sub(r"\s+", " ", text).strip()
    if _NO_TEXT.search(line):
        raise Fault("bad_caption", "The caption holds control or broken characters. Save it as plain UTF-8 text.")
    return line


def num_words(caption: str) -> int:
    """Return a lower bound of how many tokens a text encoder makes of the caption: its words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", caption))
