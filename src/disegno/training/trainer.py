"""The one loop of every training: steps, looks, checkpoints. It goes on exactly where it ended, however that was.

All that decides the weights is a pure function of the request, the data and the step: neither time, nor threads, nor
interruptions. A turn of the loop: is a look due? has it ended? one step; is a checkpoint due?
"""

import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from disegno.core.errors import Diverged, RequestError, ResourceError
from disegno.core.hold import held
from disegno.core.teach import TeachRequest
from disegno.training import checkpoint
from disegno.training.base import Events, Look, Looking, TeachEvent, Teaching, TeachProgress, TeachResult
from disegno.training.batches import Reader
from disegno.training.convergence import judge
from disegno.training.keeping import Keeper, Pausing
from disegno.training.lesson import Habits, Lesson, Opening, stoppable
from disegno.training.looks import look_at
from disegno.training.monitors import Monitors
from disegno.training.optimise import open_pupil, rate_at
from disegno.training.order import order_of
from disegno.training.position import Position
from disegno.training.processes import ALONE, Processes, Said
from disegno.training.run import Run, begin, ended, recognise, write_result
from disegno.training.step import Course, Outcome, is_out_of_memory, take
from disegno.training.stopping import Interrupted, Stop

log = logging.getLogger(__name__)

MAX_SKIPPED = 3  # steps in a row that were not finite; after one more it stops


def train(
    request: TeachRequest, run: Run, opening: Opening, listeners: Sequence[Events] = (), stop: Stop | None = None,
    processes: Processes = ALONE, habits: Habits | None = None,
) -> Teaching:  # fmt: skip
    """Yield what happens until the training has ended, in the folder of the run; listeners hear it, too.

    Where the folder holds a part of it, it goes on from there; where it has ended, nothing is opened. Closing the
    generator saves and ends it, as `stop` does. Raises RequestError where the folder is another training's or in use,
    ResourceError, Diverged, and what the opening raises.
    """
    monitors = Monitors()
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(held(run.folder, "is training there", "--run"))
            begin(run, request)
        stack.enter_context(closing(opening))
        events = _events(request, run, opening, monitors, stop or Stop(), processes, habits or Habits())
        for event in stack.enter_context(closing(events)):
            for listener in listeners if processes.is_first else ():
                monitors.attempt(type(listener).__name__, partial(listener.hear, event))
            yield event


def _events(
    request: TeachRequest, run: Run, opening: Opening, monitors: Monitors, stop: Stop, processes: Processes,
    habits: Habits,
) -> Generator[TeachEvent]:  # fmt: skip
    """Yield the earlier result, or all that happens until there is one."""
    found = ended(run) if processes.is_first else None
    if processes.tell(found is not None):
        if found is not None:
            yield found
        return
    # several processes wait for each other while they open: none may leave
    lesson = yield from (stoppable(opening, stop) if processes.count == 1 else opening)
    if lesson is None:
        yield TeachResult(run.folder, checkpoint.last_step(run.checkpoints), "stopped")
        return
    if not lesson.owns and processes.tell(lesson.fingerprint) != lesson.fingerprint:
        raise RequestError(
            "The processes of this training do not see the same pairs and model. Give all of them the same folders."
        )
    if processes.is_first:
        recognise(run, lesson.fingerprint, processes.count)
        for warning in lesson.warnings:
            monitors.warn(warning)
    loop = _open(lesson, run, monitors, stop, processes, habits)
    try:
        yield from loop.events()
    finally:
        loop.reader.close()


def _open(
    lesson: Lesson, run: Run, monitors: Monitors, stop: Stop, processes: Processes, habits: Habits
) -> "_Loop":  # fmt: skip
    request = lesson.request
    pupils = tuple(open_pupil(turn, request) for turn in lesson.learner.turns)
    device = next(iter(pupils[0].turn.parameters.values())).device
    num_rows = request.batch * request.accumulate * (1 if lesson.owns else processes.count)
    order = lesson.order or order_of(
        lesson.examples, request.seed, num_rows, f"{processes.rank}" if lesson.owns else ""
    )
    reader = Reader(lesson.examples, order, processes, habits.workers, lesson.owns, device)
    course = Course(request, lesson.learner.module, pupils, processes, stop)
    keeper = Keeper(lesson, run, pupils, processes, stop, habits, monitors)
    return _Loop(lesson, run, monitors, reader, course, keeper)


@dataclass
class _Loop:
    lesson: Lesson
    run: Run
    monitors: Monitors
    reader: Reader
    course: Course
    keeper: Keeper
    position: Position = field(default_factory=Position)
    _began: float = 0.0
    _first: int = 0

    def events(self) -> Generator[TeachEvent]:
        """Yield what happens; where the generator is closed, it is saved first."""
        self.position = self.keeper.begin()
        try:
            yield from self._until_it_ends()
        except GeneratorExit:
            for _ in self._save():
                break  # the disk is full: the last checkpoint stays
            raise

    def _until_it_ends(self) -> Iterator[TeachEvent]:
        self.lesson.learner.module.train()
        yield from self._save()  # the very first: a disk that cannot be written to shows before any work is done
        self._began, self._first = time.monotonic(), self.position.step
        why = ""
        while not why:
            if self._look_is_due():
                yield from self._look()
            why = self._why() or (yield from self._step())
            if why or self.keeper.is_due(self.position.step):
                yield from self._save()
        if why != "stopped":
            why = yield from self._export(why)
        yield self._result(why)

    # ---- steps

    def _step(self) -> Generator[TeachEvent, None, str]:
        """Take one step; return "stopped" where that was asked for instead, else ""."""
        position, request = self.position, self.lesson.request
        batch = self.reader.read(position.step, request.steps)
        try:
            outcome = take(self.course, batch, position.size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(self._no_memory("for the optimiser's state")) from error
        if outcome.said is Said.STOP:
            return "stopped"
        if outcome.said is Said.NO_MEMORY:
            if outcome.is_whole:
                yield from self._save()
            raise ResourceError(self._no_memory(f"for {outcome.size} rows in one pass"))
        self.position = _after(position, outcome)
        if self.position.skipped_in_a_row > MAX_SKIPPED:
            yield from self._save()
            raise Diverged(
                f"{self.position.skipped_in_a_row} steps in a row had a loss or a gradient that is not finite, the last"
                f" was step {self.position.step}; their updates were left out. {self.keeper.advice}"
            )
        if not outcome.is_finite:
            log.warning("Step %d is not finite and was skipped.", self.position.step)
        yield self._progress(outcome)
        return ""

    def _progress(self, outcome: Outcome) -> TeachProgress:
        step, request = self.position.step, self.lesson.request
        seconds = (time.monotonic() - self._began) / (step - self._first)
        rate = rate_at(step - 1, request.rate or self.course.pupils[0].turn.rate, request)
        figures = (outcome.loss, rate, outcome.gradient) if outcome.is_finite else (None, rate, None)
        return TeachProgress(step, request.steps, "teaching", *figures, seconds * (request.steps - step))

    def _no_memory(self, what: str) -> str:
        return (
            f"There is not enough memory {what}, at step {self.position.step + 1}. Make it less with --checkpointing,"
            " a lower --batch, smaller pictures (--width, --height), a lower --rank or --optimiser adamw8bit, or leave"
            " out looks (--validate-every 0), in a new folder (--run); or free memory and give the same command: it"
            f" goes on from step {self.keeper.saved_step}."
        )

    # ---- looks

    def _look_is_due(self) -> bool:
        return self._is_time() and not self.position.seen

    def _is_time(self) -> bool:
        step, request = self.position.step, self.lesson.request
        return bool(request.validate_every) and (step % request.validate_every == 0 or step == request.steps)

    def _look(self) -> Iterator[TeachEvent]:
        """See what has been learned; a request to stop breaks it off."""
        step = self.position.step
        look: Look | None = None
        if not self.course.processes.is_first or self.course.stop.is_asked:
            return
        if (yield from self._kept("Writing the control to look at", self.run.latest, {})):
            try:
                with closing(self._seen(step)) as looking:  # closed first: meanwhile the weights may be the averages
                    while look is None:
                        yield TeachProgress(step, self.lesson.request.steps, "looking")
                        look = _next(looking)
            except Interrupted:
                log.info("The look at step %d was broken off.", step)
        if look is not None:
            after = replace(self.position, looks=(*self.position.looks, look))
            kept = after.best is not look or (
                yield from self._kept("Keeping the best", self.run.best(step), look.metrics)
            )
            if kept or not self.course.stop.is_asked:  # where it was stopped first, whoever goes on looks again
                self.position = after
                yield look

    def _kept(self, what: str, path: Path, metrics: Mapping[str, float]) -> Generator[TeachProgress, None, bool]:
        """Write what was learned so far, and wait while the disk is full; return whether it was written."""
        step = self.position.step
        writing = self.keeper.patiently(lambda: self.keeper.save_control(path, step, metrics))
        return bool((yield from self.monitors.attempting(what, self._paused(writing))))

    def _seen(self, step: int) -> Looking:
        held, watcher = self.lesson.held_out, self.lesson.watcher
        return (yield from look_at(self.course, held, self.run.latest, step, watcher, self.monitors))

    def _why(self) -> str:
        """Return why the training ends here; "": it goes on. All processes say the same."""
        request, processes = self.lesson.request, self.course.processes
        may_end = request.until_converged and self._is_time()
        if may_end and processes.tell(judge(self.position.looks).converged):
            return "converged"
        if self.position.step >= request.steps:
            return "steps"
        return "enough" if self.course.stop.is_enough and self.position.step else ""

    # ---- what is kept

    def _save(self) -> Iterator[TeachProgress]:
        if self.course.processes.is_first:
            self.position = replace(self.position, warnings=tuple(self.monitors.warnings))
            yield from self._paused(self.keeper.save(self.position))

    def _paused(self, writing: Pausing) -> Generator[TeachProgress, None, bool]:
        """Say why it waits, each time; return whether it was written."""
        while True:
            try:
                stage = next(writing)
            except StopIteration as end:
                return bool(end.value)
            log.warning(stage)
            yield TeachProgress(self.position.step, self.lesson.request.steps, stage)

    def _export(self, why: str) -> Generator[TeachProgress, None, str]:
        """Write the result; return why it ended, which is "stopped" where the disk stayed full until then."""
        if not self.course.processes.is_first:
            return why
        if not (yield from self._paused(self.keeper.export(self.position))):
            return "stopped"
        write_result(self.run, self._result(why))
        return why

    def _result(self, why: str) -> TeachResult:
        position, warnings = self.position, tuple(self.monitors.warnings)
        last = position.looks[-1] if position.looks else None
        if why == "stopped":
            return TeachResult(self.run.folder, self.keeper.saved_step, why, last.metrics if last else {}, warnings)
        chosen = self.keeper.chosen(position)
        look, step = chosen or (last if position.seen else None), chosen.step if chosen else position.step
        return TeachResult(self.run.file, step, why, look.metrics if look else {}, warnings)


def _next(looking: Looking) -> Look | None:
    """Let a look go on; return it once it is there."""
    try:
        return next(looking)
    except StopIteration as end:
        return end.value


def _after(position: Position, outcome: Outcome) -> Position:
    """Return the position after a step that was taken, or skipped."""
    bad = 0 if outcome.is_finite else 1
    return replace(
        position,
        step=position.step + 1,
        size=outcome.size,
        skipped=position.skipped + bad,
        skipped_in_a_row=position.skipped_in_a_row + 1 if bad else 0,
    )
