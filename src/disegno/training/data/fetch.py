"""Shards by URL: fetched once into a folder of the cache, whole or not at all, asked again whether they changed."""

import hashlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from filelock import FileLock

from disegno import __version__
from disegno.core.errors import BadData, ResourceError
from disegno.core.files import write_atomically

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_TRIES = 4

Told = Callable[[int, int], None]
"""Is told how many bytes of how many are there; 0 where the server does not say."""


@dataclass(frozen=True)
class _Version:
    """What a server says about the bytes that it sent."""

    url: str
    etag: str = ""
    modified: str = ""


def fetch(url: str, folder: Path, told: Told, pause_seconds: float = 1.0) -> Path:
    """Return the file that lies at an http or https URL. Raises BadData where it cannot be had, ResourceError.

    A file that is there already is taken when the server says that it has not changed, or cannot be reached. A transfer
    that breaks goes on where it broke, after a pause that doubles.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"
    part = path.with_suffix(".part")
    with FileLock(path.with_suffix(".lock")):
        for attempt in range(_TRIES):
            try:
                return _transfer(url, path, part, told)
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                gone = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if path.exists() and not gone:
                    return path
                if gone or attempt == _TRIES - 1:
                    raise BadData(f"{url} cannot be fetched ({error}). Look whether the address is right.") from error
                time.sleep(pause_seconds * 2**attempt)
            except OSError as error:
                raise ResourceError(f"{path.name} cannot be written to {folder} ({error.strerror}).") from error
    raise AssertionError("every attempt ends")


def _transfer(url: str, path: Path, part: Path, told: Told) -> Path:
    """Fetch what is missing; one attempt. What is noted of a part becomes the file's when the part does."""
    note, part_note = path.with_suffix(".json"), part.with_suffix(".part.json")
    version = _noted(note if path.exists() else part_note, url)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"disegno/{__version__}"})
    if path.exists():
        have = 0
        if version.etag:
            request.add_header("If-None-Match", version.etag)
        elif version.modified:
            request.add_header("If-Modified-Since", version.modified)
    elif have and version.etag:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version.etag)
    try:
        response = _opener().open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 304:
            return path
        if error.code == 416 and have:  # all of it was there
            part.unlink()
            return _transfer(url, path, part, told)
        raise
    with response:
        headers = response.headers
        fresh = _Version(url, headers.get("ETag", ""), headers.get("Last-Modified", ""))
        begin = have if response.status == 206 else 0
        length = int(headers.get("Content-Length") or 0)
        if length and shutil.disk_usage(path.parent).free < length:
            raise ResourceError(f"{url} has {length} bytes; {path.parent} has less left. Free disk space.")
        write_atomically(part_note, lambda temporary: temporary.write_text(json.dumps(asdict(fresh))))
        with part.open("ab" if begin else "wb") as file:
            done = begin
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                told(done, begin + length if length else 0)
        if length and done != begin + length:
            raise http.client.IncompleteRead(b"", begin + length - done)
    part.replace(path)
    part_note.replace(note)
    return path


def _noted(note: Path, url: str) -> _Version:
    """Return what was noted about the bytes that are there; nothing where the note cannot be read."""
    try:
        fields = cast("dict[str, str]", json.loads(note.read_text("utf-8")))
        return _Version(url, str(fields["etag"]), str(fields["modified"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Version(url)


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens http and https and follows redirects between them, and nothing else (no file:, no ftp:)."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
