"""What looks at a training cannot stop it: a failing look, listener or picture is warned of once, and passed over."""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Y = TypeVar("Y")


@dataclass
class Monitors:
    """Calls what may fail. `warnings`: one for each thing that did, in plain words."""

    warnings: list[str] = field(default_factory=list[str])
    _failed: set[str] = field(default_factory=set[str])

    def warn(self, said: str) -> None:
        """Say it, and remember it for the result; once only, although a training may be begun many times."""
        self.warnings += [] if said in self.warnings else [said]
        log.warning(said)

    def attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """Return what the call gives; None, and one warning about `what`, where it fails."""
        try:
            return call()
        except Exception as error:  # whatever it is: hours of training are worth more than a look at them
            return self._fail(what, error)

    def attempting(self, what: str, work: Generator[Y, None, T]) -> Generator[Y, None, T | None]:
        """Do the same with what takes a while and yields meanwhile."""
        try:
            return (yield from work)
        except Exception as error:  # as above
            return self._fail(what, error)

    def _fail(self, what: str, error: Exception) -> None:
        if what in self._failed:
            return
        self._failed.add(what)
        reason = str(error).strip() or "no reason given"
        self.warn(f"{what} failed ({type(error).__name__}: {reason}); the training goes on.")
        log.debug("%s", what, exc_info=True)
