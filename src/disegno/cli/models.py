"""`disegno models`: the files of weights on this machine, listed, shown, fetched, converted and verified."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from disegno.core.files import path_of
from disegno.core.settings import load_settings

if TYPE_CHECKING:
    from rich.table import Table

    from disegno.weights.card import FileCard

_WIDE = 1000  # columns of what is no terminal
KINDS = (
    *("model", "control", "unet", "vae", "text", "lora", "embedding", "upscaler", "captioner", "broken", "unknown"),
)
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_FILE = click.argument("file")


@click.group()
def command() -> None:
    """List, show, fetch, convert and verify files of weights.

    FILE is a path, or a name from the library (the folders in DISEGNO_MODEL_DIRS) or of the built-in model's own
    controls and LoRAs. Files are known by their tensors, not by their names or folders; nothing in them is executed.
    """


@command.command("list")
@click.option("--kind", type=click.Choice(KINDS), help="Only files of this kind.")
@_AS_JSON
def list_models(kind: str | None, as_json: bool) -> None:
    """Print every file of the library, from its header alone, and those that came with the built-in model."""
    from disegno.core.request import FILELESS
    from disegno.weights.library import Library

    settings = load_settings()
    library, shipped = Library(settings), _shipped(kind)
    cards = library.cards(kind)
    if as_json:
        shown = [_fields(card) | {"shipped": False} for card in cards]
        shown += [_fields(card) | {"name": name, "shipped": True} for name, card in shipped.items()]
        click.echo(json.dumps(shown, indent=2))
        return
    if cards or shipped:
        own = [(name, card, "") for name, card in zip(library.shown_names(cards), cards, strict=True)]
        _print_table(own + [(n, card, "no file" if n in FILELESS else "shipped") for n, card in shipped.items()])
    if not cards:
        folders = ", ".join(str(folder) for folder in settings.model_dirs)
        what = f"files of the kind {kind}" if kind else "files"
        click.echo(f"No {what} found in {folders}. Put some there, or name other folders in DISEGNO_MODEL_DIRS.")


@command.command()
@_FILE
@_AS_JSON
def show(file: str, as_json: bool) -> None:
    """Print what a file is, and its header's words."""
    from rich.table import Table

    card = _card(file)
    if as_json:
        click.echo(json.dumps(_fields(card), indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, value in _fields(card).items():
        words = value.items() if isinstance(value, dict) else [(name, value)]
        for key, text in words:
            if text not in (None, ""):
                table.add_row(_plain(key), _plain(text))
    _print(table)


@command.command()
@_FILE
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", "layout", type=click.Choice(("ldm", "diffusers")), help="Rename the tensors to this layout.")
def convert(file: str, out: Path, layout: str | None) -> None:
    """Write FILE to OUT, every tensor bit by bit: as safetensors, or as torch's checkpoint where OUT ends in .ckpt.

    --to ldm gives the original programs' names: what was taught here then opens in CtrLoRA, ControlNet and ComfyUI.
    A whole model with --to diffusers becomes a folder; such a folder with --to ldm becomes one file.
    """
    from disegno.weights.convert import convert as write

    done = write(_card(file).path, out, layout)
    click.echo(f"{out}: {done.card.kind}, {_size(done.card.num_bytes)}")
    for name in done.left_out:
        click.echo(f"left out: {_plain(name)}", err=True)
    for doubt in done.doubts:
        click.echo(_plain(doubt), err=True)


@command.command()
@_FILE
@click.option("--sha256", help="The hash that the file should have, or its first digits.")
def verify(file: str, sha256: str | None) -> None:
    """Read all of a file: its structure, its hash, and whether every weight is a finite number.

    Of a folder every file is read that is needed to open it. Its own hash is that of its files' names and hashes.
    """
    from disegno.core.errors import CorruptFile
    from disegno.weights.verify import verified

    card = _card(file)
    own = card.sha256() if sha256 is not None else ""
    if sha256 is not None and not own.startswith(sha256.lower()):
        raise CorruptFile(f"{card.path.name} has the sha256 {own}, not {sha256}. Fetch it again from its source.")
    for path, digest in verified(card):
        click.echo(f"{path}: sound, sha256 {digest}")
    if card.path.is_dir():
        click.echo(f"{card.path}: sound, sha256 {card.sha256()}")


@command.command()
@click.argument("source")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder; unset: the first of DISEGNO_MODEL_DIRS, there A1111's or ComfyUI's own for its kind.",
)
@click.option("--name", help="What to call it; unset: as it is called there.")
@click.option("--sha256", help="The hash that the file should have; Hugging Face says it itself.")
@click.option("--fp16", is_flag=True, help="Of a folder that has its weights twice, those of half precision.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def get(source: str, folder: Path | None, name: str | None, sha256: str | None, fp16: bool, quiet: bool) -> None:
    """Fetch a model, LoRA or control into your model folders, and say what it is.

    \b
    disegno models get https://host/path/model.safetensors
    disegno models get hf:lllyasviel/ControlNet-v1-1/control_v11p_sd15_canny.pth
    disegno models get hf:stabilityai/stable-diffusion-xl-base-1.0 --fp16
    disegno models get civitai:128713

    What broke off goes on where it broke. What is no file of weights is not kept. HF_TOKEN and CIVITAI_TOKEN open what
    asks who you are; HF_ENDPOINT names a mirror of Hugging Face.
    """
    from disegno.cli.getting import get as fetch
    from disegno.weights.library import first_folder

    card = fetch(source, folder or first_folder(load_settings()), name, sha256, fp16, quiet, is_own=folder is None)
    if not quiet:
        what = " ".join(filter(None, (card.family, card.mechanism or card.kind)))
        click.echo(f"{card.path}: {_plain(what)}, {_size(card.num_bytes)}")


def _shipped(kind: str | None) -> "dict[str, FileCard]":
    from disegno.core.request import FILELESS
    from disegno.weights.built_in import shipped
    from disegno.weights.card import FileCard
    from disegno.weights.identify import identify

    cards = {name: identify(path) for files in shipped(kind).values() for name, path in files.items()}
    if kind in (None, "control"):
        cards |= {name: FileCard(Path(), "control", mechanism, name=name) for name, mechanism in FILELESS.items()}
    return cards


def _card(file: str) -> "FileCard":
    """Return the card of a path, or of a name in the library whatever its kind."""
    from disegno.core.errors import UnknownName
    from disegno.weights.built_in import shipped, shipped_file
    from disegno.weights.identify import identify
    from disegno.weights.library import Library

    if (path := path_of(file)) is not None:
        return identify(path)
    library = Library(load_settings())
    for kind in KINDS:
        try:
            return library.find(file, kind)
        except UnknownName:
            continue
    if (built_in := shipped_file(file)) is not None:
        return identify(built_in)
    known = [*library.called(library.cards()), *(name for names in shipped().values() for name in names)]
    raise UnknownName.of("file", file, known)


def _fields(card: "FileCard") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(card) | {"path": None if card.path == Path() else str(card.path), "metadata": dict(card.metadata)}


def _print_table(rows: "list[tuple[str, FileCard, str]]") -> None:
    """Print a line for each name and card; the last word is where it comes from, if it is not from the folders."""
    from rich.table import Table

    table = Table(box=None)
    for column in ("name", "kind", "family", "names", "dtype", "size", "note"):
        table.add_column(column, overflow="fold")
    for name, card, whence in rows:
        note = card.problem or ", ".join(filter(None, (card.annotator, whence)))
        kind = card.mechanism or card.kind
        size = _size(card.num_bytes) if card.num_bytes else ""
        row = (name, kind, card.family, card.layout, card.dtype, size, note)
        table.add_row(*(_plain(text) for text in row))
    _print(table)


def _print(table: "Table") -> None:
    """Print a table: as wide as the terminal, or, for other programs, a line for each row."""
    from rich.console import Console

    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE).print(table)


def _plain(value: object) -> str:
    """Return a value as text that a terminal shows and never obeys: names and headers are written by strangers."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
