"""What goes wrong in one job is that job's: every failure is clean, every success is what it would be alone.

`python tests/e2e/test_server_failures.py 1000` does the same with so many jobs.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature
from kit.faulty_samplers import install
from kit.server import Server, start

pytestmark = pytest.mark.e2e

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


def plan(num_jobs: int) -> list[str | None]:
    """Return what each job does: 10 in 100 raise, 1 hangs, 1 crashes, 1 has no memory, 1 is refused; None is drawn."""
    every = {1: "Raises", 2: "Hangs", 3: "Crashes", 4: "Exhausts", 5: "Refuses", 6: "Crashes once"}
    return [every.get(i % 100, "Raises" if i % 10 == 1 else None) for i in range(num_jobs)]


def request_of(i: int, fault: str | None) -> dict[str, Any]:
    """Return the i-th job's request; seeds repeat every 40 jobs."""
    fields: dict[str, Any] = {"model": "mini", "width": 64, "height": 64, "steps": 3, "seed": i % 40 // 5}
    return fields | GOOD[i % 5] | ({"sampler": fault, "batch": 1} if fault else {})


def serve(folder: Path) -> Server:
    """Return a server with the miniature model and the faulty samplers."""
    miniature.write_sd1_checkpoint(folder / "models" / "mini.safetensors")
    options = ("--together", "4", "--stall", "8", "--dtype", "fp32", "--device", "cpu")
    return start(
        folder / "server", *options, DISEGNO_MODEL_DIRS=str(folder / "models"), FAULTY_MARK=str(folder / "mark"),
        PYTHONPATH=f"{install(folder / 'faulty')}:{Path(miniature.__file__).parents[2]}",
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


def check(server: Server, solo: Solo, num_jobs: int) -> Counter[str]:
    """Submit the jobs, wait for all of them, and compare every one with what it must be."""
    faults, drawn = plan(num_jobs), dict[str, list[bytes]]()
    jobs = [server.submit("generate", request_of(i, fault))["id"] for i, fault in enumerate(faults)]
    told: Counter[str] = Counter()
    for i, (job_id, fault) in enumerate(zip(jobs, faults, strict=True)):
        job = server.wait(job_id, 600)
        told[job["state"] if job["state"] == "done" else job["failure"]["code"]] += 1
        if fault in BAD:
            assert job["state"] == "failed" and job["failure"]["code"] == BAD[fault], (fault, job)
            assert "/root" not in job["failure"]["message"] and job["result"] is None
            assert job["attempts"] == 2 or fault not in ("Hangs", "Crashes")
            continue
        assert job["state"] == "done" and job["attempts"] <= 2, job
        if fault is None:
            fields = request_of(i, None)
            wanted = drawn.setdefault(repr(fields), []) or drawn[repr(fields)]
            wanted.extend(() if wanted else solo.pixels(fields))
            assert [pixels(server, file) for file in job["result"]["files"]] == wanted, fields
    return told


def pixels(server: Server, file: dict[str, Any]) -> bytes:
    """Return the pixels of a job's file."""
    with Image.open(BytesIO(server.ask("GET", file["url"]).content)) as picture:
        return picture.tobytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = serve(tmp_path)
    yield server
    assert server.stop() == 0


def test_failures_are_clean_and_successes_are_what_they_would_be_alone(server: Server, tmp_path: Path) -> None:
    machine = Settings(model_dirs=(tmp_path / "models",), cache_dir=tmp_path / "cache", dtype="fp32", device="cpu")
    told = check(server, Solo(Studio(machine)), 45)
    assert told == {"done": 37, "internal": 4, "stalled": 1, "crashed": 1, "out_of_resources": 1, "invalid_request": 1}
    metrics = server.ask("GET", "/metrics").text
    assert 'disegno_jobs_ended_total{code="crashed",kind="generate",state="failed"} 1.0' in metrics
    assert "disegno_worker_restarts_total 5.0" in metrics


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        running = serve(Path(name))
        own = Settings(model_dirs=(Path(name) / "models",), cache_dir=Path(name) / "cache", dtype="fp32", device="cpu")
        print(check(running, Solo(Studio(own)), int(sys.argv[1])))
        print(running.stop())
