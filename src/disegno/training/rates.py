"""Which learning rate suits? A range test: from the same weights, on the same rows and noise, with rate after rate.

A diffusion loss is mostly its own noise: what one rate gains in twenty steps drowns in it. So each rate begins anew
from the same weights, takes the same steps, and the loss is measured before and after on the same held-out rows with
the same noise; their differences, row by row, have a standard error.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from disegno.core.errors import RequestError, ResourceError
from disegno.core.teach import TeachRequest
from disegno.training.base import Examples, TeachProgress
from disegno.training.batches import Reader, held_out
from disegno.training.lesson import Habits, Lesson
from disegno.training.optimise import Pupil, open_pupil
from disegno.training.order import order_of
from disegno.training.processes import ALONE, Said
from disegno.training.step import Course, take
from disegno.training.stopping import Stop

NUM_STEPS = 20  # with each rate
SPAN = 100.0  # from the recipe's rate divided by it, to multiplied by it
PER_DECADE = 2
NUM_ROWS = 64  # that the loss is measured on; fewer rows come with more noises
STAGE = "rates"


@dataclass(frozen=True)
class Tried:
    """What one rate did: how much of the loss is gone after the steps, and the standard error of that."""

    rate: float
    fall: float
    error: float


@dataclass(frozen=True)
class Rates:
    """What was tried, and the suggestion; None where no rate gained anything beyond chance."""

    before: float
    tried: tuple[Tried, ...]
    suggestion: float | None


def find_rate(
    lesson: Lesson, stop: Stop | None = None, num_steps: int = NUM_STEPS, workers: int = Habits().workers
) -> Generator[TeachProgress, None, Rates]:
    """Yield progress, and return what each rate did. The learner is as it was afterwards.

    Raises RequestError, ResourceError.

    `workers`: threads that read rows ahead.
    """
    start = {name: p.detach().clone() for turn in lesson.learner.turns for name, p in turn.parameters.items()}
    rates = rates_around(lesson.request.rate or lesson.learner.turns[0].rate)
    probe = lesson.held_out or lesson.examples
    before = _losses(lesson, probe)
    tried: list[Tried] = []
    for number, rate in enumerate(rates):
        yield TeachProgress(number, len(rates), f"{STAGE}: {rate:.1e}")
        _take(lesson, rate, num_steps, stop or Stop(), workers)
        after = _losses(lesson, probe)
        _put_back(lesson, start)
        if stop is not None and stop.is_asked:
            break
        tried.append(_tried(rate, before, after))
        if not tried[-1].fall > -1:
            break  # the loss has doubled: higher rates are worse
    return Rates(float(before.mean()), tuple(tried), suggest(tried))


def rates_around(rate: float) -> list[float]:
    """Return the rates to try, rising, about one."""
    most = round(math.log10(SPAN) * PER_DECADE)
    return [rate * 10 ** (place / PER_DECADE) for place in range(-most, most + 1)]


def suggest(tried: Sequence[Tried]) -> float | None:
    """Return the lowest rate that is as good as the best one, to within its standard error: what holds for long.

    None where not even the best gained anything beyond chance. (The one-standard-error rule, Breiman et al. 1984.)
    """
    sound = [one for one in tried if math.isfinite(one.fall)]
    best = max(sound, key=lambda one: one.fall, default=None)
    if best is None or best.fall < 2 * best.error:
        return None
    return min(one.rate for one in sound if one.fall >= best.fall - best.error)


def _tried(rate: float, before: Tensor, after: Tensor) -> Tried:
    falls = (before - after) / before.mean()
    return Tried(rate, float(falls.mean()), float(falls.std() / math.sqrt(len(falls))))


def _take(lesson: Lesson, rate: float, num_steps: int, stop: Stop, workers: int) -> None:
    """Take the first steps of a training with this rate."""
    request = replace(lesson.request, rate=rate, warmup=0, rate_schedule="constant", ema=0.0)
    pupils: tuple[Pupil, ...] = tuple(open_pupil(turn, request) for turn in lesson.learner.turns)
    device = next(iter(pupils[0].turn.parameters.values())).device
    order = order_of(lesson.examples, request.seed, request.batch * request.accumulate)
    reader = Reader(lesson.examples, order, ALONE, workers, device=device)
    course = Course(request, lesson.learner.module, pupils, ALONE, stop)
    lesson.learner.module.train()
    try:
        for step in range(num_steps):
            outcome = take(course, reader.read(step, num_steps), request.batch)
            if outcome.said is Said.NO_MEMORY:
                raise ResourceError(
                    f"There is not enough memory for {outcome.size} rows in one pass: no rate can be measured. Make it"
                    " less with --checkpointing, a lower --batch or smaller pictures (--width, --height)."
                )
            if outcome.said is Said.STOP:
                break
    finally:
        reader.close()


@torch.no_grad()
def _put_back(lesson: Lesson, start: dict[str, Tensor]) -> None:
    for turn in lesson.learner.turns:
        for name, parameter in turn.parameters.items():
            parameter.copy_(start[name])


@torch.no_grad()
def _losses(lesson: Lesson, probe: Examples) -> Tensor:
    """Return the loss of each row of the probe under each of its noises, float64, on the CPU."""
    module, turn = lesson.learner.module, lesson.learner.turns[0]
    device = next(iter(turn.parameters.values())).device
    rows = range(min(len(probe), NUM_ROWS))
    if not rows:
        raise RequestError("There is nothing to measure a learning rate on: no pair is left.")
    module.eval()
    losses: list[Tensor] = []
    for draw in range(-(-NUM_ROWS // len(rows))):
        batches = held_out(probe, rows, lesson.request.seed + draw, lesson.request.batch, device)
        losses += [module(batch, turn.name).cpu().double() for batch in batches]
    module.train()
    return torch.cat(losses)


def to_json(found: Rates) -> dict[str, Any]:
    """Return what was found as JSON has it; null where a rate ran away, or none is suggested."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    tried = [{"rate": one.rate, "fall": number(one.fall), "error": number(one.error)} for one in found.tried]
    return {"before": number(found.before), "steps": NUM_STEPS, "tried": tried, "suggestion": found.suggestion}


def table(found: Rates, request: TeachRequest) -> str:
    """Return what was found, a line a rate, as a person reads it."""
    most = max((one.fall for one in found.tried if math.isfinite(one.fall)), default=0.0)
    lines = [f"   rate    the loss fell by, in {NUM_STEPS} steps, from {found.before:.4f}"]
    for one in found.tried:
        length = round(40 * max(one.fall, 0.0) / most) if most > 0 and math.isfinite(one.fall) else 0
        mark = "  <" if one.rate == found.suggestion else ""
        said = f"{100 * one.fall:6.2f} % ± {100 * one.error:.2f}" if math.isfinite(one.fall) else "it runs away"
        lines.append(f"{one.rate:8.1e}  {said}  {'█' * length}{mark}")
    if found.suggestion is None:
        lines.append("No rate gained anything beyond chance in so few steps: keep the recipe's, or give more pairs.")
    else:
        lines.append(f"Suggested: disegno teach {request.name} ... --rate {found.suggestion:.1e}")
    return "\n".join(lines)
