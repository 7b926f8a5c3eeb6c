"""Many items in several processes, where one bad item costs only itself: a crash, a kill or a standstill included."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Generic, Protocol, TypeVar

import cv2

from disegno.core.errors import DisegnoError, RequestError, ResourceError
from disegno.training.data.problems import Fault

T = TypeVar("T", covariant=True)
R = TypeVar("R")

ITEM_SECONDS = 120.0
"""How long one item may take; a worker that takes longer is ended, and the item counts as failed."""

_START_SECONDS = 60.0


class Task(Protocol[T]):
    """What is done with each index; it travels to the workers once, pickled. Both may raise DisegnoError."""

    def prepare(self) -> None:
        """Load what every item needs, once a process."""
        ...

    def __call__(self, index: int) -> T: ...


@dataclass(frozen=True)
class Failed:
    """An item that came to no result. `kind`: of `problems.KINDS`."""

    reason: str
    kind: str = "failed"


def num_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(task: Task[R], indices: Sequence[int]) -> Iterator[tuple[int, R | Failed]]:
    """Yield each index and its result, in this process. Raises what `run` raises."""
    task.prepare()
    for index in indices:
        yield index, _result(task, index)


def run(
    task: Task[R], indices: Sequence[int], num_workers: int, seconds: float = ITEM_SECONDS
) -> Iterator[tuple[int, R | Failed]]:
    """Yield each index and its result as they come, from `num_workers` processes.

    A worker that dies or takes too long is replaced; its item comes back as Failed. When the caller stops asking, or
    dies, the workers end. Raises RequestError where the task cannot be prepared, ResourceError where the disk is full.
    """
    crew = [_Worker[R](task, seconds) for _ in range(min(num_workers, len(indices)))]
    waiting, num_open = iter(indices), len(indices)
    try:
        while num_open:
            for worker in crew:
                if worker.idle and (index := next(waiting, None)) is not None:
                    worker.give(index, seconds)
            heard = wait([worker.pipe for worker in crew], _pause(crew))
            for place, worker in enumerate(crew):
                index = worker.index
                for result in worker.results(worker.pipe in heard):
                    assert index is not None
                    num_open -= 1
                    yield index, result
                if worker.ended:
                    crew[place] = _Worker[R](task, seconds)
    finally:
        for worker in crew:
            worker.end()


def _pause(crew: "Sequence[_Worker[R]]") -> float:
    """Return how long to wait for news before a worker's time is up, in seconds."""
    deadlines = [worker.deadline for worker in crew if not worker.idle]
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else 60.0


class _Worker(Generic[R]):
    """A process, its pipe, and the item that it is at."""

    def __init__(self, task: Task[R], seconds: float) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process with threads (OpenCV's) may lock up
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, task), daemon=True)
        self.process.start()
        theirs.close()
        self.idle = self.ended = False
        self.index: int | None = None
        self.deadline = time.monotonic() + max(seconds, _START_SECONDS)

    def give(self, index: int, seconds: float) -> None:
        """Have it work at an item."""
        self.idle, self.index, self.deadline = False, index, time.monotonic() + seconds
        with suppress(OSError):  # it is gone, which will be heard
            self.pipe.send(index)

    def results(self, heard: bool) -> Iterator[R | Failed]:
        """Yield the result of its item, if there is one by now. Raises what stops everything."""
        if heard:
            yield from self._heard()
        elif not self.idle and time.monotonic() > self.deadline:
            self.end()
            if self.index is None:
                raise RequestError("A worker process does not get ready: what it loads takes too long.")
            yield Failed("It took too long.")

    def _heard(self) -> Iterator[R | Failed]:
        """Yield what the process says, or that it is gone while it was at an item."""
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            self.end()
            if self.idle:
                return
            if self.index is None:
                raise RequestError("A worker process ended before it began; what it said stands above.") from None
            yield Failed(f"The process that was at it ended with code {self.process.exitcode}.")
            return
        if isinstance(said, _Stop):
            raise (ResourceError if said.resource else RequestError)(said.reason)
        working, self.idle, self.index = self.index is not None, True, None
        if working:
            yield said

    def end(self) -> None:
        """End the process, whatever it does."""
        self.ended = True
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass(frozen=True)
class _Stop:
    """What ends all of the work: nothing can be prepared, or written."""

    reason: str
    resource: bool


def _serve(pipe: Connection, task: Task[object]) -> None:
    """Do the work of one process until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    sys.dont_write_bytecode = True  # a script's folder is not ours to write to
    cv2.setNumThreads(1)  # the processes are the threads
    try:
        task.prepare()
        result: object = None
        while True:
            pipe.send(result)
            result = _result(task, pipe.recv())
    except (EOFError, ConnectionError):
        return
    except DisegnoError as error:
        pipe.send(_Stop(str(error), isinstance(error, ResourceError)))


def _result(task: Task[R], index: int) -> R | Failed:
    """Return the item's result. Raises ResourceError: the next item would meet it, too."""
    try:
        return task(index)
    except ResourceError:
        raise
    except Fault as error:
        return Failed(str(error), error.kind)
    except DisegnoError as error:
        return Failed(str(error))
