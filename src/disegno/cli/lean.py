"""Which process is the program's own: there diffusers' nets are opened alone, and a picture comes seconds sooner."""

import click

from disegno import lean

ALONE = "a process of its own"  # click's object of such a program: a test or a notebook may want diffusers' pipelines


def open_nets() -> None:
    """Open diffusers' nets alone, where this process is the program's own."""
    if click.get_current_context().find_root().obj == ALONE:
        lean.open_nets()
