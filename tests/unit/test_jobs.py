"""What is taken and what is not: limits, keys, draining. The jobs of a server without workers, in process."""

import asyncio
import io
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
from PIL import Image
from sqlalchemy.exc import OperationalError

from disegno.core.request import ControlUnit, Request
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.serving import dispatch, fetch
from disegno.serving import jobs as jobs_module
from disegno.serving.a1111.routes_extras import picture_at
from disegno.serving.app import open_jobs
from disegno.serving.dispatch import Dispatcher
from disegno.serving.faults import Refused
from disegno.serving.jobs import FETCHERS, Jobs
from disegno.serving.kinds import Lane, kind_of
from disegno.serving.settings import Limits, Retention, ServerSettings
from disegno.serving.store import Job, Store
from disegno.serving.uploads import Uploads
from disegno.serving.wire import Cancel, Ended, Open, Order, Ready, Start
from disegno.serving.words import Catalogue, Outcome, StoredFile
from disegno.serving.worker_process import WorkerProcess

pytestmark = pytest.mark.unit

LANES = get_args(Lane)
CAT = Request(prompt="a cat")
BODY_BYTES = len(kind_of("generate").dump(CAT))


def _run(
    folder: Path, work: Callable[[Jobs], Coroutine[Any, Any, None]], urls: tuple[str, ...] = (), /, **limits: int
) -> None:
    within = replace(Limits(), **limits)
    settings = replace(ServerSettings(folder=folder, machine=Settings()), limits=within, allow_urls=urls)

    async def whole() -> None:
        jobs = open_jobs(settings)
        await work(jobs)
        await jobs.close()

    asyncio.run(whole())


async def _refused(jobs: Jobs, owner: str, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await jobs.submit("generate", replace(CAT, **fields), owner=owner)
    return caught.value


@pytest.mark.parametrize(
    "limits, owner",
    [({"queued_per_user": 2}, "anna"), ({"queued": 2}, "ben"), ({"queued_bytes": BODY_BYTES * 5 // 2}, "ben")],
    ids=["of a user", "of all", "bytes"],
)
def test_one_job_too_many_is_to_be_sent_later(tmp_path: Path, limits: dict[str, int], owner: str) -> None:
    async def work(jobs: Jobs) -> None:
        for _ in range(2):
            await jobs.submit("generate", CAT, owner="anna")
        refused = await _refused(jobs, owner)
        assert (refused.status, refused.code) == (429, "too_many_jobs")
        assert 1 <= int(refused.headers["Retry-After"]) <= 600

    _run(tmp_path, work, **limits)


def test_another_user_is_not_held_up_by_ones_limit(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        for owner in ("anna", "anna", "ben"):
            await jobs.submit("generate", CAT, owner=owner)
        assert (await _refused(jobs, "anna")).status == 429

    _run(tmp_path, work, queued_per_user=2)


def test_a_known_key_is_answered_even_where_no_more_is_taken(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        job = await jobs.submit("generate", CAT, owner="anna", key="mine")
        assert (await jobs.submit("generate", CAT, owner="anna", key="mine")).id == job.id

    _run(tmp_path, work, queued_per_user=1)


def _png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()


def _controls(num: int) -> tuple[ControlUnit, ...]:
    return (ControlUnit(name="canny", image="http://a.example/x.png"),) * num


def test_nothing_is_fetched_for_what_is_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(fetch, "fetch", lambda url, *_: fetched.append(url) or _png())

    async def work(jobs: Jobs) -> None:
        for fields in ({"controls": _controls(3)}, {"controls": _controls(1), "steps": 1000}):
            assert (await _refused(jobs, "anna", **fields)).code == "over_limit"
        assert fetched == []
        await jobs.submit("generate", replace(CAT, controls=_controls(2)), owner="anna")
        assert len(fetched) == 2

    _run(tmp_path, work, ("*",), controls=2)


def test_slow_pictures_hold_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(fetch, "fetch", lambda *_: answered.wait(30) and _png())

    async def work(jobs: Jobs) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        slow = [
            asyncio.create_task(jobs.submit("generate", replace(CAT, controls=_controls(1)), owner="anna"))
            for _ in range(FETCHERS)
        ]
        front: Any = SimpleNamespace(jobs=jobs)
        enlarged = [asyncio.create_task(picture_at(front, "http://a.example/x.png")) for _ in range(2)]
        for _ in range(20):
            await asyncio.to_thread(int)  # they have come to their pictures
        await asyncio.wait_for(jobs.submit("generate", CAT, owner="ben"), 20)
        assert not any(task.done() for task in (*slow, *enlarged))
        answered.set()
        assert (await enlarged[0]).startswith("data:image/png;base64,")
        assert len({job.id for job in await asyncio.gather(*slow)}) == len(slow)

    _run(tmp_path, work, ("*",))


def test_streams_are_counted(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        with jobs.streaming("anna"):
            with pytest.raises(Refused) as caught, jobs.streaming("anna"):
                pass
            with jobs.streaming("ben"):
                pass
        assert caught.value.status == 429 and caught.value.headers["Retry-After"]
        with jobs.streaming("anna"):
            pass

    _run(tmp_path, work, streams_per_user=1)


def test_a_stopping_server_takes_nothing(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        await jobs.drain()
        refused = await _refused(jobs, "anna")
        assert (refused.status, refused.code) == (503, "draining") and refused.headers["Retry-After"]

    _run(tmp_path, work)


def test_a_lane_whose_worker_cannot_be_started_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[str]()

    async def begin_one(_self: Dispatcher, lane: str) -> bool:
        begun.append(lane)
        if lane == LANES[0]:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return False

    monkeypatch.setattr(Dispatcher, "_begin_one", begin_one)
    monkeypatch.setattr(dispatch, "RETRY_SECONDS", 0.01)

    async def work(jobs: Jobs) -> None:
        jobs.dispatcher.wake()
        looking = asyncio.create_task(jobs.dispatcher._dispatch())  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0.2)
        assert begun[: 2 * len(LANES)] == [*LANES, *LANES]
        looking.cancel()

    _run(tmp_path, work)


def test_a_sweep_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = list[int]()

    def sweep(_self: Uploads) -> None:
        swept.append(len(swept))
        if len(swept) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Uploads, "sweep", sweep)
    monkeypatch.setattr(jobs_module, "SWEEP_SECONDS", 0.01)

    async def work(jobs: Jobs) -> None:
        sweeping = asyncio.create_task(jobs._retain())  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0.3)
        assert len(swept) > 1
        sweeping.cancel()

    _run(tmp_path, work)


class Workers:
    """Processes that are none. `refused`: how many more cannot be started; `sent`: what the others were told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refused, self.sent = 0, list[Order]()

        async def start(worker: WorkerProcess, _opening: Open) -> None:
            if self.refused:
                self.refused -= 1
                raise BlockingIOError(11, "Resource temporarily unavailable")
            worker.process = cast(Any, SimpleNamespace(pid=1, returncode=None))
            worker.ready = True
            worker.said(worker, Ready(Catalogue()))

        async def send(worker: WorkerProcess, message: Order) -> bool:
            self.sent += [message] if worker.ready else []
            return worker.ready

        async def stop(worker: WorkerProcess, seconds: float = 0.0) -> None:
            worker.process = None

        for name, fake in (("start", start), ("send", send), ("stop", stop)):
            patch.setattr(WorkerProcess, name, fake)
        patch.setattr(dispatch, "RETRY_SECONDS", 0.01)
        patch.setattr(dispatch, "MAX_RESTART_SECONDS", 0.01)

    @staticmethod
    def die(worker: WorkerProcess) -> None:
        """Let a process end by itself."""
        worker.ready = False
        worker.gone(worker)

    def told(self, kind: type[Order], job: Job) -> int:
        """Return how often such a thing was said of a job."""
        return sum(isinstance(message, kind) and getattr(message, "job", "") == job.id for message in self.sent)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Return processes that are none."""
    return Workers(monkeypatch)


async def _until(claim: Callable[[], object]) -> None:
    for _ in range(200):
        if claim():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


def test_a_server_that_was_held_up_itself_takes_no_worker_for_stalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Workers
) -> None:
    killed = list[float]()
    monkeypatch.setattr(dispatch, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(WorkerProcess, "kill", lambda _self: killed.append(time.monotonic()))

    async def work(jobs: Jobs) -> None:
        jobs.dispatcher.settings = replace(jobs.dispatcher.settings, stall_seconds=0.5)
        await jobs.open()
        job = await jobs.submit("generate", CAT, owner="anna")
        await _until(lambda: workers.told(Start, job))
        worker = jobs.dispatcher.lane("draw")[0]
        worker.is_opening, worker.last_word = False, time.monotonic()
        time.sleep(1.0)  # as on a machine that sleeps, or has no time for this process
        awake = time.monotonic()
        await asyncio.sleep(0.1)
        assert not killed
        await _until(lambda: killed)
        assert killed[0] - awake > 0.3

    _run(tmp_path, work)


def test_a_worker_that_ended_is_not_taken_for_stalled_until_it_is_started_again(
    tmp_path: Path, workers: Workers
) -> None:
    async def work(jobs: Jobs) -> None:
        await jobs.open()
        worker = jobs.dispatcher.lane("draw")[0]
        worker.ready, worker.is_opening, worker.last_word = False, False, time.monotonic() - 10
        assert worker.is_stalled(5)
        cast(Any, worker.process).returncode = -11
        assert not worker.is_stalled(5)

    _run(tmp_path, work)


def test_whatever_goes_wrong_once_jobs_are_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Workers
) -> None:
    async def work(jobs: Jobs) -> None:
        await jobs.open()
        await _until(lambda: jobs.ready)
        broken = threading.Event()
        heads = Store.heads

        def asked(store: Store, kinds: Any) -> list[Job]:
            if broken.is_set():
                raise RuntimeError("no error of a disk")
            return heads(store, kinds)

        monkeypatch.setattr(Store, "heads", asked)
        broken.set()
        job = await jobs.submit("generate", CAT, owner="anna")
        await _until(lambda: not jobs.ready)
        broken.clear()
        await _until(lambda: workers.told(Start, job) and jobs.ready)

    _run(tmp_path, work)


def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path, workers: Workers) -> None:
    async def work(jobs: Jobs) -> None:
        await jobs.open()
        (worker,) = jobs.dispatcher.lane("draw")
        workers.refused = 2
        workers.die(worker)
        await _until(lambda: worker.ready)

    _run(tmp_path, work)


def test_a_job_whose_request_could_not_be_read_waits_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Workers
) -> None:
    asked, request = list[str](), Store.request

    def once_locked(store: Store, job_id: str) -> bytes | None:
        asked.append(job_id)
        if len(asked) == 1:
            raise OperationalError("SELECT", {}, Exception("database is locked"))
        return request(store, job_id)

    async def work(jobs: Jobs) -> None:
        monkeypatch.setattr(Store, "request", once_locked)
        await jobs.open()
        job = await jobs.submit("generate", CAT, owner="anna")
        await _until(lambda: workers.told(Start, job))
        assert (await jobs.get(job.id, owner="anna")).attempts == 1

    _run(tmp_path, work)


def test_a_job_whose_worker_dies_before_it_begins_is_given_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Workers
) -> None:
    claim, died = Store.claim, list[str]()

    async def work(jobs: Jobs) -> None:
        await jobs.open()
        (worker,), loop = jobs.dispatcher.lane("draw"), asyncio.get_running_loop()

        def claimed(store: Store, job_id: str) -> Job | None:
            if not died:
                died.append(job_id)
                workers.refused = 3  # the next process is there a little later
                loop.call_soon_threadsafe(workers.die, worker)
            return claim(store, job_id)

        monkeypatch.setattr(Store, "claim", claimed)
        job = await jobs.submit("generate", CAT, owner="anna")
        await _until(lambda: worker.ready and workers.told(Start, job))
        assert job.id in worker.jobs and (await jobs.get(job.id, owner="anna")).attempts == 1

    _run(tmp_path, work)


@pytest.mark.parametrize("draining", [False, True])
def test_a_training_that_was_asked_to_pause_is_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Workers, draining: bool
) -> None:
    """Also where the server stops meanwhile, or where the disk does not take it at first."""
    park, parked = Store.park, list[str]()

    def once_refused(store: Store, job_id: str) -> Job | None:
        parked.append(job_id)
        if len(parked) == 1:
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        return park(store, job_id)

    async def work(jobs: Jobs) -> None:
        monkeypatch.setattr(Store, "park", once_refused)
        await jobs.open()
        job = await jobs.submit("teach", TeachRequest(name="mine", data=("pairs",)), owner="anna")
        await _until(lambda: workers.told(Start, job))
        await jobs.pause(job.id, owner="anna")
        assert workers.told(Cancel, job) == 1
        jobs.dispatcher.draining = draining
        (worker,) = jobs.dispatcher.lane("school")
        worker.said(worker, Ended(job.id))
        await _until(lambda: len(parked) == 2)
        assert (await jobs.get(job.id, owner="anna")).state == "paused"

    _run(tmp_path, work)


def test_a_job_is_cancelled_when_the_last_client_that_waits_for_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(jobs_module, "GONE_SECONDS", 0.02)

    async def work(jobs: Jobs) -> None:
        there = {"first": False, "second": True}
        job = await jobs.submit("generate", CAT, owner="anna", key="mine")

        def waits(name: str) -> "asyncio.Task[Job]":
            async def is_gone() -> bool:
                return not there[name]

            return asyncio.create_task(jobs.wait(job.id, owner="anna", is_gone=is_gone))

        first, second = waits("first"), waits("second")
        with pytest.raises(Refused):
            await first
        assert (await jobs.get(job.id, owner="anna")).state == "queued"
        there["second"] = False
        assert (await second).state == "cancelled"

    _run(tmp_path, work)


def test_what_a_training_keeps_counts(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        old, new = [
            await jobs.submit("teach", TeachRequest(name="mine", data=("pairs",)), owner="anna") for _ in range(2)
        ]
        for job in (old, new):
            jobs.files.keep(job).mkdir()
            (jobs.files.keep(job) / "checkpoint").write_bytes(bytes(1000))
            await jobs.cancel(job.id, owner="anna")
        jobs.settings = replace(jobs.settings, keep=Retention(num_bytes=1999))
        jobs._sweep()  # pyright: ignore[reportPrivateUsage]
        assert [job.id for job in await jobs.recent(owner="anna")] == [new.id]
        assert jobs.files.kept_bytes() == {new.id: 1000}

    _run(tmp_path, work)


def test_what_one_job_keeps_drives_out_no_others_results(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        drawn = [await jobs.submit("generate", CAT, owner="ben") for _ in range(3)]
        for job in drawn:
            jobs.store.claim(job.id)
            jobs.store.publish(job.id, 1, Outcome((StoredFile("0.png", "image", "image/png", 500, ""),), (), {}))
        cancelled = await jobs.submit("teach", TeachRequest(name="mine", data=("pairs",)), owner="anna")
        jobs.files.keep(cancelled).mkdir()
        (jobs.files.keep(cancelled) / "checkpoint").write_bytes(bytes(9000))
        await jobs.cancel(cancelled.id, owner="anna")
        jobs.settings = replace(jobs.settings, keep=Retention(num_bytes=1500 + 4 * 2000))
        jobs._sweep()  # pyright: ignore[reportPrivateUsage]
        assert len(await jobs.recent(owner="ben")) == 3 and len(await jobs.recent(owner="anna")) == 1
        jobs.settings = replace(jobs.settings, keep=Retention(num_bytes=1000))
        jobs._sweep()  # pyright: ignore[reportPrivateUsage]
        assert await jobs.recent(owner="ben") == []  # each has more than 500 bytes
        assert jobs.files.kept_bytes() == {cancelled.id: 9000}  # the newest stays

    _run(tmp_path, work)


def test_open_pages_hear_of_what_is_removed(tmp_path: Path) -> None:
    async def work(jobs: Jobs) -> None:
        job = await jobs.submit("generate", CAT, owner="anna")
        await jobs.cancel(job.id, owner="anna")
        jobs.settings = replace(jobs.settings, keep=Retention(jobs=0))
        with jobs.board.looking_on("anna") as onlooker:
            sweeping = asyncio.create_task(jobs._retain())  # pyright: ignore[reportPrivateUsage]
            await asyncio.wait_for(onlooker.changed.wait(), 5)
            assert onlooker.take() == ([], [job.id])
            sweeping.cancel()

    _run(tmp_path, work)


def test_a_job_that_is_cancelled_while_its_worker_dies_is_not_begun_again(tmp_path: Path, workers: Workers) -> None:
    async def work(jobs: Jobs) -> None:
        job = await jobs.submit("generate", CAT, owner="anna")
        jobs.store.claim(job.id)
        await jobs.cancel(job.id, owner="anna")  # no worker has it any more
        jobs.store.again(job.id)
        await jobs.open()
        await _until(lambda: (jobs.store.get(job.id) or job).state == "cancelled")
        assert not workers.told(Start, job)

    _run(tmp_path, work)
