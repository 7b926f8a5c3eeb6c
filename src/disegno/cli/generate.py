"""`disegno generate`: a sentence and drawings become pictures.

Its flags derive from the fields of `core.request.Request`.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from disegno.cli.fields import or_none, request_options
from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit, Request, make_request
from disegno.core.result import Progress, Result
from disegno.core.settings import Settings, load_settings
from disegno.prompts.networks import Tag, lora_of

CONTROL_HELP = """NAME=IMAGE[,key=value...]: a condition and the picture that shows it. Keys: strength, start, end,
mode, resize, base, annotate (an annotator's name, or none when the picture already is the drawing), and the annotator's
own parameters. May be repeated."""

_TEXT_KEYS = ("mode", "resize", "annotate", "base", "curve", "passes")
LORA_HELP = """NAME[:WEIGHT[:NET'S WEIGHT]]: a style LoRA, as <lora:...> in a prompt. May be repeated."""

_WORDS = {"prompt", "negative", "prompts", "negatives", "styles", "batch"}
_UNIT_KEYS = {"strength": float, "start": float, "end": float, "resolution": int, **dict.fromkeys(_TEXT_KEYS, str)}


def parse_scalar(text: str) -> bool | int | float | str:
    """Return the JSON scalar that `text` spells, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def parse_control(text: str) -> dict[str, Any]:
    """Return the fields of a ControlUnit from NAME=IMAGE[,key=value...]. Raises RequestError."""
    name, equals, rest = text.partition("=")
    image, *pairs = re.split(r",(?=[A-Za-z_]+=)", rest)
    if not (name and equals and image):
        raise RequestError(
            f"--control {text!r} cannot be read: it wants NAME=IMAGE[,key=value...],"
            " for example canny=photo.jpg,strength=0.8."
        )
    unit: dict[str, Any] = {"name": name, "image": image, "params": {}}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in _UNIT_KEYS:
            unit["params"][key] = parse_scalar(value)
            continue
        try:
            unit[key] = _UNIT_KEYS[key](value)
        except ValueError as error:
            raise RequestError(f"--control {name}: {key}={value!r} is not a number.") from error
    return unit


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) in pixels from WIDTHxHEIGHT. Raises RequestError."""
    found = re.fullmatch(r"(\d+)[xX×](\d+)", text)
    if not found:
        raise RequestError(f"--size {text!r} cannot be read: it wants WIDTHxHEIGHT in pixels, for example 512x768.")
    return int(found[1]), int(found[2])


def build_request(
    prompt: str | None, again: Path | None, control: tuple[str, ...], size: str | None, given: dict[str, Any]
) -> tuple[Request, int | None]:
    """Return the request, and which image of its batch to keep when an old picture is made again (None: all)."""
    fields = {name: value for name, value in given.items() if value is not None}
    if prompt is not None:
        fields["prompt"] = prompt
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    if control:
        fields["controls"] = tuple(parse_control(text) for text in control)
    if fields.get("loras"):
        fields["loras"] = tuple(lora_of(Tag("lora", tuple(text.split(":")))) for text in fields["loras"])
    if again is None:
        return make_request(fields), None
    from disegno.engine.record import read

    record = read(again)
    then = _shallow(record.replay())
    if fields.keys() & _WORDS:  # other words: not those that were filled in then
        then |= {name: getattr(record.request, name) for name in _WORDS}
        then |= {"prompts": ()} if "prompt" in fields else {}
        then |= {"negatives": ()} if "negative" in fields else {}
    if control:
        fields["controls"] = tuple(ControlUnit(**unit) for unit in fields["controls"])
    return make_request(then | fields), record.image if not given.get("batch") else None


def _shallow(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def _with_bar(events: Any, quiet: bool) -> Result:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("opening", total=None)
        for event in events:
            if isinstance(event, Result):
                return event
            assert isinstance(event, Progress)
            bar.update(task, description=event.stage, completed=event.step, total=event.num_steps or None)
    raise AssertionError("the engine ended without a result")


def output_paths(out: Path | None, result: Result, keep: list[int]) -> list[Path]:
    """Return where each kept image goes; a name without --out is never one that exists."""
    if out is None or out.is_dir() or not out.suffix:
        folder = out or Path("out")
        words = "-".join(re.findall(r"[a-z0-9]+", result.request.prompt.lower())[:6]) or "picture"
        return [_free(folder / f"{words}-{result.seeds[i]}.png") for i in keep]
    if len(keep) == 1:
        return [out]
    return [out.with_stem(f"{out.stem}-{n + 1}") for n in range(len(keep))]


def _free(path: Path) -> Path:
    n, found = 2, path
    while found.exists():
        found, n = path.with_stem(f"{path.stem}-{n}"), n + 1
    return found


def write_result(result: Result, out: Path | None, only: int | None) -> tuple[list[Path], Path | None]:
    """Write the pictures with their records, and a contact sheet when there are several; returns where they are."""
    from disegno.engine.record import write_png
    from disegno.engine.sheet import result_sheet

    keep = list(range(len(result.images))) if only is None else [only]
    paths = output_paths(out, result, keep)
    for path, i in zip(paths, keep, strict=True):
        write_png(path, result, i)
    if len(keep) == 1:
        return paths, None
    page = out if out is not None and out.suffix else paths[0].with_stem(f"{paths[0].stem}-sheet")
    result_sheet(result).save(page, format="PNG")
    return paths, page


def _report(result: Result, paths: list[Path], page: Path | None, seconds: float) -> dict[str, Any]:
    return {
        "images": [str(path) for path in paths],
        "sheet": str(page) if page else None,
        "seeds": list(result.seeds),
        "seconds": round(seconds, 3),
        "timing": {name: round(value, 3) for name, value in asdict(result.timing).items()},
        "warnings": list(result.warnings),
        "environment": result.environment,
        "request": {
            **asdict(replace(result.request, controls=())),
            "controls": [asdict(u) for u in result.request.controls],
        },
    }


def _environment_warnings(again: Path | None, result: Result) -> list[str]:
    if again is None:
        return []
    from disegno.engine.record import read

    then, now = read(again).environment, result.environment
    changed = [
        f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(then | now)
        if then.get(key) != now.get(key)
    ]
    return [f"The picture may differ in its last bits: {'; '.join(changed)}."] if changed else []


@click.command(name="generate")
@click.argument("prompt", required=False)
@click.option("--control", metavar="NAME=IMAGE[,...]", multiple=True, help=CONTROL_HELP)
@click.option("--lora", "loras", metavar="NAME[:WEIGHT]", multiple=True, help=LORA_HELP, callback=or_none)
@click.option("--size", metavar="WxH", help="Width and height in pixels, multiples of 8; unset: the model's own.")
@request_options(exclude={"prompt", "controls", "width", "height", "init", "hires", "tiles", "loras"})
@click.option(
    "--again",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Make the picture in this PNG file again, bit for bit; other flags change it.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="A file (with several images: the sheet's), or a folder. Unset: a new name in out/.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="The numbers to compute in; auto is what this processor does fast.",
)
@click.option("--device", metavar="D", help="auto, cpu, cuda, mps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    prompt: str | None, control: tuple[str, ...], size: str | None, again: Path | None, out: Path | None,
    dtype: str | None, device: str | None, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Make pictures from PROMPT, and from drawings.

    \b
    disegno generate "a red car on a city street" --seed 1
    disegno generate "a red car on a city street" --control canny=photo.jpg
    disegno generate "a [sunny:stormy:0.5] harbour, (ships:1.3) <lora:ink:0.8>" --negative blurry
    disegno generate "a castle" --control canny=edges.png,annotate=none,strength=0.8 --control palette=photo.jpg,end=0.5
    disegno generate --again out/picture.png
    """
    if prompt is None and again is None and not given.get("prompts"):
        raise RequestError(
            'There is nothing to draw: give a sentence, as in disegno generate "a red car on a city street",'
            " or --again PICTURE."
        )
    began = time.perf_counter()
    request, only = build_request(prompt, again, control, size, given)
    settings = load_settings(dtype=_dtype(dtype, again), device=device)
    result = _with_bar(_generate(request, settings), quiet or as_json)
    result = replace(result, warnings=(*result.warnings, *_environment_warnings(again, result)))
    paths, page = write_result(result, out, only)
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(json.dumps(_report(result, paths, page, seconds), ensure_ascii=False))
    elif not quiet:
        _say(result, paths, page, seconds)


def _generate(request: Request, settings: Settings) -> Any:
    from disegno.engine.generate import generate

    return generate(request, settings=settings)


def _dtype(dtype: str | None, again: Path | None) -> str | None:
    if dtype or again is None:
        return dtype
    from disegno.engine.record import read

    return read(again).environment.get("dtype")


def _say(result: Result, paths: list[Path], page: Path | None, seconds: float) -> None:
    warn: Callable[[str], None] = lambda text: click.secho(f"Note: {text}", fg="yellow", err=True)  # noqa: E731
    for warning in result.warnings:
        warn(warning)
    for path, seed in zip(paths, result.seeds, strict=False):
        click.echo(f"{path}  (seed {seed})")
    if page:
        click.echo(f"{page}  (all on one sheet)")
    click.echo(f"{len(paths)} picture{'s' if len(paths) > 1 else ''} in {seconds:.1f} s")
