"""`disegno caption`: what pictures show, in words: as captions for a data set, or as the begin of a prompt."""

from collections.abc import Iterator
from pathlib import Path

import click

from disegno.cli.bar import Bar
from disegno.core.errors import BadImage, RequestError
from disegno.core.files import write_atomically


@click.command(name="caption")
@click.argument("pictures", nargs=-1, required=True)
@click.option("--captioner", metavar="NAME", help="A folder, or a name from the library. Unset: the library's first.")
@click.option("--beginning", default="", metavar="TEXT", help="What every caption begins with, as 'a photo of'.")
@click.option("--beams", type=click.IntRange(1, 16), default=3, show_default=True, help="Wordings that are weighed.")
@click.option("--write", is_flag=True, help="Write NAME.txt beside each picture that has none, for `dataset build`.")
@click.option("--overwrite", is_flag=True, help="With --write: also beside those that have one.")
def command(
    pictures: tuple[str, ...], captioner: str | None, beginning: str, beams: int, write: bool, overwrite: bool
) -> None:
    """Say what PICTURES show: files, or folders of them.

    It wants a captioner: the folder of a BLIP as transformers lays it out, with config.json, weights and vocabulary
    (Salesforce/blip-image-captioning-base is one), in a model folder or named by --captioner.

    \b
    disegno caption photo.jpg
    disegno caption photos --write --beginning "a photo of"
    disegno dataset build photos pairs --annotator canny --size 512x512
    """
    if overwrite and not write:
        raise RequestError("--overwrite is about files that --write writes: give both, or neither.")
    paths = list(_paths(pictures))
    if write and not overwrite:
        paths = [path for path in paths if not path.with_suffix(".txt").exists()]
    if not paths:
        click.echo("Every picture has its caption.")
        return
    from disegno.engine.pictures import read_picture
    from disegno.engine.studio import Studio

    num_lost = 0
    with Bar("opening") as bar:
        reader = Studio().captioner(captioner)
        for done, path in enumerate(paths):
            bar.tell("looking", done, len(paths), f"{num_lost} left out" if num_lost else "")
            try:
                words = reader.caption(read_picture(str(path)), beginning, beams)
            except BadImage as error:
                num_lost += 1
                click.echo(f"{path}: {error}", err=True)
                continue
            if write:
                _write(path.with_suffix(".txt"), words)
            else:
                click.echo(words if len(paths) == 1 else f"{path}: {words}")
    if write:
        click.echo(f"{len(paths) - num_lost} captions written, {num_lost} pictures left out")
    if num_lost:
        click.get_current_context().exit(1 if num_lost < len(paths) else BadImage.exit_code)


def _paths(pictures: tuple[str, ...]) -> Iterator[Path]:
    """Yield the pictures, those of a folder by name. Raises RequestError where one is not there."""
    from disegno.core.each import PICTURE_SUFFIXES

    for given in pictures:
        path = Path(given).expanduser()
        if path.is_dir():
            found = sorted(
                each for each in path.rglob("*") if each.suffix.lower() in PICTURE_SUFFIXES and each.is_file()
            )
            if not found:
                raise RequestError(f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise RequestError(f"{path} is not there: give pictures, or folders of them.")


def _write(path: Path, words: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(words + "\n", "utf-8"))
