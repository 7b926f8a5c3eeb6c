"""Pictures by address: no spelling of an address inside the network is ever connected to."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from disegno.core.network import is_public
from disegno.serving.faults import Refused
from disegno.serving.fetch import fetch, num_addresses, target_of, with_pictures

pytestmark = pytest.mark.unit

SPELLINGS = (
    "http://127.0.0.1:{port}/x", "http://[::1]:{port}/x", "http://0.0.0.0:{port}/x", "http://0x7f000001:{port}/x",
    "http://2130706433:{port}/x", "http://127.1:{port}/x", "http://0177.0.0.1:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x", "http://[::ffff:7f00:1]:{port}/x", "http://[64:ff9b::7f00:1]:{port}/x",
    "http://[2002:7f00:1::]:{port}/x", "http://169.254.169.254/latest/meta-data/", "http://localhost:{port}/x",
    "http://localhost.:{port}/x", "http://user@127.0.0.1:{port}/x", "HTTP://127.0.0.1:{port}/x",
    "gopher://127.0.0.1:{port}/_x", "ftp://127.0.0.1/x", "file:///etc/passwd",
    "http://127.0.0.1:{port}\\@example.com/", "  http://127.0.0.1:{port}/x", "http://127.0.0.1:{port}#@example.com/",
    "http://example.com:{port}@127.0.0.1:{port}/", "http://10.0.0.1/x", "http://192.168.0.1/x", "http://[fe80::1]/x",
    "http://[fd00::1]/x", "http://224.0.0.1/x", "http://ⓛocalhost:{port}/x", "http://127.0.0.1:{port}/\r\nHost: x",
)  # fmt: skip
DRIP_SECONDS = 10.0


def _soon() -> float:
    return time.monotonic() + 10


class _Canary(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        content = {"/ok": b"picture", "/large": b"x" * 5000}.get(self.path, b"")
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "/ok")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def canary() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), _Canary)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    _Canary.seen.clear()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("allowed", [(), ("*",), ("example.com",)])
def test_nothing_inside_is_connected_to(canary: int, spelling: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as found:
        fetch(spelling.format(port=canary), allowed, 1000, _soon())
    assert found.value.code == "url_refused" and _Canary.seen == []


def test_a_host_that_was_named_is_read_within_the_limits(canary: int) -> None:
    here = f"127.0.0.1:{canary}"
    url = f"http://{here}"
    assert fetch(f"{url}/ok", (here,), 1000, _soon()) == b"picture"
    assert fetch(f"{url}/ok", ("127.0.0.1",), 1000, _soon()) == b"picture"
    for path, why in (("/large", "more than 1000 bytes"), ("/away", "answers 302")):
        with pytest.raises(Refused, match=why):
            fetch(url + path, (here,), 1000, _soon())
    assert _Canary.seen == ["/ok", "/ok", "/large", "/away"]
    with pytest.raises(Refused):
        fetch(f"http://127.0.0.1:{canary + 1}/ok", (here,), 1000, _soon())


def test_a_name_is_resolved_once_and_all_its_addresses_are_public(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["8.8.8.8"], ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"]]
    asked: list[str] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(0, 0, 0, "", (address, port)) for address in answers[len(asked) - 1]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert target_of("http://flips.example/x?y", ("*",)).address == "8.8.8.8"
    for _ in range(2):
        with pytest.raises(Refused, match="not a public one"):
            target_of("http://flips.example/x", ("flips.example",))
    assert asked == ["flips.example"] * 3


def test_public_addresses() -> None:
    assert is_public("8.8.8.8") and is_public("2606:4700::1111")
    assert not any(map(is_public, ("127.0.0.1", "fe80::1%eth0", "::", "100.64.0.1", "x", "2001:0:1::1", "ff02::1")))


def test_the_pictures_of_a_request_are_put_into_it(canary: int) -> None:
    here = f"127.0.0.1:{canary}"
    fields = {"prompt": f"http://{here}/no", "controls": [{"image": f"http://{here}/ok", "name": "canny"}]}
    held = with_pictures(fields, (here,), 1000)
    assert held["controls"][0]["image"] == "data:image/png;base64,cGljdHVyZQ==" and held["prompt"] == fields["prompt"]
    assert _Canary.seen == ["/ok"]


def test_the_pictures_of_one_request_have_a_limit_together(canary: int) -> None:
    here = f"127.0.0.1:{canary}"
    assert num_addresses({"prompt": f"http://{here}/no", "controls": [{"image": f"http://{here}/ok"}] * 3}) == 3
    fields = {"controls": [{"image": f"http://{here}/large"}] * 4}
    with pytest.raises(Refused, match="more than"):
        with_pictures(fields, (here,), 6000, 15_000)  # two of them fit: 4/3 of 5000 bytes each
    assert _Canary.seen == ["/large"] * 3
    with pytest.raises(Refused, match="too long"):
        with_pictures(fields, (here,), 6000, until=time.monotonic() - 1)
    assert _Canary.seen == ["/large"] * 3


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 200 OK\r\nX-a: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
def test_a_host_that_drips_is_left_in_time(first: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_drip, args=(listener, first))
        thread.start()
        here, began = f"127.0.0.1:{listener.getsockname()[1]}", time.monotonic()
        with pytest.raises(Refused, match="too long"):
            fetch(f"http://{here}/x", (here,), 1000, began + 0.3)
        assert time.monotonic() - began < DRIP_SECONDS / 2
        thread.join()


def _drip(listener: socket.socket, first: bytes) -> None:
    """Answer one request a byte at a time, and never wholly, until the client goes away."""
    client, _ = listener.accept()
    until = time.monotonic() + DRIP_SECONDS
    with client:
        client.recv(4000)
        try:
            client.sendall(first)
            while time.monotonic() < until:
                client.sendall(b"0")
                time.sleep(0.02)
        except OSError:
            pass
