"""A command whose help lists its options by subject."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

OTHERS = "Other options"


class Sectioned(click.Command):
    """A command with sections of options. `sections`: a title, and the parameters under it; a group by `group__`."""

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def section_of(self, name: str) -> str:
        """Return the section of a parameter: of its name, else of the group that it belongs to."""
        titles = {parameter: title for title, names in self._sections.items() for parameter in names}
        return titles.get(name) or titles.get(f"{name.partition('__')[0]}__") or OTHERS

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*self._sections, OTHERS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                rows[self.section_of(parameter.name or "")].append(record)
        for title, found in rows.items():
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)
