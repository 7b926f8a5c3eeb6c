"""Shards by URL: fetched once into a folder of the cache, whole or not at all, asked again whether they changed."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import cast

from filelock import FileLock

from disegno.core.errors import BadData, ResourceError
from disegno.core.files import write_atomically
from disegno.weights.download import LOST, Remote, Sent, Told, is_gone, persistently, transfer


def fetch(url: str, folder: Path, told: Told, pause_seconds: float = 1.0) -> Path:
    """Return the file that lies at an http or https URL. Raises BadData where it cannot be had, ResourceError.

    A file that is there already is taken when the server says that it has not changed, or cannot be reached. A transfer
    that breaks goes on where it broke, after a pause that doubles.
    """
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"
    part, note = path.with_suffix(".new.part"), path.with_suffix(".json")

    def act() -> Path:
        try:
            sent = transfer(Remote(url), part, told, _noted(note) if path.exists() else None)
        except LOST as error:
            if path.exists() and not is_gone(error):
                return path
            raise
        if sent is not None:
            part.replace(path)
            write_atomically(note, lambda temporary: temporary.write_text(json.dumps(asdict(sent)), "utf-8"))
            part.with_suffix(".json").unlink(missing_ok=True)
        return path

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            return persistently(act, part, pause_seconds)
    except LOST as error:
        raise BadData(f"{url} cannot be fetched ({error}). Look whether the address is right.") from error
    except OSError as error:
        raise ResourceError(f"{path.name} cannot be written to {folder} ({error.strerror}).") from error


def _noted(note: Path) -> Sent:
    """Return what was noted about the bytes that are there; nothing where the note cannot be read."""
    try:
        fields = cast("dict[str, str]", json.loads(note.read_text("utf-8")))
        return Sent(etag=str(fields["etag"]), modified=str(fields["modified"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Sent()
