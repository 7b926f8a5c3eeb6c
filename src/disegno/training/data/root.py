"""A folder that nothing leaves: names from outside are looked up inside it, and only plain files are ever opened."""

import os
import stat
import unicodedata
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from disegno.core.errors import BadData

MAX_PICTURE_BYTES = 64 << 20
MAX_DEPTH = 16
"""Folders within folders; deeper ones are not looked at."""

_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}


class Missing(BadData):
    """No such file."""


def shown(name: str) -> str:
    """Return a stranger's name as text that a terminal shows and never obeys, at most 200 characters."""
    return "".join(c if c.isprintable() else "?" for c in name[:200])


@dataclass(frozen=True)
class Found:
    """A file seen in the folder: its name from there, with /. `fault`: why it will not be opened; "" where it may."""

    name: str
    fault: str = ""


@dataclass(frozen=True)
class Root:
    """A data set's folder, resolved. Symbolic links inside it may point to other files inside it, nowhere else."""

    path: Path

    @classmethod
    def of(cls, path: Path) -> "Root":
        """Return the root for a folder. Raises BadData where there is none."""
        try:
            real = path.expanduser().resolve(strict=True)
            with os.scandir(real):
                pass
        except (OSError, RuntimeError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise BadData(
                f"{shown(str(path))!r} cannot be opened as a folder ({reason}). Give a data set's folder, or a .tar."
            ) from error
        return cls(real)

    def locate(self, name: str) -> Path:
        """Return where the file `name` lies, links followed. Raises BadData when it is not in here, or not a file.

        Backslashes count as / and letters compare by their composed form, as names written on other systems need it.
        """
        parts = safe_parts(name)
        path = self.path.joinpath(*parts)
        if not path.exists():
            path = self._composed(parts)
        try:
            real = path.resolve(strict=True)
            mode = real.stat().st_mode
        except (OSError, RuntimeError, ValueError) as error:
            raise Missing(f"{shown(name)!r} is not there.") from error
        if not real.is_relative_to(self.path):
            raise BadData(f"{shown(name)!r} leads out of the data set's folder; nothing outside it is read.")
        if not stat.S_ISREG(mode):
            raise BadData(f"{shown(name)!r} is not a plain file.")
        return real

    @contextmanager
    def open(self, name: str) -> Generator[BinaryIO]:
        """Open the file for reading. Raises BadData, also for what goes wrong while it is read."""
        with open_plain(self.locate(name), name) as file:
            yield file

    def read(self, name: str, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
        """Return the file's bytes, at most one more than `max_bytes`. Raises BadData."""
        with self.open(name) as file:
            return file.read(max_bytes + 1)

    def files(self, folder: str = "", deep: bool = True) -> Iterator[Found]:
        """Yield the files of a folder in here, sorted by name; hidden files and other programs' leavings are not seen.

        Links to folders are never entered, so that every walk ends.
        """
        depth = folder.count("/") + 1 if folder else 0
        try:
            entries = sorted(os.scandir(self.path / folder), key=lambda entry: entry.name)
        except OSError:
            yield Found(folder, "the folder cannot be opened")
            return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                continue
            if entry.is_dir(follow_symlinks=False):
                if deep and depth < MAX_DEPTH:
                    yield from self.files(name)
            else:
                yield Found(name, self._fault(name, entry))

    def folder(self, name: str) -> str:
        """Return the folder's name from here, "" for this one itself. Raises BadData when it is not in here."""
        parts = () if name in ("", ".", "./") else safe_parts(name)
        try:
            real = self.path.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise BadData(f"There is no folder {shown(name)!r} in {self.path.name}.") from error
        if not (real.is_dir() and real.is_relative_to(self.path)):
            raise BadData(f"{shown(name)!r} is not a folder inside {self.path.name}; nothing outside it is read.")
        return "" if real == self.path else real.relative_to(self.path).as_posix()

    def within(self, name: str) -> "Root":
        """Return a folder in here as a root of its own: nothing leaves that either. Raises BadData."""
        return Root(self.path / self.folder(name))

    def folders(self) -> dict[str, str]:
        """Return the folders directly in here: lower-case name -> name."""
        return {entry.name.lower(): entry.name for entry in sorted(os.scandir(self.path), key=lambda e: e.name)
                if entry.is_dir(follow_symlinks=False)}  # fmt: skip

    def linked_folders(self) -> list[str]:
        """Return the names of links to folders directly in here: they are not entered."""
        return sorted(entry.name for entry in os.scandir(self.path) if entry.is_symlink() and entry.is_dir())

    def _fault(self, name: str, entry: "os.DirEntry[str]") -> str:
        if entry.is_symlink():
            try:
                self.locate(name)
            except BadData as error:
                return str(error)
        return "" if entry.is_file() else f"{shown(name)!r} is not a plain file."

    def _composed(self, parts: tuple[str, ...]) -> Path:
        """Return the path whose parts equal `parts` once letters and their accents are composed; else as given."""
        path = self.path
        for part in parts:
            wanted = unicodedata.normalize("NFC", part)
            names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
            same = [name for name in sorted(names) if unicodedata.normalize("NFC", name) == wanted]
            path = path / (same[0] if same else part)
        return path


@contextmanager
def open_plain(path: Path, name: str) -> Generator[BinaryIO]:
    """Open a plain file for reading; a pipe or a device is refused, not waited for. Raises BadData, also on reading."""
    try:
        handle = os.open(path, _HOW)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BadData(f"{shown(name)!r} is not a plain file.")
            yield file
    except OSError as error:
        raise BadData(f"{shown(name)!r} cannot be read ({error.strerror}).") from error


_HOW = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def safe_parts(name: str) -> tuple[str, ...]:
    """Return a relative name's parts. Raises BadData for absolute names, drives, `..` and NUL."""
    windows = PureWindowsPath(name)
    posix = PurePosixPath(name.replace("\\", "/"))
    if "\0" in name or windows.drive or windows.root or posix.is_absolute() or ".." in posix.parts:
        raise BadData(f"{shown(name)!r} leads out of the data set's folder; names in a data set start inside it.")
    if not posix.parts:
        raise BadData("An empty name names no file.")
    return posix.parts
