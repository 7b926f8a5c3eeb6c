"""`disegno annotate`: what an annotator sees in a picture. Names, parameters and bounds come from the registry."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from disegno.annotators import ANNOTATORS
from disegno.cli.output import free_path
from disegno.cli.request import parse_size
from disegno.core.each import pictures_in
from disegno.core.errors import BadImage, RequestError
from disegno.core.files import make_folder, path_of
from disegno.core.request import ResizeMode, Scalar

if TYPE_CHECKING:
    from disegno.annotators.base import Annotator, ParamSpec, Picture

PAGE_HEAD = """# Annotators

An annotator turns a picture into the drawing that a control wants to see. Every annotator below needs no weights.

    disegno annotate canny photo.jpg --set low=50 --set high=150
    disegno generate "a red car" --control canny=photo.jpg,low=50,high=150

[How to add one](../howto/add-an-annotator.md). This page is written by `python -m disegno.cli.annotate --docs`.
"""


def parse_setting(text: str) -> tuple[str, Scalar]:
    """Return the name and value of KEY=VALUE; @FILE is that file's text, for long values. Raises RequestError."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise RequestError(f"--set {text!r} cannot be read: it wants KEY=VALUE, for example --set low=50.")
    if not value.startswith("@"):
        return key, value
    try:
        return key, Path(value[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--set {key}: {value[1:]} cannot be read as text ({error}).") from error


def overview() -> str:
    """Return the annotators' names and summaries, one a line."""
    from disegno.annotators.base import read

    width = max(len(name) for name in ANNOTATORS)
    return "\n".join(f"{name:{width}}  {read(ANNOTATORS.load(name)).summary}" for name in ANNOTATORS)


def card(name: str) -> str:
    """Return what one annotator draws, and its parameters, as text. Raises UnknownName."""
    from disegno.annotators.base import describe, read

    module = ANNOTATORS.load(name)
    annotator = read(module)
    lines = [f"{annotator.title}: {annotator.summary}"]
    if annotator.a1111_names:
        lines.append(f"In A1111: {', '.join(annotator.a1111_names)}")
    lines += [f"  {spec.name}={_shown(spec.default)}  ({spec.values})  {spec.help}" for spec in describe(module)]
    return "\n".join(lines)


def reference_page() -> str:
    """Return docs/reference/annotators.md, from the registry."""
    from disegno.annotators.base import describe, read

    parts = [PAGE_HEAD]
    for name in ANNOTATORS:
        module = ANNOTATORS.load(name)
        parts.append(_section(name, read(module), describe(module)))
    return "\n".join(parts)


def _section(name: str, annotator: "Annotator", specs: "list[ParamSpec]") -> str:
    """Return one annotator's part of the page."""
    lines = [f"## {name}", "", annotator.summary, ""]
    if annotator.a1111_names:
        lines += [f"In A1111: {', '.join(f'`{alias}`' for alias in annotator.a1111_names)}.", ""]
    if specs:
        lines += ["| parameter | default | values | |", "|---|---|---|---|"]
        lines += [
            f"| `{s.name}` | {_shown(s.default)} | {s.values} | {s.help.replace('|', chr(92) + '|')} |" for s in specs
        ]
        lines.append("")
    return "\n".join(lines)


def _shown(value: Scalar) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def draw(
    name: str, picture: "Picture", params: dict[str, Scalar], resolution: int | None, back: bool = True
) -> "Picture":
    """Return the drawing of a picture (h w 3), by the annotator's name. `back`: see `annotate_at`.

    Raises RequestError.
    """
    from disegno.annotators.base import annotate_at, make_params

    module = ANNOTATORS.load(name)
    return annotate_at(module, picture, make_params(module, params), resolution, back)


def _write(picture: "Picture", drawing: "Picture", out: Path, sheet: bool, name: str) -> None:
    """Write the drawing as PNG; with `sheet`, beside the picture that it was made from. Raises ResourceError."""
    from PIL import Image

    from disegno.engine.sheet import sheet as contact_sheet
    from disegno.engine.writing import write_plain

    page = Image.fromarray(drawing)
    if sheet:
        page = contact_sheet([Image.fromarray(picture), page], ["picture", name])
    write_plain(out, page)


def _target(out: Path | None, image: str, name: str) -> Path:
    """Return where the drawing goes. Raises RequestError."""
    if out is None or out.is_dir():
        stem = "picture" if image.startswith("data:") else Path(image).stem
        return free_path((out or Path()) / f"{stem}.{name}.png")  # the one that is there may be painted in
    if out.suffix.lower() != ".png":
        raise RequestError(
            f"--out is {out}; drawings are written as PNG, so that lines stay sharp: end the name in .png."
        )
    return out


def _targets(out: Path | None, image: str, name: str) -> list[tuple[str, Path]]:
    """Return each picture, and where its drawing goes: of a folder's, under its own name. Raises RequestError."""
    folder = None if image.startswith("data:") else path_of(image)
    if folder is None or not folder.is_dir():
        return [(image, _target(out, image, name))]
    into = out or folder.with_name(f"{folder.name}.{name}")
    if into.suffix.lower() == ".png" or into.resolve() == folder.resolve():
        raise RequestError(f"The drawings of {folder} go into a folder of their own: --out cannot be {out}.")
    make_folder(into)
    return [(str(file), free_path(into / f"{file.stem}.png")) for file in pictures_in(folder).values()]


@click.command(name="annotate")
@click.argument("name", required=False)
@click.argument("image", required=False)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="A .png file, or a folder. Unset: a new name, IMAGE.NAME.png, here; of a folder, FOLDER.NAME beside it.",
)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A parameter; @FILE reads a long value.")
@click.option(
    "--resolution",
    type=click.IntRange(1, 4096),
    help="Annotate with the short side at so many pixels; unset: the canvas's, or the picture's own.",
)
@click.option("--size", metavar="WxH", help="Fit the drawing to a canvas of this size.")
@click.option("--resize", type=click.Choice(["stretch", "crop", "fill"]), help="How --size fits it.  [default: crop]")
@click.option("--sheet", is_flag=True, help="Write picture and drawing beside each other.")
@click.option("--list", "listing", is_flag=True, help="List the annotators, or NAME's parameters.")
@click.option("--docs", is_flag=True, hidden=True, help="Print the reference page.")
def command(
    name: str | None, image: str | None, out: Path | None, settings: tuple[str, ...], resolution: int | None,
    size: str | None, resize: ResizeMode | None, sheet: bool, listing: bool, docs: bool,
) -> None:  # fmt: skip
    """Turn IMAGE, or each picture of a folder, into the drawing that a control wants to see, by the annotator NAME.

    \b
    disegno annotate --list
    disegno annotate canny photo.jpg
    disegno annotate canny photo.jpg --set low=50 --set high=150 --sheet -o edges.png
    disegno annotate canny photos -o drawings                 # every picture of a folder, under its name
    disegno annotate boxes photo.jpg --set boxes=@boxes.json
    """
    if docs or listing:
        click.echo(reference_page() if docs else card(name) if name else overview(), nl=not docs)
        return
    if name is None or image is None:
        raise RequestError(
            "Give an annotator and a picture, as in disegno annotate canny photo.jpg; --list names the annotators."
        )
    if resize is not None and size is None:
        raise RequestError("--resize says how a drawing is fitted to the canvas of --size: give both, or neither.")
    canvas = parse_size(size) if size else None
    targets = _targets(out, image, name)
    ANNOTATORS.load(name)  # an unknown name is said before the picture is read
    from disegno.engine.pictures import fit, pixel_perfect_resolution, read_picture

    params, how, num_lost = dict(parse_setting(text) for text in settings), resize or "crop", 0
    for source, target in targets:
        try:
            picture, seen = read_picture(source), resolution
        except BadImage as error:
            if len(targets) == 1:
                raise
            num_lost += 1
            click.echo(str(error), err=True)
            continue
        if canvas and seen is None:
            seen = pixel_perfect_resolution(picture, *canvas, how)
        drawing = draw(name, picture, params, seen, back=canvas is None)
        _write(picture, fit(drawing, *canvas, how) if canvas else drawing, target, sheet, name)
        click.echo(str(target))
    if num_lost:
        click.echo(f"{num_lost} of {len(targets)} pictures could not be read.", err=True)
        click.get_current_context().exit(1 if num_lost < len(targets) else BadImage.exit_code)


if __name__ == "__main__":
    command()
