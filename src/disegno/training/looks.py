"""A look at what has been learned: the held-out loss, the same rows and noise each time, and what the Watcher sees."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from disegno.training.base import Examples, Look, Looking, Watcher
from disegno.training.batches import held_out
from disegno.training.monitors import Monitors
from disegno.training.optimise import Pupil
from disegno.training.step import Course
from disegno.training.stopping import Interrupted, Stop
from disegno.weights.keys.control import is_zero_conv

ZERO_CONVS = "zero-convs"
"""The norm of all zero convolutions: what a control can add to the net grows with it."""


def weights_of(pupils: Sequence[Pupil]) -> dict[str, Tensor]:
    """Return what a file gets, of all turns."""
    return {name: tensor for pupil in pupils for name, tensor in pupil.weights.items()}


def look_at(
    course: Course, held: Examples | None, control: Path, step: int, watcher: Watcher | None, monitors: Monitors
) -> Looking:
    """Return what has been learned by `step`. `control`: the file that holds it. A part that fails is left out.

    It yields often, and may be closed there. Raises Interrupted where a stop is asked for meanwhile.
    """
    look = None
    if watcher is not None:
        seen = _breakable(watcher.look(control, step), course.stop)
        look = yield from monitors.attempting("A look at what was learned", seen)
    look = look or Look(step, None)
    loss = (yield from monitors.attempting("The held-out loss", _loss(course, held))) if held else None
    metrics = {name: float(value) for name, value in look.metrics.items() if math.isfinite(value)}
    return replace(look, step=step, loss=loss, metrics=metrics | norms_of(weights_of(course.pupils)))


def _breakable(looking: Looking, stop: Stop) -> Looking:
    """Let a signal break the look off at any point, but not whoever has the word between two of them."""
    with closing(looking):
        while not stop.is_asked:
            with stop.breaking():
                try:
                    next(looking)
                except StopIteration as end:
                    return end.value
            yield
    raise Interrupted


def norms_of(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of the zero convolutions among a file's weights; nothing where there are none."""
    squares = [tensor.detach().cpu().double().square().sum() for name, tensor in weights.items() if is_zero_conv(name)]
    return {ZERO_CONVS: math.sqrt(float(torch.stack(squares).sum()))} if squares else {}


@torch.no_grad()
def _loss(course: Course, held: Examples) -> Generator[None, None, float | None]:
    """Return the mean loss of the held-out rows, with the weights that a file would get; None if not finite.

    It yields after every batch.
    """
    device = next(iter(course.pupils[0].turn.parameters.values())).device
    name, total = course.pupils[0].turn.name, 0.0
    course.module.eval()
    try:
        with _averaged(course.pupils) if any(pupil.average for pupil in course.pupils) else nullcontext():
            for batch in held_out(held, range(len(held)), course.request.seed, course.request.batch, device):
                if course.stop.is_asked:  # not by a signal's exception: the parameters may be the averages now
                    raise Interrupted
                total += float(course.module(batch, name).cpu().double().sum())
                yield
    finally:
        course.module.train()
    return total / len(held) if math.isfinite(total) else None


@contextmanager
def _averaged(pupils: Sequence[Pupil]) -> Generator[None]:
    """Put the averages in the place of the parameters while inside."""
    kept = [(p, p.detach().clone()) for pupil in pupils for p in pupil.turn.parameters.values()]
    try:
        for pupil in pupils:
            for name, parameter in pupil.turn.parameters.items():
                parameter.copy_(pupil.weights[name])
        yield
    finally:
        for parameter, value in kept:
            parameter.copy_(value)
