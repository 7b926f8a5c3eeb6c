"""Jobs: what every door is built on. Nothing here knows HTTP.

A door turns its wire form into a request of one of the kinds (`kinds.py`) and then:

    job = await jobs.submit("generate", request, owner=user, key=None)   # acknowledged: it is on the disk
    job = await jobs.wait(job.id, owner=user, is_gone=is_gone)           # until it is done, failed or cancelled
    job.outcome.files, job.outcome.facts, job.outcome.warnings           # what came back
    jobs.path(job, "0.png")                                              # the PNG with its record, a finished file

    async for news in jobs.watch(job.id, owner=user): ...                # Job at every change, Moved, Looked
    await jobs.cancel(job.id, owner=user)                                # within a step; nothing is kept
    await jobs.finish(owner=user)                                        # A1111's interrupt: ends with what there is
    jobs.running(owner=user)                                             # [(Job, Moved | None)]: the global progress
    await jobs.recent(owner=user, limit=10)                              # the newest first
    jobs.catalogue                                                       # models, samplers ... of a ready worker

`owner` is the user's name (`guard.owner_of(request)` in a route). Whatever is not the owner's does not exist: 404.
Everything raises `faults.Refused`, which the app renders in the door's own shape.
"""

import asyncio
import hashlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from disegno.core.errors import DisegnoError
from disegno.serving.board import Board
from disegno.serving.bounds import require_within
from disegno.serving.dispatch import Dispatcher
from disegno.serving.faults import NO_ROOM, Refused, refusal_of
from disegno.serving.fetch import MAX_SECONDS, num_addresses, with_pictures
from disegno.serving.files import Files
from disegno.serving.kinds import kind_of, kinds_of
from disegno.serving.metrics import Metrics
from disegno.serving.settings import ServerSettings
from disegno.serving.store import Job, New, Past, Store
from disegno.serving.uploads import Uploads
from disegno.serving.wire import Looked, Moved
from disegno.serving.words import Catalogue, StoredFile

log = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
MAX_RETRY_AFTER_SECONDS = 600
GONE_SECONDS = 10.0  # a client that went away may come back for so long before its job is cancelled
POLL_SECONDS = 0.5
FETCHERS = 8  # requests whose pictures are fetched at one time


def _not_found() -> Refused:
    return Refused(404, "not_found", "There is no such job.", "id", "GET /v1/jobs lists yours.")


@dataclass
class Jobs:
    """The jobs of one server."""

    settings: ServerSettings
    store: Store
    files: Files
    metrics: Metrics = field(default_factory=Metrics)
    board: Board = field(default_factory=Board)
    dispatcher: Dispatcher = field(init=False)
    uploads: Uploads = field(init=False)
    _streams: dict[str, int] = field(default_factory=dict[str, int])
    _clients: Counter[str] = field(default_factory=Counter[str])  # that wait for a job: several with the same key
    _fetchers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(FETCHERS, "fetch"))

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.files, self.settings.limits)
        self.dispatcher = Dispatcher(self.settings, self.store, self.files, self.board, self.metrics)

    async def open(self) -> None:
        """Take up the jobs that the last server left, and start the workers."""
        await self.dispatcher.open()
        self.dispatcher.spawn(self._retain(), lasting=True)

    async def close(self) -> None:
        """Put what runs back into the queue and stop the workers."""
        self.board.close()
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        await self.dispatcher.close()
        self.store.close()

    async def drain(self) -> None:
        """Take no more jobs, and let what runs end, within the settings' time."""
        await self.dispatcher.drain(self.settings.drain_seconds)
        self.board.close()

    @property
    def catalogue(self) -> Catalogue:
        """What the workers can do. Raises Refused while none has said so yet."""
        if self.dispatcher.catalogue is None:
            raise Refused(503, "starting", "The model's process is starting.", headers={"Retry-After": "2"})
        return self.dispatcher.catalogue

    @property
    def ready(self) -> bool:
        """Whether jobs are taken and carried out now."""
        able = any(worker.ready for worker in self.dispatcher.lane("draw")) and not self.dispatcher.stuck
        return able and not self.dispatcher.draining and self.files.has_room()

    async def figures(self) -> bytes:
        """Return the server's figures in Prometheus' text format."""
        states = await self.dispatcher.do(self.store.count)
        pids = {f"worker-{worker.number}": worker.pid for worker in self.dispatcher.workers}
        ready = sum(worker.ready for worker in self.dispatcher.lane("draw"))
        return self.metrics.text(states, ready, self.files.free_bytes(), {"server": os.getpid(), **pids})

    # ---- submitting

    async def submit(self, kind: str, request: Any, *, owner: str, key: str | None = None) -> Job:
        """Return the job, which is on the disk now. The same key gives back the same job. Raises Refused."""
        if self.dispatcher.draining:
            raise Refused(503, "draining", "The server is stopping.", headers={"Retry-After": "30"})
        try:
            request = await self._with_pictures(kind, request)
            new = await asyncio.to_thread(self._new, kind, request, owner, key)
        except DisegnoError as error:
            raise refusal_of(error) from error
        job, is_new = await self.dispatcher.do(self._admit, new)
        if is_new:
            self.metrics.submitted.labels(kind).inc()
            if self.dispatcher.worker_of(job.id) is None:  # else it was begun meanwhile, and that has been told
                self.board.change(job)
            self.dispatcher.wake()
        return job

    async def _with_pictures(self, kind: str, request: Any) -> Any:
        """Return the request with the pictures that were given by address in it. Raises Refused, DisegnoError.

        Nothing is fetched for what is not allowed anyway.
        """
        row, limits, allowed = kind_of(kind), self.settings.limits, self.settings.allow_urls
        if not allowed:
            return request
        fields = await asyncio.to_thread(row.fields, request)
        num = num_addresses(fields)
        if not num:
            return request
        await asyncio.to_thread(row.check, request, limits)
        require_within((("request", num, limits.pictures, "pictures"),))
        return await asyncio.to_thread(row.read, await self.fetched(fields))

    async def fetched(self, fields: Any) -> Any:
        """Return JSON values with the pictures that they give by address in them. Raises Refused.

        What is slow to come takes no other request's thread.
        """
        if not num_addresses(fields):
            return fields
        until = time.monotonic() + MAX_SECONDS  # also of what waits for a thread
        most = self.settings.limits.picture_bytes, self.settings.limits.body_bytes
        work = partial(with_pictures, fields, self.settings.allow_urls, *most, until)
        return await asyncio.get_running_loop().run_in_executor(self._fetchers, work)

    def _new(self, kind: str, request: Any, owner: str, key: str | None) -> New:
        row = kind_of(kind)
        row.require_allowed(request, self.settings.limits)
        body = row.dump(request)
        digest = hashlib.sha256(kind.encode() + b"\0" + body).hexdigest()
        return New(owner, kind, body, digest, row.share(request), key)

    def _admit(self, new: New) -> tuple[Job, bool]:
        """Store the job unless too much waits. In the store's thread."""
        if new.key is not None and (known := self.store.by_key(new.owner, new.key)) is not None:
            if known.digest != new.digest:
                raise Refused(
                    422, "key_reused", "This idempotency key was used for another request.", "Idempotency-Key"
                )
            return known, False
        load, limits = self.store.load(new.owner), self.settings.limits
        waits = (
            (load.of_user >= limits.queued_per_user, f"{load.of_user} of your jobs wait already"),
            (load.queued >= limits.queued, f"{load.queued} jobs wait already"),
            (load.num_bytes + len(new.body) > limits.queued_bytes, "the waiting requests are too large together"),
        )
        for too_much, why in waits:
            if too_much:
                raise Refused(429, "too_many_jobs", f"Try later: {why}.", headers=self._retry_after(load.queued))
        if not self.files.has_room():
            raise Refused(507, "no_room", NO_ROOM, headers={"Retry-After": "60"})
        return self.store.add(new)

    def _retry_after(self, queued: int) -> dict[str, str]:
        seconds = queued * self.dispatcher.run_seconds / max(1, self.settings.workers) / 10
        return {"Retry-After": str(min(max(1, math.ceil(seconds)), MAX_RETRY_AFTER_SECONDS))}

    # ---- looking

    async def get(self, job_id: str, *, owner: str) -> Job:
        """Return the owner's job. Raises Refused (404)."""
        job = await self.dispatcher.do(self.store.get, job_id)
        if job is None or job.owner != owner:
            raise _not_found()
        return job

    async def recent(
        self, *, owner: str, states: Sequence[str] = (), limit: int = 50, before: float | None = None
    ) -> list[Job]:
        """Return the owner's jobs, the newest first."""
        return await self.dispatcher.do(self.store.of_owner, owner, states, limit, before)

    async def request(self, job: Job) -> Any:
        """Return what a job was asked."""
        body = await self.dispatcher.do(self.store.request, job.id)
        return kind_of(job.kind).load(body or b"{}")

    def running(self, *, owner: str) -> list[tuple[Job, Moved | None]]:
        """Return the owner's jobs that are on their way, with how far they are."""
        jobs = [job for worker in self.dispatcher.workers for job in worker.jobs.values() if job.owner == owner]
        return [(job, self.board.progress(job.id)) for job in sorted(jobs, key=lambda job: job.started or 0)]

    async def watch(self, job_id: str, *, owner: str) -> AsyncIterator[Job | Moved | Looked]:
        """Yield the job as it stands, then every change and every progress, until it has ended or the server stops."""
        with self.board.watching(job_id) as watcher:
            job = await self.get(job_id, owner=owner)
            news = (job, *(told for told in watcher.take() if not isinstance(told, Job)))
            while True:
                for told in news:
                    yield told
                    if isinstance(told, Job) and told.terminal:
                        return
                if self.board.closed:
                    return
                await watcher.changed.wait()
                news = watcher.take()

    async def wait(self, job_id: str, *, owner: str, is_gone: Callable[[], Awaitable[bool]]) -> Job:
        """Return the job when it has ended, or as it stands when the server stops.

        It is cancelled when its client stays away, or the last of them. Raises Refused where another one waits.
        """
        waiting = asyncio.ensure_future(self._ended(job_id, owner))
        self._clients[job_id] += 1
        away = 0.0
        try:
            while not (await asyncio.wait({waiting}, timeout=POLL_SECONDS))[0]:
                away = away + POLL_SECONDS if await is_gone() else 0.0
                if away >= GONE_SECONDS:
                    if self._clients[job_id] > 1:
                        raise Refused(400, "gone", "The client went away.")
                    await self.cancel(job_id, owner=owner)
            return waiting.result()
        finally:
            waiting.cancel()
            self._clients[job_id] -= 1
            if not self._clients[job_id]:
                del self._clients[job_id]

    async def _ended(self, job_id: str, owner: str) -> Job:
        last = await self.get(job_id, owner=owner)
        async for news in self.watch(job_id, owner=owner):
            last = news if isinstance(news, Job) else last
        return last

    def path(self, job: Job, name: str) -> Path:
        """Return where a file of a job's result is; the name is looked up, never joined. Raises Refused (404)."""
        return self.files.result(job.id) / self.file(job, name).name

    def file(self, job: Job, name: str) -> StoredFile:
        """Return what is known of a file of a job's result. Raises Refused (404)."""
        found = next((file for file in (job.outcome.files if job.outcome else ()) if file.name == name), None)
        if found is None:
            raise Refused(404, "not_found", "The job has no such file.", "name", "GET /v1/jobs/ID lists its files.")
        return found

    @contextmanager
    def streaming(self, owner: str) -> Generator[None]:
        """Count a stream that an owner holds open. Raises Refused (429) for one too many."""
        if self._streams.get(owner, 0) >= self.settings.limits.streams_per_user:
            raise Refused(429, "too_many_streams", "You watch too many jobs at once.", headers={"Retry-After": "5"})
        self._streams[owner] = self._streams.get(owner, 0) + 1
        try:
            yield
        finally:
            self._streams[owner] -= 1

    # ---- changing

    async def cancel(self, job_id: str, *, owner: str) -> Job:
        """Return the job, which is cancelled, or is being stopped. A job that has ended stays as it is."""
        job = await self.get(job_id, owner=owner)
        if job.terminal:
            return job
        waiting = await self.dispatcher.do(self.store.cancel, job_id, ("queued", "paused"))
        if waiting is not None:
            self.dispatcher.told(waiting)
            return waiting
        return await self.dispatcher.stop_running(job) or await self.get(job_id, owner=owner)

    async def finish(self, job_id: str | None = None, *, owner: str) -> int:
        """Let running jobs end now, with their pictures as they stand; returns how many. `job_id`: only this one."""
        jobs = [job for job, _ in self.running(owner=owner) if job_id in (None, job.id)]
        for job in jobs:
            await self.dispatcher.finish_running(job.id)
        return len(jobs)

    async def pause(self, job_id: str, *, owner: str) -> Job:
        """Let a queued job wait; a running training or download is saved first. Raises Refused (409) for others."""
        job = await self.get(job_id, owner=owner)
        if job.state == "running" and kind_of(job.kind).resumes:
            await self.dispatcher.pause_running(job)
            return await self.get(job_id, owner=owner)
        return await self._change(
            job_id, owner, self.store.pause, "only a queued job, a training or a download can be paused"
        )

    async def resume(self, job_id: str, *, owner: str) -> Job:
        """Let a paused job take its turn again, or a training or download that ended early go on where it was.

        Raises Refused (409) when it is neither.
        """
        job = await self.get(job_id, owner=owner)
        if kind_of(job.kind).resumes and job.state != "paused":
            return await self._change(job_id, owner, self.store.revive, "only one that has ended early can be resumed")
        return await self._change(job_id, owner, self.store.resume, "only a paused job can be resumed")

    async def swap(self, job_id: str, earlier: bool, *, owner: str) -> Job:
        """Let a waiting job change places with its owner's next one before or after it. Raises Refused (409)."""
        job = await self.get(job_id, owner=owner)
        kinds = kinds_of(kind_of(job.kind).lane)
        changed = await self.dispatcher.do(self.store.swap, job_id, earlier, kinds)
        if not changed:
            raise Refused(409, "wrong_state", f"The job is {job.state}; only a waiting job can move.")
        for each in changed:
            self.dispatcher.told(each)
        self.dispatcher.wake()
        return changed[0]

    async def reorder(self, job_id: str, first: bool, *, owner: str) -> Job:
        """Make a waiting job the first or the last of its owner's. Raises Refused (409) when it does not wait."""
        return await self._change(job_id, owner, lambda i: self.store.reorder(i, first), "only a waiting job can move")

    async def _change(self, job_id: str, owner: str, change: Any, rule: str) -> Job:
        job = await self.get(job_id, owner=owner)
        changed: Job | None = await self.dispatcher.do(change, job_id)
        if changed is None:
            raise Refused(409, "wrong_state", f"The job is {job.state}; {rule}.")
        self.dispatcher.told(changed)
        self.dispatcher.wake()
        return changed

    async def forget(self, job_id: str, *, owner: str) -> None:
        """Remove an ended job with its files. Raises Refused (409) when it has not ended."""
        job = await self.get(job_id, owner=owner)
        if not job.terminal:
            raise Refused(409, "wrong_state", f"The job is {job.state}; cancel it first.")
        await self.dispatcher.do(self._forget, [job_id])
        self.board.forget(job_id, owner)

    def _forget(self, job_ids: list[str]) -> None:
        self.store.forget(job_ids)
        for job_id in job_ids:
            self.files.forget(job_id)

    # ---- retention

    async def _retain(self) -> None:
        while True:
            try:
                for past in await self.dispatcher.do(self._sweep):
                    self.board.forget(past.id, past.owner)
                await asyncio.to_thread(self.uploads.sweep)
            except (SQLAlchemyError, OSError):
                log.exception("what is to be removed stays for now")
            await asyncio.sleep(SWEEP_SECONDS)

    def _sweep(self) -> list[Past]:
        """Remove what has been kept for long enough, and return it. In the store's thread.

        What came of jobs and what unfinished ones keep have the room each by itself, and the newest of each stays.
        """
        keep, kept, ended = self.settings.keep, self.files.kept_bytes(), self.store.ended()
        oldest = time.time() - keep.seconds
        gone = {past.id for past in ended[: max(0, len(ended) - keep.jobs)]} | {p.id for p in ended if p.end < oldest}
        for sizes in ({past.id: past.num_bytes for past in ended}, kept):
            held = [past.id for past in ended if past.id not in gone and sizes.get(past.id)]
            num_bytes = sum(sizes[job_id] for job_id in held)
            for job_id in held[:-1]:
                if num_bytes <= keep.num_bytes:
                    break
                gone.add(job_id)
                num_bytes -= sizes[job_id]
        if gone:
            self._forget(list(gone))
        return [past for past in ended if past.id in gone]
