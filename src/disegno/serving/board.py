"""What is happening to the jobs right now: the last progress of each, told to whoever watches. Nothing here is durable.

A watcher has one place for the last state and one for the last progress, not a queue: a slow reader misses steps in
between and costs no memory. An onlooker watches all jobs of one owner; it has such places for each of them, up to a
number, and is let go beyond it.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from disegno.serving.store import Job
from disegno.serving.wire import Looked, Moved


@dataclass(eq=False)
class Watcher:
    """Someone who wants to know. `changed` is set when `job`, `moved` or `looked` is news."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    job: Job | None = None
    moved: Moved | None = None
    looked: Looked | None = None

    def take(self) -> tuple[Job | Moved | Looked, ...]:
        """Return the news since the last call: a job that has ended comes last."""
        first, last = (self.job, None) if self.job is None or not self.job.terminal else (None, self.job)
        news = tuple(told for told in (first, self.looked, self.moved, last) if told is not None)
        self.job = self.moved = self.looked = None
        self.changed.clear()
        return news


MAX_NEWS = 500  # jobs of which an onlooker has not yet taken the news


@dataclass(eq=False)
class Onlooker:
    """Someone who wants to know of all jobs of one owner. `lost`: more news came than is kept for one who is slow."""

    owner: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    moved: dict[str, Moved] = field(default_factory=dict[str, Moved])
    looked: dict[str, Looked] = field(default_factory=dict[str, Looked])
    gone: set[str] = field(default_factory=set[str])
    lost: bool = False

    def take(self) -> tuple[list[Job | Moved | Looked], list[str]]:
        """Return the news since the last call, states first; and which jobs are gone."""
        news = [*self.jobs.values(), *self.moved.values(), *self.looked.values()]
        gone = sorted(self.gone)
        self.jobs, self.moved, self.looked, self.gone = {}, {}, {}, set()
        self.changed.clear()
        return news, gone

    def tell(self) -> None:
        """Let the onlooker see that there is news."""
        self.lost = len(self.jobs) + len(self.gone) > MAX_NEWS
        self.changed.set()


@dataclass
class Board:
    """The last progress of the jobs that run, and who watches which job."""

    _moved: dict[str, Moved] = field(default_factory=dict[str, Moved])
    _looked: dict[str, Looked] = field(default_factory=dict[str, Looked])
    _watchers: dict[str, set[Watcher]] = field(default_factory=dict[str, set[Watcher]])
    _owners: dict[str, str] = field(default_factory=dict[str, str])  # of the jobs that run
    _onlookers: set[Onlooker] = field(default_factory=set[Onlooker])
    closed: bool = False

    def close(self) -> None:
        """Let everybody who watches go: the server stops."""
        self.closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.changed.set()
        for onlooker in self._onlookers:
            onlooker.changed.set()

    def progress(self, job_id: str) -> Moved | None:
        """Return how far a running job is."""
        return self._moved.get(job_id)

    def move(self, moved: Moved) -> None:
        """Tell a job's watchers that it has made progress; a preview is kept until there is a newer one."""
        last = self._moved.get(moved.job)
        if moved.preview is None and last is not None and last.preview is not None:
            moved = replace(moved, preview=last.preview)
        self._moved[moved.job] = moved
        for watcher in self._watchers.get(moved.job, ()):
            watcher.moved = moved
            watcher.changed.set()
        for onlooker in self._of(self._owners.get(moved.job)):
            onlooker.moved[moved.job] = moved
            onlooker.tell()

    def look(self, looked: Looked) -> None:
        """Tell a job's watchers what a training has learned."""
        self._looked[looked.job] = looked
        for watcher in self._watchers.get(looked.job, ()):
            watcher.looked = looked
            watcher.changed.set()
        for onlooker in self._of(self._owners.get(looked.job)):
            onlooker.looked[looked.job] = looked
            onlooker.tell()

    def looked(self, job_id: str) -> Looked | None:
        """Return what a running training had learned when it last looked."""
        return self._looked.get(job_id)

    def change(self, job: Job) -> None:
        """Tell a job's watchers its new state."""
        if job.state == "running":
            self._owners[job.id] = job.owner
        else:
            self._moved.pop(job.id, None)
            self._looked.pop(job.id, None)
            self._owners.pop(job.id, None)
        for onlooker in self._of(job.owner):
            onlooker.jobs[job.id] = job
            onlooker.moved.pop(job.id, None)
            onlooker.tell()
        for watcher in self._watchers.get(job.id, ()):
            watcher.job = job
            watcher.changed.set()

    def forget(self, job_id: str, owner: str) -> None:
        """Tell the owner's onlookers that a job was removed."""
        for onlooker in self._of(owner):
            onlooker.jobs.pop(job_id, None)
            onlooker.gone.add(job_id)
            onlooker.tell()

    def _of(self, owner: str | None) -> list[Onlooker]:
        return [onlooker for onlooker in self._onlookers if onlooker.owner == owner]

    @contextmanager
    def looking_on(self, owner: str) -> Generator[Onlooker]:
        """Give an onlooker of this owner's jobs."""
        onlooker = Onlooker(owner)
        self._onlookers.add(onlooker)
        try:
            yield onlooker
        finally:
            self._onlookers.discard(onlooker)

    @contextmanager
    def watching(self, job_id: str) -> Generator[Watcher]:
        """Give a watcher of this job."""
        watcher = Watcher(moved=self._moved.get(job_id), looked=self._looked.get(job_id))
        self._watchers.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            watchers = self._watchers[job_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[job_id]
