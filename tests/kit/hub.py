"""A server that answers as Hugging Face's, Civitai's or any other does, and a LoRA to fetch from it."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from safetensors.numpy import save

TOKEN = "secret"
_PIECE = 1 << 16


class Hub:
    """What the server has, what it does to a transfer, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.away: dict[str, str] = {}
        self.breaks_after: list[int] = []  # bytes, of each next transfer
        self.closed: set[str] = set()  # those that want a token
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.other = ""  # another host's address
        self.endless: set[str] = set()  # what is sent without its length
        self.held: dict[str, threading.Event] = {}  # what is sent by half until then, and slowly from then on

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        rows: list[dict[str, Any]] = [{"type": "directory", "path": "unet"}]
        for path, data in files.items():
            large = {"oid": hashlib.sha256(data).hexdigest()}
            rows.append({"type": "file", "path": path, "size": len(data), "oid": "0", "lfs": large})
        self.files[f"/api/models/{repo}/tree/main"] = json.dumps(rows).encode()
        self.files |= {f"/{repo}/resolve/main/{path}": data for path, data in files.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *rest: Any) -> None:
        self.hub = hub
        super().__init__(*rest)

    def do_GET(self) -> None:
        path, said = self.path.partition("?")[0], {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append((path, said))
        data, is_closed = self.hub.files.get(path), path in self.hub.closed
        if path in self.hub.away:
            self._answer(302, b"", {"Location": self.hub.away[path]})
        elif data is None:
            self._answer(404, b"")
        elif is_closed and said.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401, b"")
        else:
            self._send(path, data, said)

    def _send(self, path: str, data: bytes, said: dict[str, str]) -> None:
        tag, begin, status = f'"{hashlib.md5(data).hexdigest()}"', 0, 200
        if "range" in said and said.get("if-range") == tag:
            begin, status = int(said["range"].removeprefix("bytes=").rstrip("-")), 206
        if status == 206 and begin >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        where = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if status == 206 else {}
        self._answer(status, data[begin:], {"ETag": tag, **where, **self.hub.headers.get(path, {})})

    def _answer(self, status: int, data: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        endless = self.path in self.hub.endless
        for name, value in {**({} if endless else {"Content-Length": str(len(data))}), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = endless or self.close_connection
        if data and self.hub.breaks_after:
            self.wfile.write(data[: self.hub.breaks_after.pop(0)])
            self.close_connection = True
            return
        with suppress(ConnectionError):  # the client has enough
            if (held := self.hub.held.get(self.path)) is None:
                self.wfile.write(data)
                return
            self.wfile.write(data[: len(data) // 2])
            held.wait(60)
            for begin in range(len(data) // 2, len(data), _PIECE):
                self.wfile.write(data[begin : begin + _PIECE])
                time.sleep(0.05)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving_hub() -> Iterator[tuple[Hub, str]]:
    """Within it a hub is served, by two hosts; its address, which is the first one's."""
    hub = Hub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub)) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    first, hub.other = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield hub, first
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def lora_file(rank: int = 2) -> bytes:
    """Return a file of a LoRA for Stable Diffusion 1; one of rank 1,024 has 4.3 MiB."""
    place = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    return save(
        {f"{place}.lora_down.weight": np.ones((rank, 768), "f4"), f"{place}.lora_up.weight": np.ones((320, rank), "f4")}
    )
