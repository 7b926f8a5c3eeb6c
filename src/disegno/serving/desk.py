"""The jobs of one worker: all of them are stepped in turn.

A job is a generator (`runners.py`). It yields a phase, whose runs are stepped here with those of the other jobs, or
progress, after which it goes on at the next turn. A message of the server is heard between two steps.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from disegno.core.errors import DisegnoError
from disegno.core.result import Progress
from disegno.engine.batch import Batch
from disegno.engine.generate import Phase
from disegno.engine.studio import Studio
from disegno.serving.catalogue import catalogue_of
from disegno.serving.faults import refusal_of
from disegno.serving.kinds import kind_of
from disegno.serving.runners import Bench, Running
from disegno.serving.wire import Cancel, Ended, Finish, Logged, Look, Moved, Open, Ready, Start
from disegno.serving.words import Failure, Outcome

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Task:
    """One job on its way. `phase`: what it waits for; `finishing`: it is to end with its pictures as they stand."""

    start: Start
    running: Running
    phase: Phase | None = None
    step: int = 0
    finishing: bool = False


@dataclass
class Desk:
    """The jobs that this process is carrying out."""

    studio: Studio
    say: Callable[[Ready | Moved | Ended | Logged], None]
    together: int
    tasks: list[Task] = field(default_factory=list[Task])

    @property
    def idle(self) -> bool:
        """Whether there is nothing to step."""
        return not self.tasks

    def look(self) -> None:
        """Say what this process can do."""
        self.say(Ready(catalogue_of(self.studio)))

    def hear(self, message: Open | Start | Cancel | Finish | Look) -> None:
        """Do what the server wants."""
        if isinstance(message, Start):
            self._begin(message)
        elif isinstance(message, Look):
            self.look()
        elif isinstance(message, Cancel | Finish):
            for task in [task for task in self.tasks if task.start.job == message.job]:
                self._cancel(task) if isinstance(message, Cancel) else self._finish(task)

    def _begin(self, start: Start) -> None:
        kind = kind_of(start.kind)
        folder, keep = Path(start.folder), Path(start.keep)
        module, _, name = kind.runner.partition(":")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            request = kind.load(start.request)
            running: Running = getattr(import_module(module), name)(request, Bench(self.studio, folder, keep))
        except (OSError, ValueError) as error:
            return self.say(Ended(start.job, failure=_failure(error)))
        self.tasks.append(Task(start, running))
        return None

    def _cancel(self, task: Task) -> None:
        self._leave(task)
        self.say(Ended(task.start.job))

    def _finish(self, task: Task) -> None:
        task.finishing = True

    def _leave(self, task: Task) -> None:
        self.tasks.remove(task)
        for run in task.phase.runs if task.phase else ():
            run.stop()
        task.running.close()

    # ---- stepping

    def step(self) -> None:
        """Let every job take one step."""
        for task in list(self.tasks):
            if task.phase is None:
                self._guarded(task, self._resume)
        for task in list(self.tasks):
            if task.phase is not None:
                self._guarded(task, self._step_phase)

    def _guarded(self, task: Task, act: Callable[[Task], None]) -> None:
        """Do something for a job; whatever goes wrong is that job's failure and nobody else's."""
        try:
            act(task)
        except Exception as error:  # the border of a job: a library may raise anything on a stranger's request
            self._leave(task)
            self.say(Ended(task.start.job, failure=_failure(error)))

    def _resume(self, task: Task) -> None:
        """Let the job go on to its next phase, to its next progress, or to its end."""
        try:
            news = next(task.running)
        except StopIteration as end:
            outcome: Outcome = end.value
            self.tasks.remove(task)
            return self.say(Ended(task.start.job, outcome=outcome))
        if isinstance(news, Progress):
            return self._told(task, news)
        task.phase, task.step = news, 0
        with torch.inference_mode():
            for run in news.runs:
                run.start()
        return self._told(task, Progress(0, news.num_steps, news.stage))

    def _step_phase(self, task: Task) -> None:
        phase = task.phase
        assert phase is not None
        Batch(phase.backbone, [run for run in phase.runs if run.question is not None]).step()
        if task.finishing:
            for run in phase.runs:
                run.finish()
        step = phase.step()
        if all(run.latents is not None for run in phase.runs):
            task.phase = None
        if step > task.step:
            task.step = step
            self._told(task, Progress(step, phase.num_steps, phase.stage))

    def _told(self, task: Task, news: Progress) -> None:
        self.say(Moved(task.start.job, news.step, news.num_steps, news.stage, news.seconds_left))


def _failure(error: Exception) -> Failure:
    """Return what the owner is told; what is our own mistake is logged under a number, and only that is told."""
    if isinstance(error, DisegnoError):
        refusal = refusal_of(error)
        return Failure(refusal.code, refusal.message)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        log.error("out of memory: %s", error)
        return Failure("out_of_resources", "There was not enough memory. Ask for fewer or smaller pictures.")
    number = secrets.token_hex(4)
    log.error("failure %s", number, exc_info=error)
    return Failure("internal", f"This is a fault of the server; its log tells more under {number}.")
