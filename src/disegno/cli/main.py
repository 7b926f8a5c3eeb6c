"""`disegno`: the group of commands. A command's module is imported only when that command is called."""

import sys
from importlib import import_module
from typing import Any

import click

from disegno import __version__
from disegno.cli.lean import ALONE
from disegno.core.errors import DisegnoError, ResourceError

INTERRUPTED = 130  # as shells say of what Ctrl-C ended
_WITH_LESS = {
    "generate": "ask for fewer or smaller pictures (--batch, --size), draw and decode in parts (--tiles, --vae-tile),"
    " or compute in half precision (--dtype bf16)",
}
COMMANDS = {
    "ui": "Draw in the browser.",
    "generate": "Make pictures from a sentence and drawings.",
    "annotate": "Turn a picture into a drawing that a control wants to see.",
    "caption": "Say in words what pictures show.",
    "teach": "Teach a new kind of control from pairs.",
    "dataset": "Make pairs to teach from, and examine them.",
    "evaluate": "Measure how well pictures follow a control.",
    "serve": "Answer requests over HTTP: a typed API with a durable queue.",
    "models": "List, show, convert and verify files of weights.",
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and summaries without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"disegno.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoked(ctx)
        except DisegnoError as error:
            click.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def _invoked(self, ctx: click.Context) -> Any:
        """Return what the command gives back. Raises ResourceError where memory runs out."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):  # RuntimeErrors, too
            raise
        except (RuntimeError, MemoryError) as error:
            from disegno.room import is_out_of_memory  # torch, which has been imported where it raises

            if not is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[:160] or type(error).__name__
            how = _WITH_LESS.get(ctx.invoked_subcommand or "", "ask for less at once")
            raise ResourceError(
                f"There was not enough memory ({said}). Close other programs that use it, or {how}."
            ) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="disegno")
def main() -> None:
    """Pictures from text, under the control of a drawing.

    \b
    A first picture, with the model that is built in:
        disegno generate "a red car on a city street"
    The same street, following the edges of a photo:
        disegno generate "a red car on a city street" --control canny=photo.jpg
    What an annotator sees:
        disegno annotate canny photo.jpg
    """


def program() -> None:
    """The program `disegno`, in a process of its own: in such a one, no other code wants all of diffusers."""
    sys.exit(main(obj=ALONE))


if __name__ == "__main__":
    program()
