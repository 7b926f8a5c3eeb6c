"""JSON tables from strangers: a configuration in a folder, or in a file's header."""

import json
from pathlib import Path
from typing import Any, cast

from disegno.core.errors import CorruptFile

_MAX_BYTES = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Return the table in a file. Raises CorruptFile."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CorruptFile(f"{path} has more than {_MAX_BYTES} bytes; a configuration was expected.")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path} cannot be read as JSON ({error}). Fetch it again.") from error
    return json_table(text, str(path))


def json_table(text: str, where: str) -> dict[str, Any]:
    """Return the table that a text is. `where`: what it stands in. Raises CorruptFile."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{where} cannot be read as JSON ({str(error)[:120]}). Fetch it again.") from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{where} is no JSON object. Fetch it again.")
    return cast(dict[str, Any], value)
