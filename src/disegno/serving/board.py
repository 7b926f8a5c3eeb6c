"""What is happening to the jobs right now: the last progress of each, told to whoever watches. Nothing here is durable.

A watcher has one place for the last state and one for the last progress, not a queue: a slow reader misses steps in
between and costs no memory.
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


@dataclass
class Board:
    """The last progress of the jobs that run, and who watches which job."""

    _moved: dict[str, Moved] = field(default_factory=dict[str, Moved])
    _looked: dict[str, Looked] = field(default_factory=dict[str, Looked])
    _watchers: dict[str, set[Watcher]] = field(default_factory=dict[str, set[Watcher]])
    closed: bool = False

    def close(self) -> None:
        """Let everybody who watches go: the server stops."""
        self.closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.changed.set()

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

    def look(self, looked: Looked) -> None:
        """Tell a job's watchers what a training has learned."""
        self._looked[looked.job] = looked
        for watcher in self._watchers.get(looked.job, ()):
            watcher.looked = looked
            watcher.changed.set()

    def looked(self, job_id: str) -> Looked | None:
        """Return what a running training had learned when it last looked."""
        return self._looked.get(job_id)

    def change(self, job: Job) -> None:
        """Tell a job's watchers its new state."""
        if job.state != "running":
            self._moved.pop(job.id, None)
            self._looked.pop(job.id, None)
        for watcher in self._watchers.get(job.id, ()):
            watcher.job = job
            watcher.changed.set()

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
