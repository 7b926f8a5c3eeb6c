"""`disegno generate --x ... --y ... --z ...` and `--matrix`: many pictures of one request on one labelled sheet."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from disegno.cli.output import first_free, is_folder, with_bar, words_of
from disegno.core.errors import RequestError
from disegno.core.plot import Plot, parse_axis, plan_matrix, plan_plot
from disegno.core.request import Request
from disegno.core.result import Progress
from disegno.core.settings import Settings

if TYPE_CHECKING:
    from disegno.engine.plot import Drawn, Plotted

AXIS_HELP = """FIELD=V1,V2,...: a sheet with one column for each value of a field: cfg=2,4,6; seed=1-4;
steps=10-30(+10); sampler=Euler,DDIM; hires.denoise=0-1[3]; controls.canny.strength=0.5,1; size=128x128,192x128;
replace=red,blue,green (the first is looked for in the prompts)."""


@dataclass(frozen=True)
class Saying:
    """How much is said, and whether for people. `preview`: a file that shows what is being drawn."""

    as_json: bool
    quiet: bool
    preview: Path | None = None


def draw_sheet(
    request: Request, axes: Sequence[str], matrix: bool, settings: Settings, out: Path | None, saying: Saying
) -> None:
    """Draw the plot or the matrix, write its pictures as they are drawn and then its sheet, and say where they are.

    Raises DisegnoError.
    """
    from disegno.engine.plot import draw_plot
    from disegno.engine.writing import write_picture, write_plain

    if axes and matrix:
        raise RequestError("A sheet shows axes or a matrix: leave out --matrix, or --x, --y and --z.")
    began = time.perf_counter()
    plot = plan_matrix(request) if matrix else plan_plot(request, [parse_axis(text) for text in axes])
    page = _page_path(plot, request, out)
    paths = _cell_paths(page, plot)

    def keep(drawn: "Drawn") -> None:
        for i, path in enumerate(paths[drawn.number]):
            write_picture(path, drawn.result, i)

    events = draw_plot(plot, settings=settings, preview_every=1 if saying.preview else 0)
    plotted = with_bar(_kept(events, keep), saying.quiet or saying.as_json, saying.preview)
    write_plain(page, plotted.page())
    warnings = [w for result in plotted.results for w in result.warnings]
    _say(page, list(chain(*paths)), warnings, time.perf_counter() - began, saying)


def _kept(
    events: "Iterator[Progress | Drawn | Plotted]", keep: "Callable[[Drawn], None]"
) -> "Iterator[Progress | Plotted]":
    """Yield the events, and keep each cell as soon as it is drawn: what ends the others does not take it along."""
    from disegno.engine.plot import Drawn

    for event in events:
        if isinstance(event, Drawn):
            keep(event)
        else:
            yield event


def _page_path(plot: Plot, request: Request, out: Path | None) -> Path:
    """Return where the sheet goes; a name without --out is one of which neither sheet nor pictures exist."""
    if out is not None and not is_folder(out):
        return out
    page = (out or Path("out")) / f"{words_of(request)}-plot.png"
    return first_free(page, lambda page: [page, *chain(*_cell_paths(page, plot))])


def _cell_paths(page: Path, plot: Plot) -> list[list[Path]]:
    """Return where the pictures of each cell go, beside the sheet."""
    places = [(cell.request.batch, "-".join(str(n + 1) for n in cell.place)) for cell in plot.cells]
    return [
        [page.with_stem(f"{page.stem}-{place}" + (f"-{i + 1}" if batch > 1 else "")) for i in range(batch)]
        for batch, place in places
    ]


def _say(page: Path, paths: Sequence[Path], warnings: Sequence[str], seconds: float, saying: Saying) -> None:
    warnings = list(dict.fromkeys(warnings))
    if saying.as_json:
        found = {"sheet": str(page), "images": [str(path) for path in paths], "warnings": warnings}
        click.echo(json.dumps(found | {"seconds": round(seconds, 3)}, ensure_ascii=False))
    elif not saying.quiet:
        for warning in warnings:
            click.secho(f"Note: {warning}", fg="yellow", err=True)
        click.echo(f"{page}  ({len(paths)} pictures on one sheet, each beside it, in {seconds:.1f} s)")
