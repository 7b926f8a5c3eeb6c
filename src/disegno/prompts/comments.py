"""Comments: from # to the end of the line."""

import re

_WHOLE_LINE = re.compile(r"(?:^|\n)#[^\n]*(?:\n|$)")
_REST_OF_LINE = re.compile(r"#[^\n]*(?:\n|$)")


def without_comments(text: str) -> str:
    """Return the text without its comments; where one stood, a line ends.

    A1111 parity: "#ff0000" is one too, and a backslash before the # does not escape it.
    """
    return _REST_OF_LINE.sub("\n", _WHOLE_LINE.sub("\n", text))
