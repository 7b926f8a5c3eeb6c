"""`disegno generate --from PICTURE --loops N`: each picture is made of the one before it."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from disegno.cli.output import free_path, is_folder, with_bar, words_of
from disegno.cli.plot import Saying
from disegno.core.errors import RequestError
from disegno.core.loopback import LoopCurve, Loops
from disegno.core.request import Request
from disegno.core.result import Progress, Result
from disegno.core.settings import Settings

LOOPS_HELP = "Change the picture of --from so many times, each time what came of it before, with the next seed."
LOOP_DENOISE_HELP = "How much the last loop draws anew; the first one's is --denoise. Unset: the same."
LOOP_CURVE_HELP = "How it gets there: aggressive, most of the way early; lazy, late.  [default: linear]"


def loops_of(num: int | None, last: float | None, curve: LoopCurve | None, is_sheet: bool) -> Loops | None:
    """Return the loops that the flags ask for; None: there is none. Raises RequestError."""
    if num is None:
        if last is not None or curve is not None:
            raise RequestError("How much is drawn anew at last is said of loops, and there are none: give --loops N.")
        return None
    if is_sheet:
        raise RequestError(
            "A sheet shows many pictures of one request, and a loop makes each of the one before: leave out one of the"
            " two."
        )
    return Loops(num, last, curve or "linear")


def draw_and_write(request: Request, loops: Loops, settings: Settings, out: Path | None, saying: Saying) -> None:
    """Draw the loops, write each picture as it is drawn and a row of all of them, and say where they are."""
    from disegno.engine.loops import draw_loops
    from disegno.engine.sheet import strip
    from disegno.engine.writing import write_picture, write_plain

    began, paths = time.perf_counter(), list[Path]()

    def keep(result: Result) -> None:
        paths.append(_path(result, len(paths) + 1, loops.num, out))
        write_picture(paths[-1], result, 0)

    events = draw_loops(request, loops, settings=settings, preview_every=1 if saying.preview else 0)
    results = with_bar(_kept(events, keep), saying.quiet or saying.as_json, saying.preview)
    page = None
    if loops.num > 1:
        page = (
            out if out is not None and not is_folder(out) else free_path(paths[0].with_stem(f"{paths[0].stem}-loops"))
        )
        write_plain(page, strip([result.images[0] for result in results]))
    _say(page, paths, results, time.perf_counter() - began, saying)


def _kept(events: Iterator[Progress | Result], keep: Callable[[Result], None]) -> Iterator[Progress | list[Result]]:
    """Yield progress, then the results, each of which is kept as soon as it is drawn."""
    results = list[Result]()
    for event in events:
        if isinstance(event, Result):
            keep(event)
            results.append(event)
        else:
            yield event
    yield results


def _path(result: Result, number: int, num: int, out: Path | None) -> Path:
    """Return where a loop's picture goes; a name without --out is never one that exists."""
    if out is None or is_folder(out):
        return free_path((out or Path("out")) / f"{words_of(result.request)}-{result.seeds[0]}.png")
    return out if num == 1 else out.with_stem(f"{out.stem}-{number}")


def _say(page: Path | None, paths: list[Path], results: list[Result], seconds: float, saying: Saying) -> None:
    warnings = list(dict.fromkeys(warning for result in results for warning in result.warnings))
    if saying.as_json:
        found = {"images": [str(path) for path in paths], "sheet": str(page) if page else None, "warnings": warnings}
        seeds = [result.seeds[0] for result in results]
        click.echo(json.dumps(found | {"seeds": seeds, "seconds": round(seconds, 3)}, ensure_ascii=False))
    elif not saying.quiet:
        for warning in warnings:
            click.secho(f"Note: {warning}", fg="yellow", err=True)
        for path, result in zip(paths, results, strict=True):
            click.echo(f"{path}  (seed {result.seeds[0]})")
        if page:
            click.echo(f"{page}  (all in a row)")
        click.echo(f"{len(paths)} picture{'s' if len(paths) > 1 else ''} in {seconds:.1f} s")
