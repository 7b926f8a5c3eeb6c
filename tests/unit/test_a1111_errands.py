"""An order's jobs, one after the other: interrupted while one runs, waits, or is on its way into the queue."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from disegno.serving.a1111.errands import Errand, Errands, IsGone
from disegno.serving.a1111.front import Front
from disegno.serving.a1111.routes_generate import of_other_doors
from disegno.serving.jobs import Jobs

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Waiting:
    """A job of the fake."""

    id: str
    state: str = "queued"
    kind: str = "generate"
    started: float | None = None


@dataclass
class Fake:
    """Jobs that end when they are told to. `submitting`: what happens while one is being submitted."""

    submitting: Callable[[], None] = lambda: None
    jobs: dict[str, Waiting] = field(default_factory=dict[str, Waiting])
    runs: set[str] = field(default_factory=set[str])
    finished: list[str] = field(default_factory=list[str])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def submit(self, kind: str, request: object, owner: str) -> Waiting:
        self.submitting()
        job = Waiting(str(len(self.jobs)))
        self.jobs[job.id] = job
        return job

    async def wait(self, job_id: str, owner: str, is_gone: IsGone) -> Waiting:
        while self.jobs[job_id].state in ("queued", "running"):
            await self.changed.wait()
            self.changed.clear()
        return self.jobs[job_id]

    async def cancel(self, job_id: str, owner: str) -> None:
        self.end(job_id, "cancelled")

    async def finish(self, job_id: str, owner: str) -> None:
        self.finished.append(job_id)
        self.end(job_id, "done")

    def running(self, owner: str) -> list[tuple[Waiting, None]]:
        return [(self.jobs[job_id], None) for job_id in self.runs]

    def end(self, job_id: str, state: str) -> None:
        self.jobs[job_id] = Waiting(job_id, state)
        self.runs.discard(job_id)
        self.changed.set()


async def _stays() -> bool:
    return False


def _errands(fake: Fake) -> Errands:
    return Errands(cast(Jobs, fake))


async def _run(errands: Errands, errand: Errand) -> Any:
    return await errands.run_job(errand, "generate", object(), _stays)


async def _begun(fake: Fake, errands: Errands, errand: Errand) -> "asyncio.Task[Any]":
    running = asyncio.create_task(_run(errands, errand))
    num = len(fake.jobs)
    while len(fake.jobs) == num:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return running


async def _after_its_first_job() -> tuple[Fake, Errands, Errand]:
    """Return an order of three, of which one has been drawn."""
    fake = Fake()
    errands = _errands(fake)
    mine = errands.begin("anna", "scripts_txt2img", 3)
    first = await _begun(fake, errands, mine)
    fake.end("0", "done")
    await first
    return fake, errands, mine


def test_what_runs_ends_with_its_pictures_and_what_waits_for_its_turn_stays() -> None:
    async def tried() -> None:
        fake = Fake()
        errands = _errands(fake)
        mine, later = errands.begin("anna", "scripts_txt2img", 2), errands.begin("anna", "scripts_txt2img", 1)
        first, second = await _begun(fake, errands, mine), await _begun(fake, errands, later)
        fake.runs.add("0")
        assert await errands.interrupt("anna", all_of_it=True) == 1
        assert (await first).state == "done" and fake.finished == ["0"]
        assert mine.interrupted and not later.interrupted and fake.jobs["1"].state == "queued"
        fake.end("1", "done")
        await second

    asyncio.run(tried())


def test_the_next_job_of_an_order_that_has_begun_is_not_drawn() -> None:
    async def tried() -> None:
        fake, errands, mine = await _after_its_first_job()
        second = await _begun(fake, errands, mine)  # another order runs
        assert await errands.interrupt("anna", all_of_it=True) == 1
        assert await second is None and fake.jobs["1"].state == "cancelled" and mine.interrupted
        assert await _run(errands, mine) is None and len(fake.jobs) == 2  # nor is the one after it asked for

    asyncio.run(tried())


def test_nor_is_one_that_was_being_submitted() -> None:
    async def tried() -> None:
        fake, errands, mine = await _after_its_first_job()

        def struck() -> None:
            mine.interrupted = True

        fake.submitting = struck
        assert await _run(errands, mine) is None and fake.jobs["1"].state == "cancelled"

    asyncio.run(tried())


@pytest.mark.parametrize(
    ("kinds", "told"), [(["teach"], None), (["teach", "sheet"], "1"), (["evaluate", "check"], None)]
)
def test_a_training_is_no_task_that_a_client_waits_for(kinds: list[str], told: str | None) -> None:
    fake = Fake()
    for number, kind in enumerate(kinds):
        fake.jobs[str(number)] = Waiting(str(number), "running", kind)
        fake.runs.add(str(number))
    task = of_other_doors(Front(cast(Jobs, fake), _errands(fake)), "anna")
    assert (task and task.id) == told


def test_how_long_it_takes_is_told_from_its_begin_whenever_it_is_asked_for() -> None:
    async def tried() -> None:
        fake = Fake()
        errands = _errands(fake)
        mine = errands.begin("anna", "scripts_txt2img", 2)
        first = await _begun(fake, errands, mine)
        fake.jobs["0"] = Waiting("0", "running", started=100.0)
        fake.runs.add("0")
        assert [task.started for task in errands.tasks("anna")] == [100.0]
        fake.jobs["0"] = Waiting("0", "done", started=100.0)
        fake.runs.clear()
        fake.changed.set()
        await first
        second = await _begun(fake, errands, mine)
        fake.jobs["1"] = Waiting("1", "running", started=160.0)
        fake.runs.add("1")
        (task,) = errands.tasks("anna")
        assert (task.state, task.started, task.job_no) == ("running", 100.0, 1)
        fake.end("1", "done")
        await second

    asyncio.run(tried())
