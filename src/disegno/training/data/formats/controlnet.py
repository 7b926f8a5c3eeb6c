"""ControlNet's and CtrLoRA's form: prompt.json, one object a line, with `source` (the condition), `target`, `prompt`.

    {"source": "source/0.png", "target": "target/0.png", "prompt": "a red car"}

`dataset build` writes this form, with its card, dataset.json, beside it.
"""

from typing import Any

from disegno.core.errors import BadData
from disegno.training.data.captions import check_caption
from disegno.training.data.card import CARD, MANIFEST, read_card
from disegno.training.data.dataset import Dataset, FolderRow
from disegno.training.data.formats.listing import Listing, Options, find
from disegno.training.data.lines import read_lines, word
from disegno.training.data.problems import Fault, Problem
from disegno.training.data.root import Root

_SOURCE = ("source", "condition", "conditioning", "control")
_TARGET = ("target", "image")
_PROMPT = ("prompt", "caption", "text")


def recognises(root: Root) -> bool:
    """Return whether the folder has this form, or is one that `dataset build` has not finished."""
    unfinished = (root.path / CARD).exists() and (root.path / "target").exists()
    return (root.path / MANIFEST).exists() or unfinished


def open_folder(root: Root, options: Options) -> Dataset:
    """Return the pairs that the lines name. Raises BadData."""
    card = read_card(root)
    if card is not None and not (root.path / MANIFEST).exists():
        raise BadData(
            f"{root.path.name} is not finished: it has {CARD}, but no {MANIFEST} yet. Run the same `disegno dataset "
            "build` again; it goes on where it stopped."
        )
    listing = Listing(root)
    for number, line in read_lines(root, MANIFEST):
        if isinstance(line, str):
            listing.problems.append(Problem("bad_line", MANIFEST, f"line {number} {line}", number))
            continue
        try:
            listing.rows.append(_row(root, line))
        except Fault as error:
            listing.problems.append(Problem(error.kind, MANIFEST, f"line {number}: {error}", number))
        except BadData as error:
            listing.problems.append(Problem("bad_line", MANIFEST, f"line {number}: {error}", number))
    return listing.dataset("controlnet", options, card)


def _row(root: Root, line: dict[str, Any]) -> FolderRow:
    """Return the row of one line. Raises BadData."""
    source, target, prompt = word(line, _SOURCE), word(line, _TARGET), word(line, _PROMPT)
    if target is None or source is None:
        raise BadData(f"it has no {'target' if target is None else 'source'}")
    find(root, target, "missing_target")
    find(root, source, "missing_condition")
    return FolderRow(target, target, source, None if prompt is None else check_caption(prompt))
