"""Styles: named pieces of prompts, kept in a file `styles.csv` (name, prompt, negative_prompt), A1111's."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

PLACE = "{prompt}"


@dataclass(frozen=True)
class Style:
    """A named piece of prompt and of negative prompt; `{prompt}` in it says where the rest goes."""

    name: str
    prompt: str = ""
    negative: str = ""


def merge_style(style: str, prompt: str) -> str:
    """Return the prompt with a style's text: in its place, or after it with a comma."""
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def merge_styles(styles: Iterable[str], prompt: str) -> str:
    """Return the prompt with the texts of these styles, one after the other."""
    for style in styles:
        prompt = merge_style(style, prompt)
    return prompt


def read_styles(text: str) -> list[Style]:
    """Return the styles of a styles.csv's text. Lines without a prompt and a negative are dividers: left out."""
    rows = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    found = (
        Style(row.get("name") or "", row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or "")
        for row in rows
    )
    return [style for style in found if style.name and (style.prompt or style.negative)]
