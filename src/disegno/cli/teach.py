"""`disegno teach`: pairs become a control that `generate` draws with.

Its flags derive from the fields of `core.teach.TeachRequest`.
"""

import json
import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, TypeVar

import click

from disegno.cli.annotate import parse_setting
from disegno.cli.bar import Bar
from disegno.cli.fields import or_none, request_options
from disegno.cli.lean import open_nets
from disegno.core.errors import RequestError, ResourceError
from disegno.core.settings import Settings, load_settings
from disegno.core.teach import TeachRequest, make_teach_request

if TYPE_CHECKING:
    from disegno.training.base import Look, TeachEvent, TeachProgress, TeachResult
    from disegno.training.lesson import Habits, Lesson
    from disegno.training.processes import Processes
    from disegno.training.report import Report
    from disegno.training.run import Run

RUNS = Path("runs")
T = TypeVar("T")

_LAUNCHED = "WORLD_SIZE"  # what `accelerate launch` and torchrun set for the processes that they start


@click.command(name="teach")
@click.argument("name", required=False)
@click.option(
    "--data", metavar="DIR", multiple=True, callback=or_none,
    help="Pairs: a folder, tar or URL pattern; repeated as TASK=DIR for recipes that learn several conditions.",
)  # fmt: skip
@request_options(exclude={"name", "data", "params"}, of=TeachRequest)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A parameter of the annotator.")
@click.option("--run", type=click.Path(path_type=Path), help="The training's folder. Unset: runs/NAME, here.")
@click.option(
    "--resume", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="RUN",
    help="Go on with the training in this folder, as it was asked for; or just give the same command again.",
)  # fmt: skip
@click.option("--find-rate", is_flag=True, help="Measure which learning rate suits, print it, and teach nothing.")
@click.option("--estimate", is_flag=True, help="Say what it takes, here and on GPUs, and teach nothing.")
@click.option("--try-anyway", is_flag=True, help="Begin even where it should not fit into memory.")
@click.option("--replace", "replaces", is_flag=True, help="Write over a control of the same name in the model folder.")
@click.option("--workers", type=click.IntRange(0, 64), default=2, help="Threads that read ahead.  [default: 2]")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), help="What frozen weights are kept in.")
@click.option("--device", metavar="D", help="auto, cpu, cuda, mps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    name: str | None, settings: tuple[str, ...], run: Path | None, resume: Path | None, find_rate: bool,
    estimate: bool, try_anyway: bool, replaces: bool, workers: int, dtype: str | None, device: str | None,
    as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Teach a new control, called NAME, from pairs of a picture and the drawing that it should follow.

    A thousand pairs and a thousand steps are enough for most kinds of drawing. What is learned can be seen while it
    runs, in runs/NAME/report.html. Ctrl-C saves and ends it; the same command goes on where it ended.

    \b
    disegno dataset build photos pairs --annotator canny    # pairs from your pictures
    disegno teach edges --data pairs --steps 1000
    disegno generate "a red car" --control edges=photo.jpg
    disegno teach edges --data pairs --estimate             # how long, and how much memory?
    disegno teach edges --data pairs --find-rate            # which learning rate?
    disegno teach edges --data pairs --until-converged      # stop when nothing is gained any more
    accelerate launch -m disegno.training edges --data pairs --batch 4     # on all GPUs
    """
    open_nets()
    from disegno.training.lesson import Habits

    if resume is not None and run is not None:
        raise RequestError(f"--resume {resume} is the training's folder: leave out --run {run}.")
    if estimate and find_rate:
        raise RequestError("--estimate and --find-rate are two questions: ask one of them at a time.")
    request = _request(name, given, settings, resume)
    folder = resume or run or RUNS / request.name
    where = load_settings(dtype=dtype, device=device)
    if estimate:
        _estimate(request, folder, where, quiet, as_json)
        return
    habits, says = Habits(workers, refuses=not try_anyway), Says(quiet or as_json, as_json)
    if find_rate:
        _find_rate(request, folder, where, says, habits)
    else:
        _teach(request, folder, where, says, replaces, habits)


def _request(name: str | None, given: Mapping[str, Any], settings: Iterable[str], resume: Path | None) -> TeachRequest:
    """Return what is asked for. Raises RequestError."""
    fields = {key: value for key, value in given.items() if value is not None}
    if settings:
        fields["params"] = dict(parse_setting(text) for text in settings)
    if resume is not None:
        return _asked_before(resume, name, fields)
    if name is None or "data" not in fields:
        raise RequestError("Give a name and pairs, as in disegno teach edges --data pairs.")
    return make_teach_request({"name": name, **fields})


def _asked_before(resume: Path, name: str | None, fields: Mapping[str, Any]) -> TeachRequest:
    from disegno.training.run import asked_in

    request = asked_in(resume)
    if request is None:
        raise RequestError(
            f"{resume} holds no training. Begin one: disegno teach NAME --data DIR --run {quote(str(resume))}."
        )
    if name is not None or fields:
        raise RequestError(
            f"--resume goes on with what was asked for in {resume}; give it alone. For other settings begin a new"
            " training, with --start FILE from what was learned."
        )
    return request


@dataclass(frozen=True)
class Says:
    """What a person sees of a training."""

    quiet: bool
    as_json: bool

    def line(self, text: str) -> None:
        """Print a line, unless only errors or JSON are wanted."""
        if not self.quiet:
            click.echo(text)


def _teach(
    request: TeachRequest, folder: Path, settings: Settings, says: Says, replaces: bool, habits: "Habits"
) -> None:
    from disegno.training.processes import leave
    from disegno.training.publish import require_free
    from disegno.training.report import open_report
    from disegno.training.stopping import Stop
    from disegno.training.teach import run_of, teach
    from disegno.training.tensorboard import open_tensorboard

    run = run_of(request, folder)
    if not replaces:
        require_free(run, settings)
    processes = _processes()
    report = open_report(folder, request, settings)
    listeners = [listener for listener in (report, open_tensorboard(folder / "tensorboard")) if listener]
    if not processes.is_first:
        says = Says(quiet=True, as_json=False)
    with Stop().on_signals() as stop:
        events = teach(request, settings, folder, listeners, stop, processes, habits)
        result = _watch(events, says, report)
    if processes.is_first:
        _end(result, run, settings, says, replaces, processes.count)
    leave(processes)


def _find_rate(request: TeachRequest, folder: Path, settings: Settings, says: Says, habits: "Habits") -> None:
    """Measure learning rates and print them."""
    from disegno.training.lesson import stoppable
    from disegno.training.processes import ALONE
    from disegno.training.rates import Rates, find_rate, table, to_json
    from disegno.training.stopping import Stop
    from disegno.training.teach import open_fitting, run_of

    def measured(stop: Stop) -> "Generator[TeachProgress, None, Rates]":
        opening = open_fitting(request, run_of(request, folder), settings, ALONE, habits)
        opened = yield from stoppable(opening, stop)
        if opened is None:
            raise click.Abort
        lesson, _ = opened
        return (yield from find_rate(lesson, stop, workers=habits.workers))

    with Stop().on_signals() as stop, Bar("opening", says.quiet) as bar:
        found = _drive(measured(stop), bar)
    click.echo(json.dumps(to_json(found)) if says.as_json else table(found, request))


def _estimate(request: TeachRequest, folder: Path, settings: Settings, quiet: bool, as_json: bool) -> None:
    """Print what the training takes: memory at once, time when the caches are full."""
    from disegno.training.estimating import estimate, on_gpus, refusal, timed
    from disegno.training.expected import COMPUTED, expectation, gpu_table

    found = estimate(request, settings)
    if not as_json:
        click.echo(f"On a GPU ({COMPUTED}):\n\n{gpu_table(on_gpus(request, settings), ['the same training'])}\n")
    if not found.fits:
        raise ResourceError(refusal(request, settings, found))
    lesson = _open(request, folder, settings, quiet or as_json)
    found = replace(found, seconds=timed(lesson))
    said = json.dumps(asdict(found) | {"total": found.total}) if as_json else expectation(found, request.steps)
    click.echo(said)


def _open(request: TeachRequest, folder: Path, settings: Settings, quiet: bool) -> "Lesson":
    """Open a training without beginning it."""
    from disegno.training.processes import ALONE
    from disegno.training.teach import open_lesson, run_of

    with Bar("opening", quiet) as bar:
        return _drive(open_lesson(request, run_of(request, folder), settings, ALONE), bar)


def _drive(work: "Generator[TeachProgress, None, T]", bar: Bar) -> T:
    """Show how far something is, and return what comes of it."""
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value
        bar.tell(event.stage, event.step, event.num_steps)


def _processes() -> "Processes":
    from disegno.training.processes import ALONE, join

    return join() if int(os.environ.get(_LAUNCHED, "1")) > 1 else ALONE


def _watch(events: "Iterable[TeachEvent]", says: Says, report: "Report") -> "TeachResult | None":
    """Show what happens, and return what came of it; None in a process that is not the first."""
    from disegno.training.base import Look, TeachResult
    from disegno.training.expected import expectation

    result = None
    with Bar("opening", says.quiet) as bar:
        for event in events:
            if isinstance(event, TeachResult):
                result = event
            elif isinstance(event, Look):
                bar.say(_seen(event, report))
            elif event.estimate is not None:
                bar.say(expectation(event.estimate, event.num_steps))
            else:
                loss = "" if event.loss is None else f"loss {event.loss:.4f}"
                bar.tell(event.stage, event.step, event.num_steps, loss)
    return result


def _seen(look: "Look", report: "Report") -> str:
    """Return what a look found, in words."""
    from disegno.training.convergence import judge

    verdict = judge(report.history.looks)
    loss = "" if look.loss is None else f" (held-out loss {look.loss:.4f})"
    return "\n    ".join((f"step {look.step}{loss}: {verdict.words}", *verdict.reasons))


def _end(
    result: "TeachResult | None", run: "Run", settings: Settings, says: Says, replaces: bool, num_processes: int
) -> None:  # fmt: skip
    """Say what came of it, and how to draw with it or go on."""
    from disegno.training.publish import publish, require_free
    from disegno.training.run import resuming

    assert result is not None, "the training ended without a result"
    if result.why != "stopped" and not replaces:
        require_free(run, settings)  # another training of this name may have ended meanwhile
    home = None if result.why == "stopped" else publish(run, settings)
    if says.as_json:
        said = {"file": home and str(home), "run": str(run.folder), "step": result.step, "why": result.why}
        click.echo(json.dumps(said | {"metrics": dict(result.metrics), "warnings": list(result.warnings)}))
        return
    for warning in result.warnings:
        click.secho(warning, fg="yellow", err=True)
    if home is None:
        says.line(f"Stopped; saved at step {result.step}. Go on with: {resuming(run.folder, num_processes)}")
        return
    says.line(f"{home}: taught in {result.step} steps. What it learned: {run.folder / 'report.html'}")
    says.line("\n    ".join(("Draw with it:", *_drawing(run))))


def _drawing(run: "Run") -> list[str]:
    """Return the command that draws with what was taught: one for each condition of a base."""
    from disegno.training.run import asked_in

    request = asked_in(run.folder)
    assert request is not None
    model = "" if request.model == "diorama" else f" --model {quote(request.model)}"
    if not run.suffix:
        return [f'disegno generate "what you want to see" --model {quote(run.name)}']
    if run.makes == "lora":
        return [f'disegno generate "what you want to see <lora:{run.name}:1>"{model}']
    base = run.name if run.tasks else request.base
    on_base = "" if base is None else f",base={base}"
    names = [file.stem for file in run.files(run.file)[: len(run.tasks) or 1]]
    controls = [quote(f"{name}=drawing.png{on_base}") for name in names]
    return [f'disegno generate "what you want to see" --control {control}{model}' for control in controls]
