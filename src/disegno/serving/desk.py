"""The jobs of one worker: all of them are stepped in turn, those of one model in one evaluation where no bit changes.

A job is a generator (`runners.py`). It yields a phase, whose runs are stepped here with those of the other jobs, or
progress, after which it goes on at the next turn. A message of the server is heard between two steps.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import torch
from PIL import Image

from disegno.core.errors import DisegnoError
from disegno.core.result import Progress
from disegno.engine.batch import Batch, Run
from disegno.engine.phases import Phase
from disegno.engine.preview import previews_of
from disegno.engine.sharing import Sharing
from disegno.engine.studio import BUILT_IN, Studio
from disegno.memory import give_back
from disegno.room import is_out_of_memory
from disegno.serving.catalogue import catalogue_of
from disegno.serving.faults import NO_ROOM, is_of_a_full_disk, refusal_of
from disegno.serving.kinds import kind_of
from disegno.serving.pictures import jpeg_uri
from disegno.serving.runners import Bench, Running
from disegno.serving.settings import Limits
from disegno.serving.wire import (
    OPENING,
    Cancel,
    Ended,
    Finish,
    Logged,
    Look,
    Looked,
    Moved,
    Order,
    Ready,
    Start,
    Unload,
)
from disegno.serving.words import Failure, Outcome

log = logging.getLogger(__name__)

PREVIEW_SECONDS = 2.0  # between two previews of one job, and before the first: a short job costs none
PREVIEW_PX = 512
BUSY_SECONDS = 60.0  # between two times that a busy worker gives memory back: else it keeps the most that it ever took
_BROKEN: Any = getattr(torch, "AcceleratorError", ())  # since torch 2.8


@dataclass(eq=False)
class Task:
    """One job on its way.

    `phase`: what it waits for. `alone`: a step together with others failed, so it is begun again by itself.
    `finish`: set where it is to end with its pictures as they stand, or a training with what it has learned.
    `shown_at`: when it was last shown, or began. `part`: which of how many equal parts it is at, as it last said.
    """

    start: Start
    begin: Callable[[], Running]
    running: Running
    phase: Phase | None = None
    step: int = 0
    alone: bool = False
    finish: Event = field(default_factory=Event)
    shown_at: float = field(default_factory=time.monotonic)
    part: tuple[int, int] = (0, 1)

    def open_runs(self) -> list[Run]:
        """Return the runs that wait for an answer."""
        return [run for run in self.phase.runs if run.is_open] if self.phase else []

    def close(self) -> None:
        """Let go of everything."""
        for run in self.phase.runs if self.phase else ():
            run.stop()
        self.phase = None
        self.running.close()


@dataclass
class Desk:
    """The jobs that this process is carrying out."""

    studio: Studio
    limits: Limits
    say: Callable[[Ready | Moved | Looked | Ended | Logged], None]
    sharing: Sharing = field(default_factory=Sharing)
    data_roots: tuple[Path, ...] = ()
    uploads: Path = Path()
    tasks: list[Task] = field(default_factory=list[Task])
    rested_at: float = field(default_factory=time.monotonic)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to step."""
        return not self.tasks

    def look(self) -> None:
        """Say what this process can do."""
        self.say(Ready(catalogue_of(self.studio)))

    def warm(self) -> None:
        """Open the built-in model, so that the first request need not."""
        self.studio.backbone(BUILT_IN)

    def rest(self) -> None:
        """Give back what the jobs took: called when there have been none for a while, and now and then between them."""
        give_back()
        self.rested_at = time.monotonic()

    def hear(self, message: Order) -> None:
        """Do what the server wants."""
        if isinstance(message, Start):
            self._begin(message)
        elif isinstance(message, Look):
            self.look()
        elif isinstance(message, Unload):
            self.studio.close()
            self.rest()
        elif isinstance(message, Cancel | Finish):
            for task in [task for task in self.tasks if task.start.job == message.job]:
                if isinstance(message, Cancel):
                    self._end(task, Ended(task.start.job))
                task.finish.set()

    def _begin(self, start: Start) -> None:
        kind = kind_of(start.kind)
        module, _, name = kind.runner.partition(":")
        try:
            folder = Path(start.folder)
            folder.mkdir(parents=True, exist_ok=True)
            request, keep = kind.load(start.request), Path(start.keep)
            bench = Bench(self.studio, self.limits, folder, keep, self.data_roots, start.job, self.uploads)
        except (OSError, ValueError) as error:
            return self.say(Ended(start.job, failure=failure_of(error)))
        run = getattr(import_module(module), name)
        self.say(Moved(start.job, 0, 0, OPENING))
        self.tasks.append(Task(start, lambda: run(request, bench), run(request, bench), finish=bench.finish))
        return None

    def _end(self, task: Task, ended: Ended) -> None:
        self.tasks.remove(task)
        try:
            task.close()
        except Exception as error:  # the border of a job, as below: a training saves when it is closed
            end_where_broken(error)
            log.warning("job %s could not be closed: %s", task.start.job, error)
            ended = Ended(task.start.job, failure=ended.failure or failure_of(error))
        self.say(ended)
        if time.monotonic() - self.rested_at > BUSY_SECONDS:
            self.rest()

    # ---- stepping

    def step(self) -> None:
        """Let every job take one step."""
        for task in list(self.tasks):
            if task.phase is None:
                self._resume(task)
        groups: dict[int, list[Task]] = {}
        for task in self.tasks:
            if task.phase is not None:
                groups.setdefault(id(task if task.alone else task.phase.backbone), []).append(task)
        for group in groups.values():
            self._step_together(group)

    def _resume(self, task: Task) -> None:
        """Let the job go on to its next phase, to its next progress, or to its end; a failure is its own."""
        try:
            news = next(task.running)
            if isinstance(news, Progress):
                task.part = news.part, news.num_parts
            elif isinstance(news, Phase):
                self._enter(task, news)
                news = Progress(0, news.num_steps, news.stage)
        except StopIteration as end:
            outcome: Outcome = end.value
            return self._end(task, Ended(task.start.job, outcome=outcome))
        except Exception as error:  # the border of a job: a library may raise anything on a stranger's request
            end_where_broken(error)
            ended, is_full = Ended(task.start.job, failure=failure_of(error)), is_out_of_memory(error)
        else:
            return self._tell(task, news)
        self._end(task, ended)
        if is_full:
            self._make_room()
        return None

    def _enter(self, task: Task, phase: Phase) -> None:
        task.phase, task.step = phase, 0
        with torch.inference_mode():
            for run in phase.runs:
                run.owner = task.start.job
                run.start()
        self._leave_if_ended(task)

    def _step_together(self, tasks: list[Task]) -> None:
        """Answer the open questions of these jobs once."""
        phase = tasks[0].phase
        assert phase is not None
        try:
            Batch(phase.backbone, [run for task in tasks for run in task.open_runs()], self.sharing).step()
        except Exception as error:  # the border of a job, as above
            end_where_broken(error)
            is_full = is_out_of_memory(error)
            ended = Ended(tasks[0].start.job, failure=failure_of(error)) if len(tasks) == 1 else None
            if ended is None:
                log.warning("a step of %d jobs failed (%s); each is begun again by itself", len(tasks), error)
        else:
            for task in tasks:
                self._after_step(task)
            return
        if ended is not None:
            self._end(tasks[0], ended)
        else:
            for task in tasks:
                task.close()
                task.running, task.alone = task.begin(), True
        if is_full:
            self._make_room()

    def _make_room(self) -> None:
        """Let go of what was kept, once memory has run out: of the controls, and without a job of the models, too.

        Called when the error is gone, which holds what was worked with. What jobs use, they have until they end.
        """
        if self.tasks:
            self.studio.close_controls()
        else:
            self.studio.close()
        self.rest()

    def _after_step(self, task: Task) -> None:
        phase = task.phase
        assert phase is not None
        if task.finish.is_set():
            for run in phase.runs:
                run.finish()
        if (step := phase.step()) > task.step:
            task.step = step
            self._tell(task, Progress(step, phase.num_steps, phase.stage, previews=self._previews(task, phase)))
        self._leave_if_ended(task)

    def _leave_if_ended(self, task: Task) -> None:
        if task.phase is not None and not task.open_runs():
            task.phase = None

    def _previews(self, task: Task, phase: Phase) -> tuple[Image.Image, ...]:
        """Return what the job's first picture looks like by now, where it was not shown for a while."""
        if task.finish.is_set() or time.monotonic() - task.shown_at < PREVIEW_SECONDS:
            return ()
        try:
            shown = previews_of(phase.runs[:1], self.studio.preview_decoder(phase.backbone))[:1]
        except (DisegnoError, RuntimeError) as error:  # RuntimeError: torch's, of memory too
            log.warning("job %s is drawn without previews: %s", task.start.job, error)
            task.shown_at = float("inf")
            return ()
        task.shown_at = time.monotonic()
        return shown

    def _tell(self, task: Task, news: Progress | Moved | Looked) -> None:
        if not isinstance(news, Progress):
            return self.say(news)
        preview = jpeg_uri(news.previews[0], PREVIEW_PX) if news.previews else None
        part, num_parts = task.part
        step, num_steps = part * news.num_steps + news.step, num_parts * news.num_steps
        return self.say(Moved(task.start.job, step, num_steps, news.stage, news.seconds_left, preview))


def end_where_broken(error: Exception) -> None:
    """End this process where its device can be used by no job any more; the server starts another, which can use it."""
    if isinstance(error, _BROKEN) and not is_out_of_memory(error):
        log.critical("the device cannot be used any more; this process ends: %s", error)
        raise SystemExit(1) from error


def failure_of(error: Exception) -> Failure:
    """Return what the owner is told; what is our own mistake is logged under a number, and only that is told."""
    if isinstance(error, DisegnoError):
        refusal = refusal_of(error)
        return Failure(refusal.code, refusal.message)
    if is_of_a_full_disk(error):
        log.error("the disk is full: %s", error)
        return Failure("no_room", NO_ROOM)
    if is_out_of_memory(error):
        log.error("out of memory: %s", error)
        return Failure("out_of_resources", "There was not enough memory. Ask for fewer or smaller pictures.")
    number = secrets.token_hex(4)
    log.error("failure %s", number, exc_info=error)
    return Failure("internal", f"This is a fault of the server; its log tells more under {number}.")
