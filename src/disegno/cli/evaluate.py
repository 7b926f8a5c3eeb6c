"""`disegno evaluate`: how well pictures follow a control, in figures that mean something.

Its flags derive from the fields of `core.evaluate.EvaluateRequest`.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from disegno.cli.annotate import parse_setting
from disegno.cli.bar import Bar
from disegno.cli.fields import request_options
from disegno.cli.lean import open_nets
from disegno.cli.request import parse_size
from disegno.core.evaluate import EvaluateRequest, make_evaluate_request
from disegno.core.files import require_folder
from disegno.core.settings import Settings, load_settings

if TYPE_CHECKING:
    from disegno.training.evaluation import Evaluation


def _with_bar(request: EvaluateRequest, settings: Settings, quiet: bool) -> "Evaluation":
    open_nets()
    from disegno.training.evaluation import Evaluation, evaluate

    with nullcontext() if quiet else Bar("opening") as bar:
        for event in evaluate(request, settings):
            if isinstance(event, Evaluation):
                return event
            if bar is not None:
                bar.tell(event.stage, event.done, event.total)
    raise AssertionError("the evaluation ended without a result")


def _write(found: "Evaluation", folder: Path) -> list[Path]:
    """Write the evaluation as JSON, page and sheet; return where they are. Raises ResourceError."""
    from disegno.core.files import make_folder, write_atomically
    from disegno.training.evaluation_page import evaluation_page, evaluation_sheet
    from disegno.training.findings import to_json

    make_folder(folder)
    said = json.dumps(to_json(found), indent=2, ensure_ascii=False)
    text, sheet = evaluation_page(found), evaluation_sheet(found)
    paths = [folder / name for name in ("evaluation.json", "evaluation.html", "pictures.png")]
    write_atomically(paths[0], lambda path: path.write_text(said + "\n", "utf-8"))
    write_atomically(paths[1], lambda path: path.write_text(text, "utf-8"))
    write_atomically(paths[2], lambda path: sheet.save(path, "PNG"))
    return paths


def _say(found: "Evaluation", paths: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    from disegno.training.findings import judged, rows_of_table
    from disegno.training.machine import duration

    state, words = judged(found)
    click.secho(words, fg={"learning": "green", "not-learning": "red"}.get(state, "yellow"))
    head, lines = rows_of_table(found)
    table = Table(box=None, pad_edge=False)
    for n, name in enumerate(head):
        table.add_column(name, justify="right" if n else "left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    for note in found.notes:
        click.secho(f"Note: {note}", fg="yellow", err=True)
    for path in paths:
        click.echo(str(path))
    click.echo(f"{len(found.rows)} pairs in {duration(found.seconds)}")


@click.command(name="evaluate")
@click.argument("control")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A parameter of the annotator.")
@click.option("--size", metavar="WxH", help="Width and height in pixels, multiples of 8; unset: the model's own.")
@request_options(exclude={"control", "params", "width", "height"}, of=EvaluateRequest)
@click.option(
    "-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="A folder for page, JSON and pictures."
)
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="The numbers to compute in.")
@click.option("--device", metavar="D", help="auto, cpu, cuda, mps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
def command(
    control: str, settings: tuple[str, ...], size: str | None, out: Path | None, dtype: str | None,
    device: str | None, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Measure how well pictures follow CONTROL: drawn from the conditions of DATA, annotated again and compared.

    \b
    disegno evaluate out/palette.safetensors --data pairs --holdout 16
    disegno evaluate mine.safetensors --data pairs --against other.safetensors --num 100 -o out/mine
    disegno evaluate deblur.safetensors --data pairs --restore
    """
    fields = {name: value for name, value in given.items() if value is not None} | {"control": control}
    if settings:
        fields["params"] = dict(parse_setting(text) for text in settings)
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    request = make_evaluate_request(fields)
    if out is not None:
        require_folder(out)
    found = _with_bar(request, load_settings(dtype=dtype, device=device), as_json)
    paths = _write(found, out) if out is not None else []
    if as_json:
        from disegno.training.findings import to_json

        click.echo(json.dumps(to_json(found) | {"files": [str(path) for path in paths]}, ensure_ascii=False))
    else:
        _say(found, paths)
