"""Pictures by address: refused unless the server was told from which hosts, and never from inside the network.

One expression reads the address, and the connection goes to what it read: there is no second parser to disagree with
it. A name is resolved once, every address that it has must be a public one, and the connection is made to that address;
redirections are not followed.
"""

import base64
import http.client
import ipaddress
import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any, cast

from disegno.serving.faults import Refused

PICTURE_KEYS = ("image", "mask", "region")
MAX_SECONDS = 20.0  # for all pictures of one request
CHUNK_BYTES = 65536
_URL = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(\d{1,5}))?((?:/|\?)[!-\[\]-~]*)?", re.IGNORECASE)
# ranges of IPv6 whose addresses stand for IPv4 ones: mapped, NAT64, Teredo, 6to4
_TUNNELS = tuple(
    ipaddress.IPv6Network(text)
    for text in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
)


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
    literal = _literal(host)
    if literal is not None and named:
        return host
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _refused("the host is not known") from error
    addresses = [str(info[4][0]) for info in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise _refused("the host is not a public one")
    return addresses[0]


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: str) -> bool:
    """Return whether an address is one of the internet's, and no other written in its form."""
    literal = _literal(address.partition("%")[0])
    if literal is None:
        return False
    if isinstance(literal, ipaddress.IPv6Address) and any(literal in tunnel for tunnel in _TUNNELS):
        return False
    return literal.is_global and not literal.is_multicast


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was decided beforehand, by the name that was asked for."""

    def __init__(self, target: Target, seconds: float) -> None:
        super().__init__(target.host, target.port, timeout=seconds)
        self._target = target

    def connect(self) -> None:
        plain = socket.create_connection((self._target.address, self._target.port), self.timeout)
        secure = self._target.scheme == "https"
        context = ssl.create_default_context() if secure else None
        self.sock = context.wrap_socket(plain, server_hostname=self._target.host) if context else plain


def fetch(url: str, allowed: tuple[str, ...], max_bytes: int, until: float) -> bytes:
    """Return what is at an address, at most `max_bytes`, before the monotonic time `until`. Raises Refused."""
    target = target_of(url, allowed)
    connection = _Pinned(target, max(0.1, until - time.monotonic()))
    try:
        connection.request("GET", target.path, headers={"User-Agent": "disegno", "Accept": "image/*"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise _refused(f"its server answers {answer.status}")
        data = bytearray()
        while chunk := answer.read1(CHUNK_BYTES):
            data += chunk
            if len(data) > max_bytes:
                raise _refused(f"there are more than {max_bytes} bytes")
            if time.monotonic() > until:
                raise _refused("it takes too long")
        return bytes(data)
    except (OSError, http.client.HTTPException) as error:
        raise _refused("its server does not answer as it should") from error
    finally:
        connection.close()


def with_pictures(fields: Any, allowed: tuple[str, ...], max_bytes: int) -> Any:
    """Return a request's JSON with the pictures that were given by address in it, as data URIs. Raises Refused."""
    until = time.monotonic() + MAX_SECONDS

    def held(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: held(item, name) for name, item in cast("dict[str, Any]", value).items()}
        if isinstance(value, list):
            return [held(item, key) for item in cast("list[Any]", value)]
        if key in PICTURE_KEYS and isinstance(value, str) and is_url(value):
            data = fetch(value, allowed, max_bytes, until)
            return f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return value

    return held(fields)


def is_url(text: str) -> bool:
    """Return whether a text is meant as an address on the web."""
    return text[:8].lower().startswith(("http://", "https://"))
