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
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from filelock import FileLock, Timeout

from disegno.core.errors import CorruptFile, RequestError, ResourceError
from disegno.core.files import write_atomically
from disegno.core.network import addresses_of, is_public
from disegno.core.version import VERSION

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_TRIES = 5
_MAX_TEXT_BYTES = 32 << 20  # of a server's list
_MAX_TEXT_SECONDS = 60.0
MAX_NAME_BYTES = 200
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


@dataclass(frozen=True)
class Sent:
    """What a server says of the bytes that it sent. `name`: what it calls them."""

    name: str = ""
    etag: str = ""
    modified: str = ""


@contextmanager
def alone(part: Path, what: str) -> Generator[None]:
    """Within it no other process has to do with what is fetched there. Raises RequestError, ResourceError."""
    path = part.with_suffix(".lock")
    lock = FileLock(path, timeout=0)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RequestError(f"{what} is being fetched already, by another process. Wait for it.") from error
    except OSError as error:
        raise ResourceError(f"{part.parent} cannot be written to ({error}). Choose another folder.") from error
    try:
        yield
    finally:
        if not part.exists():  # it was put in its place, or was not kept
            with suppress(OSError):  # Windows removes nothing that is open
                path.unlink()
        lock.release()


def part_of(remote: Remote, folder: Path) -> Path:
    """Return where the bytes of a file lie until it is put in its place."""
    return folder / f".{hashlib.sha256(remote.url.encode()).hexdigest()[:24]}.part"


@contextmanager
def download(remote: Remote, folder: Path, told: Told, pause_seconds: float = 1.0) -> Generator[tuple[Path, str]]:
    """Within it the bytes lie in a hidden file of the folder, to be moved by the caller; beside it, the file's name.

    No other process touches them meanwhile. A transfer that breaks goes on where it broke, also in another process,
    after a pause that doubles. Raises RequestError where the file cannot be had, CorruptFile where it has another
    sha256, ResourceError where the disk is full or cannot be written to.
    """
    part = part_of(remote, folder)
    with alone(part, _shown(remote)):
        sent = _whole(remote, part, told, pause_seconds)
        yield part, remote.name or (sent.name if sent else "")


def _whole(remote: Remote, part: Path, told: Told, pause_seconds: float) -> Sent | None:
    """Fetch a file, in as many attempts as it takes, and compare its sha256. Raises DisegnoError."""
    try:
        sent = persistently(lambda: transfer(remote, part, told), part, pause_seconds)
    except LOST as error:
        raise _refused(remote.url, error) from error
    except OSError as error:
        raise ResourceError(f"{part.parent} cannot be written to ({error}). Choose another folder.") from error
    if remote.sha256 and (found := _sha256(part, told)) != remote.sha256.lower():
        forget(part)
        raise CorruptFile(f"{_shown(remote)} has the sha256 {found}, not {remote.sha256}. It was not kept.")
    return sent


def forget(part: Path) -> None:
    """Remove what was fetched, and what was noted of it."""
    for each in (part, part.with_suffix(".json")):
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
            return json.loads(_text(response))
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise _refused(url, error) from error


def _text(response: Any) -> bytes:
    """Return what comes of an answer, up to a number of bytes and a time: a host that drips holds nobody up."""
    text, until = bytearray(), time.monotonic() + _MAX_TEXT_SECONDS
    while chunk := response.read1(_MAX_TEXT_BYTES - len(text)):
        text += chunk
        if time.monotonic() > until:
            raise TimeoutError("it takes too long")
    return bytes(text)


LOST = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
"""What a transfer may end with, beside ResourceError."""


def is_gone(error: Exception) -> bool:
    """Return whether a server said that it will not give the file, so that asking again is idle."""
    return isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429


def persistently(act: Callable[[], T], part: Path, pause_seconds: float) -> T:
    """Return what comes of an act that may be LOST several times, with a pause that doubles. Raises its last error.

    The count begins anew where more of `part` is there than ever.
    """
    attempt, most = 0, _size(part)
    while True:
        try:
            return act()
        except LOST as error:
            has = _size(part)
            attempt, most = (attempt + 1, most) if has <= most else (1, has)
            if is_gone(error) or attempt == _TRIES:
                raise
            time.sleep(pause_seconds * 2 ** (attempt - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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
        if response.status == 206 and not _goes_on(headers, have, before):
            if not request.has_header("Range"):
                raise urllib.error.URLError("it sends a piece of the file, and all of it was asked for")
            part.unlink()  # of another version: from the beginning
            return transfer(remote, part, told, known)
        begin, length = have if response.status == 206 else 0, response.length or 0
        _require_room(part, length, remote)
        name = _name_of(headers, response.geturl(), remote.url)
        sent = Sent(name, headers.get("ETag", ""), headers.get("Last-Modified", ""))
        if not begin:
            part.unlink(missing_ok=True)  # before its note: old bytes never lie beside a new one
        write_atomically(note, lambda temporary: temporary.write_text(json.dumps(asdict(sent)), "utf-8"))
        done, of = begin, begin + length if length else remote.num_bytes
        with part.open("ab") as file:
            while (not length or done < of) and (chunk := _received(response)):
                file.write(chunk)
                done += len(chunk)
                if not length:  # it may have no end
                    _require_room(part, _RESERVE_BYTES, remote)
                told(done, of)
        if done < of:
            raise http.client.IncompleteRead(b"", of - done)
        return sent


def _goes_on(headers: Message, have: int, before: Sent) -> bool:
    """Return whether a piece of a file is what follows on the bytes that are there, of the same version."""
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == have and headers.get("ETag", "") == before.etag != ""


def _received(response: Any) -> bytes:
    """Return what is there of an answer, as soon as something is. Raises LOST: the disk has no part in it."""
    try:
        return response.read1(_CHUNK)
    except OSError as error:
        raise urllib.error.URLError(error) from error


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
    cut = (name.encode()[-MAX_NAME_BYTES:].decode(errors="ignore").lstrip(". ") for name in found)
    return next((name for name in cut if "." in name), "weights.safetensors")


def _request(url: str, token: str) -> urllib.request.Request:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise RequestError(f"{url} is no address of a file: it begins with https:// or http://.")
    request = urllib.request.Request(url, headers={"User-Agent": f"disegno/{VERSION}"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, without the token where they lead to another host; never from https to http, and never from
    the internet into the network that this machine is in."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        here, there = (urllib.parse.urlsplit(url) for url in (req.full_url, newurl))
        if here.scheme == "https" and there.scheme != "https":
            raise urllib.error.URLError(f"it leads from https to {there.scheme}")
        if here.hostname != there.hostname and _is_public(here) and not _is_public(there):
            raise urllib.error.HTTPError(
                newurl, code, f"it leads to {there.hostname}, which is no public host", headers, fp
            )
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and here.netloc != there.netloc:
            made.remove_header("Authorization")
        return made


def _is_public(url: urllib.parse.SplitResult) -> bool:
    """Return whether all addresses of an address's host are the internet's."""
    try:
        return all(map(is_public, addresses_of(url.hostname or "", url.port or 0)))
    except (OSError, ValueError):  # it has none
        return False


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
    try:
        return opener.open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.URLError:
        raise
    except (OSError, ValueError) as error:  # such as a host's name that can be none
        raise urllib.error.URLError(str(error)) from error


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


def _sha256(path: Path, told: Told) -> str:
    num_bytes, digest = _size(path), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            told(num_bytes, num_bytes)  # who wants it to end is heard
    return digest.hexdigest()
