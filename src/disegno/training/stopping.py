"""How a training is asked to stop: by a signal, or by whoever runs it. It saves, and says how to go on.

Or it is enough, and what has been learned is the result.
"""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """Something that may be broken off at any point was: a look at what has been learned."""


class Stop:
    """Whether a training was asked to stop. `ask` may be called from any thread, and from a signal handler."""

    def __init__(self) -> None:
        self.is_asked = False
        self.is_enough = False
        self._may_break = False

    def ask(self) -> None:
        """Ask for an end after this forward pass."""
        self.is_asked = True

    def enough(self) -> None:
        """Ask for the result after this step, of what has been learned by then. For a training of one process."""
        self.is_enough = True

    @contextmanager
    def breaking(self) -> Generator[None]:
        """Let a signal break off what happens inside, at once, by Interrupted: nothing is lost but a look."""
        self._may_break = True
        try:
            yield
        finally:
            self._may_break = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once; the last checkpoint stays
        self.is_asked = True
        if self._may_break:
            self._may_break = False
            raise Interrupted

    @contextmanager
    def on_signals(self) -> Generator["Stop"]:
        """Take SIGTERM and SIGINT as a request to stop while inside; the main thread only."""
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
