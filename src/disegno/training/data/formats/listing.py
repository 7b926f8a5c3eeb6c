"""What the forms of folders have in common: rows and problems, the rule for captions, and the data set at their end."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from disegno.core.errors import BadData
from disegno.core.request import Scalar
from disegno.training.data.card import Card
from disegno.training.data.dataset import Dataset, FolderRow, FolderRows
from disegno.training.data.making import Annotate
from disegno.training.data.problems import KINDS, Fault, Problem
from disegno.training.data.root import Missing, Root


@dataclass(frozen=True)
class Options:
    """How data sets are opened. `annotator`: makes conditions where there are none; `caption`: stands in for none."""

    annotator: str | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    caption: str | None = None


@dataclass
class Listing:
    """Rows and problems, gathered while a folder is read."""

    root: Root
    rows: list[FolderRow] = field(default_factory=list[FolderRow])
    problems: list[Problem] = field(default_factory=list[Problem])

    def dataset(self, layout: str, options: Options, card: Card | None = None) -> Dataset:
        """Return the data set. Raises BadData where no row is left."""
        self._settle_conditions()
        self._settle_captions(options.caption)
        if not self.rows:
            raise BadData(f"{self.root.path.name} has no pair that can be used. {self._why()}".strip())
        name = self.root.path.name
        rows = FolderRows(self.root, tuple(self._with_own_keys()))
        if options.annotator is not None and any(row.condition is None for row in self.rows):
            make = Annotate.of(options.annotator, options.params)
            return Dataset(name, layout, rows, make.name, make.params, make, tuple(self.problems))
        annotator, params = (card.annotator, card.params) if card else (None, dict[str, Scalar]())
        return Dataset(name, layout, rows, annotator, params, None, tuple(self.problems), card)

    def _settle_conditions(self) -> None:
        """Where some pictures have a condition, leave out those that have none."""
        if all(row.condition is None for row in self.rows):
            return
        self.problems += [Problem("missing_condition", row.key) for row in self.rows if row.condition is None]
        self.rows = [row for row in self.rows if row.condition is not None]

    def _settle_captions(self, default: str | None) -> None:
        """Fill in the default; without one, a picture without a caption is left out, unless none has any words."""
        if default is not None:
            self.rows = [row if row.caption is not None else replace(row, caption=default) for row in self.rows]
        if not any(row.caption for row in self.rows):
            return
        missing = [row for row in self.rows if row.caption is None]
        self.problems += [Problem("missing_caption", row.key) for row in missing]
        self.rows = [row for row in self.rows if row.caption is not None]

    def _with_own_keys(self) -> Iterator[FolderRow]:
        """Yield the rows; those whose picture occurs again, with another condition or caption, by their number."""
        seen: Counter[str] = Counter()
        for row in self.rows:
            seen[row.key] += 1
            yield row if seen[row.key] == 1 else replace(row, key=f"{row.key}#{seen[row.key]}")

    def _why(self) -> str:
        counts = {kind: sum(problem.kind == kind for problem in self.problems) for kind in KINDS}
        return " ".join(f"{KINDS[kind].title}: {num}. {KINDS[kind].advice}" for kind, num in counts.items() if num)


def find(root: Root, name: str, kind: str) -> None:
    """Make sure that a file is in the folder. Raises Fault of this kind where it is not there, else BadData."""
    try:
        root.locate(name)
    except Missing as error:
        raise Fault(kind, str(error)) from error
