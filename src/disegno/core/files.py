"""Writes files so that a crash, a kill or a full disk leaves the old file or the new one, never half of one."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from disegno.core.errors import ResourceError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file beside `path`, bring it to the disk, and put it in the place of `path` in one step.

    Raises ResourceError when it cannot be written; the old file is then as it was, and nothing is left over.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    except OSError as error:
        raise ResourceError(f"{path.parent} cannot be written to ({error.strerror}). Choose another folder.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(_mode(path))
        to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise ResourceError(
            f"{path} could not be written ({error}). Free disk space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    to_disk(path.parent)


def path_of(name: str) -> Path | None:
    """Return the path that a name is, ~ read as a home; None where nothing lies there, or where it can be no path."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long; of nobody's home; with a zero in it
        return None


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are not there. Raises ResourceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be made ({error.strerror}). Choose another folder.") from error


def require_folder(folder: Path) -> None:
    """Raise ResourceError where files could not be written to a folder: before there is anything to write."""
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    if not there.is_dir():
        raise ResourceError(f"{folder} cannot be a folder: {there} is none. Choose another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ResourceError(f"{there} cannot be written to (Permission denied). Choose another folder.")


def _mode(path: Path) -> int:
    """Return the permissions of the file that is replaced, or of a new file."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, through every cache (Windows has no such call for folders)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
