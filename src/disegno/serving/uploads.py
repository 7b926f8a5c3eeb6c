"""Uploads: files that are larger than one request come in parts, one after another, and may go on later. No HTTP here.

FOLDER/uploads/ID.json     whose it is, and how long it will be
FOLDER/uploads/ID.part     what has come so far
FOLDER/uploads/ID          all of it
"""

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from disegno.core.files import write_atomically
from disegno.serving.faults import Refused
from disegno.serving.files import RESERVE_BYTES, Files
from disegno.serving.settings import Limits

PART_BYTES = 8 * 2**20
KEEP_SECONDS = 24 * 3600.0  # without a new part
_CONFIG = ConfigDict(use_attribute_docstrings=True, extra="forbid")


@checked_dataclass(frozen=True, config=_CONFIG)
class NewUpload:
    """A file that will be sent in parts."""

    num_bytes: Annotated[int, Field(ge=1, le=2**53)]
    """How long the whole file is."""


@checked_dataclass(frozen=True, config=_CONFIG)
class UploadView:
    """How much of a file has come."""

    id: str
    """What a job calls it."""
    num_bytes: int
    """How long the whole file is."""
    received: int
    """How much has come: the next part begins there."""
    part_bytes: int = PART_BYTES
    """How long a part may be."""


@checked_dataclass(frozen=True, config=_CONFIG)
class Note:
    """What is remembered of an upload."""

    owner: str
    num_bytes: int


_NOTE: TypeAdapter[Note] = TypeAdapter(Note)


@dataclass
class Uploads:
    """The uploads of one server. Its methods touch the disk: call them from a thread."""

    files: Files
    limits: Limits
    _lock: Lock = field(default_factory=Lock)

    def open(self, num_bytes: int, owner: str) -> UploadView:
        """Return a new upload. Raises Refused where it is too long, or one too many."""
        if num_bytes > self.limits.upload_bytes:
            told = f"num_bytes is {num_bytes}; this server takes at most {self.limits.upload_bytes} bytes."
            raise Refused(422, "over_limit", told, "num_bytes", "Put the folder on the server, or send less.")
        with self._lock:
            mine = [note for note in self._notes() if note.owner == owner]
            if len(mine) >= self.limits.uploads_per_user:
                raise Refused(
                    429, "too_many_uploads", f"{len(mine)} of your uploads are open.", hint="DELETE one first."
                )
            if self.files.free_bytes() < num_bytes + RESERVE_BYTES:
                raise Refused(507, "no_room", "The server's disk has no room for this.")
            upload_id = secrets.token_hex(16)
            note = _NOTE.dump_json(Note(owner, num_bytes))
            write_atomically(self._at(upload_id, ".json"), lambda path: path.write_bytes(note))
            self._at(upload_id, ".part").touch()
        return UploadView(upload_id, num_bytes, 0)

    def look(self, upload_id: str, owner: str) -> UploadView:
        """Return how much has come. Raises Refused (404)."""
        note = self._note(self._at(upload_id, ".json"))
        if note is None or note.owner != owner:
            raise Refused(404, "not_found", "There is no such upload.", "id", "POST /v1/uploads begins one.")
        return UploadView(upload_id, note.num_bytes, self._received(upload_id))

    def add(self, upload_id: str, at: int, body: bytes, owner: str) -> UploadView:
        """Return the upload with one more part; one that has come already changes nothing. Raises Refused."""
        with self._lock:
            before = self.look(upload_id, owner)
            if at + len(body) <= before.received:
                return before  # its answer was lost
            if at != before.received:
                told = f"The part begins at {at}; the next one begins at {before.received}."
                raise Refused(409, "wrong_part", told, "at", "GET /v1/uploads/ID says where to go on.")
            if not body or len(body) > PART_BYTES or at + len(body) > before.num_bytes:
                told = f"A part has 1 to {PART_BYTES} bytes, and all of them {before.num_bytes}."
                raise Refused(422, "wrong_part", told, "at")
            with self._at(upload_id, ".part").open("ab") as file:
                file.write(body)
            if at + len(body) == before.num_bytes:
                self._finish(upload_id)
            return UploadView(upload_id, before.num_bytes, at + len(body))

    def drop(self, upload_id: str, owner: str) -> None:
        """Remove an upload. Raises Refused (404)."""
        with self._lock:
            self.look(upload_id, owner)
            self._remove(upload_id)

    def sweep(self) -> None:
        """Remove what nobody goes on with, and what is said of files that are gone."""
        with self._lock:
            for note in list(self.files.uploads.glob("*.json")):
                there = [path for path in (self._at(note.stem, ".part"), self._at(note.stem, "")) if path.exists()]
                if not there or max(path.stat().st_mtime for path in there) < time.time() - KEEP_SECONDS:
                    self._remove(note.stem)

    def _finish(self, upload_id: str) -> None:
        part = self._at(upload_id, ".part")
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.rename(self._at(upload_id, ""))

    def _received(self, upload_id: str) -> int:
        found = (self._at(upload_id, suffix) for suffix in ("", ".part"))
        return next((path.stat().st_size for path in found if path.exists()), 0)

    def _notes(self) -> Iterator[Note]:
        for path in self.files.uploads.glob("*.json"):
            note = self._note(path)
            if note is not None and (self._at(path.stem, ".part").exists() or self._at(path.stem, "").exists()):
                yield note

    def _note(self, path: Path) -> Note | None:
        try:
            return _NOTE.validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def _at(self, upload_id: str, suffix: str) -> Path:
        return self.files.uploads / f"{upload_id}{suffix}"

    def _remove(self, upload_id: str) -> None:
        for suffix in ("", ".part", ".json"):
            self._at(upload_id, suffix).unlink(missing_ok=True)
