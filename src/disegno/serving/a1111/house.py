"""What a translation must know of the house: the names that a client may choose. No paths: a name is looked up here."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from disegno.core.errors import UnknownName
from disegno.serving.a1111.coerce import Json

_TITLE_HASH = re.compile(r" \[[0-9a-fA-F]{6,64}\]$")
_HASH = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Named:
    """A model or control that may be chosen.

    `name`: what our Request calls it; `shown`: what A1111's lists call it; `tag`: what stands behind that in brackets;
    `file`: its file's name, without folders; `sha256`: empty where it is not known.
    """

    name: str
    shown: str = ""
    tag: str = ""
    file: str = ""
    sha256: str = ""

    @property
    def title(self) -> str:
        """Return the name as A1111's lists show it: file.safetensors [6ce0161689]."""
        return f"{self.shown or self.name} [{self.tag}]" if self.tag else self.shown or self.name

    @property
    def words(self) -> set[str]:
        """Return the names that mean it, in lower case."""
        stem = self.file.rpartition(".")[0]
        return {text.lower() for text in (self.name, self.shown, self.file, stem, self.title) if text}


N = TypeVar("N", bound=Named)


def find_named(what: str, given: str, known: Sequence[N], containing: bool = False) -> N:
    """Return the entry that a title, name, file name or hash means. Raises UnknownName with near ones.

    `containing`: where nothing else fits, the shortest name that contains the given one will do, as ControlNet's.
    """
    wanted = _TITLE_HASH.sub("", given.strip()).lower()
    exact = (entry for entry in known if entry.title.lower() == given.strip().lower())
    named = (entry for entry in known if wanted in entry.words)
    hashed = (entry for entry in known if _HASH.fullmatch(wanted) and entry.sha256.startswith(wanted))
    inside = (entry for entry in sorted(known, key=lambda entry: len(entry.name)) if wanted in entry.name.lower())
    for found in (exact, named, hashed, *((inside,) if containing and wanted else ())):
        if (entry := next(found, None)) is not None:
            return entry
    raise UnknownName.of(what, given[:200], [entry.title for entry in known])


@dataclass(frozen=True)
class House:
    """The names that a request may choose, the settings of whoever asks, and where a random seed comes from.

    `names`: sampler and schedule as given -> as they are called; raises UnknownName.
    """

    models: Sequence[Named]
    vaes: Sequence[Named]
    controls: Sequence[Named]
    upscalers: Sequence[str]
    styles: Sequence[str]
    names: Callable[[str, str | None], tuple[str, str]]
    draw: Callable[[], int]
    settings: Mapping[str, Json]
