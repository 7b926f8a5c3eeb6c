"""The jobs of a worker: one that cannot be closed takes no other with it."""

import errno
from collections.abc import Generator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from disegno.core.errors import Diverged, RequestError
from disegno.core.plot import Plot
from disegno.core.request import Request
from disegno.core.result import Progress, Result
from disegno.core.settings import Settings
from disegno.engine.album import Album
from disegno.engine.phases import Phase
from disegno.engine.studio import Studio
from disegno.serving import desk as desks
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


@pytest.mark.parametrize("said_after, cells", [(4, [1, 2]), (3, [1])], ids=["while drawing", "while decoding"])
def test_a_sheet_that_is_to_end_draws_no_more_of_its_cells(
    said_after: int, cells: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said while a cell is decoded is heard before the next one is begun."""
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
    [next(running) for _ in range(said_after)]
    bench.finish.set()
    with pytest.raises(StopIteration) as end:
        next(running)
    outcome: Outcome = end.value.value
    assert [request.cfg for request in drawn] == cells
    assert [file.role for file in outcome.files] == ["sheet", *["image"] * len(cells)]
    assert outcome.facts["places"] == [[n, 0, 0] for n in range(len(cells))]


def _failing(error: Exception) -> Generator[Progress, None, Outcome]:
    yield Progress(0, 2, "drawing")
    raise error


def _with_failing(desk: Desk, error: Exception, folder: Path) -> Task:
    """Return the task of a job that fails at its next step."""
    running = _failing(error)
    next(running)
    task = Task(Start("a", "generate", "{}", str(folder), str(folder)), lambda: _failing(error), running)
    desk.tasks.append(task)
    return task


FULL = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("others", [False, True])
def test_where_memory_ran_out_what_is_open_is_let_go_of(
    others: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models, too, where no other job draws with one."""
    said, closed = Said(), list[str]()
    studio = Studio(Settings(cache_dir=tmp_path, device="cpu"))
    for name in ("close", "close_controls"):
        monkeypatch.setattr(studio, name, lambda name=name: closed.append(name))
    monkeypatch.setattr(desks, "give_back", lambda: closed.append("given back"))
    desk = Desk(studio, Limits(), said.append)
    _with_failing(desk, FULL, tmp_path)
    desk.tasks += [_task("b", False, tmp_path)] * others
    desk.step()
    (ended,) = [message for message in said if isinstance(message, Ended)]
    assert ended.job == "a" and ended.failure is not None and ended.failure.code == "out_of_resources"
    assert closed == ["close_controls" if others else "close", "given back"]


def test_where_memory_runs_out_in_a_step_of_several_they_begin_again_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = list[str]()

    class Full:
        def __init__(self, *_: object) -> None:
            raise FULL

    studio = Studio(Settings(cache_dir=tmp_path, device="cpu"))
    monkeypatch.setattr(desks, "Batch", Full)
    monkeypatch.setattr(studio, "close_controls", lambda: closed.append("controls"))
    desk = Desk(studio, Limits(), Said().append)
    tasks = [_task(name, False, tmp_path) for name in "ab"]
    for task in tasks:
        task.phase = Phase((), cast(Any, None), 1)
    desk.tasks += tasks
    desk._step_together(tasks)
    assert closed == ["controls"]
    assert [(task.alone, task.phase) for task in desk.tasks] == [(True, None)] * 2


def test_a_device_that_is_broken_ends_the_process_so_that_another_takes_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(RuntimeError):
        """What torch raises then, since 2.8."""

    monkeypatch.setattr(desks, "_BROKEN", Broken)
    desk = Desk(Studio(Settings(cache_dir=tmp_path, device="cpu")), Limits(), Said().append)
    _with_failing(desk, Broken("CUDA error: out of memory"), tmp_path)
    desk.step()
    assert desk.idle  # that one the device outlives
    _with_failing(desk, Broken("CUDA error: an illegal memory access was encountered"), tmp_path)
    with pytest.raises(SystemExit) as end:
        desk.step()
    assert end.value.code == 1
