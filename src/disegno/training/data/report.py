"""A doctor's report: as text for a person, as JSON for a program, and as an exit code."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from disegno.training.data.problems import KINDS, Problem
from disegno.training.data.root import shown

Size = tuple[int, int]  # width, height

_SOME = 10  # so many names of a kind are shown, unless all are asked for


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a data set is. `usable`: the rows that can be learned from; `canvases`: how many go to each."""

    name: str
    layout: str
    annotator: str | None
    canvas: Size
    usable: tuple[int, ...]
    problems: tuple[Problem, ...]
    canvases: Mapping[Size, int]
    captioned: bool
    paired: bool
    smallest: Size
    largest: Size

    @property
    def num_lost(self) -> int:
        """How many pairs cannot be used."""
        return sum(KINDS[problem.kind].cost == "pair" for problem in self.problems)

    @property
    def exit_code(self) -> int:
        """0: all can be used; 1: something was left out; 2: nothing can be used."""
        if not self.usable:
            return 2
        return int(any(KINDS[problem.kind].cost != "nothing" for problem in self.problems))

    def of_kind(self) -> dict[str, list[Problem]]:
        """Return the problems by kind, in the order of KINDS, the kinds that occur."""
        found = {kind: [problem for problem in self.problems if problem.kind == kind] for kind in KINDS}
        return {kind: problems for kind, problems in found.items() if problems}


def as_json(report: Report) -> str:
    """Return the whole report as JSON text."""
    kinds = report.of_kind()
    fields = {
        "name": report.name,
        "layout": report.layout,
        "annotator": report.annotator,
        "canvas": f"{report.canvas[0]}x{report.canvas[1]}",
        "usable": len(report.usable),
        "left_out": report.num_lost,
        "captioned": report.captioned,
        "paired": report.paired,
        "smallest": f"{report.smallest[0]}x{report.smallest[1]}",
        "largest": f"{report.largest[0]}x{report.largest[1]}",
        "canvases": {f"{w}x{h}": num for (w, h), num in sorted(report.canvases.items(), reverse=True)},
        "counts": {kind: len(problems) for kind, problems in kinds.items()},
        "problems": [
            {"kind": kind, "cost": KINDS[kind].cost} | asdict(problem)
            for kind, problems in kinds.items()
            for problem in problems
        ],
        "exit_code": report.exit_code,
    }
    return json.dumps(fields, indent=2)


def as_text(report: Report, every_name: bool = False) -> str:
    """Return the report as lines for a terminal; long lists of names are cut unless `every_name`."""
    canvases = ", ".join(f"{w}x{h} ({num})" for (w, h), num in sorted(report.canvases.items(), reverse=True))
    num, what = len(report.usable), "pairs" if report.paired else "pictures"
    lines = [
        f"{shown(report.name)}: {num} {what} can be used, {report.num_lost} cannot ({report.layout})",
        *([f"conditions made by {shown(report.annotator)}"] if report.annotator else []),
        *([] if report.paired or not report.usable else ["no conditions yet: `disegno dataset build` draws them"]),
        *([] if report.captioned or not report.usable else ["no captions: it will be taught without words"]),
        *([f"canvases: {canvases}"] if canvases else []),
    ]
    for kind, problems in report.of_kind().items():
        about = KINDS[kind]
        cost = {"pair": "left out", "file": "not used", "nothing": "noticed"}[about.cost]
        lines += ["", f"{cost} ({len(problems)}): {about.title}. {about.advice}"]
        named = problems if every_name else problems[:_SOME]
        lines += [f"  {line_of(problem)}" for problem in named]
        if len(named) < len(problems):
            lines.append(f"  and {len(problems) - len(named)} more (--all names them)")
    return "\n".join(lines)


def line_of(problem: Problem) -> str:
    """Return the problem in one line."""
    detail = shown(problem.detail)
    if not detail:
        return shown(problem.name)
    return detail if problem.name in problem.detail else f"{shown(problem.name)}: {detail}"
