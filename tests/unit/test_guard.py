"""What every request passes before a route: names, origins, credentials, bodies. In process; no model is opened."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import uvicorn
from httpx2 import Response
from starlette import responses
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.server import ServerState

from disegno.core.errors import RequestError
from disegno.core.settings import Settings
from disegno.serving import auth, http, native
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.front import body_of
from disegno.serving.app import create_app, render_plainly
from disegno.serving.auth import Doorkeeper
from disegno.serving.faults import Refused
from disegno.serving.guard import Guard
from disegno.serving.serve import config_of
from disegno.serving.settings import Account, Limits, ServerSettings

pytestmark = pytest.mark.unit

JSON = {"content-type": "application/json"}
SECRET = "correct horse"
ANNA = (Account("anna", SECRET), Account("robot", "a-long-key", key=True))


def _settings(tmp_path: Path, **fields: object) -> ServerSettings:
    return replace(ServerSettings(folder=tmp_path, machine=Settings()), **fields)


def _client(settings: ServerSettings) -> TestClient:
    return TestClient(create_app(settings), base_url=f"http://127.0.0.1:{settings.port}", raise_server_exceptions=False)


def _basic(user: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()}


def _code(answer: Response) -> tuple[int, str]:
    told = answer.json()
    assert set(told) == {"error", "message", "field", "hint"} and told["message"]
    return answer.status_code, told["error"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9999", "[::1]:7860", "LOCALHOST:1"])
def test_the_servers_own_names(tmp_path: Path, host: str) -> None:
    assert _client(_settings(tmp_path)).get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host, status",
    [
        ("evil.example", 421),
        ("127.0.0.1.evil.example:7860", 421),
        ("127.0.0.1/x?y=", 400),
        ("a@127.0.0.1", 400),
        ("", 400),
    ],
)
def test_other_names_are_turned_away(tmp_path: Path, host: str, status: int) -> None:
    assert _client(_settings(tmp_path)).get("/health", headers={"host": host}).status_code == status
    allowed = _settings(tmp_path, allow_hosts=("evil.example",))
    assert (_client(allowed).get("/health", headers={"host": "evil.example"}).status_code) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_other_origins_change_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    answer = _client(_settings(tmp_path)).post("/v1/jobs", json={}, headers=headers)
    assert _code(answer) == (403, "wrong_origin")
    assert "access-control-allow-origin" not in answer.headers


def test_pages_of_an_allowed_origin_may_call(tmp_path: Path) -> None:
    client = _client(_settings(tmp_path, allow_origins=("https://art.example",), accounts=ANNA))
    origin = {"origin": "https://art.example"}
    preflight = client.options("/v1/jobs", headers=origin | {"access-control-request-method": "POST"})
    assert preflight.headers["access-control-allow-origin"] == "https://art.example"
    assert _code(client.post("/v1/jobs", content="{", headers=origin | JSON | _basic("anna", SECRET)))[0] == 400
    other = client.options("/v1/jobs", headers={"origin": "https://x.example", "access-control-request-method": "POST"})
    assert other.status_code == 401 and "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "body, headers, expected",
    [
        (b"{}", {"content-type": "text/plain"}, (415, "bad_type")),
        (b"{}", {}, (415, "bad_type")),
        (b"{}", JSON | {"content-encoding": "gzip"}, (415, "bad_encoding")),
        (b"{", JSON, (400, "bad_json")),
        (b'{"x": NaN}', JSON, (400, "bad_json")),
        (b'"\xe9"', JSON, (400, "bad_json")),
        (b"[" * 5000 + b"]" * 5000, JSON, (400, "bad_json")),
        (b"[" * 5000 + b"]" * 5000, {"content-type": "Application/JSON; charset=utf-8"}, (400, "bad_json")),
        (b'"' + b"x" * 2000 + b'"', JSON, (413, "too_large")),
        (b"[1]", JSON, (422, "invalid_request")),
    ],
)
def test_bodies(tmp_path: Path, body: bytes, headers: dict[str, str], expected: tuple[int, str]) -> None:
    limits = Limits(body_bytes=1000 if b"xx" in body else 20_000)
    answer = _client(_settings(tmp_path, limits=limits)).post("/v1/jobs", content=body, headers=headers)
    assert _code(answer) == expected


@pytest.mark.parametrize("body", [b"[" * 5000 + b"]" * 5000, b'{"x": NaN}', b"{"])
def test_bodies_of_the_other_door_that_are_not_said_to_be_json(body: bytes) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    with pytest.raises(WireError, match="not JSON"):
        asyncio.run(body_of(Request({"type": "http", "headers": []}, receive)))


def test_headers_that_do_not_come_to_an_end_close_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEADER_SECONDS", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.15)  # an answer may take longer
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def until_closed(before: bytes, server: asyncio.Server) -> bytes:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(before)
        told = await reader.read(100) if before else b""
        with suppress(ConnectionError):
            while not (reader.at_eof() or writer.is_closing()):
                writer.write(b"G")  # a byte now and then
                await writer.drain()
                await asyncio.sleep(0.03)
        writer.close()
        return told

    async def tried() -> None:
        config = uvicorn.Config(app, http=http.PatientH11, ws="none", log_config=None)
        config.load()
        connect = partial(http.PatientH11, config, ServerState(), {})
        async with await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0) as server:
            await asyncio.wait_for(until_closed(b"", server), 5)
            assert b"204" in await asyncio.wait_for(until_closed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", server), 5)

    asyncio.run(tried())


async def _told(scope: Scope, receive: Receive, send: Send) -> None:
    await responses.PlainTextResponse("too large", 413)(scope, receive, send)  # without a look at its body


@asynccontextmanager
async def _connected(app: ASGIApp) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Within it there is a connection to the app."""
    config = uvicorn.Config(app, http=http.PatientH11, ws="none", log_config=None)
    config.load()
    state = ServerState()
    connect = partial(http.PatientH11, config, state, {})
    async with await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        while state.connections:
            await asyncio.sleep(0.01)


def _post(num_bytes: int) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {num_bytes}\r\n\r\n".encode()


def test_who_sends_too_much_sees_the_answer_and_may_go_on(tmp_path: Path) -> None:
    limits = Limits(body_bytes=1000)
    settings = _settings(tmp_path, limits=limits)
    guard = Guard(_told, settings, Doorkeeper(settings), lambda path, refused: render_plainly(refused))

    async def tried() -> None:
        asked = _post(9_000_000).replace(b"Host: x", b"Host: localhost\r\nContent-Type: application/json")
        async with _connected(guard) as (reader, writer):
            for _ in range(2):  # on the same connection
                writer.write(asked)
                for _ in range(9):
                    writer.write(bytes(1_000_000))
                    await asyncio.wait_for(writer.drain(), 5)
                assert b"413" in await asyncio.wait_for(reader.readline(), 5)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert b"connection: close" not in head.lower()
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))

    asyncio.run(tried())


@pytest.mark.parametrize("bound", ["HEADER_SECONDS", "REST_SECONDS", "REST_BYTES"])
def test_a_body_that_nobody_wants_holds_no_connection(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(http, bound, 0.3)

    async def tried() -> None:
        async with _connected(_told) as (reader, writer):
            writer.write(_post(1_000_000))
            assert b"413" in await reader.readline()
            writer.write(b"x")  # ends uvicorn's own patience
            closed = asyncio.ensure_future(reader.read())
            while not closed.done():
                await asyncio.sleep(0.05)
                writer.write(b"" if bound == "HEADER_SECONDS" else b"x")
            with suppress(ConnectionError):
                await closed

    asyncio.run(asyncio.wait_for(tried(), 5))


def test_who_waits_with_much_keeps_nobody_else_out(tmp_path: Path) -> None:
    limits = Limits(bodies_bytes=1000, waiting_bytes=2000)
    released = asyncio.Event()
    waiting: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waiting.append(scope["state"]["owner"])
        await released.wait()
        await responses.Response(status_code=200)(scope, receive, send)

    accounts = (Account("anna", SECRET), Account("bert", SECRET))
    settings = _settings(tmp_path, limits=limits, accounts=accounts)
    guard = Guard(app, settings, Doorkeeper(settings), lambda path, refused: render_plainly(refused))

    async def ask(user: str) -> int:
        body = json.dumps({"x": "x" * 600}).encode()
        found: list[int] = []
        headers = _basic(user, SECRET) | {"content-type": "application/json", "host": "localhost"}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-length", str(len(body)).encode()))
        scope = {"type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": raw, "scheme": "http"}

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                found.append(message["status"])

        await guard(scope, receive, send)
        return found[0]

    async def all_of_them() -> list[int]:
        asked = [asyncio.ensure_future(ask(user)) for user in ("anna", "anna", "bert")]
        while len(waiting) < 2:
            await asyncio.sleep(0.001)
        released.set()
        return [await one for one in asked]

    assert asyncio.run(all_of_them()) == [200, 429, 200]
    assert waiting == ["anna", "bert"] and not guard.waiting and not guard.held_bytes


def test_an_origin_that_cannot_be_read_is_another(tmp_path: Path) -> None:
    answer = _client(_settings(tmp_path)).post("/v1/jobs", json={}, headers={"origin": "http://["})
    assert _code(answer) == (403, "wrong_origin")


def test_a_declared_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    headers = JSON | {"content-length": "999999999999"}
    answer = _client(_settings(tmp_path)).post("/v1/jobs", content=iter(()), headers=headers)
    assert answer.status_code in (400, 413)


def test_every_route_but_the_open_ones_wants_credentials(tmp_path: Path) -> None:
    app = create_app(_settings(tmp_path, accounts=ANNA))
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    routes = [(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item]
    assert len(routes) > 20
    walked = {(method, path): client.request(method, path).status_code for method, path in routes}
    walked |= {("GET", path): client.get(path).status_code for path in ("/openapi.json", "/nothing")}
    free = {route for route, status in walked.items() if status != 401}
    assert free == {("GET", "/health"), ("GET", "/ready")}


@pytest.mark.parametrize(
    "headers, status",
    [
        (_basic("anna", SECRET), 422),
        (_basic("anna", SECRET + "x"), 401),
        (_basic("anna", ""), 401),
        (_basic("", SECRET), 401),
        (_basic("robot", "a-long-key"), 422),
        (_basic("anna", "a-long-key"), 401),
        ({"Authorization": "Bearer a-long-key"}, 422),
        ({"Authorization": f"Bearer {SECRET}"}, 401),
        ({"Authorization": "Basic ////"}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"a\0b:c").decode()}, 401),
        ({}, 401),
    ],
)
def test_credentials(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    answer = _client(_settings(tmp_path, accounts=ANNA)).post("/v1/jobs", json={}, headers=headers)
    assert answer.status_code == status
    assert SECRET not in answer.text and ("www-authenticate" in answer.headers) == (status == 401)


def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    client = _client(_settings(tmp_path, accounts=ANNA, limits=Limits(tries_per_minute=3)))
    guesses = [client.get("/metrics", headers=_basic("anna", f"guess {i}")).status_code for i in range(5)]
    assert guesses == [401, 401, 401, 429, 429]
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("proxies, status", [(("10.0.0.1",), 200), ((), 429), (("10.0.0.2",), 429)])
def test_behind_a_named_proxy_who_guesses_locks_out_himself(
    tmp_path: Path, proxies: tuple[str, ...], status: int
) -> None:
    settings = _settings(tmp_path, accounts=ANNA, proxies=proxies, limits=Limits(tries_per_minute=1))
    config = config_of(settings, create_app(settings))
    config.load()
    client = TestClient(config.loaded_app, base_url="http://127.0.0.1", client=("10.0.0.1", 5000))

    def ask(secret: str, address: str) -> int:
        headers = _basic("anna", secret) | {"X-Forwarded-For": address}
        return client.get("/openapi.json", headers=headers).status_code

    assert ask("a guess", "203.0.113.7") == 401
    assert (ask(SECRET, "203.0.113.7"), ask(SECRET, "203.0.113.8")) == (429, status)


def test_who_guesses_at_one_account_locks_out_no_other(tmp_path: Path) -> None:
    """As behind a proxy: all of them come from one address."""
    client = _client(
        _settings(tmp_path, accounts=(*ANNA, Account("ben", "ben's secret")), limits=Limits(tries_per_minute=3))
    )

    def status(headers: dict[str, str]) -> int:
        return client.post("/v1/jobs", json={}, headers=headers).status_code  # 422: let in

    assert [status(_basic("anna", f"guess {i}")) for i in range(4)] == [401, 401, 401, 429]
    assert status(_basic("anna", SECRET)) == 429  # a guess that is right tells nothing
    assert status(_basic("ben", "ben's secret")) == 422 and status({"Authorization": "Bearer a-long-key"}) == 422
    assert [status({"Authorization": f"Bearer guess {i}"}) for i in range(4)] == [401, 401, 401, 429]
    assert status({"Authorization": "Bearer a-long-key"}) == 429 and status(_basic("robot", "a-long-key")) == 422
    assert status({}) == 401  # a browser is still asked who is there
    assert [status(_basic("nobody", f"guess {i}")) for i in range(4)] == [401, 401, 401, 429]


def test_names_that_nobody_has_push_out_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_COUNTS", 2)
    keeper = Doorkeeper(_settings(tmp_path, accounts=ANNA, limits=Limits(tries_per_minute=1)))

    def status(user: str) -> int:
        with pytest.raises(Refused) as caught:
            keeper.owner(_basic(user, "a guess")["Authorization"], "127.0.0.1")
        return caught.value.status

    assert [status(user) for user in ("anna", "a", "b", "c", "anna")] == [401, 401, 401, 401, 429]
    assert [status(user) for user in ("c", "a")] == [429, 401]  # the oldest is forgotten


def test_other_machines_are_let_in_with_accounts_only(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        with pytest.raises(RequestError, match=r"--auth"):
            create_app(_settings(tmp_path, host=host))
        create_app(_settings(tmp_path, host=host, accounts=ANNA))
    with pytest.raises(RequestError, match="shorter than 8"):
        create_app(_settings(tmp_path, accounts=(Account("anna", "short"),)))


def test_every_answer_carries_the_headers_that_protect_a_browser(tmp_path: Path) -> None:
    client = _client(_settings(tmp_path))
    for answer in (client.get("/health"), client.get("/nothing"), client.post("/v1/jobs", json={})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_a_full_disk_is_no_fault_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_request: Request) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native, "jobs_of", full)
    assert _code(_client(_settings(tmp_path)).get("/v1/jobs")) == (507, "no_room")


def test_a_fault_of_the_server_tells_a_number_and_nothing_else(tmp_path: Path) -> None:
    answer = _client(_settings(tmp_path)).get("/v1/jobs")  # without its lifespan the app has no jobs
    status, code = _code(answer)
    assert (status, code) == (500, "internal") and "Traceback" not in answer.text and "jobs" not in answer.text


# ---- a browser that was opened with a key


def _opened(client: TestClient, key: str) -> Response:
    return client.get(f"/?key={key}", follow_redirects=False)


def test_a_key_in_the_address_becomes_a_ticket(tmp_path: Path) -> None:
    with_accounts = _settings(tmp_path, accounts=ANNA)
    answer = _opened(_client(with_accounts), "a-long-key")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    said = answer.headers["set-cookie"]
    assert "HttpOnly" in said and "SameSite=lax" in said and "a-long-key" not in said
    ticket = said.partition(";")[0]
    browser = _client(with_accounts)
    assert browser.get("/v1/models", headers={"cookie": ticket}).status_code != 401
    assert browser.get("/v1/models").status_code == 401
    evil = {"cookie": ticket, "origin": "https://evil.example", "content-type": "application/json"}
    assert _code(browser.post("/v1/models/look", headers=evil)) == (403, "wrong_origin")
    changed = _settings(tmp_path, accounts=(Account("robot", "another-long-key", key=True),))
    assert _client(changed).get("/v1/models", headers={"cookie": ticket}).status_code == 401


def test_without_accounts_a_key_in_the_address_is_passed_over(tmp_path: Path) -> None:
    answer = _opened(_client(_settings(tmp_path)), "x")
    assert answer.status_code == 303 and "set-cookie" not in answer.headers


def test_a_wrong_key_in_the_address_is_a_guess(tmp_path: Path) -> None:
    client = _client(_settings(tmp_path, accounts=ANNA, limits=Limits(tries_per_minute=3)))
    assert [_opened(client, key).status_code for key in ("a", SECRET, "anna:correct horse", "b")] == [
        401,
        401,
        401,
        429,
    ]


def test_only_a_whole_ticket_that_still_holds_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Doorkeeper(_settings(tmp_path, accounts=ANNA))
    ticket = keeper.ticket("robot")
    assert keeper.holder(ticket) == "robot" and keeper.ticket("nobody") == ""
    name, until, seal = ticket.split(".")
    annas = keeper.ticket("anna").split(".")[0]
    wrong = (f"{annas}.{until}.{seal}", f"{name}.{int(until) + 1}.{seal}", f"{name}.{until}.{seal[:-1]}", f"..{seal}",
             "", "...", f"{name}.{'9' * 30}.{seal}", f"{name}.²³.{seal}", f"{name}.{until}.é")  # fmt: skip
    assert [keeper.holder(each) for each in wrong] == [None] * len(wrong)
    now = time.time()
    monkeypatch.setattr(auth.time, "time", lambda: now + auth.TICKET_SECONDS + 60)
    assert keeper.holder(ticket) is None
