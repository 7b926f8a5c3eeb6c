"""`disegno generate --x ... --y ... --z ...` and `--matrix`: many pictures of one request on one labelled sheet."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from disegno.cli.output import free_path, is_folder, with_bar, words_of
from disegno.core.errors import RequestError
from disegno.core.request import Request
from disegno.core.settings import Settings

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
    """Draw the plot or the matrix, write its sheet and its pictures, and say where they are. Raises DisegnoError."""
    from disegno.core.plot import parse_axis, plan_matrix, plan_plot
    from disegno.engine.plot import draw_plot
    from disegno.engine.writing import write_picture, write_plain

    if axes and matrix:
        raise RequestError("A sheet shows axes or a matrix: leave out --matrix, or --x, --y and --z.")
    began = time.perf_counter()
    plot = plan_matrix(request) if matrix else plan_plot(request, [parse_axis(text) for text in axes])
    events = draw_plot(plot, settings=settings, preview_every=1 if saying.preview else 0)
    drawn = with_bar(events, saying.quiet or saying.as_json, saying.preview)
    page = _page_path(request, out)
    paths: list[Path] = []
    for cell, result in zip(plot.cells, drawn.results, strict=True):
        place = "-".join(str(n + 1) for n in cell.place)
        for i in range(len(result.images)):
            number = f"-{i + 1}" if len(result.images) > 1 else ""
            paths.append(page.with_stem(f"{page.stem}-{place}{number}"))
            write_picture(paths[-1], result, i)
    write_plain(page, drawn.page())
    _say(page, paths, [w for result in drawn.results for w in result.warnings], time.perf_counter() - began, saying)


def _page_path(request: Request, out: Path | None) -> Path:
    if out is not None and not is_folder(out):
        return out
    return free_path((out or Path("out")) / f"{words_of(request)}-plot.png")


def _say(page: Path, paths: Sequence[Path], warnings: Sequence[str], seconds: float, saying: Saying) -> None:
    warnings = list(dict.fromkeys(warnings))
    if saying.as_json:
        found = {"sheet": str(page), "images": [str(path) for path in paths], "warnings": warnings}
        click.echo(json.dumps(found | {"seconds": round(seconds, 3)}, ensure_ascii=False))
    elif not saying.quiet:
        for warning in warnings:
            click.secho(f"Note: {warning}", fg="yellow", err=True)
        click.echo(f"{page}  ({len(paths)} pictures on one sheet, each beside it, in {seconds:.1f} s)")
