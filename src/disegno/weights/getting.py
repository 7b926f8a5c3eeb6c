"""From an address to a file or folder in its place: fetched, looked at, and kept only where it is weights."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from disegno.core.errors import DisegnoError, RequestError, ResourceError
from disegno.core.files import to_disk, write_atomically
from disegno.weights.card import FileCard
from disegno.weights.download import Remote, alone, download, forget, keep, part_of
from disegno.weights.identify import identify
from disegno.weights.library import SUFFIXES
from disegno.weights.load import open_file
from disegno.weights.sources import Source, home_of, homes_in, plain_name

_CHUNK = 1 << 20
_ENDINGS = {"safetensors": ".safetensors", "gguf": ".gguf"}  # of what has another form: torch's

Told = Callable[[int, int, str], None]
"""Is told how many bytes of how many are there, and of what; 0 of how many: nobody knows. What it raises ends it."""


def get(source: Source, folder: Path, beside: Path, told: Told, name: str | None = None, own: bool = False) -> FileCard:
    """Return the card of what was fetched, in its place. Raises DisegnoError; then nothing of it is left there.

    `own`: the folder is the library's, where every kind may have its own place. `beside`: where the bytes lie until
    they are all there; those of a transfer that broke off, or that `told` ended, are gone on with.
    """
    asked = None if name is None else plain_name(name)
    if source.folder:
        path = folder / (asked or plain_name(source.folder))
        part = beside / f".{path.name}.{_digest(source)}.part"
        if (card := _placed(part, asked)) is not None:
            return card
        _require_free(path)
        _require_space(source, part)
        return _folder(source, path, part, told, asked)
    remote = source.files[0]
    part = part_of(remote, beside)
    if (card := _placed(part, asked)) is not None:
        return card
    if called := asked or remote.name:
        for place in homes_in(folder) if own else (folder,):  # what it is, is known when it is there
            _require_free(place / _ended(plain_name(called), remote.name))
    _require_space(source, part)
    return _file(remote, folder, beside, told, asked, own)


def _file(remote: Remote, folder: Path, beside: Path, told: Told, asked: str | None, own: bool) -> FileCard:
    """Fetch one file, look what it is, and put it in its place."""
    with download(remote, beside, lambda done, of: told(done, of, remote.name)) as (part, said):
        called = asked or said
        try:
            card, form = identify(part), open_file(part).contents.format
        except DisegnoError as error:
            forget(part)
            words = str(error).replace(part.name, called)
            raise type(error)(f"{words} It was not kept.") from error
        home = home_of(card.kind, folder) if own else folder
        return _put(part, home / _ended(plain_name(called), said, _ENDINGS.get(form, ".ckpt")), told, asked)


def _folder(source: Source, path: Path, part: Path, told: Told, asked: str | None) -> FileCard:
    """Fetch a folder's files, look what they are together, and put them in their place at once."""
    with alone(part, path.name):
        before = 0
        for remote in source.files:
            there = part / remote.name
            if not (there.is_file() and remote.num_bytes and there.stat().st_size == remote.num_bytes):
                with download(remote, part, _within(told, before, source.num_bytes, remote.name)) as (fetched, _):
                    keep(fetched, there)
            before += remote.num_bytes
        try:
            identify(part)
        except DisegnoError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise type(error)(f"{str(error).replace(part.name, path.name)} It was not kept.") from error
        return _put(part, path, told, asked)


def _within(told: Told, before: int, of: int, name: str) -> Callable[[int, int], None]:
    return lambda done, of_file: told(before + done, max(of, before + of_file), name)


def _digest(source: Source) -> str:
    """Return what tells a folder's files from those of another repository or revision of its name."""
    wanted = [(file.url, file.name, file.num_bytes, file.sha256) for file in source.files]
    return hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]


def _ended(name: str, *others: str) -> str:
    """Return a name with an ending by which the library finds it: its own, or that of the first other that has one."""
    endings = [Path(f"x{each}" if each.startswith(".") else each).suffix for each in (name, *others)]
    ending = next((each for each in endings if each.lower() in SUFFIXES), "")
    return name if name.endswith(ending) else f"{name}{ending}"


# ---- in its place


def _put(part: Path, path: Path, told: Told, asked: str | None) -> FileCard:
    """Put a file or folder in its place at once, from another disk too, and return its card. Raises DisegnoError.

    Where it is put is noted before, so that an attempt which ends in between is known to have done it. What `told`
    raises is heard before and after.
    """
    _require_free(path)
    num_bytes = _num_bytes(part)
    told(num_bytes, num_bytes, path.name)
    try:
        note = json.dumps({"path": str(path.absolute()), "asked": asked, "num_bytes": num_bytes})
        write_atomically(_note_of(part), lambda temporary: temporary.write_text(note, "utf-8"))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.replace(path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _carry(part, path, lambda: told(num_bytes, num_bytes, path.name))
    except OSError as error:
        raise ResourceError(f"{path} could not be written ({error}). Choose another folder.") from error
    card = identify(path)
    told(num_bytes, num_bytes, path.name)
    _drop(part)
    return card


def _carry(part: Path, path: Path, heard: Callable[[], None]) -> None:
    """Copy to the other disk, beside the place, then put it there at once."""

    def copy(source: str | Path, target: str | Path) -> None:
        with Path(source).open("rb") as read, Path(target).open("wb") as written:
            while chunk := read.read(_CHUNK):
                written.write(chunk)
                heard()
        to_disk(Path(target))

    near = path.with_name(f".{path.name}.part")
    with alone(near, path.name):
        try:
            _drop(near)  # of an attempt that was killed
            if part.is_dir():
                shutil.copytree(part, near, copy_function=copy)
            else:
                copy(part, near)
            _require_free(path)
            near.replace(path)
        finally:
            _drop(near)
    to_disk(path.parent)


def _note_of(part: Path) -> Path:
    """Return where it is noted in which place a file or folder was to be put."""
    return part.with_suffix(".placed")


def _placed(part: Path, asked: str | None) -> FileCard | None:
    """Return the card of what an attempt that ended too early had put in its place by then; None: it had not."""
    try:
        said = json.loads(_note_of(part).read_text("utf-8"))
        path = Path(said["path"])
        if said["asked"] != asked or not path.exists() or _num_bytes(path) != said["num_bytes"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    card = identify(path)
    _drop(part)
    return card


def _num_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _drop(part: Path) -> None:
    """Remove what is left of what was put in its place, and what was noted of it."""
    shutil.rmtree(part, ignore_errors=True)
    forget(part)
    _note_of(part).unlink(missing_ok=True)


def _require_free(path: Path) -> None:
    if path.exists():
        raise RequestError(f"{path} is there already. Remove it, or give what comes another name.")


def _require_space(source: Source, part: Path) -> None:
    """Raise ResourceError where what is still to come has no room."""
    there = next(each for each in part.absolute().parents if each.exists())
    free, missing = shutil.disk_usage(there).free, source.num_bytes - (_num_bytes(part) if part.exists() else 0)
    if missing > free:
        raise ResourceError(
            f"{missing / 2**30:.2f} GiB are to come, and {there} has {free / 2**30:.2f} left. Free space, or choose"
            " another folder."
        )
