"""The report of a training: one HTML file that needs nothing else, written anew while the training runs."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from disegno.core.files import write_atomically
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.training import page
from disegno.training.base import Look, TeachEvent, TeachResult
from disegno.training.convergence import CEILING, CONTROLLABILITY, ERROR, FLOOR, Verdict, judge, measure_of
from disegno.training.curves import Curve, Level, chart, smoothed, thinned
from disegno.training.expected import expectation
from disegno.training.history import History, line_of, read_history
from disegno.training.machine import duration, machine_facts, peak_memory
from disegno.training.measures import MEASURES
from disegno.training.recipes import RECIPES
from disegno.training.redraw import TO_REAL

SECONDS_BETWEEN = 15.0  # rewritings, while nothing but steps is heard
SHOWN = ("name", "recipe", "data", "model", "base", "annotator", "params", "steps", "batch", "rank", "rate")

_OF_SHEETS = {
    "control": "A line each: condition, pictures drawn and their own drawings, one without the control, the real one.",
    "lora": "A line each: pictures drawn of a caption with the LoRA, without it from the same seeds, the real one.",
}
_OF_MEASURE = (
    "Held-out conditions, drawn with the control and annotated again. Dashed: what is reached without the control, and"
    " by the real pictures, brought through the model's own VAE."
)
_OF_SHARE = (
    "The same as a share of the way between the two, with its standard error: 0 is no control, 100 the real pictures."
)
_OF_LOSS = "The loss hardly falls while a control learns: most of it is the noise's own. Trust the pictures."
_ENDS = {
    "steps": "All steps are done.",
    "converged": "It stopped by itself.",
    "enough": "It was ended early, with what it had learned.",
    "stopped": "It was stopped.",
}


@dataclass
class Report:
    """Listens to a training (`Events`) and writes `report.html` and `history.jsonl` in `folder`."""

    folder: Path
    request: TeachRequest
    machine: Mapping[str, str]
    history: History
    earlier_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)
    _written: float = float("-inf")
    _lines: list[str] = field(default_factory=list[str])
    _pictures: dict[Path, str] = field(default_factory=dict[Path, str])

    def hear(self, event: TeachEvent) -> None:
        """Take in an event; write the page at looks, at the end and now and then. Raises ResourceError, OSError."""
        now = time.monotonic()
        self.history.seconds = self.earlier_seconds + now - self.began
        self.history.hear(event)
        if (line := line_of(event, self.history.seconds, self.folder)) is not None:
            self._lines.append(line)
        if isinstance(event, Look | TeachResult) or now - self._written > SECONDS_BETWEEN:
            self._written = now
            self.write()

    def write(self) -> None:
        """Write the history's new lines and the page. Raises ResourceError, OSError; nothing that was heard is lost."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lines:
            with (self.folder / "history.jsonl").open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in self._lines))
            self._lines.clear()
        text = self.text()
        write_atomically(self.folder / "report.html", lambda path: path.write_text(text, "utf-8"))

    def text(self) -> str:
        """Return the page as it is by now."""
        history, verdict = self.history, judge(self.history.looks)
        parts = [
            page.verdict_box(verdict.state, verdict.words, verdict.reasons),
            f'<p class="soft">{_where(history, self.request.steps)}</p>',
            page.charts(*zip(*_charts(history), strict=True)),
            *self._sheets(verdict),
            page.section("What was asked", page.words(_asked(self.request))),
            page.section("The machine", page.words(self.machine)),
            page.section("What it cost", page.words(_cost(history, self.request.steps))),
            page.section("All that was asked", page.words(_all_asked(self.request)), folded=True),
        ]
        running = 0 if history.result else 30
        return page.page(f"Teaching {self.request.name}", parts, refresh_seconds=running)

    def _sheets(self, verdict: Verdict) -> list[str]:
        """Return the last look's pictures, and folded away the best's and the first's."""
        seen = [look for look in self.history.looks if look.sheet is not None]
        if not seen:
            return []
        parts = [page.section(f"Pictures at step {seen[-1].step}", self._sheet(seen[-1]))]
        best = [look for look in seen[1:-1] if look.step == verdict.best]
        shown = [(look, "best") for look in best] + [(look, "first") for look in seen[:-1][:1]]
        for look, what in shown:
            parts.append(page.section(f"The {what} look, at step {look.step}", self._sheet(look), folded=True))
        used = {seen[-1].sheet, *(look.sheet for look, _ in shown)}
        self._pictures = {path: text for path, text in self._pictures.items() if path in used}
        return parts

    def _sheet(self, look: Look) -> str:
        assert look.sheet is not None
        if look.sheet not in self._pictures:
            found = page.picture_file(look.sheet, _OF_SHEETS[RECIPES.load(self.request.recipe).ABOUT.makes])
            if not found:
                return ""
            self._pictures[look.sheet] = found
        return self._pictures[look.sheet]


def open_report(folder: Path, request: TeachRequest, settings: Settings) -> Report:
    """Return the report of a training whose run folder this is; what an interrupted session heard is read back."""
    history = read_history(folder / "history.jsonl")
    return Report(folder, request, machine_facts(settings), history, history.seconds)


def _where(history: History, num_steps: int) -> str:
    if history.result is not None:
        return f"Step {history.result.step} of {num_steps}. {_ENDS.get(history.result.why, '')}"
    left = "" if history.seconds_left is None else f", about {duration(history.seconds_left)} left"
    return f"Step {history.step} of {num_steps}{left} ({history.stage or 'beginning'})."


def _charts(history: History) -> list[tuple[str, str]]:
    """Return each chart as SVG, with its note."""
    losses = [(float(step), loss) for step, loss in history.losses]
    held_out = [(float(look.step), look.loss) for look in history.looks if look.loss is not None]
    curves = [
        Curve("", thinned(losses), "faint"),
        Curve("loss of training, smoothed", thinned(smoothed(losses, len(losses) // 20)), "c1"),
        Curve("held-out loss", held_out, "c2", marks=True),
    ]
    return [*_measure_charts(history), (chart("Loss", curves), _OF_LOSS)]


def _measure_charts(history: History) -> list[tuple[str, str]]:
    looks = [look for look in history.looks if measure_of(look.metrics)]
    if not looks:
        return [("", "")]
    metrics = looks[-1].metrics
    name = measure_of(metrics)
    assert name is not None
    levels = [Level("without the control", metrics[name + FLOOR]), Level("real pictures", metrics[name + CEILING])]
    own = Curve(name, [(float(look.step), look.metrics[name]) for look in looks], "c1", marks=True)
    scored = [look for look in looks if CONTROLLABILITY in look.metrics]
    share = Curve(
        "controllability",
        [(float(look.step), 100 * look.metrics[CONTROLLABILITY]) for look in scored],
        "c1",
        marks=True,
        errors=[100 * look.metrics.get(ERROR, 0.0) for look in scored],
    )
    return [
        (chart(_title(name), [own], levels), _OF_MEASURE),
        (chart("Controllability, %", [share], [Level("no control", 0.0)]), _OF_SHARE),
    ]


def _title(name: str) -> str:
    """Return a measure for people: what it is, and which way is better."""
    measure = MEASURES.get(name.removesuffix(TO_REAL))
    if measure is None:
        return name
    title = f"{measure.title} with the real picture" if name.endswith(TO_REAL) else measure.title
    return f"{title[0].upper()}{title[1:]}, {'more' if measure.better == 'higher' else 'less'} is better"


def _asked(request: TeachRequest) -> dict[str, str]:
    every = _all_asked(request)
    return {name: every[name] for name in SHOWN if every.get(name)}


def _all_asked(request: TeachRequest) -> dict[str, str]:
    return {name: _word(value) for name, value in asdict(request).items()}


def _word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}={_word(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_word(inner) for inner in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cost(history: History, num_steps: int) -> dict[str, str]:
    facts = {"time": duration(history.seconds), "looks": str(len(history.looks)), "peak memory": peak_memory()}
    if history.estimate is not None:
        facts["what was expected"] = expectation(history.estimate, num_steps)
    if history.step:
        facts["a step, looks included"] = f"{history.seconds / history.step:.2f} s"
    return {name: value for name, value in facts.items() if value}
