"""`disegno models get`: the terminal's side of it."""

from pathlib import Path

from disegno.cli.bar import Bar
from disegno.weights.card import FileCard
from disegno.weights.download import read_json
from disegno.weights.getting import get as fetch
from disegno.weights.sources import find_source

_MIB = 1 << 20


def get(
    given: str, folder: Path, name: str | None, sha256: str | None, half: bool, quiet: bool, is_own: bool = False
) -> FileCard:
    """Return the card of what was fetched, in its place. Raises DisegnoError; then nothing of it is left there.

    `is_own`: the folder is the library's, where every kind may have its own place.
    """
    source = find_source(given, read_json, half=half)
    if sha256 is not None:
        source = source.known_by(sha256)
    with Bar("fetching", quiet) as bar:

        def told(done: int, of: int, what: str) -> None:
            bar.tell("fetching (MiB)", done // _MIB, of // _MIB, what or "a file")

        return fetch(source, folder, folder, told, name, is_own)
