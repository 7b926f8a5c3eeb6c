"""Data sets, trainings and evaluations as jobs of a real server: from a folder of pictures to a control that draws."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from disegno.backbones import miniature
from disegno.serving.store import Store
from disegno.training.miniature import write_base
from kit.pairs import CAPTION, views
from kit.server import Server, start

pytestmark = pytest.mark.e2e

NUM, SIZE = 20, 64
TEACH: dict[str, Any] = {
    "data": ["pairs"], "model": "mini", "rank": 4, "width": SIZE, "height": SIZE, "steps": 4, "validate_every": 2,
    "save_every": 1, "holdout": 2,
}  # fmt: skip
LONG = TEACH | {"name": "long", "steps": 100_000, "validate_every": 0}


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, view in enumerate(views(NUM, SIZE)):
        view.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(CAPTION)


def _serve(folder: Path, own: str) -> Server:
    """Return a server with a folder of its own and a folder of models of its own."""
    where = {"DISEGNO_MODEL_DIRS": str(folder / f"{own}-models"), "DISEGNO_CACHE_DIR": str(folder / "cache")}
    options = ("--data-root", str(folder / "data"), "--device", "cpu", "--dtype", "fp32")
    models = folder / f"{own}-models"
    if not models.is_dir():
        miniature.write_sd1_checkpoint(models / "mini.safetensors")
        write_base(models / "minibase.safetensors")
    return start(folder / own, *options, **where).wait_ready()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("school")
    _write_pictures(folder / "data" / "photos")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = _serve(folder, "server")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def pairs(server: Server) -> Any:
    """Return the job that made the data set."""
    asked = {"name": "pairs", "pictures": "photos", "annotator": "canny", "width": SIZE, "height": SIZE}
    return server.wait(server.submit("dataset", asked)["id"])


@pytest.fixture(scope="module")
def taught(server: Server, pairs: Any) -> Any:
    """Return the job that taught a control, and the events that were heard meanwhile."""
    job = server.submit("teach", TEACH | {"name": "edges"})
    heard = list(server.events(job["id"]))
    return server.get(f"/v1/jobs/{job['id']}"), heard


def _told(folder: Path, *values: Any) -> bool:
    """Return whether a path of the machine stands in what clients see."""
    return any(str(folder.parent) in json.dumps(value) for value in values)


def test_a_data_set_is_made_from_pictures(server: Server, folder: Path, pairs: Any) -> None:
    assert pairs["state"] == "done", pairs
    assert pairs["result"]["facts"]["pairs"] == NUM and pairs["result"]["facts"]["card"]["annotator"] == "canny"
    assert len((folder / "data" / "pairs" / "prompt.json").read_text().splitlines()) == NUM
    assert server.get("/v1/datasets") == ["pairs", "photos"]
    assert not _told(folder, pairs)


def test_a_training_becomes_a_control_of_the_library(server: Server, folder: Path, taught: Any) -> None:
    job, _ = taught
    assert job["state"] == "done", job
    facts, files = job["result"]["facts"], {file["name"]: file for file in job["result"]["files"]}
    assert facts["step"] == 4 and facts["why"] == "steps" and [look["step"] for look in facts["looks"]] == [0, 2, 4]
    assert set(files) == {"edges.safetensors", "report.html", "look.png"}
    weights = server.ask("GET", files["edges.safetensors"]["url"]).content
    assert weights == (folder / "server-models" / "controls" / "edges.safetensors").read_bytes()
    answer = server.ask("GET", files["report.html"]["url"])
    assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    page = answer.text
    assert "Teaching edges" in page and "pairs" in page
    assert not _told(folder, job, page, weights.decode("latin-1"))
    assert not list((folder / "server" / "keep").iterdir())


def test_who_watches_a_training_sees_its_looks(taught: Any) -> None:
    _, heard = taught
    looks = [told for event, told in heard if event == "look"]
    assert looks and looks[-1]["step"] == 4 and looks[-1]["sheet"].startswith("data:image/jpeg;base64,")
    assert looks[-1]["verdict"] in ("early", "learning", "converged", "not-learning") and looks[-1]["words"]
    losses = [told["figures"]["loss"] for event, told in heard if event == "progress" and "loss" in told["figures"]]
    assert losses and all(loss > 0 for loss in losses)
    assert heard[-1][0] == "job" and heard[-1][1]["state"] == "done"


def test_what_was_taught_draws_and_is_measured(server: Server, folder: Path, taught: Any) -> None:
    from disegno.engine.record import data_uri

    unit = {"name": "edges", "image": data_uri(views(1, SIZE)[0])}
    small = {"model": "mini", "steps": 2, "width": SIZE, "height": SIZE}
    drawn = server.submit("generate", small | {"prompt": "a car", "seed": 1, "controls": [unit]})
    asked = small | {"control": "edges", "data": "pairs", "num": 2}
    measured = server.wait(server.submit("evaluate", asked)["id"])
    assert server.wait(drawn["id"])["state"] == "done"
    assert measured["state"] == "done", measured
    names = {file["name"] for file in measured["result"]["files"]}
    assert names == {"evaluation.json", "evaluation.html", "pictures.png"}
    assert measured["result"]["facts"]["request"]["data"] == "pairs" and measured["result"]["facts"]["verdict"]
    contents = [server.ask("GET", file["url"]).text for file in measured["result"]["files"]]
    assert not _told(folder, measured, *contents)


def test_a_cancelled_training_is_saved_and_goes_on(server: Server, folder: Path, pairs: Any) -> None:
    job = server.submit("teach", LONG)
    step = server.wait_step(job["id"], 3)
    picture = server.submit(
        "generate", {"prompt": "a cat", "model": "mini", "width": SIZE, "steps": 2}
    )  # a training stands in nobody's way
    assert server.wait(picture["id"])["state"] == "done"
    assert server.ask("POST", f"/v1/jobs/{job['id']}/cancel").ok
    assert server.wait(job["id"])["state"] == "cancelled"
    again = server.ask("POST", f"/v1/jobs/{job['id']}/resume").json()
    assert again["state"] == "queued" and again["attempts"] == 0
    assert server.wait_step(job["id"], step) > step
    server.ask("POST", f"/v1/jobs/{job['id']}/cancel")
    assert server.wait(job["id"])["state"] == "cancelled"
    assert server.ask("DELETE", f"/v1/jobs/{job['id']}").status_code == 204
    assert not (folder / "server" / "keep" / job["id"]).exists()


def test_a_training_that_is_enough_is_used(server: Server, folder: Path, pairs: Any) -> None:
    job = server.submit("teach", LONG | {"name": "enough"})
    server.wait_step(job["id"], 2)
    server.ask("POST", f"/v1/jobs/{job['id']}/finish")
    ended = server.wait(job["id"])
    assert ended["state"] == "done", ended
    assert ended["result"]["facts"]["why"] == "enough" and 2 <= ended["result"]["facts"]["step"] < 1000
    assert (folder / "server-models" / "controls" / "enough.safetensors").is_file()


def test_a_training_that_looks_at_what_it_learned_is_cancelled_within_a_step(
    server: Server, folder: Path, pairs: Any
) -> None:
    job = server.submit("teach", LONG | {"name": "looks", "validate_every": 50, "holdout": 8})["id"]
    until = time.monotonic() + 60
    while (server.get(f"/v1/jobs/{job}")["progress"] or {}).get("stage") != "looking":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert server.ask("POST", f"/v1/jobs/{job}/cancel").ok
    assert server.wait(job)["state"] == "cancelled"
    run = folder / "server" / "keep" / job / "run"
    assert list((run / "checkpoints").iterdir()) and not (run / "looks").exists()  # the look was not taken to its end
    assert server.ask("DELETE", f"/v1/jobs/{job}").status_code == 204


@pytest.mark.parametrize(
    "kind, fields, code",
    [
        ("teach", {"data": ["../models"]}, "unknown_name"),
        ("teach", {"data": ["/etc"]}, "unknown_name"),
        ("teach", {"data": ["https://example.org/pairs-{000..127}.tar"]}, "unknown_name"),
        ("teach", {"data": ["canny=~/pairs"], "recipe": "base"}, "unknown_name"),
        ("teach", {"start": "/root/x.safetensors"}, "unknown_name"),
        ("teach", {"model": "https://example.org/m"}, "unknown_name"),
        ("teach", {"name": "../x"}, "invalid_request"),
        ("teach", {"steps": 10**9}, "over_limit"),
        ("evaluate", {"script": "/tmp/x.py"}, "invalid_request"),
        ("evaluate", {"clip": "/tmp/clip"}, "invalid_request"),
        ("evaluate", {"data": "..\\pairs"}, "unknown_name"),
        ("evaluate", {"control": "/root/x.safetensors"}, "unknown_name"),
        ("dataset", {"name": ".hidden"}, "unknown_name"),
        ("dataset", {"pictures": "photos/../../models"}, "unknown_name"),
        ("dataset", {"width": 64}, "invalid_request"),
    ],
)
def test_what_is_no_clients_to_say_is_refused(server: Server, kind: str, fields: dict[str, Any], code: str) -> None:
    whole = {
        "teach": TEACH | {"name": "x"},
        "evaluate": {"control": "canny", "data": "pairs"},
        "dataset": {"name": "new", "pictures": "photos", "annotator": "canny"},
    }
    answer = server.ask("POST", "/v1/jobs", {"kind": kind, "request": whole[kind] | fields})
    assert answer.status_code == 422 and answer.json()["error"] == code, answer.text


def test_names_that_are_not_there_are_said_when_the_job_is_done(server: Server, taught: Any) -> None:
    unknown = server.submit("teach", TEACH | {"name": "y", "data": ["pears"]})
    taken = server.submit("teach", TEACH | {"name": "edges", "seed": 5})
    failure = server.wait(unknown["id"])["failure"]
    assert failure["code"] == "unknown_name" and "pairs" in failure["message"]
    failure = server.wait(taken["id"])["failure"]
    assert failure["code"] == "invalid_request" and "control of this name: edges.safetensors" in failure["message"]


@pytest.mark.slow
def test_a_training_goes_on_after_a_crash_and_after_a_stop(folder: Path, pairs: Any) -> None:
    """It is killed, which counts as an attempt; then ended by SIGTERM, which saves the training and does not count."""
    asked = {"name": "survivor"}
    first = _serve(folder, "apart")
    job = first.submit("teach", LONG | asked)["id"]
    step = first.wait_step(job, 3)
    assert first.kill() == -9
    second = _serve(folder, "apart")
    second.wait_step(job, step - 1)
    assert second.get(f"/v1/jobs/{job}")["attempts"] == 2
    assert second.stop() == 0
    store = Store(f"sqlite:///{folder / 'apart' / 'jobs.sqlite'}")
    left = store.get(job)
    store.close()
    assert left is not None and left.state == "queued" and left.attempts == 1
    saved = max((folder / "apart" / "keep" / job / "run" / "checkpoints").iterdir()).name
    assert int("".join(c for c in saved if c.isdigit())) >= step
