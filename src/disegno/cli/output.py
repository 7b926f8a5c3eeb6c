"""What the commands that draw share: a bar while they draw, and where their files go."""

import os
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from disegno.core.errors import RequestError
from disegno.core.files import require_folder
from disegno.core.request import Request
from disegno.core.result import Progress, Result

Ended = TypeVar("Ended")
PREVIEW_SECONDS = 0.5  # between two
_OF_WORDS = "LMN"  # letters, the marks on them, numbers: Unicode's categories
_NUM_WORDS, _WORD_BYTES = 6, 100  # a name has 255 bytes at most, with a seed and an ending behind the words


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
    """Return where each kept image goes, each another place; a name without --out is never one that exists."""
    if out is None or is_folder(out):
        folder, words, paths = out or Path("out"), words_of(result.request), list[Path]()
        for i in keep:  # variations of one seed share it
            paths.append(free_path(folder / f"{words}-{result.seeds[i]}.png", paths))
        return paths
    if len(keep) == 1:
        return [out]
    return [out.with_stem(f"{out.stem}-{n + 1}") for n in range(len(keep))]


def is_folder(out: Path) -> bool:
    """Return whether --out means a folder. Raises RequestError where no file can have this name."""
    try:
        return out.is_dir() or not out.suffix
    except OSError as error:
        raise RequestError(f"{out} cannot be a file ({error.strerror}). Choose another name.") from error


def words_of(request: Request) -> str:
    """Return the first words of a prompt, of any script, as a file's name begins with them: at most 100 bytes."""
    plain = unicodedata.normalize("NFKC", request.prompt.lower())
    kept = "".join(c if unicodedata.category(c)[0] in _OF_WORDS else " " for c in plain)
    words = "-".join(kept.split()[:_NUM_WORDS]).encode("utf-8")[:_WORD_BYTES].decode("utf-8", "ignore").strip("-")
    return words if words and _can_be_named(words) else "picture"


def _can_be_named(words: str) -> bool:
    """Return whether this machine's files can be called so: not in a locale of ASCII alone."""
    try:
        return bool(os.fsencode(words))
    except UnicodeEncodeError:
        return False


def require_out(out: Path | None) -> None:
    """Raise RequestError or ResourceError where --out names what cannot be written: before anything is drawn."""
    if out is None or is_folder(out):
        require_folder(out or Path("out"))
    else:
        require_file(out)


def require_file(path: Path) -> None:
    """Raise RequestError or ResourceError where no picture can be written to this file: before anything is drawn."""
    from disegno.engine.writing import require_format

    require_format(path)
    require_folder(path.parent)


def free_path(path: Path, taken: Collection[Path] = ()) -> Path:
    """Return the path, or with a number the first that does not exist and is not taken."""
    return first_free(path, lambda path: [path], taken)


def first_free(path: Path, files_of: Callable[[Path], Iterable[Path]], taken: Collection[Path] = ()) -> Path:
    """Return the path, or with a number the first of whose files none exists or is taken."""
    n, found = 2, path
    while any(file in taken or file.exists() for file in files_of(found)):
        found, n = path.with_stem(f"{path.stem}-{n}"), n + 1
    return found
