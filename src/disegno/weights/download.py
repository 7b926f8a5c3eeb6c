"""Files by URL: fetched beside where they shall lie, whole or not at all; what broke off goes on where it broke.

Nothing is said to a server but what the caller gives, and a token goes to no other host than the one that it is for.
"""

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from filelock import FileLock, Timeout

from disegno.core.errors import CorruptFile, RequestError, ResourceError
from disegno.core.files import write_atomically
from disegno.core.version import VERSION

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_TRIES = 5
_MAX_TEXT_BYTES = 32 << 20  # of a server's list
_MAX_NAME = 200
_RESERVE_BYTES = 256 << 20  # that are left, where a server does not say how long a file is
_NO_ENTRY = (401, 403)

T = TypeVar("T")
Told = Callable[[int, int], None]
"""Is told how many bytes of how many are there; 0 where the server does not say."""


@dataclass(frozen=True)
class Remote:
    """A file that can be fetched. `name`: where it shall lie, below a folder; "": as the server calls it.

    `num_bytes`, `sha256`: what is known of it beforehand; 0 and "": nothing. `token`: for `url`'s own host alone.
    """

    url: str
    name: str = ""
    num_bytes: int = 0
    sha256: str = ""
    token: str = ""


def download(remote: Remote, folder: Path, told: Told, pause_seconds: float = 1.0) -> tuple[Path, str]:
    """Return where the bytes lie (a hidden file in the folder, to be moved by the caller), and the file's name.

    A transfer that breaks goes on where it broke, also in another process, after a pause that doubles. Raises
    RequestError where the file cannot be had, CorruptFile where it has another sha256, ResourceError where the disk is
    full or cannot be written to.
    """
    part = folder / f".{hashlib.sha256(remote.url.encode()).hexdigest()[:24]}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(part.with_suffix(".lock"), timeout=0):
            sent = persistently(lambda: transfer(remote, part, told), pause_seconds)
    except Timeout as error:
        raise RequestError(f"{_shown(remote)} is being fetched already, by another process. Wait for it.") from error
    except LOST as error:
        raise _refused(remote.url, error) from error
    except OSError as error:
        raise ResourceError(f"{folder} cannot be written to ({error}). Choose another folder.") from error
    if remote.sha256 and (found := _sha256(part)) != remote.sha256.lower():
        forget(part)
        raise CorruptFile(f"{_shown(remote)} has the sha256 {found}, not {remote.sha256}. It was not kept.")
    return part, remote.name or (sent.name if sent else "")


def forget(part: Path) -> None:
    """Remove what was fetched, and what was noted of it."""
    for each in (part, part.with_suffix(".json"), part.with_suffix(".lock")):
        each.unlink(missing_ok=True)


def keep(part: Path, path: Path) -> None:
    """Put what was fetched in its place, and remove what was noted of it. Raises ResourceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} could not be written ({error}). Choose another folder.") from error
    forget(part)


def read_json(url: str, token: str = "") -> Any:
    """Return what a server says as JSON, of 32 MiB at most. Raises RequestError."""
    try:
        with _open(_request(url, token)) as response:
            return json.loads(response.read(_MAX_TEXT_BYTES))
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise _refused(url, error) from error


LOST = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
"""What a transfer may end with, beside ResourceError."""


def is_gone(error: Exception) -> bool:
    """Return whether a server said that it will not give the file, so that asking again is idle."""
    return isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429


def persistently(act: Callable[[], T], pause_seconds: float) -> T:
    """Return what comes of an act that may be LOST several times, with a pause that doubles. Raises its last error."""
    for attempt in range(_TRIES):
        try:
            return act()
        except LOST as error:
            if is_gone(error) or attempt == _TRIES - 1:
                raise
            time.sleep(pause_seconds * 2**attempt)
    raise AssertionError("every attempt ends")


@dataclass(frozen=True)
class Sent:
    """What a server says of the bytes that it sent. `name`: what it calls them."""

    name: str = ""
    etag: str = ""
    modified: str = ""


def transfer(remote: Remote, part: Path, told: Told, known: Sent | None = None) -> Sent | None:
    """Fetch what is missing of a file; one attempt. None: it is still what is `known`. Raises LOST, ResourceError.

    What was said of the bytes lies beside them, so that only those of the same version are gone on with.
    """
    note = part.with_suffix(".json")
    have, before = (part.stat().st_size, _noted(note)) if part.exists() else (0, Sent())
    told(have, remote.num_bytes)
    request = _request(remote.url, remote.token)
    if known is not None and known.etag:
        request.add_header("If-None-Match", known.etag)
    elif known is not None and known.modified:
        request.add_header("If-Modified-Since", known.modified)
    elif have and before.etag and not before.etag.startswith("W/"):  # a weak one names no bytes
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", before.etag)
    try:
        response = _open(request)
    except urllib.error.HTTPError as error:
        if error.code == 304 and known is not None:
            return None
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return before  # all of it was there
        part.unlink()  # another file's: from the beginning
        return transfer(remote, part, told, known)
    with response:
        headers = response.headers
        begin = have if response.status == 206 else 0
        length = int(headers.get("Content-Length") or 0)
        _require_room(part, length, remote)
        name = _name_of(headers, response.geturl(), remote.url)
        sent = Sent(name, headers.get("ETag", ""), headers.get("Last-Modified", ""))
        write_atomically(note, lambda temporary: temporary.write_text(json.dumps(asdict(sent)), "utf-8"))
        done, of = begin, begin + length if length else remote.num_bytes
        with part.open("ab" if begin else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if not length:  # it may have no end
                    _require_room(part, _RESERVE_BYTES, remote)
                told(done, of)
        if length and done != begin + length:
            raise http.client.IncompleteRead(b"", begin + length - done)
        return sent


def _require_room(part: Path, num_bytes: int, remote: Remote) -> None:
    """Raise ResourceError where so many bytes more would not be there."""
    if (free := shutil.disk_usage(part.parent).free) < num_bytes:
        raise ResourceError(
            f"{_shown(remote)} wants {num_bytes / 2**30:.2f} GiB more, and {part.parent}'s disk has {free / 2**30:.2f}."
            " Free space."
        )


def _noted(note: Path) -> Sent:
    """Return what was noted of the bytes that are there; nothing where the note cannot be read."""
    try:
        given = cast("dict[str, Any]", json.loads(note.read_text("utf-8")))
        return Sent(*(str(given[name]) for name in ("name", "etag", "modified")))
    except (OSError, ValueError, KeyError, TypeError):
        return Sent()


def _name_of(headers: Message, *urls: str) -> str:
    """Return what a server calls a file: never a path, nothing hidden, and not empty."""
    given = headers.get_filename() or ""
    names = (given, *(urllib.parse.unquote(urllib.parse.urlsplit(url).path) for url in urls))
    last = (name.replace("\\", "/").rpartition("/")[2] for name in names)
    found = (re.sub(r"[^\w.+()\- \[\]]", "_", name).lstrip(". ") for name in last)
    return next((name[-_MAX_NAME:] for name in found if "." in name), "weights.safetensors")


def _request(url: str, token: str) -> urllib.request.Request:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise RequestError(f"{url} is no address of a file: it begins with https:// or http://.")
    request = urllib.request.Request(url, headers={"User-Agent": f"disegno/{VERSION}"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, without the token where they lead to another host, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        here, there = (urllib.parse.urlsplit(url) for url in (req.full_url, newurl))
        if here.scheme == "https" and there.scheme != "https":
            raise urllib.error.URLError(f"it leads from https to {there.scheme}")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and here.netloc != there.netloc:
            made.remove_header("Authorization")
        return made


def _open(request: urllib.request.Request) -> Any:
    """Return the open answer of http or https, and nothing else (no file:, no ftp:)."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener.open(request, timeout=_TIMEOUT_SECONDS)


def _refused(url: str, error: Exception) -> RequestError:
    what = f"{_without_query(url)} cannot be fetched ({error})."
    if isinstance(error, urllib.error.HTTPError) and error.code in _NO_ENTRY:
        return RequestError(
            f"{what} It wants to know who you are: accept its licence on its page, and give your token (HF_TOKEN for"
            " Hugging Face, CIVITAI_TOKEN for Civitai)."
        )
    if isinstance(error, urllib.error.HTTPError):
        return RequestError(f"{what} Look whether the address is right.")
    return RequestError(f"{what} Look whether there is a network; what was fetched is kept, and goes on next time.")


def _shown(remote: Remote) -> str:
    return remote.name or _without_query(remote.url)


def _without_query(url: str) -> str:
    return url.partition("?")[0]  # a signature may stand there


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
