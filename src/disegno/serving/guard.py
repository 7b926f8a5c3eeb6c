"""What every request passes before a route sees it: whose page it comes from, who is asking, how much it sends.

Plain ASGI. Decisions are made from the headers and the path of the connection, never from a URL that the client's Host
header takes part in.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from pydantic_core import from_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from disegno.serving.auth import TICKET, TICKET_SECONDS, Doorkeeper, is_loopback
from disegno.serving.faults import Refused
from disegno.serving.settings import ServerSettings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OPEN_PATHS = ("/health", "/ready")
METHODS = (*SAFE_METHODS, "POST", "PUT", "PATCH", "DELETE")
BODY_TYPES = ("application/json", "multipart/form-data", "application/octet-stream")
_HOST = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::(\d{1,5}))?$")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}

Render = Callable[[str, Refused], Response]


@dataclass
class Guard:
    """The outermost layer. `render`: a refusal in the shape of the door that a path belongs to."""

    app: ASGIApp
    settings: ServerSettings
    doorkeeper: Doorkeeper
    render: Render
    held_bytes: int = 0  # of all bodies that are being read
    waiting: Counter[str] = field(default_factory=Counter[str])  # bytes of each owner's requests that wait
    _names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        here = {"localhost", "127.0.0.1", "[::1]", self.settings.host, f"[{self.settings.host}]"}
        self._names = frozenset(name.lower() for name in (*here, *self.settings.allow_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        sender = _Sender(send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(scope["method"], headers)
            self._check_body(scope["method"], headers)
            if (opened := self._opening(scope)) is not None:
                return await opened(scope, receive, sender)
            self._check_owner(scope, headers)
            return await self._with_body(scope, receive, sender, headers)
        except Refused as refused:
            if sender.started:
                raise
            return await self.render(scope["path"], refused)(scope, receive, sender)

    # ---- the headers

    def _check_host(self, headers: Headers) -> None:
        """Only the server's own names: a page of another name that resolves to this machine is turned away."""
        given = headers.getlist("host")
        found = _HOST.match(given[0]) if len(given) == 1 else None
        if found is None:
            raise Refused(400, "bad_host", "One Host header with a plain name or address is needed.")
        name = found[1].lower()
        exposed = not is_loopback(self.settings.host) and bool(re.fullmatch(r"[0-9.]+|\[[0-9a-f:.]+\]", name))
        if name not in self._names and not exposed:
            raise Refused(421, "wrong_host", "This server has another name.", hint="Start it with --allow-host NAME.")

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Web pages of other origins may change nothing here."""
        if method in SAFE_METHODS:
            return
        origins = headers.getlist("origin")
        if any(not self._is_ours(origin, headers) for origin in origins):
            raise Refused(403, "wrong_origin", "A page of another origin may not do this.", "Origin")
        if not origins and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise Refused(403, "wrong_origin", "A page of another site may not do this.", "Sec-Fetch-Site")

    def _is_ours(self, origin: str, headers: Headers) -> bool:
        if origin in self.settings.allow_origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # such as a bracket that is not closed
            return False
        same_site = headers.get("sec-fetch-site", "same-origin") == "same-origin"
        return parts.scheme in ("http", "https") and parts.netloc.lower() == headers["host"].lower() and same_site

    def _check_body(self, method: str, headers: Headers) -> None:
        if method not in METHODS:
            raise Refused(405, "method_not_allowed", f"This server knows {', '.join(METHODS)}.")
        lengths = headers.getlist("content-length")
        chunked = "transfer-encoding" in headers
        if any(not text.isdigit() for text in lengths) or len(set(lengths)) > 1 or (lengths and chunked):
            raise Refused(400, "bad_length", "The Content-Length cannot be read.")
        if lengths and int(lengths[0]) > self.settings.limits.body_bytes:
            raise _too_large(self.settings.limits.body_bytes)
        if not (chunked or (lengths and int(lengths[0]) > 0)) or method in SAFE_METHODS:
            return
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "bad_encoding", "Bodies are taken as they are, not compressed.", "Content-Encoding")
        if _type_of(headers) not in BODY_TYPES:
            raise Refused(415, "bad_type", f"The body must be one of: {', '.join(BODY_TYPES)}.", "Content-Type")

    def _check_owner(self, scope: Scope, headers: Headers) -> None:
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if scope["path"] in OPEN_PATHS or (preflight and headers.get("origin") in self.settings.allow_origins):
            return
        owner = self._holder(headers) or self.doorkeeper.owner(headers.get("authorization"), _address(scope))
        scope.setdefault("state", {})["owner"] = owner

    def _holder(self, headers: Headers) -> str | None:
        """Return who a browser without credentials has a ticket of."""
        cookies = headers.get("cookie", "")
        if TICKET not in cookies or "authorization" in headers:
            return None
        return self.doorkeeper.holder(cookie_parser(cookies).get(TICKET, ""))

    def _opening(self, scope: Scope) -> Response | None:
        """Return the page's address without the key that was in it, and a ticket; None for every other request.

        Raises Refused for a key that nobody has.
        """
        if scope["method"] != "GET" or scope["path"] != "/":
            return None
        key = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("key")
        if key is None:
            return None
        ticket = self.doorkeeper.ticket(self.doorkeeper.owner(f"Bearer {key}", _address(scope)))
        answer = RedirectResponse("/", 303)
        if ticket:
            safe = scope["scheme"] == "https"
            answer.set_cookie(TICKET, ticket, TICKET_SECONDS, httponly=True, samesite="lax", secure=safe)
        return answer

    # ---- the body

    async def _with_body(self, scope: Scope, receive: Receive, sender: "_Sender", headers: Headers) -> None:
        """Read the whole body within the limits, then let the app have it."""
        body = bytearray()
        try:
            await self._read(receive, body)
        finally:
            self.held_bytes -= len(body)
        if body and _type_of(headers) == "application/json":
            require_json(body)
        with self._waits(str(scope.get("state", {}).get("owner", "")), len(body)):
            await self.app(scope, _replayed(bytes(body), receive), sender)

    @contextmanager
    def _waits(self, owner: str, num_bytes: int) -> Generator[None]:
        """Count a request that waits for its answer: it may take as long as its pictures. Raises Refused."""
        most = self.settings.limits.waiting_bytes
        if num_bytes and self.waiting[owner] + num_bytes > most // 2:
            why = "Too much of yours waits for its answer."
            raise Refused(429, "too_many_jobs", why, hint="Send the rest later.", headers={"Retry-After": "5"})
        if num_bytes and self.waiting.total() + num_bytes > most:
            raise Refused(503, "busy", "Too much waits for its answer.", headers={"Retry-After": "5"})
        self.waiting[owner] += num_bytes
        try:
            yield
        finally:
            self.waiting[owner] -= num_bytes
            if not self.waiting[owner]:
                del self.waiting[owner]

    async def _read(self, receive: Receive, body: bytearray) -> None:
        limits, more = self.settings.limits, True
        while more:
            try:
                message = await asyncio.wait_for(receive(), limits.idle_seconds)
            except TimeoutError as error:
                raise Refused(
                    408, "too_slow", "The rest of the request did not come.", headers={"Connection": "close"}
                ) from error
            if message["type"] == "http.disconnect":
                raise Refused(400, "gone", "The client went away.")
            part: bytes = message.get("body", b"")
            if len(body) + len(part) > limits.body_bytes:
                raise _too_large(limits.body_bytes)
            if part and self.held_bytes + len(part) > limits.bodies_bytes:
                raise Refused(503, "busy", "Too much is being sent at once.", headers={"Retry-After": "2"})
            body += part
            self.held_bytes += len(part)
            more = message.get("more_body", False)


def _address(scope: Scope) -> str:
    return (scope.get("client") or ("", 0))[0]


def _type_of(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_large(most: int) -> Refused:
    return Refused(413, "too_large", f"The body has more than {most} bytes.", hint="Send less.")


def require_json(body: bytes | bytearray) -> None:
    """Refuse what is not JSON, is nested deeper than 200 levels, or holds NaN or Infinity. Raises Refused."""
    try:
        from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, "bad_json", f"The body is not JSON: {str(error)[:200]}.") from error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, and then what the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


@dataclass
class _Sender:
    """Sends, with the headers that every answer carries."""

    send: Send
    started: bool = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await self.send(message)


def owner_of(request: Request) -> str:
    """Return the name of who is asking, in a route."""
    return str(request.state.owner)
