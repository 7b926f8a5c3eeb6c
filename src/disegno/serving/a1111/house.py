"""What a translation must know of the house: the names that a client may choose. No paths: a name is looked up here."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from disegno.core.errors import RequestError, UnknownName
from disegno.serving.a1111.coerce import Json

_TITLE_HASH = re.compile(r" \[([0-9a-fA-F]{6,64})\]$")
_HASH = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Named:
    """A model or control that may be chosen.

    `name`: what our Request calls it; `shown`: what A1111's lists call it; `tag`: what stands behind that in brackets;
    `file`: its file's name, without folders; `sha256`: empty where it is not known; `place`: its file, with the folders
    below the model folder.
    """

    name: str
    shown: str = ""
    tag: str = ""
    file: str = ""
    sha256: str = ""
    place: str = ""

    @property
    def title(self) -> str:
        """Return the name as A1111's lists show it: file.safetensors [6ce0161689]."""
        return f"{self.shown or self.name} [{self.tag}]" if self.tag else self.shown or self.name

    @cached_property
    def ranked(self) -> tuple[set[str], ...]:
        """Return the names that mean it, in lower case, the surest first.

        What it is called, and its whole place; its file, with the last of its folders too; the same without the ending,
        and as A1111's model_name has it (folder_file).
        """
        parts = (self.place or self.file).split("/")
        below = [parts[i:] for i in range(len(parts))]
        stems = [[*folders, file.rpartition(".")[0] or file] for *folders, file in below]
        ranked = (
            (self.name, self.shown, self.place),
            (self.file, *map("/".join, below)),
            (*map("/".join, stems), *map("_".join, stems)),
        )
        return tuple({text.lower() for text in texts if text} for texts in ranked)

    def is_told_by(self, digits: str) -> bool:
        """Return whether these are the first digits of its hash, or of its tag."""
        return any(known.startswith(digits) for known in (self.sha256, self.tag) if known)


N = TypeVar("N", bound=Named)


def find_named(what: str, given: str, known: Sequence[N], containing: bool = False) -> N:
    """Return the entry that a title, a name with or without its folders, or a hash means.

    The digits of a title decide between files of one name. Raises UnknownName with near names, RequestError where
    several files that are no copies of each other are meant.

    `containing`: where nothing else fits, the shortest name that contains the given one will do, as ControlNet's.
    """
    told = _TITLE_HASH.search(given.strip().lower())
    wanted = _TITLE_HASH.sub("", given.strip()).lower().replace("\\", "/")  # as A1111 on Windows has its titles
    titled = [entry for entry in known if entry.title.lower() == given.strip().lower()]
    ranked = [[entry for entry in known if wanted in entry.ranked[rank]] for rank in range(3)]
    hashed = [entry for entry in known if _HASH.fullmatch(wanted) and entry.sha256.startswith(wanted)]
    exact = [entry for some in ranked for entry in some if told and entry.is_told_by(told[1])]
    for found in (titled, exact, *ranked, hashed):
        if found:
            return _meant(what, given, found)
    inside = (entry for entry in sorted(known, key=lambda entry: len(entry.name)) if wanted in entry.name.lower())
    if containing and wanted and (entry := next(inside, None)) is not None:
        return entry
    raise UnknownName.of(what, given[:200], [entry.title for entry in known])


def _meant(what: str, given: str, found: Sequence[N]) -> N:
    """Return the one of the entries that a name means. Raises RequestError where they are different files."""
    same = len({entry.name for entry in found}) == 1
    copies = found[0].sha256 and len({entry.sha256 for entry in found}) == 1
    if same or copies:
        return found[0]
    titles = ", ".join(entry.title for entry in found)
    raise RequestError(f"There are {len(found)} {what}s named {given[:200]!r}: {titles}. Say which, by one of these.")


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
