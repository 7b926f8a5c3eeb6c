"""All that one training needs, open: what the loop is given, whatever the recipe."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

from disegno.core.teach import TeachRequest
from disegno.training.base import Examples, Facts, Learner, TeachProgress, Watcher
from disegno.training.order import Ordering
from disegno.training.stopping import Stop

T = TypeVar("T")


@dataclass(frozen=True)
class Lesson:
    """A request, opened. `facts`: what a saved file says that is known beforehand.

    `fingerprint`: what else decides the result, by content: the pairs, the model. `owns`: the examples are this
    process's own, not all processes'. `watcher`: looks at what was learned. `warnings`: in plain words.
    `order`: which rows a step takes, where that is not the usual order of the examples.
    """

    request: TeachRequest
    learner: Learner
    examples: Examples
    held_out: Examples | None
    facts: Facts
    fingerprint: str = ""
    owns: bool = False
    watcher: Watcher | None = None
    warnings: tuple[str, ...] = ()
    order: Ordering | None = None

    def facts_at(self, step: int, metrics: Mapping[str, float]) -> Facts:
        """Return what a file of this step says."""
        return replace(self.facts, steps=step, metrics=dict(metrics))


@dataclass(frozen=True)
class Habits:
    """How a training goes about its work; nothing here changes its result.

    `workers`: threads that read rows ahead. `save_minutes`: at most between two checkpoints. `pause_seconds`: between
    two tries while the disk is full. `refuses`: a training that does not fit into memory, instead of trying it.
    """

    workers: int = 2
    save_minutes: float = 10.0
    pause_seconds: float = 30.0
    refuses: bool = True


Opening = Generator[TeachProgress, None, Lesson]
"""Opens a lesson, and says how far it is: pairs are found, caches fill."""


def opened(lesson: Lesson) -> Opening:
    """Return the opening of a lesson that is open."""
    yield from ()
    return lesson


def stoppable(work: Generator[TeachProgress, None, T], stop: Stop) -> Generator[TeachProgress, None, T | None]:
    """Yield what a work yields, and return what it gives; None, the work closed, where a stop was asked for then."""
    with closing(work):
        while True:
            try:
                said = next(work)
            except StopIteration as end:
                return end.value
            yield said
            if stop.is_asked:
                return None
