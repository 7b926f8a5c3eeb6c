"""Which job runs next, and on which worker; what happens when it ends, or when its worker does.

Order: the owner with the fewest jobs on the way comes first, of those the one who was served longest ago; an owner's
jobs go in their order. The first of this order is never overtaken: when no worker can take it yet, the others wait too,
so nobody starves. A worker takes several jobs at once only when all of them can be stepped together.

This holds in each lane by itself: pictures; trainings, evaluations and new data sets; what reads files of the library
or of data sets; what fetches files. The workers of all but the first are started for a job and rest when there is none,
so that their memory is given back.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar, get_args

from pydantic import TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from disegno.core.settings import Settings
from disegno.serving.board import Board
from disegno.serving.files import Files
from disegno.serving.kinds import Lane, kind_of, kinds_of
from disegno.serving.metrics import Metrics
from disegno.serving.settings import ServerSettings
from disegno.serving.store import Job, Store
from disegno.serving.wire import Cancel, Ended, Finish, Look, Looked, Moved, Open, Ready, Start, Unload
from disegno.serving.words import Catalogue, Failure, Outcome
from disegno.serving.worker_process import WorkerProcess

log = logging.getLogger(__name__)
job_log = logging.getLogger("disegno.jobs")

P = ParamSpec("P")
T = TypeVar("T")

RETRY_SECONDS = 2.0  # before a transition that the disk refused is tried again
TICK_SECONDS = 1.0
MAX_RESTART_SECONDS = 30.0
CLOSE_SECONDS = 5.0
RESTING: tuple[Lane, ...] = ("school", "files", "downloads")  # whose workers are started for a job
REST_SECONDS = 20.0  # without a job; starting a process again takes several
SCHOOL_PATIENCE = (
    6.0  # times the time without progress: a training's step may have many rows, an evaluation measures at its end
)

CRASHED = Failure(code="crashed", message="The model's process ended while it drew this, twice. The job was given up.")
STALLED = Failure(code="stalled", message="The model's process made no progress with this, twice. It was given up.")


@dataclass
class Dispatcher:
    """The workers and what they do. Lives on one event loop; the store has a thread of its own."""

    settings: ServerSettings
    store: Store
    files: Files
    board: Board
    metrics: Metrics
    draining: bool = False
    stuck: bool = False  # the last look for something to draw failed
    catalogue: Catalogue | None = None
    workers: list[WorkerProcess] = field(default_factory=list[WorkerProcess])
    run_seconds: float = 5.0  # a moving average, for Retry-After
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "store"))
    _served: dict[str, float] = field(default_factory=dict[str, float])
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    _loops: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: asyncio.Event = field(default_factory=asyncio.Event)  # the catalogue is new
    _restart_seconds: dict[int, float] = field(default_factory=dict[int, float])
    _stalled: set[int] = field(default_factory=set[int])
    _pausing: set[str] = field(default_factory=set[str])  # running jobs whose worker was asked to save them

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns, done in the store's thread, one thing after another."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))

    async def _surely(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns, done like `do`; what the disk refuses is tried again."""
        while True:
            try:
                return await self.do(work, *args, **kwargs)
            except (OSError, SQLAlchemyError):
                log.exception("a job's new state could not be written; trying again")
                await asyncio.sleep(RETRY_SECONDS)

    def spawn(self, work: Coroutine[Any, Any, None], lasting: bool = False) -> None:
        """Let a coroutine run by itself; its failure is logged. `lasting`: it is cut off when the server closes."""
        task = asyncio.create_task(work)
        (self._loops if lasting else self._tasks).add(task)
        task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._loops.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the server failed", exc_info=error)

    # ---- opening and closing

    async def open(self) -> None:
        """Take up what the last server left, and start the workers."""
        await self.do(self._recover)
        for number in range(self.settings.workers):
            worker = WorkerProcess(number, self._said, self._gone)
            self.workers.append(worker)
            await worker.start(self._opening(worker))
        for lane in RESTING:
            self.workers.append(WorkerProcess(len(self.workers), self._said, self._gone, lane))
        self.spawn(self._dispatch(), lasting=True)
        self.spawn(self._watch(), lasting=True)

    def _opening(self, worker: WorkerProcess) -> Open:
        machine = TypeAdapter(Settings).dump_python(self.settings.machine, mode="json")
        roots = tuple(str(root) for root in self.settings.data_roots)
        uploads, warm = str(self.files.uploads), worker.lane == "draw"
        return Open(machine, asdict(self.settings.limits), self.settings.sharing, roots, uploads, warm)

    def lane(self, lane: Lane) -> list[WorkerProcess]:
        """Return the workers of a lane."""
        return [worker for worker in self.workers if worker.lane == lane]

    def _recover(self) -> None:
        self.files.prepare()
        for job in self.store.running():
            if job.cancelling:
                self.store.cancel(job.id)
            elif self.store.again(job.id) is None:
                self.store.fail(job.id, CRASHED)
        self.files.sweep(self.store.known(), self.store.unfinished())

    async def close(self) -> None:
        """Stop the workers; what runs is put back into the queue."""
        self.draining = True
        left = [job for worker in self.workers for job in worker.jobs.values()]
        for worker in self.workers:
            worker.jobs.clear()
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        for job in left:
            self.spawn(self._withdraw(job))
        for task in self._loops:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        self._thread.shutdown(wait=True)

    async def drain(self, seconds: float) -> None:
        """Begin nothing more, and give what runs so much time to end; what can be resumed is saved at once."""
        self.draining = True
        for worker in self.workers:
            for job in worker.jobs.values():
                if kind_of(job.kind).resumes:
                    await worker.send(Cancel(job.id))
        until = time.monotonic() + seconds
        while any(worker.jobs for worker in self.workers) and time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def _withdraw(self, job: Job) -> None:
        done = await self._surely(self.store.cancel if job.cancelling else self.store.withdraw, job.id)
        await self.do(self.files.discard, job)
        if done is not None:
            self.told(done)

    # ---- the next job

    def wake(self) -> None:
        """Look whether something can be begun."""
        self._wake.set()

    async def _dispatch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for lane in get_args(Lane):
                failed = False
                try:
                    while not self.draining and await self._begin_one(lane):
                        pass
                except Exception:  # the border of a lane: whatever it is, the next jobs are wanted too
                    log.exception("no job of the lane %s could be begun; trying again", lane)
                    asyncio.get_running_loop().call_later(RETRY_SECONDS, self.wake)
                    failed = True
                if lane == "draw":
                    self.stuck = failed

    def _in_turn(self, heads: list[Job], lane: Lane) -> list[Job]:
        running: dict[str, int] = {}
        for worker in self.lane(lane):
            for job in worker.jobs.values():
                running[job.owner] = running.get(job.owner, 0) + 1
        return sorted(
            heads, key=lambda job: (running.get(job.owner, 0), self._served.get(job.owner, 0.0), job.position)
        )

    def _can_take(self, worker: WorkerProcess, job: Job) -> bool:
        if not worker.ready or worker.ending:
            return False
        if not worker.jobs:
            return True
        if job.alone or any(j.alone for j in worker.jobs.values()):
            return False
        if kind_of(job.kind).brief:
            return len(worker.jobs) <= self.settings.together
        return job.share is not None and job.share == worker.share and len(worker.jobs) < self.settings.together

    async def _begin_one(self, lane: Lane) -> bool:
        """Begin the job whose turn it is. Returns whether one was begun."""
        workers = self.lane(lane)
        if lane == "draw" and not any(worker.ready for worker in workers):
            return False
        heads = self._in_turn(await self.do(self.store.heads, kinds_of(lane)), lane)
        if lane in RESTING:
            await self._rouse_or_rest(workers, bool(heads))
        able = [worker for worker in workers if heads and self._can_take(worker, heads[0])]
        if not able:
            return False
        worker = min(able, key=lambda w: (len(w.jobs), w.share != heads[0].share, w.number))
        body = await self.do(self.store.request, heads[0].id)  # before it is claimed: what fails here leaves it waiting
        job = await self.do(self.store.claim, heads[0].id)
        if job is None:  # it was cancelled or paused in between
            return True
        if job.cancelling:  # its owner said so while it was put back into the queue
            await self._end(job, None, None)
            return True
        if self.draining or not self._can_take(worker, job):  # the worker died in between
            await self._withdraw(job)
            return False
        await self._begin(job, body or b"", worker)
        return True

    async def _rouse_or_rest(self, workers: list[WorkerProcess], is_wanted: bool) -> None:
        """Start workers that rest while there are jobs, and stop them when there are none."""
        for worker in workers:
            if is_wanted and worker.process is None:
                await worker.start(self._opening(worker))
            elif not is_wanted and self._has_rest(worker) and time.monotonic() - worker.last_word > REST_SECONDS:
                await worker.stop()

    @staticmethod
    def _has_rest(worker: WorkerProcess) -> bool:
        return worker.lane in RESTING and worker.ready and not worker.jobs

    async def _begin(self, job: Job, body: bytes, worker: WorkerProcess) -> None:
        self._served[job.owner] = time.monotonic()
        self._pausing.discard(job.id)
        worker.share = worker.share if worker.jobs else job.share
        worker.jobs[job.id] = job
        worker.last_word = time.monotonic() if len(worker.jobs) == 1 else worker.last_word
        self.told(job)
        await worker.send(Start(job.id, job.kind, body.decode(), str(self.files.work(job)), str(self.files.keep(job))))

    # ---- what workers say

    def _said(self, worker: WorkerProcess, message: Ready | Moved | Looked | Ended) -> None:
        if isinstance(message, Ready):
            self.catalogue = message.catalogue
            self._seen.set()
            self._restart_seconds.pop(worker.number, None)
            self.wake()
        elif message.job not in worker.jobs:
            log.debug("worker %d speaks of a job that is not its own", worker.number)
        elif isinstance(message, Moved):
            self.board.move(message)
        elif isinstance(message, Looked):
            self.board.look(message)
        else:
            job = worker.jobs.pop(message.job)
            self.spawn(self._end(job, message.outcome, message.failure))
            self.wake()

    async def _end(self, job: Job, outcome: Outcome | None, failure: Failure | None) -> None:
        wanted = not job.cancelling and job.id not in self._pausing
        if self.draining and wanted and outcome is None and failure is None:
            return await self._withdraw(job)
        ended = await self._surely(self._record_end, job, outcome, failure)
        self._pausing.discard(job.id)
        if ended is not None:
            self.told(ended)
            if ended.state == "done" and kind_of(ended.kind).adds_files:
                await self.look()
        return None

    def _record_end(self, job: Job, outcome: Outcome | None, failure: Failure | None) -> Job | None:
        """Write the end of a job, in the store's thread: files first, the row last."""
        pausing = job.id in self._pausing and not job.cancelling
        if outcome is None and failure is None and pausing:
            self.files.discard(job)
            return self.store.park(job.id)
        if outcome is not None:
            self.files.publish(job)
            ended = self.store.publish(job.id, job.attempts, outcome)
        else:
            ended = self.store.cancel(job.id) if failure is None else self.store.fail(job.id, failure)
            self.files.discard(job)
        if ended is not None and (ended.state == "done" or not kind_of(job.kind).resumes):
            self.files.drop_kept(job)
        return ended

    def told(self, job: Job) -> None:
        self.board.change(job)
        if not job.terminal:
            return
        ran = (job.ended or 0) - (job.started or job.ended or 0)
        if job.state == "done":
            self.run_seconds = 0.8 * self.run_seconds + 0.2 * ran
        self.metrics.ended(job)
        line = {
            "event": "job",
            "id": job.id,
            "owner": job.owner,
            "kind": job.kind,
            "state": job.state,
            "attempts": job.attempts,
            "wait_seconds": round((job.started or job.ended or 0) - job.created, 3),
            "run_seconds": round(ran, 3),
            "code": job.failure.code if job.failure else None,
        }
        job_log.info(json.dumps(line))

    # ---- a worker that is gone

    def _gone(self, worker: WorkerProcess) -> None:
        jobs = list(worker.jobs.values())
        worker.jobs.clear()
        if worker.ending:
            return
        self.metrics.worker_restarts.inc()
        failure = STALLED if worker.number in self._stalled else CRASHED
        self._stalled.discard(worker.number)
        for job in jobs:
            self.spawn(self._again(job, failure))
        self.spawn(self._restart(worker), lasting=True)

    async def _again(self, job: Job, failure: Failure) -> None:
        if job.cancelling:
            return await self._end(job, None, None)
        back = await self._surely(self.store.again, job.id)
        await self.do(self.files.discard, job)
        if back is None:
            return await self._end(job, None, failure)
        self.told(back)
        self.wake()
        return None

    async def _restart(self, worker: WorkerProcess) -> None:
        while True:
            wait = self._restart_seconds.get(worker.number, 0.0)
            self._restart_seconds[worker.number] = min(max(2 * wait, 1.0), MAX_RESTART_SECONDS)
            await asyncio.sleep(wait)
            if self.draining:
                return
            try:
                await worker.start(self._opening(worker))
                return
            except OSError:  # the machine has no room for a process now
                log.exception("worker %d could not be started; trying again", worker.number)

    async def _watch(self) -> None:
        while True:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for worker in self.workers:
                worker.last_word = min(now, worker.last_word + now - due)  # while the server was held up, it heard none
                if self._has_rest(worker):
                    self.wake()  # its rest may have come
                patience = self.settings.stall_seconds * (SCHOOL_PATIENCE if worker.lane in RESTING else 1)
                if worker.is_stalled(patience):
                    log.error("worker %d has said nothing for %g s", worker.number, patience)
                    self._stalled.add(worker.number)
                    worker.last_word = time.monotonic()
                    worker.kill()

    # ---- what owners want

    def worker_of(self, job_id: str) -> WorkerProcess | None:
        """Return the worker that carries a job out."""
        return next((worker for worker in self.workers if job_id in worker.jobs), None)

    async def stop_running(self, job: Job) -> Job | None:
        """Ask the worker to stop a job; nothing of it is kept."""
        asked = await self.do(self.store.ask_to_cancel, job.id)
        worker = self.worker_of(job.id)
        if asked is not None and worker is not None:
            worker.jobs[job.id] = asked
            await worker.send(Cancel(job.id))
        return asked

    async def pause_running(self, job: Job) -> None:
        """Ask the worker to save a training and to let it wait."""
        if (worker := self.worker_of(job.id)) is not None:
            self._pausing.add(job.id)
            await worker.send(Cancel(job.id))

    async def finish_running(self, job_id: str) -> None:
        """Ask the worker to end a job with what there is."""
        if (worker := self.worker_of(job_id)) is not None:
            await worker.send(Finish(job_id))

    async def unload(self) -> None:
        """Let the workers that draw let go of their models."""
        for worker in self.lane("draw"):
            await worker.send(Unload())

    async def look(self, seconds: float = 0.0) -> None:
        """Let the workers look at the model folders again, and wait so long at most for what one of them sees."""
        self._seen.clear()
        asked = [await worker.send(Look()) for worker in self.workers]
        if seconds and any(asked):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._seen.wait(), seconds)
