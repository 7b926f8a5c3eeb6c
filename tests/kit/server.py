"""A real `disegno serve` in a process of its own, on the loopback address, and a client that asks it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

START_SECONDS = 120.0  # a few on an idle machine; the tests' machine may do much else
ENDED = ("done", "failed", "cancelled")


@dataclass
class Server:
    """A running server, and who asks it."""

    process: "subprocess.Popen[str]"
    url: str
    session: requests.Session = field(default_factory=requests.Session)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        """Return the answer, whatever it is."""
        return self.session.request(method, self.url + path, json=body, headers=headers, timeout=60)

    def get(self, path: str) -> Any:
        """Return an answer's JSON; it must be one of success."""
        answer = self.ask("GET", path)
        assert answer.ok, answer.text
        return answer.json()

    def submit(self, kind: str, request: dict[str, Any], **headers: str) -> Any:
        """Return the acknowledged job."""
        answer = self.ask("POST", "/v1/jobs", {"kind": kind, "request": request}, **headers)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def wait(self, job_id: str, seconds: float = 120.0) -> Any:
        """Return the job when it has ended."""
        until = time.monotonic() + seconds
        while (job := self.get(f"/v1/jobs/{job_id}"))["state"] not in ENDED:
            assert time.monotonic() < until, job
            time.sleep(0.05)
        return job

    def wait_state(self, job_id: str, state: str, seconds: float = 120.0) -> None:
        """Return when the job is in this state."""
        until = time.monotonic() + seconds
        while (job := self.get(f"/v1/jobs/{job_id}"))["state"] != state:
            assert time.monotonic() < until, job
            time.sleep(0.05)

    def wait_step(self, job_id: str, step: int, seconds: float = 120.0) -> int:
        """Return how far a running training is, once that is further than `step`."""
        until = time.monotonic() + seconds
        while True:
            job = self.get(f"/v1/jobs/{job_id}")
            progress: dict[str, Any] = job["progress"] or {}
            if progress.get("stage") == "teaching" and progress["step"] > step:
                return int(progress["step"])
            assert job["state"] not in ENDED and time.monotonic() < until, job
            time.sleep(0.05)

    def events(self, job_id: str) -> Iterator[tuple[str, Any]]:
        """Yield what is told about a job until it has ended: the event's name, and its data."""
        with self.session.get(f"{self.url}/v1/jobs/{job_id}/events", stream=True, timeout=60) as answer:
            name = ""
            for line in answer.iter_lines(decode_unicode=True):
                field_, _, value = str(line).partition(": ")
                if field_ == "data":
                    yield name, json.loads(value)
                name = value if field_ == "event" else name

    def wait_ready(self) -> "Server":
        """Return the server when its worker takes jobs."""
        until = time.monotonic() + START_SECONDS
        while self.ask("GET", "/ready").status_code != 200:
            assert time.monotonic() < until, "the server did not get ready"
            time.sleep(0.05)
        return self

    def stop(self) -> int:
        """Return the exit status after SIGTERM."""
        self.process.terminate()
        return self.closed(60)

    def kill(self) -> int:
        """Return the exit status after SIGKILL."""
        self.process.kill()
        return self.closed(10)

    def closed(self, seconds: float) -> int:
        """Return the exit status, once the process has ended."""
        status = self.process.wait(seconds)
        self.session.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


def start(folder: Path, *options: str, log: Path | None = None, **environment: str) -> Server:
    """Return a server that listens. `log`: where its log is appended; unset: this process's standard error."""
    words = [sys.executable, "-m", "disegno.cli.main", "serve", "--port", "0", "--folder", str(folder), *options]
    with log.open("a") if log is not None else nullcontext() as errors:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://" in line, line
    return Server(process, line.split()[3])
