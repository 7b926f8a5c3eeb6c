"""What goes wrong in one job is that job's: every failure is clean, every success is what it would be alone.

`python tests/e2e/test_server_failures.py 1000` does the same with so many jobs, and prints what came of them; with a
second number it kills the server so many times meanwhile (`kill -9`).
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature
from kit.faulty_samplers import install
from kit.server import Server, start

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GOOD = (  # requests that are drawn, each many times
    {"prompt": "a cat"},
    {"prompt": "a dog", "steps": 5, "sampler": "Euler a"},
    {"prompt": "a cat", "batch": 2, "cfg": 5.0},
    {"prompt": "a bird", "cfg": 1.0, "sampler": "DDIM"},
    {"prompt": "a cat and a dog", "width": 96, "sampler": "DPM++ SDE"},
)
BAD = {  # sampler -> what the job's failure is called
    "Raises": "internal",
    "Refuses": "invalid_request",
    "Exhausts": "out_of_resources",
    "Hangs": "stalled",
    "Crashes": "crashed",
}
CANCELLED = "Cancelled"
CRASHES_ONCE = "Crashes once"
PORTION = 80  # jobs that are submitted together: of one user, 100 may wait


def plan(num_jobs: int) -> list[str | None]:
    """Return what each job does; None is drawn.

    Of 100, ten raise, one hangs, one crashes the process, one crashes it once only, one has no memory, one is refused,
    one is cancelled. What crashes once stands apart: another's crash would be its first attempt, its own the second.
    """
    every = {1: "Raises", 2: "Hangs", 3: "Crashes", 4: "Exhausts", 5: "Refuses", 7: CANCELLED, 20: CRASHES_ONCE}
    return [every.get(i % 100, "Raises" if i % 10 == 1 else None) for i in range(num_jobs)]


def request_of(i: int, fault: str | None) -> dict[str, Any]:
    """Return the i-th job's request; seeds repeat every 40 jobs."""
    fields: dict[str, Any] = {"model": "mini", "width": 64, "height": 64, "steps": 3, "seed": i % 40 // 5}
    if fault == CANCELLED:
        return fields | {"steps": 150}
    return fields | GOOD[i % 5] | ({"sampler": fault, "batch": 1} if fault else {})


def serve(folder: Path) -> Server:
    """Return a server with the miniature model and the faulty samplers; the same again where it was killed."""
    if not (folder / "faulty").is_dir():
        miniature.write_sd1_checkpoint(folder / "models" / "mini.safetensors")
        install(folder / "faulty")
    options = ("--together", "4", "--stall", "12", "--dtype", "fp32", "--device", "cpu")
    return start(
        folder / "server", *options, DISEGNO_MODEL_DIRS=str(folder / "models"), FAULTY_MARK=str(folder / "mark"),
        PYTHONPATH=os.pathsep.join((str(folder / "faulty"), str(Path(miniature.__file__).parents[2]))),
    )  # fmt: skip


@dataclass
class Solo:
    """Draws a request alone, in this process."""

    studio: Studio

    def pixels(self, fields: dict[str, Any]) -> list[bytes]:
        """Return the pixels of each image."""
        *_, result = generate(Request(**fields), studio=self.studio)
        assert isinstance(result, Result)
        return [image.tobytes() for image in result.images]


@dataclass
class Trial:
    """The jobs of one run, on a server that may be killed meanwhile."""

    folder: Path
    server: Server
    solo: Solo
    drawn: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])
    told: Counter[str] = field(default_factory=Counter[str])
    num_compared: int = 0

    def run(self, num_jobs: int, num_kills: int = 0) -> Counter[str]:
        """Submit the jobs, wait for all of them, and compare every one with what it must be."""
        faults = list(enumerate(plan(num_jobs)))
        kills = {num_jobs * (n + 1) // (num_kills + 1) for n in range(num_kills)}
        for first in range(0, num_jobs, PORTION):
            self._run_some(faults[first : first + PORTION], kills)
        return self.told

    def _run_some(self, faults: Sequence[tuple[int, str | None]], kills: set[int]) -> None:
        (self.folder / "mark").unlink(missing_ok=True)  # what crashes once has not crashed yet
        jobs = [self.server.submit("generate", request_of(i, fault))["id"] for i, fault in faults]
        for job, (_, fault) in zip(jobs, faults, strict=True):
            if fault == CANCELLED:
                assert self.server.ask("POST", f"/v1/jobs/{job}/cancel").ok
        for job, (i, fault) in zip(jobs, faults, strict=True):
            if i in kills:
                assert self.server.kill() == -9
                self.server = serve(self.folder)
            self._check(self.server.wait(job, 600), i, fault)

    def _check(self, job: Any, i: int, fault: str | None) -> None:
        self.told[job["failure"]["code"] if job["failure"] else job["state"]] += 1
        if fault == CANCELLED:
            assert job["state"] == "cancelled" and job["result"] is None, job
        elif fault in BAD:
            assert job["state"] == "failed" and job["failure"]["code"] == BAD[fault], (fault, job)
            assert "/root" not in job["failure"]["message"] and job["result"] is None
            assert job["attempts"] == 2 or fault not in ("Hangs", "Crashes")
        else:
            assert job["state"] == "done" and job["attempts"] <= 2, (i, fault, job["attempts"], job["failure"])
            self._compare(job, request_of(i, "Euler" if fault == CRASHES_ONCE else None))  # what it is, but for that

    def _compare(self, job: Any, fields: dict[str, Any]) -> None:
        wanted = self.drawn.get(repr(fields))
        if wanted is None:
            wanted = self.drawn[repr(fields)] = self.solo.pixels(fields)
        assert [pixels(self.server, file) for file in job["result"]["files"]] == wanted, fields
        self.num_compared += len(wanted)


def pixels(server: Server, file: dict[str, Any]) -> bytes:
    """Return the pixels of a job's file."""
    with Image.open(BytesIO(server.ask("GET", file["url"]).content)) as picture:
        return picture.tobytes()


def trial(folder: Path) -> Trial:
    """Return a trial in an empty folder."""
    machine = Settings(model_dirs=(folder / "models",), cache_dir=folder / "cache", dtype="fp32", device="cpu")
    return Trial(folder, serve(folder), Solo(Studio(machine)))


def restarts_of(server: Server) -> float:
    """Return how often the worker was started anew."""
    return float(server.ask("GET", "/metrics").text.split("\ndisegno_worker_restarts_total ")[1].split()[0])


def test_failures_are_clean_and_successes_are_what_they_would_be_alone(tmp_path: Path) -> None:
    tried = trial(tmp_path)
    told = tried.run(25)
    metrics = tried.server.ask("GET", "/metrics").text
    restarts = restarts_of(tried.server)
    assert tried.server.stop() == 0
    codes = {"internal": 3, "stalled": 1, "crashed": 1, "out_of_resources": 1, "invalid_request": 1}
    assert told == {"done": 17, "cancelled": 1, **codes}
    assert 'disegno_jobs_ended_total{code="crashed",kind="generate",state="failed"} 1.0' in metrics
    assert restarts >= 3  # hangs and crashes, some in the company of others, whose attempt it is, too


def main(num_jobs: int, num_kills: int = 0) -> None:
    """Try it with so many jobs, and print one JSON line; what is not as it must be is an AssertionError."""
    with tempfile.TemporaryDirectory() as name:
        tried, began = trial(Path(name)), time.monotonic()
        try:
            told = tried.run(num_jobs, num_kills)
            figures = {
                "jobs": num_jobs, "ended": dict(told), "pictures_equal_to_solo": tried.num_compared,
                "kills": num_kills, "worker_restarts": restarts_of(tried.server),
                "seconds": round(time.monotonic() - began), "exit_status": tried.server.stop(),
            }  # fmt: skip
        finally:
            tried.server.process.kill()  # where it has ended already this does nothing
        print(json.dumps(figures))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
