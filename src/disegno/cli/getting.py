"""`disegno models get`: from an address to a file or folder in its place."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from disegno.cli.bar import Bar
from disegno.core.errors import DisegnoError, RequestError, ResourceError
from disegno.weights.card import FileCard
from disegno.weights.download import Remote, download, forget, keep, read_json
from disegno.weights.identify import identify
from disegno.weights.sources import Source, find_source, home_of, homes_in

_MIB = 1 << 20


def get(
    given: str, folder: Path, name: str | None, sha256: str | None, half: bool, quiet: bool, is_own: bool = False
) -> FileCard:
    """Return the card of what was fetched, in its place. Raises DisegnoError; then nothing of it is left there.

    `is_own`: the folder is the library's, where every kind may have its own place.
    """
    source = find_source(given, read_json, half=half)
    if sha256 is not None:
        if source.folder:
            raise RequestError("--sha256 is of one file, and this is a folder. Leave it out: each file has its own.")
        source = replace(source, files=(replace(source.files[0], sha256=sha256),))
    _require_space(source, folder)
    with Bar("fetching", quiet) as bar:
        if source.folder:
            return _folder(source, folder / _plain_name(name or source.folder), bar)
        return _file(source.files[0], folder, name, bar, is_own)


def _file(remote: Remote, folder: Path, name: str | None, bar: Bar, is_own: bool) -> FileCard:
    """Fetch one file, look what it is, and put it in its place."""
    if name is not None or remote.name:
        for place in homes_in(folder) if is_own else (folder,):  # what it is, is known when it is there
            _require_free(place / _plain_name(name or remote.name))
    part, called = download(remote, folder, _told(bar, remote.name or "a file", 0, remote.num_bytes))
    called = _plain_name(name or called)
    try:
        card = identify(part)
    except DisegnoError as error:
        forget(part)
        words = str(error).replace(part.name, called)
        raise type(error)(f"{words} It was not kept.") from error
    path = (home_of(card.kind, folder) if is_own else folder) / called
    _require_free(path)
    keep(part, path)
    return identify(path)


def _folder(source: Source, path: Path, bar: Bar) -> FileCard:
    """Fetch a folder's files beside its place, look what they are, and put them there at once."""
    _require_free(path)
    beside, done = path.with_name(f".{path.name}.part"), 0
    for remote in source.files:
        there = beside / remote.name
        if not (there.is_file() and remote.num_bytes and there.stat().st_size == remote.num_bytes):
            part, _ = download(remote, beside, _told(bar, remote.name, done, source.num_bytes))
            keep(part, there)
        done += remote.num_bytes
    try:
        identify(beside)
        beside.replace(path)
    except DisegnoError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise type(error)(f"{str(error).replace(beside.name, path.name)} It was not kept.") from error
    except OSError as error:
        raise ResourceError(f"{path} could not be written ({error}). Choose another folder.") from error
    return identify(path)


def _told(bar: Bar, name: str, before: int, of: int) -> Callable[[int, int], None]:
    def told(done: int, of_file: int) -> None:
        bar.tell("fetching (MiB)", (before + done) // _MIB, max(of, before + of_file) // _MIB, name)

    return told


def _plain_name(name: str) -> str:
    """Return a name that is one. Raises RequestError for a path, and for one that is hidden."""
    if not name or name != Path(name).name or name.startswith("."):
        raise RequestError(f"{name!r} is no name of a file here: give one without folders, with --name.")
    return name


def _require_free(path: Path) -> None:
    if path.exists():
        raise RequestError(f"{path} is there already. Remove it, or say --name or --to.")


def _require_space(source: Source, folder: Path) -> None:
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if source.num_bytes > free:
        raise ResourceError(
            f"It has {source.num_bytes / 2**30:.2f} GiB, and {there} has {free / 2**30:.2f} left. Free space, or choose"
            " another folder with --to."
        )
