"""`disegno serve`, as a person starts it: a process of its own, asked over HTTP on the loopback address."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image

pytestmark = pytest.mark.e2e

START_SECONDS = 90  # under 10 on an idle machine; the tests' machine may do much else


@dataclass
class Server:
    """A running server."""

    process: "subprocess.Popen[str]"
    url: str

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Return the answer's JSON, or its bytes where it is no JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers} if data else headers
        with urlopen(Request(self.url + path, data, headers, method=method), timeout=60) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers.get("content-type", "") else content

    def wait(self, job_id: str, seconds: float = 60) -> Any:
        """Return the job when it has ended."""
        until = time.monotonic() + seconds
        while (job := self.ask("GET", f"/v1/jobs/{job_id}"))["state"] in ("queued", "running", "paused"):
            assert time.monotonic() < until, job
            time.sleep(0.05)
        return job


def start(folder: Path, *options: str, **environment: str) -> Server:
    """Return a server that listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "disegno.cli.main", "serve", "--port", "0", "--folder", str(folder), *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"} | environment,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://" in line, line
    return Server(process, line.split()[3])


def stop(server: Server) -> int:
    """Return the exit status of a server that was asked to end."""
    server.process.terminate()
    status = server.process.wait(40)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return status


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start(tmp_path_factory.mktemp("server"))
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            server.ask("GET", "/ready")
            break
        except HTTPError:
            time.sleep(0.2)
    yield server
    assert stop(server) == 0


def test_a_generation_gives_its_picture(server: Server) -> None:
    asked = {"kind": "generate", "request": {"prompt": "a red car", "steps": 2, "seed": 1}}
    job = server.wait(server.ask("POST", "/v1/jobs", asked)["id"])
    assert job["state"] == "done" and job["attempts"] == 1
    (file,) = job["result"]["files"]
    picture = Image.open(BytesIO(server.ask("GET", file["url"])))
    assert picture.size == (128, 128) and job["result"]["facts"]["seeds"] == ["1"]


def test_an_annotation_gives_its_drawing(server: Server) -> None:
    from disegno.engine.record import data_uri

    uri = data_uri(Image.linear_gradient("L"))
    asked = {"kind": "annotate", "request": {"name": "canny", "image": uri, "width": 128, "height": 64}}
    job = server.wait(server.ask("POST", "/v1/jobs", asked)["id"])
    (file,) = job["result"]["files"]
    assert Image.open(BytesIO(server.ask("GET", file["url"]))).size == (128, 64)
