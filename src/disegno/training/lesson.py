"""All that one training needs, open: what the loop is given, whatever the recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from disegno.core.teach import TeachRequest
from disegno.training.base import Examples, Facts, Learner


@dataclass(frozen=True)
class Lesson:
    """A request, opened. `facts`: what a saved file says that is known beforehand.

    `fingerprint`: what else decides the result, by content: the pairs, the model. `suffix`: of what the recipe saves;
    "" for a folder.
    """

    request: TeachRequest
    learner: Learner
    examples: Examples
    held_out: Examples | None
    facts: Facts
    fingerprint: str = ""
    suffix: str = ".safetensors"

    def facts_at(self, step: int, metrics: Mapping[str, float]) -> Facts:
        """Return what a file of this step says."""
        return replace(self.facts, steps=step, metrics=dict(metrics))


@dataclass(frozen=True)
class Habits:
    """How a training goes about its work; nothing here changes its result.

    `workers`: threads that read rows ahead. `save_minutes`: at most between two checkpoints. `pause_seconds`: between
    two tries while the disk is full.
    """

    workers: int = 2
    save_minutes: float = 10.0
    pause_seconds: float = 30.0
