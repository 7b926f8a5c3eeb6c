"""What a person sees of long work: a bar with the time left, or, where none can be drawn, a line now and then."""

import sys
import time
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 10.0


class Bar:
    """A bar on stderr, for a `with` statement; `tell` moves it. `quiet`: nothing is shown."""

    def __init__(self, stage: str, quiet: bool = False) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._quiet, self._drawn = quiet, sys.stderr.isatty() and not quiet
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not self._drawn, transient=True)
        self._stage, self._task = stage, TaskID(0)
        self._began = self._said = time.monotonic()
        self._from = 0  # what was done when the stage began: a training that goes on does not begin at 0

    def __enter__(self) -> "Bar":
        self._bar.start()
        self._task = self._bar.add_task(self._stage, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, stage: str, done: int, of: int, beside: str = "") -> None:
        """Show that `done` of `of` (0: nobody knows) is done of a stage; a new stage begins a new bar.

        `beside`: what is shown beside it.
        """
        now = time.monotonic()
        if stage != self._stage:
            self._bar.reset(self._task, description=stage, total=of or None, completed=done)
            self._stage, self._from, self._began, self._said = stage, done, now, now
        self._bar.update(self._task, description=f"{stage} {beside}".strip(), completed=done, total=of or None)
        if not (self._drawn or self._quiet) and now - self._said >= _LINE_EVERY_SECONDS:
            self._said = now
            new = done - self._from
            left = f", about {(now - self._began) / new * (of - done):.0f} s left" if new > 0 and of else ""
            click.echo(f"{stage}: {done}{f' of {of}' if of else ''}{left}{f', {beside}' if beside else ''}", err=True)

    def say(self, text: str) -> None:
        """Print words above the bar."""
        if not self._quiet:
            self._bar.console.print(text, highlight=False, markup=False)
