"""One step: every turn's forward and backward passes, the mean over all processes, and the optimiser's move.

What can go wrong in it is answered here: a number that is not finite (the move is left out), too little memory
(again with half as many rows in a pass, down to one), a request to stop (the step is dropped). All processes act alike.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from disegno.core.teach import TeachRequest
from disegno.room import is_out_of_memory
from disegno.training.base import Batch
from disegno.training.batches import parts
from disegno.training.optimise import Pupil, collect, forget, gradients, norm, rate_at, update
from disegno.training.processes import Processes, Said
from disegno.training.stopping import Stop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Course:
    """What every step needs."""

    request: TeachRequest
    module: nn.Module
    pupils: Sequence[Pupil]
    processes: Processes
    stop: Stop


@dataclass(frozen=True)
class Outcome:
    """What a step came to. `loss`, `gradient`: of the first turn. `size`: rows in one pass, halved where memory ended.

    Where `said` is not FINE no step was taken; `is_whole`: nor was an earlier turn of it.
    """

    said: Said
    size: int
    loss: float = 0.0
    gradient: float = 0.0
    is_finite: bool = True
    is_whole: bool = True


def take(course: Course, batch: Batch, size: int) -> Outcome:
    """Return what one step came to, with this process's rows of its batch."""
    loss, gradient, is_finite = 0.0, 0.0, True
    for number, pupil in enumerate(course.pupils):
        said, lost, size = _passes(course, pupil, batch, size, may_stop=number == 0)
        if said is not Said.FINE:
            return Outcome(said, size, is_whole=number == 0)
        course.processes.average([lost, *gradients(pupil)])
        total = norm(pupil)
        values = torch.stack([lost.to(total.device), total]).tolist()  # the one wait for the device in a step
        sound = all(map(_is_finite, values))
        if sound:
            rate = rate_at(batch.step, course.request.rate or pupil.turn.rate, course.request)
            update(pupil, rate, course.request.clip, total, batch.step)
        forget(pupil)
        is_finite = is_finite and sound
        if number == 0:
            loss, gradient = values
    return Outcome(Said.FINE, size, loss, gradient, is_finite)


def _is_finite(value: float) -> bool:
    return value - value == 0.0


def _passes(course: Course, pupil: Pupil, batch: Batch, size: int, may_stop: bool) -> tuple[Said, Tensor, int]:
    """Return what all processes say, the mean loss of this one's rows, and how many rows went through at once."""
    said, lost = _backward(course, pupil, batch, size, may_stop)
    said = course.processes.agree(said)
    while said is Said.NO_MEMORY and size > 1:
        size = (size + 1) // 2
        log.warning("Step %d: memory ran out; %d rows a pass from now on, the same batch.", batch.step + 1, size)
        if lost.is_cuda:
            torch.cuda.empty_cache()
        said, lost = _backward(course, pupil, batch, size, may_stop)
        said = course.processes.agree(said)
    return said, lost, size


def _backward(course: Course, pupil: Pupil, batch: Batch, size: int, may_stop: bool) -> tuple[Said, Tensor]:
    """Leave the gradients of the rows' mean loss on the masters; none of them where it ended before."""
    forget(pupil)
    lost = torch.zeros((), device=next(iter(pupil.turn.parameters.values())).device)
    for part in parts(batch, size):
        asked = may_stop and course.stop.is_asked
        said = Said.STOP if asked else _pass(course.module, pupil, part, len(batch.seeds), lost)
        if said is not Said.FINE:
            forget(pupil)
            return said, lost
    return Said.FINE, lost


def _pass(module: nn.Module, pupil: Pupil, part: Batch, num_rows: int, lost: Tensor) -> Said:
    """Add a part's share of the mean loss over `num_rows` to `lost`, and its gradients to the masters'."""
    try:
        loss = module(part, pupil.turn.name).sum() / num_rows
        loss.backward(inputs=list(pupil.turn.parameters.values()))
        collect(pupil)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Said.NO_MEMORY
    lost += loss.detach()
    return Said.FINE
