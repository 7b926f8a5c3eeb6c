"""`disegno generate --from FOLDER` or `--control NAME=FOLDER`: once for each picture of a folder."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from disegno.cli.output import free_path, is_folder, with_bar
from disegno.cli.plot import Saying
from disegno.core.each import Turn
from disegno.core.errors import BadImage, DisegnoError, RequestError
from disegno.core.result import Progress, Result
from disegno.core.settings import Settings

_NUM_NAMED = 5  # of the pictures that could not be read


def draw_each(turns: Sequence[Turn], settings: Settings, out: Path | None, saying: Saying) -> None:
    """Draw every turn, write its pictures under its name as they are drawn, and say where they are.

    Raises DisegnoError at the end where some of the pictures could not be read, and any other error at once.
    """
    folder, began = out or Path("out"), time.perf_counter()
    if not is_folder(folder):
        raise RequestError(f"{len(turns)} pictures go into a folder, and --out is {out}. Give a folder.")
    events = _drawn(turns, settings, folder, bool(saying.preview))
    paths, results, failed = with_bar(events, saying.quiet or saying.as_json, saying.preview)
    _say(paths, results, failed, time.perf_counter() - began, saying)
    if failed:
        named = "; ".join(f"{name}: {error}" for name, error in list(failed.items())[:_NUM_NAMED])
        more = f" And {len(failed) - _NUM_NAMED} more." if len(failed) > _NUM_NAMED else ""
        kind = DisegnoError if results else BadImage
        raise kind(f"{len(failed)} of {len(turns)} pictures could not be read. {named}{more}")


Ended = tuple[list[Path], list[Result], dict[str, str]]


def _drawn(turns: Sequence[Turn], settings: Settings, folder: Path, with_previews: bool) -> Iterator[Progress | Ended]:
    """Yield progress, then the files, the results, and what is wrong with the pictures that could not be read."""
    from disegno.engine.generate import generate
    from disegno.engine.studio import Studio
    from disegno.engine.writing import write_picture

    studio, num = Studio(settings), len(turns)
    paths, results, failed = list[Path](), list[Result](), dict[str, str]()
    for n, turn in enumerate(turns):
        try:
            for event in generate(turn.request, studio=studio, preview_every=1 if with_previews else 0):
                if isinstance(event, Progress):
                    yield replace(event, stage=f"{event.stage} {n + 1} of {num}", part=n, num_parts=num)
                    continue
                for i in range(len(event.images)):
                    number = f"-{i + 1}" if len(event.images) > 1 else ""
                    paths.append(free_path(folder / f"{turn.name}{number}.png"))
                    write_picture(paths[-1], event, i)
                results.append(replace(event, images=()))
        except BadImage as error:
            failed[turn.name] = str(error)
    yield paths, results, failed


def _say(paths: list[Path], results: list[Result], failed: dict[str, str], seconds: float, saying: Saying) -> None:
    warnings = list(dict.fromkeys(warning for result in results for warning in result.warnings))
    seeds = [seed for result in results for seed in result.seeds]
    if saying.as_json:
        found = {"images": [str(path) for path in paths], "seeds": seeds, "warnings": warnings, "failed": failed}
        click.echo(json.dumps(found | {"seconds": round(seconds, 3)}, ensure_ascii=False))
    elif not saying.quiet:
        for warning in warnings:
            click.secho(f"Note: {warning}", fg="yellow", err=True)
        for path, seed in zip(paths, seeds, strict=True):
            click.echo(f"{path}  (seed {seed})")
        click.echo(f"{len(paths)} picture{'s' if len(paths) > 1 else ''} in {seconds:.1f} s")
