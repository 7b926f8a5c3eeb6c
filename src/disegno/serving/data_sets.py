"""Data sets as clients call them: names of folders below the directories that the server was given, never paths."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from disegno.core.errors import RequestError, UnknownName
from disegno.serving.faults import Refused

MAX_NAME_CHARS = 200
_PART = re.compile(r"[\w][\w .+-]*")
_NONE = (
    "This server was given no folder of data sets. Start it with: disegno serve --data-root DIR; the folders in DIR are"
    " the data sets."
)


def check_data_name(at: str, name: str) -> None:
    """Refuse what is no name of a folder: parts of letters, digits and " .+-_" between slashes. Raises Refused."""
    if len(name) <= MAX_NAME_CHARS and all(map(_is_part, name.split("/"))):
        return
    told = f"{at} must be the name of a data set: a folder below the server's data directories, as pairs or pets/cats."
    raise Refused(422, "unknown_name", told, at, "GET /v1/datasets lists them.")


def _is_part(name: str) -> bool:
    return bool(_PART.fullmatch(name)) and not name.endswith((".", " "))


def find_data_set(roots: Sequence[Path], name: str) -> Path:
    """Return the folder of this name, in the first directory that has it. Raises UnknownName, RequestError."""
    require_roots(roots)
    for root in roots:
        folder = _below(root, name)
        if folder.is_dir():
            return folder
    raise UnknownName.of("data set", name, names(roots))


def new_data_set(roots: Sequence[Path], name: str) -> Path:
    """Return where a data set of this name is made: in the first directory. Raises RequestError."""
    require_roots(roots)
    return _below(roots[0], name)


def require_roots(roots: Sequence[Path]) -> None:
    """Raise RequestError where the server has no data sets at all."""
    if not roots:
        raise RequestError(_NONE)


def _below(root: Path, name: str) -> Path:
    """Return the folder of a name, links followed. Raises RequestError where it leads out of the directory."""
    check_data_name("data", name)
    top = root.expanduser().resolve()
    folder = top.joinpath(*name.split("/")).resolve()
    if not folder.is_relative_to(top):
        raise RequestError(f"The data set {name} leads out of the server's data directory; nothing outside it is read.")
    return folder


def names(roots: Iterable[Path]) -> list[str]:
    """Return the names of the folders directly in the directories, each once, sorted."""
    return sorted({name for root in roots for name in _folders(root)})


def _folders(root: Path) -> Iterator[str]:
    top = root.expanduser()
    for entry in top.iterdir() if top.is_dir() else ():
        if (
            len(entry.name) <= MAX_NAME_CHARS
            and _is_part(entry.name)
            and entry.is_dir()
            and entry.resolve().is_relative_to(top.resolve())
        ):
            yield entry.name
