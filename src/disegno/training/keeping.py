"""What a training leaves on the disk: checkpoints, the controls that looks saw, the result."""

import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from disegno.core.errors import Diverged
from disegno.core.files import write_atomically
from disegno.training import checkpoint, disk
from disegno.training.base import Look
from disegno.training.checkpoint import Checkpoint
from disegno.training.lesson import Habits, Lesson
from disegno.training.looks import weights_of
from disegno.training.monitors import Monitors
from disegno.training.optimise import Pupil, restore, tensors_of
from disegno.training.position import Position, from_state, to_state
from disegno.training.processes import Processes
from disegno.training.run import Run, remove
from disegno.training.stopping import Stop
from disegno.weights.finite import not_finite

Pausing = Generator[str, None, bool]
"""Yields why it waits; returns whether it was written."""

_STATES = 3  # of an optimiser: the weights' size, and AdamW's two moments


@dataclass
class Keeper:
    """Keeps one training; only the first process writes."""

    lesson: Lesson
    run: Run
    pupils: Sequence[Pupil]
    processes: Processes
    stop: Stop
    habits: Habits
    monitors: Monitors
    _saved: tuple[int, bool] | None = None
    _saved_at: float = field(default_factory=time.monotonic)
    _bests: tuple[int, ...] = ()

    # ---- checkpoints

    def begin(self) -> Position:
        """Return where to go on: the newest whole checkpoint is in the pupils, in every process; else the beginning."""
        found = checkpoint.newest(self.run.checkpoints) if self.processes.is_first else checkpoint.Found(None)
        self.monitors.warnings += found.warnings
        old = found.checkpoint
        if self.processes.is_first and old is None:
            disk.require_space(self.run.folder, self.num_bytes)
        state = self.processes.tell(None if old is None else dict(old.state))
        tables = self.processes.share_tables(_tables(self.pupils) if old is None else old.tensors)
        for pupil in self.pupils:
            restore(pupil, tables)
        if not isinstance(state, dict):
            return Position(size=self.lesson.request.batch)
        position = from_state(state)
        self._saved, self._bests = (position.step, position.seen), _best(position)
        self.monitors.warnings[:0] = [said for said in position.warnings if said not in self.monitors.warnings]
        return position

    @property
    def saved_step(self) -> int:
        """Return the step of the newest checkpoint."""
        return self._saved[0] if self._saved else 0

    @property
    def num_bytes(self) -> int:
        """Return about how many bytes a checkpoint takes."""
        tables = _tables(self.pupils)
        whole = checkpoint.num_bytes({"weights": tables["weights"]}) * _STATES
        return max(whole, checkpoint.num_bytes(tables)) + checkpoint.num_bytes({"a": tables.get("average", {})})

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint should be written after this step."""
        waited = time.monotonic() - self._saved_at
        return step % self.lesson.request.save_every == 0 or waited > 60 * self.habits.save_minutes

    def save(self, position: Position) -> Pausing:
        """Write a checkpoint, and remove what no longer counts. Raises Diverged where the weights are not finite."""
        if self._saved == (position.step, position.seen):
            return True
        tables = _tables(self.pupils)
        self._require_finite(tables["weights"], position.step)
        whole = Checkpoint(position.step, tables, to_state(position), position.seen)
        done = yield from self.patiently(lambda: checkpoint.save(self.run.checkpoints, whole))
        if done:
            self._saved, self._saved_at = (position.step, position.seen), time.monotonic()
            self.monitors.attempt("The removal of old checkpoints", lambda: self._tidy(position))
        return done

    def _require_finite(self, weights: Mapping[str, Tensor], step: int) -> None:
        if bad := not_finite(weights):
            raise Diverged(
                f"After step {step} {len(bad)} of {len(weights)} tensors hold NaN or infinite numbers, {bad[0]} among"
                f" them. {self.advice}"
            )

    @property
    def advice(self) -> str:
        """Return what to do when the numbers run away."""
        rate = self.lesson.request.rate or self.pupils[0].turn.rate
        return (
            f"The last sound state is in {self.run.checkpoints}. Begin anew with a lower rate, such as --rate"
            f" {rate / 3:.1e}, or longer --warmup; `disegno teach --find-rate` measures one."
        )

    def _tidy(self, position: Position) -> None:
        """Remove old checkpoints, and the best controls that none of those kept speaks of."""
        checkpoint.prune(self.run.checkpoints)
        now = _best(position)
        wanted = {file for step in (*self._bests, *now) for file in self.run.files(self.run.best(step))}
        self._bests = now
        for path in self.run.controls.glob("best-*"):
            if path not in wanted:
                remove(path)

    def patiently(self, write: Callable[[], object]) -> Pausing:
        """Call `write` until it is done, pausing while the disk is full."""
        habits = self.habits
        return disk.patiently(write, self.run.folder, self.num_bytes, habits.pause_seconds, self.stop)

    # ---- controls

    def save_control(self, path: Path, step: int, metrics: Mapping[str, float]) -> None:
        """Write what was learned so far as the file that the engine opens. Raises Diverged where it is not finite."""
        weights = weights_of(self.pupils)
        self._require_finite(weights, step)
        self.lesson.learner.save(path, self.lesson.facts_at(step, metrics), weights)

    def chosen(self, position: Position) -> Look | None:
        """Return the look whose control is the result: the best where it should stop by itself; None: the last weights.

        A best whose control could not be written cannot be the result.
        """
        best = position.best
        if not self.lesson.request.until_converged or best is None:
            return None
        return best if all(file.exists() for file in self.run.files(self.run.best(best.step))) else None

    def export(self, position: Position) -> Pausing:
        """Write the result: the chosen look's control, or the last weights."""
        if (chosen := self.chosen(position)) is not None:
            best = self.run.best(chosen.step)
            return self.patiently(lambda: copy_all(self.run.files(best), self.run.files(self.run.file)))
        metrics = position.looks[-1].metrics if position.seen else {}
        return self.patiently(lambda: self.save_control(self.run.file, position.step, metrics))


def copy_all(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    """Write a copy of each file or folder. Raises ResourceError, OSError."""
    for source, target in zip(sources, targets, strict=True):
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Write a copy of a file or a folder, whole or not at all. Raises ResourceError, OSError."""
    if not source.is_dir():
        write_atomically(target, lambda path: shutil.copyfile(source, path))
        return
    temporary = target.with_name(f".{target.name}.tmp")
    remove(temporary)
    shutil.copytree(source, temporary)
    remove(target)
    temporary.rename(target)


def _best(position: Position) -> tuple[int, ...]:
    return () if position.best is None else (position.best.step,)


def _tables(pupils: Sequence[Pupil]) -> dict[str, dict[str, Tensor]]:
    tables: dict[str, dict[str, Tensor]] = {}
    for pupil in pupils:
        for kind, name, tensor in tensors_of(pupil):
            tables.setdefault(kind, {})[name] = tensor
    return tables
