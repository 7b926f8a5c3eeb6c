"""Tensors on disk by the name of their content: one SQLite file, so that a row is there whole or not at all.

Many processes may read and write one store at a time; a kill loses the row that was being written, and nothing else.
Every tensor has its checksum, and what does not agree with it counts as absent. Memory does not grow with the store.
"""

import json
import os
import sqlite3
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from disegno.core.errors import ResourceError

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tensors (key TEXT PRIMARY KEY, dtype TEXT, shape TEXT, packed INT, check32 INT, data BLOB);
CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, value TEXT);
"""
_WAIT_SECONDS = 60.0
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.uint8)}
_KEYS_AT_ONCE = 500


@dataclass
class Store:
    """A store in the file `path`, made when it is first used. May be sent to other processes."""

    path: Path
    _connection: sqlite3.Connection | None = field(default=None, repr=False, compare=False)
    _process: int = field(default=0, repr=False, compare=False)
    _lock: RLock = field(default_factory=RLock, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["path"])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def put(self, key: str, row: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
        """Write a row and its tensors (by their own keys) at once; those that are there stay. Raises ResourceError."""
        with self._use() as connection, connection:
            connection.executemany(
                "INSERT OR REPLACE INTO tensors VALUES (?, ?, ?, ?, ?, ?)",
                [(name, *_packed(tensor)) for name, tensor in tensors.items()],
            )
            connection.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (key, json.dumps(row)))

    def row(self, key: str) -> dict[str, str] | None:
        """Return the row that was put under this key, or None."""
        with self._use() as connection:
            found = connection.execute("SELECT value FROM rows WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def tensor(self, key: str) -> Tensor | None:
        """Return the tensor under this key; None where there is none or its bytes are not those that were written."""
        with self._use() as connection:
            query = "SELECT dtype, shape, packed, check32, data FROM tensors WHERE key = ?"
            found = connection.execute(query, (key,)).fetchone()
        return None if found is None else _unpacked(*found)

    def is_sound(self, key: str) -> bool:
        """Return whether the tensor under this key is there as it was written."""
        with self._use() as connection:
            found = connection.execute("SELECT check32, data FROM tensors WHERE key = ?", (key,)).fetchone()
        return found is not None and zlib.crc32(found[1]) == found[0]

    @contextmanager
    def _use(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._open()
            except sqlite3.OperationalError as error:
                raise ResourceError(
                    f"The cache {self.path} cannot be used ({error}). Free disk space, or name another cache_dir."
                ) from error
            except sqlite3.DatabaseError as error:
                raise ResourceError(
                    f"The cache {self.path} is damaged ({error}). Delete it: it is made again from the data."
                ) from error

    def _open(self) -> sqlite3.Connection:
        """Return this process's connection: SQLite's may not be carried over a fork."""
        if self._connection is None or self._process != os.getpid():
            self._make_folder()
            connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # with WAL: no damage at a loss of power
            connection.executescript(_SCHEMA)
            self._connection, self._process = connection, os.getpid()
        return self._connection

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"{self.path.parent} cannot be made ({error.strerror}). Name another cache_dir."
            ) from error


def _packed(tensor: Tensor) -> tuple[str, str, int, int, bytes]:
    """Return a tensor as the columns of its row; pixels are compressed, since conditions are mostly one colour."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    is_pixels = tensor.dtype == torch.uint8
    data = zlib.compress(data, 1) if is_pixels else data
    return str(tensor.dtype), json.dumps(list(tensor.shape)), int(is_pixels), zlib.crc32(data), data


def _unpacked(dtype: str, shape: str, is_packed: int, check: int, data: bytes) -> Tensor | None:
    if zlib.crc32(data) != check:
        return None
    content = bytearray(zlib.decompress(data) if is_packed else data)
    return torch.frombuffer(content, dtype=_DTYPES[dtype]).reshape(json.loads(shape))
