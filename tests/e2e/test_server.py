"""`disegno serve`, as a person starts it: a process of its own, asked over HTTP on the loopback address."""

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from disegno.backbones import miniature
from disegno.engine.record import data_uri
from disegno.serving.store import Store
from kit.server import Server, start

pytestmark = pytest.mark.e2e

SMALL: dict[str, Any] = {"model": "mini", "prompt": "a cat", "width": 64, "height": 64, "steps": 2}
LONG = SMALL | {"width": 512, "height": 512, "steps": 150}
PEOPLE = {name: {"Authorization": "Basic " + base64.b64encode(f"{name}:a-long-password".encode()).decode()}
          for name in ("anna", "ben")}  # fmt: skip


def _serve(folder: Path) -> Server:
    if not (folder / "models").is_dir():
        miniature.write_sd1_checkpoint(folder / "models" / "mini.safetensors")
    accounts = " ".join(f"{name}:a-long-password" for name in PEOPLE)
    server = start(
        folder / "server", "--together", "1", "--device", "cpu", log=folder / "log", DISEGNO_AUTH=accounts,
        DISEGNO_MODEL_DIRS=str(folder / "models"), DISEGNO_CACHE_DIR=str(folder / "cache"),
    )  # fmt: skip
    server.session.headers.update(PEOPLE["anna"])
    return server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = _serve(folder)
    assert server.ask("GET", "/health").json() == {"status": "alive"}
    yield server.wait_ready()
    if server.process.poll() is None:
        assert server.stop() == 0


def test_a_generation_gives_its_picture(server: Server) -> None:
    job = server.wait(server.submit("generate", {"prompt": "a red car", "steps": 2, "seed": 1})["id"])
    assert job["state"] == "done" and job["attempts"] == 1
    (file,) = job["result"]["files"]
    picture = Image.open(BytesIO(server.ask("GET", file["url"]).content))
    assert picture.size == (128, 128) and job["result"]["facts"]["seeds"] == ["1"]


def test_openais_form_says_what_lies_at_an_address(server: Server) -> None:
    body = SMALL | {"size": "64x64", "response_format": "url", "output_format": "jpeg"}
    told = server.ask("POST", "/v1/images/generations", body).json()
    assert told["output_format"] == "png" and told["warnings"][0].startswith("output_format was passed over")
    assert server.ask("GET", told["data"][0]["url"].removeprefix(server.url)).content.startswith(b"\x89PNG")
    told = server.ask("POST", "/v1/images/generations", body | {"response_format": "b64_json"}).json()
    assert told["output_format"] == "jpeg" and told["data"][0]["b64_json"].startswith("/9j/")


def test_an_annotation_gives_its_drawing(server: Server) -> None:
    asked = {"name": "canny", "image": data_uri(Image.linear_gradient("L")), "width": 128, "height": 64}
    job = server.wait(server.submit("annotate", asked)["id"])
    (file,) = job["result"]["files"]
    assert Image.open(BytesIO(server.ask("GET", file["url"]).content)).size == (128, 64)


def test_what_a1111s_door_enlarged_is_seen_here_too(server: Server) -> None:
    picture = data_uri(Image.linear_gradient("L").resize((8, 8)))
    body = {
        "image": picture,
        "resize_mode": 1,
        "upscaling_resize_w": 16,
        "upscaling_resize_h": 16,
        "upscaler_1": "Lanczos",
    }
    assert server.ask("POST", "/sdapi/v1/extra-single-image", body).ok
    newest = server.get("/v1/jobs?limit=1")["jobs"][0]
    asked = server.get(f"/v1/jobs/{newest['id']}/request")
    assert asked["kind"] == "upscale" and asked["request"]["width"] == 16


def test_users_take_turns_and_see_their_own_jobs_only(server: Server) -> None:
    hers = [server.submit("generate", SMALL | {"seed": seed, "steps": 20})["id"] for seed in range(6)]
    his = server.submit("generate", SMALL, **PEOPLE["ben"])["id"]
    ended = [server.wait(job) for job in hers]
    assert server.ask("GET", f"/v1/jobs/{his}").status_code == 404
    began = server.ask("GET", f"/v1/jobs/{his}", **PEOPLE["ben"]).json()["started"]
    assert [job["started"] for job in ended] == sorted(job["started"] for job in ended)  # first come, first served
    assert sum(job["started"] < began for job in ended) <= 2  # and nobody waits for another's whole queue


def test_a_job_is_cancelled_within_a_step(server: Server, folder: Path) -> None:
    job = server.submit("generate", LONG)["id"]
    heard = server.events(job)
    steps = [told for event, told in _until(heard, 3) if event == "progress"]
    asked = time.time()
    assert server.ask("POST", f"/v1/jobs/{job}/cancel").ok
    ended = server.wait(job)
    seconds_of_step = (asked - ended["started"]) / steps[-1]["step"]
    assert ended["state"] == "cancelled" and ended["result"] is None
    assert ended["ended"] - asked < 3 * seconds_of_step + 1
    assert not list((folder / "server" / "work").iterdir())


def _until(heard: Iterator[tuple[str, Any]], step: int) -> Iterator[tuple[str, Any]]:
    """Yield the events up to this step."""
    for event, told in heard:
        yield event, told
        if event == "progress" and told["step"] >= step:
            return


def test_a_key_names_one_job(server: Server) -> None:
    first, again = (server.submit("generate", SMALL, **{"Idempotency-Key": "mine"}) for _ in range(2))
    assert first["id"] == again["id"]
    other = {"kind": "generate", "request": SMALL | {"steps": 3}}
    answer = server.ask("POST", "/v1/jobs", other, **{"Idempotency-Key": "mine"})
    assert answer.status_code == 422 and answer.json()["error"] == "key_reused"


def test_figures_and_log_tell_of_every_job(server: Server, folder: Path) -> None:
    job = server.wait(server.submit("generate", SMALL)["id"])
    figures = server.ask("GET", "/metrics").text
    for name in ("jobs_submitted_total", "jobs_ended_total", "job_run_seconds_bucket", "workers_ready 1.0"):
        assert f"disegno_{name}" in figures
    assert 'disegno_resident_bytes{process="worker-0"}' in figures
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    told = [json.loads(line["message"]) for line in lines if line["logger"] == "disegno.jobs"]
    (own,) = [line for line in told if line["id"] == job["id"]]
    assert (own["event"], own["owner"], own["state"], own["attempts"]) == ("job", "anna", "done", 1)
    assert own["run_seconds"] > 0 and "a cat" not in json.dumps(told)


def test_a_stopped_server_drains(server: Server, folder: Path) -> None:
    """The last test of this server: what runs may end, what waits stays, and nothing new is taken."""
    runs = server.submit("generate", SMALL | {"width": 128, "height": 128, "steps": 40})["id"]
    waits = server.submit("generate", SMALL)["id"]
    list(_until(server.events(runs), 1))
    pid = server.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split():  # as a terminal's Ctrl-C does
        os.kill(int(child), signal.SIGINT)
    server.process.terminate()
    until = time.monotonic() + 10
    while server.ask("GET", "/ready").status_code == 200:
        assert time.monotonic() < until
    refused = server.ask("POST", "/v1/jobs", {"kind": "generate", "request": SMALL})
    assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
    assert server.closed(60) == 0
    store = Store(f"sqlite:///{folder / 'server' / 'jobs.sqlite'}")
    left = [store.get(job) for job in (runs, waits)]
    store.close()
    assert [(job.state, job.attempts) for job in left if job] == [("done", 1), ("queued", 0)]
