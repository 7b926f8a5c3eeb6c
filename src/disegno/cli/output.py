"""What the commands that draw share: a bar while they draw, and where their files go."""

import re
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from disegno.core.result import Progress, Result

Ended = TypeVar("Ended")
PREVIEW_SECONDS = 0.5  # between two


def with_bar(events: Iterable[Progress | Ended], quiet: bool, preview: Path | None = None) -> Ended:
    """Return what comes after all progress, which is shown meanwhile; `preview`: a file that shows what is drawn."""
    from disegno.cli.bar import Bar

    shown = 0.0
    with nullcontext() if quiet else Bar("opening") as bar:
        for event in events:
            if not isinstance(event, Progress):
                return event
            if preview is not None and event.previews and time.monotonic() - shown >= PREVIEW_SECONDS:
                _show(event, preview)
                shown = time.monotonic()
            if bar is not None:
                bar.tell(event.stage, event.step, event.num_steps)
    raise AssertionError("the engine ended without a result")


def _show(event: Progress, path: Path) -> None:
    from disegno.engine.sheet import strip
    from disegno.engine.writing import write_plain

    write_plain(path, strip(event.previews))


def output_paths(out: Path | None, result: Result, keep: list[int]) -> list[Path]:
    """Return where each kept image goes; a name without --out is never one that exists."""
    if out is None or out.is_dir() or not out.suffix:
        folder = out or Path("out")
        words = "-".join(re.findall(r"[a-z0-9]+", result.request.prompt.lower())[:6]) or "picture"
        return [free_path(folder / f"{words}-{result.seeds[i]}.png") for i in keep]
    if len(keep) == 1:
        return [out]
    return [out.with_stem(f"{out.stem}-{n + 1}") for n in range(len(keep))]


def require_out(out: Path | None) -> None:
    """Raise RequestError where --out names a file of a kind that cannot be written: before anything is drawn."""
    if out is not None and out.suffix and not out.is_dir():
        from disegno.engine.writing import require_format

        require_format(out)


def free_path(path: Path) -> Path:
    """Return the path, or with a number the first that does not exist."""
    n, found = 2, path
    while found.exists():
        found, n = path.with_stem(f"{path.stem}-{n}"), n + 1
    return found
