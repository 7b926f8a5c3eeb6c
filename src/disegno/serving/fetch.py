"""Pictures by address: refused unless the server was told from which hosts, and never from inside the network.

One expression reads the address, and the connection goes to what it read: there is no second parser to disagree with
it. A name is resolved once, every address that it has must be a public one, and the connection is made to that address;
redirections are not followed.
"""

import base64
import http.client
import io
import math
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from disegno.core.network import addresses_of, is_public, literal
from disegno.serving.faults import Refused

PICTURE_KEYS = ("image", "mask", "region")
MAX_SECONDS = 20.0  # for all pictures of one request
CHUNK_BYTES = 65536
_URL = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(\d{1,5}))?((?:/|\?)[!-\[\]-~]*)?", re.IGNORECASE)


def _refused(why: str) -> Refused:
    return Refused(422, "url_refused", f"The picture's address is refused: {why}.", hint="Send it as a data URI.")


@dataclass(frozen=True)
class Target:
    """Where a picture is: what was asked for, and the address that will be connected to."""

    scheme: str
    host: str
    port: int
    path: str
    address: str


def target_of(url: str, allowed: tuple[str, ...]) -> Target:
    """Return where to connect to. Raises Refused. `allowed`: host names, literal addresses, or * for any public one."""
    found = _URL.fullmatch(url)
    if found is None:
        raise _refused("it is not a plain http or https address")
    scheme, host = found[1].lower(), found[2].lower()
    port = int(found[3] or (443 if scheme == "https" else 80))
    named = bool({host, f"{host}:{port}"} & {name.lower() for name in allowed})
    if not named and "*" not in allowed:
        raise _refused("this server does not fetch pictures from there")
    path = found[4] or "/"
    bare = host.strip("[]")
    return Target(scheme, bare, port, path if path.startswith("/") else f"/{path}", _address(bare, port, named))


def _address(host: str, port: int, named: bool) -> str:
    """Return the address of a host, all of whose addresses are public; a literal one may be any, where it was named."""
    if literal(host) is not None and named:
        return host
    try:
        addresses = addresses_of(host, port)
    except (OSError, UnicodeError) as error:
        raise _refused("the host is not known") from error
    if not addresses or not all(is_public(address) for address in addresses):
        raise _refused("the host is not a public one")
    return addresses[0]


def _left(until: float) -> float:
    """Return how many seconds are left. Raises TimeoutError where none are."""
    if (seconds := until - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds


class _Reads(io.RawIOBase):
    """What a socket receives: every read has at most what is left, so that a host that drips holds nobody up."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        super().__init__()
        self._sock, self._until = sock, until
        self._raw = sock.makefile("rb", buffering=0)  # it keeps the socket open as long as it is read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._until))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


@dataclass(frozen=True)
class _Timed:
    """What `http.client` uses of a socket, until a time."""

    sock: socket.socket
    until: float

    def sendall(self, data: bytes) -> None:
        self.sock.settimeout(_left(self.until))
        self.sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reads(self.sock, self.until))

    def close(self) -> None:
        self.sock.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was decided beforehand, by the name that was asked for."""

    def __init__(self, target: Target, until: float) -> None:
        super().__init__(target.host, target.port)
        self._target, self._until = target, until

    def connect(self) -> None:
        sock = socket.create_connection((self._target.address, self._target.port), _left(self._until))
        try:
            if self._target.scheme == "https":
                sock.settimeout(_left(self._until))  # of the whole handshake
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self._target.host)
        except BaseException:
            sock.close()
            raise
        self.sock = cast("socket.socket", _Timed(sock, self._until))


def fetch(url: str, allowed: tuple[str, ...], max_bytes: int, until: float) -> bytes:
    """Return what is at an address, at most `max_bytes`, before the monotonic time `until`. Raises Refused."""
    target = target_of(url, allowed)
    connection = _Pinned(target, until)
    try:
        connection.request("GET", target.path, headers={"User-Agent": "disegno", "Accept": "image/*"})
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise _refused(f"its server answers {answer.status}")
            data = bytearray()
            while chunk := answer.read1(CHUNK_BYTES):
                data += chunk
                if len(data) > max_bytes:
                    raise _refused(f"there are more than {max_bytes} bytes")
            return bytes(data)
    except TimeoutError as error:
        raise _refused("it takes too long") from error
    except (OSError, http.client.HTTPException) as error:
        raise _refused("its server does not answer as it should") from error
    finally:
        connection.close()


def num_addresses(fields: Any) -> int:
    """Return how many pictures of a request's JSON are given by address."""
    return sum(1 for _ in _addresses(fields))


def _addresses(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in cast("dict[str, Any]", value).items():
            yield from _addresses(item, name)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _addresses(item, key)
    elif _is_address(value, key):
        yield value


def _is_address(value: Any, key: str) -> bool:
    return key in PICTURE_KEYS and isinstance(value, str) and is_url(value)


@dataclass
class _Purse:
    """What one request may still fetch: so many bytes of text, until a time."""

    num_bytes: float
    until: float

    def picture(self, url: str, allowed: tuple[str, ...], max_bytes: int) -> str:
        """Return the picture at an address as a data URI. Raises Refused."""
        most = int(min(max_bytes, self.num_bytes * 3 / 4))
        if most <= 0:
            raise _refused("the request's pictures are too large together")
        text = base64.b64encode(fetch(url, allowed, most, self.until)).decode()
        self.num_bytes -= len(text)
        return f"data:image/png;base64,{text}"


def with_pictures(
    fields: Any, allowed: tuple[str, ...], max_bytes: int, max_total: float = math.inf, until: float | None = None
) -> Any:
    """Return a request's JSON with the pictures that were given by address in it, as data URIs. Raises Refused.

    `max_bytes`: of each one; `max_total`: of the texts of all of them; `until`: the monotonic time by which all are
    there, unset: in MAX_SECONDS.
    """
    purse = _Purse(max_total, time.monotonic() + MAX_SECONDS if until is None else until)

    def held(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: held(item, name) for name, item in cast("dict[str, Any]", value).items()}
        if isinstance(value, list):
            return [held(item, key) for item in cast("list[Any]", value)]
        return purse.picture(value, allowed, max_bytes) if _is_address(value, key) else value

    return held(fields)


def is_url(text: str) -> bool:
    """Return whether a text is meant as an address on the web."""
    return text[:8].lower().startswith(("http://", "https://"))
