"""A client's order carried out: its Requests become jobs, one after the other, while the client waits.

A1111 parity: `interrupt` ends what runs with the pictures as they stand, `skip` ends the present iteration only;
neither touches an order that still waits for its turn.
"""

import asyncio
import random
import string
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from disegno.serving.a1111.progress import Task
from disegno.serving.faults import Refused
from disegno.serving.jobs import Jobs
from disegno.serving.store import Job
from disegno.serving.wire import Moved

KEPT = 16  # A1111 parity: so many finished tasks are still known
SECOND_STAGE = "enlarging"  # of a hires pass
MAX_PAUSE_SECONDS = 5.0  # before an order asks again to be let in

IsGone = Callable[[], Awaitable[bool]]


@dataclass(eq=False)
class Errand:
    """One order on its way. `job`: the one of its jobs that waits or runs now."""

    id: str
    owner: str
    title: str
    total: int
    timestamp: str
    passes: int = 1
    job: Job | None = None
    done: int = 0
    begun: float | None = None
    completed: bool = False
    interrupted: bool = False
    skipped: bool = False
    previews: int = 0
    last_preview: str | None = None


@dataclass
class Errands:
    """The orders of everybody, by owner and id."""

    jobs: Jobs
    _errands: OrderedDict[tuple[str, str], Errand] = field(default_factory=OrderedDict[tuple[str, str], Errand])

    def begin(self, owner: str, title: str, total: int, passes: int = 1, task_id: str = "") -> Errand:
        """Return a new errand, which waits. An id that is in use is counted up."""
        form = title.removeprefix("scripts_")
        name = task_id or f"task({form}-{''.join(random.choices(string.ascii_uppercase + string.digits, k=7))})"
        known, number = self._errands.get((owner, name)), 1
        while known is not None and not known.completed:
            number += 1
            known = self._errands.get((owner, f"{name}-{number}"))
        name = name if number == 1 else f"{name}-{number}"
        errand = Errand(name, owner, title, total, time.strftime("%Y%m%d%H%M%S"), passes)
        self._errands.pop((owner, name), None)
        self._errands[owner, name] = errand
        return errand

    def end(self, errand: Errand) -> None:
        """Mark an errand as completed; the oldest completed ones are forgotten."""
        errand.completed, errand.job = True, None
        old = [key for key, other in self._errands.items() if other.completed and key[0] == errand.owner]
        for key in old[:-KEPT]:
            del self._errands[key]

    def of(self, owner: str) -> Iterator[Errand]:
        """Yield an owner's errands, the oldest first."""
        return (errand for errand in self._errands.values() if errand.owner == owner)

    async def run_job(self, errand: Errand, kind: str, request: object, is_gone: IsGone) -> Job | None:
        """Return the job of one request, ended; None where the errand was interrupted before anything came of it.

        A client that stays away cancels it. Where too much waits, an errand of which something is done waits, too: else
        that would be lost. Raises Refused.
        """
        if errand.interrupted:
            return None
        errand.skipped = False
        while (job := await self._submitted(errand, kind, request, is_gone)) is None:
            if errand.interrupted:
                return None
        errand.job = job
        if errand.interrupted:  # while it was being submitted
            await self.jobs.cancel(errand.job.id, owner=errand.owner)
        ended = await self.jobs.wait(errand.job.id, owner=errand.owner, is_gone=is_gone)
        errand.done += 1
        errand.begun = errand.begun or ended.started
        return None if errand.interrupted and ended.state == "cancelled" else ended

    async def _submitted(self, errand: Errand, kind: str, request: object, is_gone: IsGone) -> Job | None:
        """Return the job of one request; None where it may be asked for again by now. Raises Refused."""
        try:
            return await self.jobs.submit(kind, request, owner=errand.owner)
        except Refused as refused:
            if refused.status != 429 or not errand.done or await is_gone():
                raise
            await asyncio.sleep(min(float(refused.headers.get("Retry-After", MAX_PAUSE_SECONDS)), MAX_PAUSE_SECONDS))
        return None

    async def interrupt(self, owner: str, all_of_it: bool) -> int:
        """End what an owner's running errands draw now; `all_of_it`: and begin nothing more of them."""
        running = {job.id for job, _ in self.jobs.running(owner=owner)}
        struck = [e for e in self.of(owner) if e.job is not None and (e.job.id in running or e.done)]
        for errand in struck:
            errand.interrupted = errand.interrupted or all_of_it
            errand.skipped = not all_of_it
            assert errand.job is not None
            if errand.job.id in running:
                await self.jobs.finish(errand.job.id, owner=owner)
            elif all_of_it:  # its next job waits: nothing of it is wanted any more
                with suppress(Refused):  # it has ended meanwhile
                    await self.jobs.cancel(errand.job.id, owner=owner)
        return len(struck)

    def tasks(self, owner: str) -> list[Task]:
        """Return an owner's errands as A1111 tells them, the oldest first."""
        running = {job.id: (job, moved) for job, moved in self.jobs.running(owner=owner)}
        return [_task(errand, running) for errand in self.of(owner)]


def ended_early(refused: Refused, done: int, total: int, what: str) -> str:
    """Return what is said of an order that could not go on, where some of it was done: that is kept.

    Raises the refusal where nothing was, where the client has gone, and where it is to come again later.
    """
    if not done or refused.status == 503 or refused.code == "gone":
        raise refused
    return f"{done} of {total} were {what}: {refused}"


def _task(errand: Errand, running: Mapping[str, tuple[Job, Moved | None]]) -> Task:
    """Return how far an errand is. Between two of its jobs it is running too."""
    count = errand.total * errand.passes
    job, moved = running.get(errand.job.id, (None, None)) if errand.job is not None else (None, None)
    on_its_way = job is not None
    if job is not None:
        errand.begun = errand.begun or job.started
    if moved is not None and moved.preview not in (None, errand.last_preview):
        errand.last_preview, errand.previews = moved.preview, errand.previews + 1
    second = moved is not None and errand.passes > 1 and moved.stage.startswith(SECOND_STAGE)
    return Task(
        id=errand.id,
        title=errand.title,
        state="completed" if errand.completed else "running" if on_its_way or errand.done else "queued",
        job_count=count,
        job_no=errand.done * errand.passes + second,
        step=moved.step if moved else 0,
        num_steps=moved.num_steps if moved else 0,
        started=errand.begun or time.time(),
        timestamp=errand.timestamp,
        stage=moved.stage if moved else "",
        preview=errand.last_preview if on_its_way else None,
        previews=errand.previews,
        interrupted=errand.interrupted,
        skipped=errand.skipped,
    )
