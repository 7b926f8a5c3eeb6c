"""The jobs of a worker: one that cannot be closed takes no other with it."""

import errno
from collections.abc import Generator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from disegno.core.errors import Diverged, RequestError
from disegno.core.plot import Plot
from disegno.core.request import Request
from disegno.core.result import Progress, Result
from disegno.core.settings import Settings
from disegno.engine.album import Album
from disegno.engine.studio import Studio
from disegno.serving import runners
from disegno.serving.app import require_done
from disegno.serving.desk import Desk, Task, failure_of
from disegno.serving.faults import Refused
from disegno.serving.settings import Limits
from disegno.serving.sheets import SheetRequest
from disegno.serving.store import Job
from disegno.serving.wire import Cancel, Ended, Finish, Logged, Looked, Moved, Ready, Start
from disegno.serving.words import Failure, Outcome

pytestmark = pytest.mark.unit

Said = list[Ready | Moved | Looked | Ended | Logged]


def _job(diverged: bool) -> Generator[Progress, None, Outcome]:
    """A training; of one whose weights have diverged nothing can be saved when it is closed."""
    try:
        yield Progress(0, 2, "teaching")
        while True:
            yield Progress(1, 2, "teaching")
    finally:
        if diverged:
            raise Diverged("the weights are no numbers")


def _task(name: str, diverged: bool, folder: Path) -> Task:
    running = _job(diverged)
    next(running)
    return Task(Start(name, "teach", "{}", str(folder), str(folder)), lambda: _job(diverged), running)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), Exception("(sqlite3) database or disk is full")]
)
def test_a_full_disk_is_said(error: Exception) -> None:
    assert failure_of(error) == Failure("no_room", "The server's disk is full.")


@pytest.mark.parametrize(
    "failure, status",
    [
        (failure_of(OSError(errno.ENOSPC, "")), 507),
        (failure_of(Refused(422, "over_limit", "too large")), 422),
        (failure_of(RequestError("no")), 422),
    ],
)
def test_what_ended_a_job_has_its_status(failure: Failure, status: int) -> None:
    """Also what is known only once the model is open, such as a size that was left to it."""
    job = Job(**dict.fromkeys((field.name for field in fields(Job)), None) | {"state": "failed", "failure": failure})
    with pytest.raises(Refused) as refused:
        require_done(job)
    assert refused.value.status == status


def test_a_training_that_cannot_be_saved_ends_alone_and_says_why(tmp_path: Path) -> None:
    said = Said()
    desk = Desk(Studio(Settings(cache_dir=tmp_path)), Limits(), said.append)
    desk.tasks += [_task("a", True, tmp_path), _task("b", False, tmp_path)]
    desk.hear(Cancel("a"))
    (ended,) = [message for message in said if isinstance(message, Ended)]
    assert ended.job == "a" and ended.failure is not None and "no numbers" in ended.failure.message
    assert [task.start.job for task in desk.tasks] == ["b"]
    desk.step()
    assert said[-1] == Moved("b", 1, 2, "teaching")


def test_what_is_to_end_with_what_there_is_hears_so(tmp_path: Path) -> None:
    desk = Desk(Studio(Settings(cache_dir=tmp_path)), Limits(), Said().append)
    desk.tasks += [_task("a", False, tmp_path), _task("b", False, tmp_path)]
    desk.hear(Finish("a"))
    assert [task.finish.is_set() for task in desk.tasks] == [True, False]


def test_a_sheet_that_is_to_end_draws_no_more_of_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Request] = []

    def draw(request: Request, studio: Studio, album: Album) -> Generator[Progress, None, Result]:
        yield Progress(1, 1, "drawing")
        drawn.append(request)
        return Result(images=(Image.new("RGB", (64, 64)),), request=request, seeds=(0,))

    def whole(plot: Plot, model: str, bench: runners.Bench) -> list[Request]:
        return [cell.request for cell in plot.cells]

    monkeypatch.setattr(runners, "draw", draw)
    monkeypatch.setattr(runners, "_concrete", whole)
    bench = runners.Bench(Studio(Settings(cache_dir=tmp_path)), Limits(), tmp_path, tmp_path)
    running = runners.sheet(SheetRequest(request=Request(width=64, height=64, steps=2), x="cfg=1,2,3"), bench)
    [next(running) for _ in range(4)]  # the second cell is on its way
    bench.finish.set()
    with pytest.raises(StopIteration) as end:
        next(running)
    outcome: Outcome = end.value.value
    assert [request.cfg for request in drawn] == [1, 2]
    assert [file.role for file in outcome.files] == ["sheet", "image", "image"]
    assert outcome.facts["places"] == [[0, 0, 0], [1, 0, 0]]
