"""`disegno dataset`: pairs to teach from, examined and made."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from disegno.cli.annotate import parse_setting
from disegno.cli.request import parse_size
from disegno.core.errors import RequestError

if TYPE_CHECKING:
    from disegno.training.data.build import BuildResult
    from disegno.training.data.making import Annotate, Script

_WORKERS = click.option("--workers", type=click.IntRange(1, 256), help="Processes; unset: one a processor.")
_CAPTION = click.option("--caption", metavar="TEXT", help="The caption of pictures that have none.")
_SOME = 20


@click.group()
def command() -> None:
    """Make pairs to teach from, and examine them.

    \b
    disegno dataset build photos pairs --annotator canny --size 512x512
    disegno dataset check pairs
    """


@command.command()
@click.argument("data")
@click.option("--size", default="512x512", show_default=True, metavar="WxH", help="The canvas of the training.")
@click.option(
    "--buckets/--no-buckets", default=True, help="Canvases of about this area, by shape; else this one alone."
)
@_CAPTION
@_WORKERS
@click.option("--all", "every_name", is_flag=True, help="Name every file, however many there are.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@click.pass_context
def check(
    ctx: click.Context, data: str, size: str, buckets: bool, caption: str | None, workers: int | None,
    every_name: bool, as_json: bool,
) -> None:  # fmt: skip
    """Read all of DATA, and print everything that is wrong with it.

    DATA is a folder of pairs (ControlNet's prompt.json; metadata.jsonl; two folders of one name a pair), of pictures,
    or of webdataset's tars; a pattern of tars, also by URL, as https://host/pairs-{000..127}.tar; or kohya's .toml.

    The exit code is 0 when all of it can be used, 1 when something was left out, 2 when nothing can be used.
    """
    from disegno.cli.bar import Bar
    from disegno.training.data import report as reports
    from disegno.training.data.doctor import examine
    from disegno.training.data.formats.listing import Options
    from disegno.training.data.opening import open_rows, open_siblings

    canvas = parse_size(size)
    with Bar("opening") as bar:
        rows = open_rows(data, Options(caption=caption), told=bar.tell)
        for event in examine(rows, canvas, buckets, open_siblings(data), workers):
            if isinstance(event, reports.Report):
                text = reports.as_json(event) if as_json else reports.as_text(event, every_name)
                code = event.exit_code
                break
            bar.tell("examining", event.done, event.num_rows)
        else:
            raise AssertionError("the doctor ended without a report")
    click.echo(text)
    ctx.exit(code)


@command.command()
@click.argument("images")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--annotator", metavar="NAME", help="What draws the conditions; disegno annotate --list names them.")
@click.option("--script", type=click.Path(path_type=Path), help="Or: a Python file with def condition(image).")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A parameter of the annotator.")
@click.option("--resolution", type=click.IntRange(64, 4096), help="Annotate with the short side at so many pixels.")
@click.option("--size", metavar="WxH", help="Fit pictures to this canvas, cropped in the middle. Unset: as they are.")
@click.option("--buckets", is_flag=True, help="Fit them to canvases of the area of --size, each by its shape.")
@click.option(
    "--captions", type=click.Choice(["files", "names", "none"]), default="files", show_default=True,
    help="The pictures' own (NAME.txt, or a list's); their names as words; or none.",
)  # fmt: skip
@_CAPTION
@_WORKERS
@click.option("--seconds", type=click.FloatRange(1), default=120, show_default=True, help="For one picture at most.")
def build(
    images: str, out: Path, annotator: str | None, script: Path | None, settings: tuple[str, ...],
    resolution: int | None, size: str | None, buckets: bool, captions: str, caption: str | None, workers: int | None,
    seconds: float,
) -> None:  # fmt: skip
    """Make pairs in the folder OUT: each picture of IMAGES, and its condition.

    IMAGES is a folder of pictures, captions beside them as NAME.txt; or anything that `check` reads. A build that was
    stopped goes on when it is run again. A picture that cannot be used is listed in OUT/problems.jsonl.

    \b
    disegno dataset build photos pairs --annotator canny --set low=50 --size 512x512
    disegno dataset build photos pairs --script my_condition.py --size 512x512 --buckets
    """
    from disegno.cli.bar import Bar
    from disegno.training.data.build import BuildResult, Plan
    from disegno.training.data.build import build as run

    plan = Plan(
        pictures=images, out=out, maker=_maker(annotator, script, settings, resolution),
        size=parse_size(size) if size else None, buckets=buckets, captions=captions, caption=caption,
        workers=workers, seconds=seconds,
    )  # fmt: skip
    with Bar("opening") as bar:
        for event in run(plan):
            if isinstance(event, BuildResult):
                result = event
                break
            bar.tell("building", event.done, event.num_pictures, f"{event.num_lost} left out" if event.num_lost else "")
        else:
            raise AssertionError("the builder ended without a result")
    _print(result)


@command.command()
@click.argument("data")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--rows", default=1000, show_default=True, type=click.IntRange(1, 100_000), help="Pairs in a tar.")
@_CAPTION
def pack(data: str, out: Path, rows: int, caption: str | None) -> None:
    """Copy the pairs of DATA into webdataset's tars, OUT/pairs-000000.tar and so on; no pixel is changed.

    DATA is anything that `check` reads. Pairs that cannot be read are left out.
    """
    from disegno.cli.bar import Bar
    from disegno.training.data.opening import open_pairs
    from disegno.training.data.pack import PackProgress
    from disegno.training.data.pack import pack as run

    with Bar("opening") as bar:
        last = PackProgress(0, 0, 0)
        for last in run(open_pairs(data, caption=caption, told=bar.tell), out, rows):
            bar.tell("packing", last.done, last.num_rows)
    click.echo(f"{out}: {last.done - last.num_lost} pairs, {last.num_lost} left out")


def _maker(
    annotator: str | None, script: Path | None, settings: tuple[str, ...], resolution: int | None
) -> "Annotate | Script":
    """Return what draws the conditions. Raises RequestError."""
    from disegno.training.data.making import Annotate, Script

    if (annotator is None) == (script is None):
        raise RequestError("Give either --annotator NAME or --script FILE: one of them draws the conditions.")
    if script is None:
        return Annotate.of(annotator or "", dict(parse_setting(text) for text in settings), resolution)
    if settings or resolution is not None:
        raise RequestError("--set and --resolution are for annotators; a script has its numbers in itself.")
    return Script.of(script)


def _print(result: "BuildResult") -> None:
    from disegno.training.data.problems import KINDS
    from disegno.training.data.report import line_of

    lost = [problem for problem in result.problems if KINDS[problem.kind].cost != "nothing"]
    for problem in result.problems[:_SOME]:
        click.echo(f"{KINDS[problem.kind].title}: {line_of(problem)}", err=True)
    if len(result.problems) > _SOME:
        click.echo(f"and {len(result.problems) - _SOME} more, in {result.out / 'problems.jsonl'}", err=True)
    click.echo(f"{result.out}: {result.num_pairs} pairs, {result.num_new} of them new, {len(lost)} pictures left out")
