"""What can be wrong with a data set: the kinds, what each costs, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

from disegno.core.errors import BadData

Cost = Literal["pair", "file", "nothing"]
"""What a problem costs: the pair is left out; a file belongs to no pair; or it is only said."""


@dataclass(frozen=True)
class Kind:
    """A kind of problem: what it costs, how a report heads it, and what helps."""

    cost: Cost
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "broken": Kind("pair", "pictures that cannot be read", "Fetch or export them again."),
    "failed": Kind("pair", "pictures that no condition could be made of", "Look at the reason beside each."),
    "bad_line": Kind("pair", "lines that say no pair", "Each line is one JSON object with source, target and prompt."),
    "bad_row": Kind("pair", "rows of a table that say no pair", "Its first row names the columns; captions in quotes."),
    "missing_target": Kind("pair", "conditions or lines whose target is missing", "Add the picture."),
    "missing_condition": Kind("pair", "pictures without a condition", "Add it, or build all pairs from pictures."),
    "missing_caption": Kind("pair", "pictures without a caption", "Write NAME.txt, or give one caption for all."),
    "bad_caption": Kind("pair", "captions that are no text", "Save them as UTF-8."),
    "long_caption": Kind("pair", "captions far too long", "Look whether another file took the caption's place."),
    "other_shape": Kind("pair", "conditions of another shape than their target", "Make them again at one size."),
    "extreme_shape": Kind("pair", "pictures so long or tall that no canvas fits", "Crop them."),
    "unsafe": Kind("file", "names that lead out of the folder, or are no plain files", "Copy the files into it."),
    "duplicate_stem": Kind("file", "files of one name, of which one was taken", "Keep one of each name."),
    "orphan": Kind("file", "conditions without a target", "Add the picture, or take them away."),
    "unused": Kind("file", "pictures that no line names", "Add lines, or take them away."),
    "empty_caption": Kind("nothing", "empty captions", "Write what the picture shows."),
    "cut_caption": Kind("nothing", "captions of more than 75 words and marks", "Stable Diffusion reads 75 tokens."),
    "other_size": Kind("nothing", "conditions of another size, brought to their target's", "None is needed."),
    "too_small": Kind("nothing", "pictures that must be enlarged", "Use larger ones, or teach at a smaller size."),
    "blank": Kind("nothing", "conditions of one colour", "Nothing is learned from them. White: 255; in 16 bits 65535."),
    "faint": Kind("nothing", "conditions of nearly one colour", "Are they class numbers? Give each class a colour."),
    "duplicate": Kind("nothing", "pictures that occur again", "Keep one of each, or give each its own condition."),
    "leak": Kind("nothing", "pictures that are also in the test split", "Take them out of one of the two."),
    "same": Kind("nothing", "conditions that are the target itself", "Look whether the folders were mixed up."),
    "shifted": Kind("nothing", "drawings that lie beside their picture", "Make them again from the picture."),
    "foreign": Kind("nothing", "drawings that seem to be of another picture", "Look whether names were mixed up."),
    "swapped": Kind("nothing", "pairs whose picture and condition seem swapped", "Look at them."),
}
"""In the order of a report."""


class Fault(BadData):
    """A row cannot be used. `kind`: which of KINDS."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `name`: the file or row; `line`: of the list that it stands in, where there is one."""

    kind: str
    name: str
    detail: str = ""
    line: int | None = None
