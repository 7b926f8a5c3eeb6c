"""JSON lines from outside: objects, one a line, each bounded; a line that is none costs only itself."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from disegno.core.errors import BadData
from disegno.training.data.root import Root

MAX_LINE_BYTES = 1 << 20


def read_lines(root: Root, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield each line's number, from 1, and its object, or what is wrong with it; blank lines are passed over."""
    with root.open(name) as file:
        for number, line in enumerate(bounded_lines(file), 1):
            if line is None:
                yield number, f"has more than {MAX_LINE_BYTES} bytes"
            elif text := line.strip():
                yield number, _object(text)


def bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield a file's lines, without UTF-8's mark at its beginning; None for a line of more than MAX_LINE_BYTES."""
    first = True
    while line := file.readline(MAX_LINE_BYTES + 1):
        long = len(line) > MAX_LINE_BYTES
        while long and line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield None if long else line.removeprefix(codecs.BOM_UTF8) if first else line
        first = False


def _object(text: bytes) -> dict[str, Any] | str:
    """Return the JSON object that a line holds, or what is wrong with it."""
    try:
        value: object = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    except (ValueError, RecursionError):
        return "is not JSON"
    return cast("dict[str, Any]", value) if isinstance(value, dict) else "is not a JSON object"


def word(fields: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the text under the first of these names that the object has, None where it has none.

    Raises BadData where it is no text.
    """
    for name in names:
        value = fields.get(name)
        if isinstance(value, str):
            return value
        if value is not None:
            raise BadData(f"{name!r} is not text")
    return None
