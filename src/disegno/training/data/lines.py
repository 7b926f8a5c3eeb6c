"""JSON lines from outside: objects, one a line, each bounded; a line that is none costs only itself."""

import json
from collections.abc import Iterator
from typing import Any, cast

from disegno.core.errors import BadData
from disegno.training.data.root import Root

MAX_LINE_BYTES = 1 << 20


def read_lines(root: Root, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield each line's number, from 1, and its object, or what is wrong with it; blank lines are passed over."""
    number = 0
    with root.open(name) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                yield number, f"has more than {MAX_LINE_BYTES} bytes"
            elif text := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield number, _object(text)


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
