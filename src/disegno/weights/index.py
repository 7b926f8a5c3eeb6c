"""What is known of files that have not changed: cards and hashes, in one JSON file that may be deleted at any time.

Another version of the program may know more kinds of files: cards are its own, hashes are everybody's.
"""

import json
import logging
import time
from dataclasses import asdict, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from disegno.core.errors import ResourceError
from disegno.weights.card import FileCard
from disegno.weights.save import write_atomically

Stamp = tuple[int, int]  # bytes, and the time of the last change in nanoseconds

_VERSION = 2
_SAVE_SECONDS = 1.0
_LOG = logging.getLogger(__name__)
_FIELDS = {field.name for field in fields(FileCard)}


@cache
def _program() -> str:
    """Return a digest of this package's own text, in hex: it decides what a card says."""
    told = sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        told.update(path.read_bytes())
    return told.hexdigest()


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file is replaced; of a folder, its files' bytes together and their newest time."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)


class Index:
    """Cards and hashes by path, good as long as the file's stamp is the same."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cards: dict[str, tuple[Stamp, FileCard]] = {}
        self._hashes: dict[str, tuple[Stamp, str]] = {}
        self._is_changed = False
        self._saved = time.monotonic()
        self._load()

    def card(self, path: Path, stamp: Stamp) -> FileCard | None:
        """Return the card of an unchanged file, or None."""
        kept = self._cards.get(str(path))
        return kept[1] if kept and kept[0] == stamp else None

    def keep(self, card: FileCard, stamp: Stamp) -> None:
        """Remember a card."""
        self._cards[str(card.path)] = stamp, card
        self._is_changed = True

    def sha256(self, card: FileCard, stamp: Stamp) -> str:
        """Return a card's hash, worked out now if the file is new or changed."""
        key = str(card.path)
        kept = self._hashes.get(key)
        if kept is None or kept[0] != stamp:
            kept = stamp, card.sha256()
            self._hashes[key] = kept
            self._is_changed = True
            if time.monotonic() - self._saved > _SAVE_SECONDS:  # all of it is written
                self.save()
        return kept[1]

    def known_sha256(self, card: FileCard, stamp: Stamp) -> str | None:
        """Return a card's hash if it has been worked out since the file last changed."""
        kept = self._hashes.get(str(card.path))
        return kept[1] if kept and kept[0] == stamp else None

    def save(self) -> None:
        """Write what is new, without files that are gone from their folders.

        A folder that cannot be written costs time at the next start, nothing else.
        """
        if not self._is_changed:
            return
        for known in (self._cards, self._hashes):
            for path in [path for path in map(Path, known) if path.parent.is_dir() and not path.exists()]:
                del known[str(path)]
        table = {
            "version": _VERSION,
            "program": _program(),
            "cards": [[stamp, asdict(card) | {"path": str(card.path)}] for stamp, card in self._cards.values()],
            "hashes": self._hashes,
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, lambda path: path.write_text(json.dumps(table), "utf-8"))
        except (OSError, ResourceError) as error:
            _LOG.info("the index of the library is not kept: %s", error)
        self._is_changed, self._saved = False, time.monotonic()

    def _load(self) -> None:
        """Read what an earlier process wrote; an unreadable or older index counts as none."""
        try:
            table = cast(dict[str, Any], json.loads(self._path.read_text("utf-8")))
            if table["version"] != _VERSION:
                return
            for (size, moment), values in table["cards"] if table.get("program") == _program() else ():
                if values.keys() == _FIELDS:
                    self._cards[values["path"]] = (
                        (size, moment),
                        FileCard(**values | {"path": Path(values["path"]), "tasks": tuple(values["tasks"])}),
                    )
            self._hashes = {key: ((size, moment), digest) for key, ((size, moment), digest) in table["hashes"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _LOG.info("the index of the library is not read: %s", error)
            self._cards, self._hashes = {}, {}
