"""The reference page of this door, written from its tables. `python -m disegno.serving.a1111.reference` writes it."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastapi.routing import APIRoute

from disegno.serving.a1111.always_on import ALWAYS_ON
from disegno.serving.a1111.controlnet import UNIT
from disegno.serving.a1111.door import ROUTES
from disegno.serving.a1111.extras import SINGLE
from disegno.serving.a1111.fields import Field
from disegno.serving.a1111.forms import COMMON, IMG2IMG, TXT2IMG
from disegno.serving.a1111.generation import FORMS
from disegno.serving.a1111.modules import modules
from disegno.serving.a1111.options import OPTIONS
from disegno.serving.a1111.script_args import ARGS, Arg
from disegno.serving.a1111.scripts import axes, titles

PAGE = Path("docs/reference/a1111.md")

_TOP = """# A1111's API

`disegno serve` answers to clients of AUTOMATIC1111's web UI and of its ControlNet extension:
[how to point them here](../howto/a1111-clients.md). What a client sends becomes a `Request` of this program; what has
no effect here is reported under `warnings` in the answer's `info`. This page is written by
`python -m disegno.serving.a1111.reference`.
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def routes() -> list[tuple[str, str, str]]:
    """Return method, path and summary of every route of this door."""
    rows: list[tuple[str, str, str]] = []
    for part in ROUTES:
        for route in part.router.routes:
            assert isinstance(route, APIRoute)
            told = (inspect.getdoc(route.endpoint) or "").partition("\n")[0]
            rows += [(method, route.path, told) for method in sorted(route.methods or ())]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def meaning(row: Field) -> str:
    """Return what a field does, in words."""
    if row.unused:
        return f"no effect: {row.unused}"
    return row.means or f"`{row.to}`"


def _fields(table: Sequence[Field]) -> Iterator[str]:
    rows = [
        (f"`{row.name}`", row.kind, "" if row.default is None else f"`{row.default}`", meaning(row)) for row in table
    ]
    return _table(("field", "type", "default", "what it does"), rows)


def _settings() -> Iterator[str]:
    rows = [
        (f"`{name}`", f"`{o.default}`", ", ".join(o.choices), f"`{o.to}`" if o.to else "")
        for name, o in OPTIONS.items()
    ]
    return _table(("setting", "default", "values", "sets"), rows)


def _modules() -> Iterator[str]:
    rows = [
        (f"`{module.known.name}`", f"`{module.annotator}`", ", ".join(slider.name for slider in module.known.sliders))
        for module in modules()
    ]
    return _table(("module", "annotator", "sliders"), rows)


def _scripts() -> Iterator[str]:
    forms = {title: " ".join(form for form in FORMS if title in titles(form)) for title in titles("img2img")}
    told = {title: ", ".join(map(_arg, ARGS[title])) for title in forms if title in ARGS}
    told["x/y/z plot"] = (
        "for x, y and z: axis (a label, or its place in the form's list), values, drop-down's values; then draw_legend,"
        " include_lone_images, include_sub_grids, no_fixed_seeds, vary_seeds_x, vary_seeds_y, vary_seeds_z,"
        " margin_size, csv_mode"
    )
    return _table(("script", "form", "arguments, in this order"), [(f"`{t}`", f, told[t]) for t, f in forms.items()])


def _always_on() -> Iterator[str]:
    rows = [(f"`{title}`", ", ".join(map(_arg, ARGS[title]))) for title in ALWAYS_ON if title in ARGS]
    return _table(("always-on script", "arguments, in this order"), rows)


def _arg(arg: Arg) -> str:
    """Return an argument with what it may be, and its default."""
    both = arg.low is not None and arg.high is not None
    said = " or ".join(arg.choices) or (f"{arg.low:g} to {arg.high:g}" if both else arg.kind)
    default = ", ".join(map(str, arg.default)) if isinstance(arg.default, list) else arg.default
    return f"{arg.name} ({said}" + (")" if default == "" else f"; {default})")


def reference_page() -> str:
    """Return the page."""
    common = {row.name for row in COMMON}
    own = [[row for row in form if row.name not in common] for form in (TXT2IMG, IMG2IMG)]
    parts: tuple[tuple[str, Iterator[str]], ...] = (
        ("Routes", _table(("method", "path", ""), [(method, f"`{path}`", told) for method, path, told in routes()])),
        ("txt2img and img2img", _fields(COMMON)),
        ("txt2img only", _fields(own[0])),
        ("img2img only", _fields(own[1])),
        ("ControlNet units", _fields(UNIT)),
        ("ControlNet modules", _modules()),
        ("Extras", _fields(SINGLE)),
        ("Settings that act", _settings()),
        ("Scripts", _scripts()),
        ("Always-on scripts beside ControlNet", _always_on()),
        (
            "X/Y/Z plot's axes",
            iter([", ".join(dict.fromkeys(a.label for f in ("txt2img", "img2img") for a in axes(f)))]),
        ),
    )
    return _TOP + "".join(f"\n## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts)


if __name__ == "__main__":
    PAGE.write_text(reference_page(), "utf-8")
