"""A folder held by one process at a time, by a lock that ends with the process, in whatever way it ends."""

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from disegno.core.errors import RequestError, ResourceError

log = logging.getLogger(__name__)

_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


@contextmanager
def held(folder: Path, doing: str, option: str) -> Generator[Callable[[str], None]]:
    """Hold the folder for this process; what is given adds to what others are told of it.

    `doing`: what it does there, as in "is training there"; `option`: how another folder is chosen. Raises RequestError
    naming who holds it, ResourceError where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+b")
    except OSError as error:
        raise ResourceError(f"{folder} cannot be used ({error.strerror}). Choose another folder: {option}.") from error
    with file:
        if not _lock(file):
            file.seek(0)
            who = file.read().decode("utf-8", "replace").strip() or f"another process {doing}"
            raise RequestError(f"{folder} is in use: {who}. Wait for it, end it, or choose another folder: {option}.")

        def say(more: str) -> None:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} {doing}{more}\n".encode())
            file.flush()

        say("")
        yield say


def _lock(file: BinaryIO) -> bool:
    """Return whether the file is ours now: until it is closed, or this process ends in whatever way."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        log.warning("%s cannot be locked (%s): see to it that no other process uses it.", file.name, error.strerror)
    return True
