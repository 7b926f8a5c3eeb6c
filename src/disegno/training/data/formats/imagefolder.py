"""Hugging Face's image folder: metadata.jsonl or metadata.csv, with a second column of pictures.

{"file_name": "0.png", "conditioning_image": "0_edges.png", "text": "a red car"}
"""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from disegno.core.errors import BadData
from disegno.training.data.captions import check_caption
from disegno.training.data.dataset import Dataset, FolderRow
from disegno.training.data.formats.folders import CONDITIONS
from disegno.training.data.formats.listing import Listing, Options, find
from disegno.training.data.lines import bounded_lines, read_lines, word
from disegno.training.data.problems import Fault, Problem
from disegno.training.data.root import Root

_LISTS = ("metadata.jsonl", "metadata.csv")
_TARGET = ("file_name", "image", "image_file_name", "target", "target_file_name")
_CONDITION = tuple(f"{name}{end}" for name in CONDITIONS for end in ("", "_file_name"))
_CAPTION = ("text", "caption", "prompt")
_MORE = "\0"  # the name of what stands behind a table's last column; no column has it
_MARKS = {"\0": "UTF-16", ";": "columns with semicolons between", "\t": "columns with tabs between"}
"""What in a table's first row says how it was saved, where that was otherwise."""


def recognises(root: Root) -> bool:
    """Return whether the folder has a list of this form."""
    return any((root.path / name).exists() for name in _LISTS)


def open_folder(root: Root, options: Options) -> Dataset:
    """Return the pairs that the list names, or its pictures where it has no column of conditions. Raises BadData."""
    name = next(name for name in _LISTS if (root.path / name).exists())
    listing = Listing(root)
    lines, bad = (read_lines(root, name), "bad_line") if name.endswith(".jsonl") else (_table(root, name), "bad_row")
    for number, line in lines:
        if isinstance(line, str):
            listing.problems.append(Problem(bad, name, f"line {number} {line}", number))
            continue
        try:
            listing.rows.append(_row(root, line))
        except Fault as error:
            listing.problems.append(Problem(error.kind, name, f"line {number}: {error}", number))
        except BadData as error:
            listing.problems.append(Problem(bad, name, f"line {number}: {error}", number))
    return listing.dataset("imagefolder", options)


def _row(root: Root, line: dict[str, Any]) -> FolderRow:
    """Return the row of one line. Raises BadData."""
    target, condition, text = word(line, _TARGET), word(line, _CONDITION), word(line, _CAPTION)
    if target is None:
        raise BadData("it has no file_name")
    find(root, target, "missing_target")
    if condition is not None:
        find(root, condition, "missing_condition")
    return FolderRow(target, target, condition, None if text is None else check_caption(text))


def _table(root: Root, name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield each row of a CSV file by its line's number, as its header names the columns.

    Raises BadData where the header names no column of pictures.
    """
    with root.open(name) as file:
        lines = ((line or b"").decode("utf-8", "replace") for line in bounded_lines(file))
        reader = csv.DictReader(lines, restkey=_MORE, skipinitialspace=True)
        try:
            reader.fieldnames = _columns(name, reader.fieldnames or ())
            for fields in reader:
                more = _too_many(fields.pop(_MORE, ()))
                yield reader.line_num, more or {key: value for key, value in fields.items() if key and value}
        except csv.Error as error:
            yield reader.line_num, f"is not CSV ({error}); nothing below it is read"


def _too_many(cells: Sequence[str]) -> str:
    """Return what is wrong with a row that goes on behind its last column; "" where nothing stands there."""
    said = ",".join(cells).strip(" ,")
    return f"goes on with {said[:80]!r} behind its last column: a caption with commas stands in quotes" if said else ""


def _columns(name: str, header: Sequence[str]) -> list[str]:
    """Return the names of a table's columns. Raises BadData where none is of pictures, saying what to do."""
    columns = [column.strip() for column in header]
    while columns and not columns[-1]:  # as some programs end every row: what stands there belongs to no column
        columns.pop()
    if any(column in _TARGET for column in columns):
        return columns
    text = ",".join(header)
    mark = next((called for mark, called in _MARKS.items() if mark in text), "")
    said = f"it looks like {mark}" if mark else f"it names {', '.join(columns)[:200] or 'nothing'}"
    raise BadData(
        f"{name}: no column of its first row is called file_name; {said}. Save it as CSV with commas between the"
        " columns, in UTF-8; its first row is file_name,conditioning_image,text."
    )
