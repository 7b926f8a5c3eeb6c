"""From an address to a file or folder in its place: fetched, looked at, and kept only where it is weights."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from disegno.core.errors import DisegnoError, RequestError, ResourceError
from disegno.core.files import write_atomically
from disegno.weights.card import FileCard
from disegno.weights.download import Remote, download, forget, keep
from disegno.weights.identify import identify
from disegno.weights.sources import Source, home_of, homes_in

Told = Callable[[int, int, str], None]
"""Is told how many bytes of how many are there, and of what; 0 of how many: nobody knows. What it raises ends it."""


def get(source: Source, folder: Path, beside: Path, told: Told, name: str | None = None, own: bool = False) -> FileCard:
    """Return the card of what was fetched, in its place. Raises DisegnoError; then nothing of it is left there.

    `own`: the folder is the library's, where every kind may have its own place. `beside`: where the bytes lie until
    they are all there; those of a transfer that broke off, or that `told` ended, are gone on with.
    """
    if source.folder:
        path = folder / _plain_name(name or source.folder)
        _require_free(path)
        _require_space(source, beside)
        return _folder(source, path, beside / f".{path.name}.part", told)
    remote = source.files[0]
    if name is not None or remote.name:
        for place in homes_in(folder) if own else (folder,):  # what it is, is known when it is there
            _require_free(place / _plain_name(name or remote.name))
    _require_space(source, beside)
    return _file(remote, folder, beside, told, name, own)


def _file(remote: Remote, folder: Path, beside: Path, told: Told, name: str | None, own: bool) -> FileCard:
    """Fetch one file, look what it is, and put it in its place."""
    part, called = download(remote, beside, lambda done, of: told(done, of, remote.name))
    called = _plain_name(name or called)
    try:
        card = identify(part)
    except DisegnoError as error:
        forget(part)
        words = str(error).replace(part.name, called)
        raise type(error)(f"{words} It was not kept.") from error
    path = (home_of(card.kind, folder) if own else folder) / called
    _require_free(path)
    _put(part, path)
    forget(part)
    return identify(path)


def _folder(source: Source, path: Path, part: Path, told: Told) -> FileCard:
    """Fetch a folder's files, look what they are together, and put them in their place at once."""
    before = 0
    for remote in source.files:
        there = part / remote.name
        if not (there.is_file() and remote.num_bytes and there.stat().st_size == remote.num_bytes):
            fetched, _ = download(remote, part, _within(told, before, source.num_bytes, remote.name))
            keep(fetched, there)
        before += remote.num_bytes
    try:
        identify(part)
    except DisegnoError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise type(error)(f"{str(error).replace(part.name, path.name)} It was not kept.") from error
    _put(part, path)
    return identify(path)


def _within(told: Told, before: int, of: int, name: str) -> Callable[[int, int], None]:
    return lambda done, of_file: told(before + done, max(of, before + of_file), name)


def _put(part: Path, path: Path) -> None:
    """Put a file or folder in its place at once, from another disk too. Raises ResourceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.replace(path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _carry(part, path)
    except OSError as error:
        raise ResourceError(f"{path} could not be written ({error}). Choose another folder.") from error


def _carry(part: Path, path: Path) -> None:
    """Copy to the other disk, beside the place, then put it there at once."""
    if not part.is_dir():
        write_atomically(path, lambda temporary: shutil.copyfile(part, temporary))
        return
    near = path.with_name(f".{path.name}.part")
    shutil.rmtree(near, ignore_errors=True)
    try:
        shutil.copytree(part, near)
        near.replace(path)
    finally:
        shutil.rmtree(near, ignore_errors=True)
    shutil.rmtree(part, ignore_errors=True)


def _plain_name(name: str) -> str:
    """Return a name that is one. Raises RequestError for a path, and for one that is hidden."""
    if not name or name != Path(name).name or name.startswith("."):
        raise RequestError(f"{name!r} is no name of a file here: give it one without folders.")
    return name


def _require_free(path: Path) -> None:
    if path.exists():
        raise RequestError(f"{path} is there already. Remove it, or give what comes another name.")


def _require_space(source: Source, folder: Path) -> None:
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if source.num_bytes > free:
        raise ResourceError(
            f"It has {source.num_bytes / 2**30:.2f} GiB, and {there} has {free / 2**30:.2f} left. Free space, or choose"
            " another folder."
        )
