"""What a worker does for trainings, evaluations and new data sets; see `runners.py`, whose `Bench` they work at.

A training lives in the bench's `keep` folder, which outlives an attempt: a job that is begun again, after a crash or
after it was cancelled and resumed, goes on from its last checkpoint. Cancelling closes the generator, which saves.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import JsonValue, TypeAdapter

from disegno.core.evaluate import EvaluateRequest
from disegno.core.result import Progress
from disegno.core.teach import TeachRequest
from disegno.serving.data_sets import find_data_set, new_data_set
from disegno.serving.faults import without_paths
from disegno.serving.lessons import DatasetRequest, data_of
from disegno.serving.pictures import jpeg_uri, png
from disegno.serving.runners import Bench
from disegno.serving.wire import Looked, Moved
from disegno.serving.words import LookView, Outcome, StoredFile
from disegno.training.base import Look, TeachProgress, TeachResult
from disegno.training.convergence import judge
from disegno.training.data import build as building
from disegno.training.data.making import Annotate
from disegno.training.evaluation import Evaluation
from disegno.training.evaluation import evaluate as measured
from disegno.training.evaluation_page import evaluation_page, evaluation_sheet
from disegno.training.findings import judged, to_json
from disegno.training.publish import publish, require_free
from disegno.training.report import Report, open_report
from disegno.training.run import Run
from disegno.training.stopping import Stop
from disegno.training.teach import run_of
from disegno.training.teach import teach as taught

PREVIEW_PX = 256  # of a taught control's picture beside its file
SHEET_PX = 1024  # of a look's pictures on their way to whoever watches
_JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])

Schooling = Generator[Progress | Moved | Looked, None, Outcome]


# ---- teach


def teach(request: TeachRequest, bench: Bench) -> Schooling:
    """Teach a control: NAME.safetensors in the first model folder and among the files, report.html, looks' pictures."""
    data = tuple(found_data(given, bench.data_roots) for given in request.data)
    settings, folder = bench.studio.settings, bench.keep / "run"
    asked = replace(request, data=data)
    run = run_of(asked, folder)
    require_free(run, settings)
    report = open_report(folder, request, settings)  # of the request as it was sent: the page names no folders
    result: TeachResult | None = None
    stop = Stop()
    with closing(taught(asked, settings, folder, (report,), stop)) as events:
        for event in events:
            if isinstance(event, TeachResult):
                result = event
            else:
                yield _news(event, bench, report)
            if bench.finish.is_set():
                stop.enough()
    assert result is not None, "the training ended without a result"
    require_free(run, settings)  # somebody else may have taken the name meanwhile
    _show(publish(run, settings), report)
    warnings = tuple(without_paths(warning) for warning in result.warnings)
    return Outcome(tuple(_results(run, report, bench)), warnings, _facts(result, report))


def found_data(given: str, data_roots: Sequence[Path]) -> str:
    """Return the data as a training wants it: TASK=FOLDER, or a folder. Raises UnknownName, RequestError."""
    task, name = data_of(given)
    folder = find_data_set(data_roots, name)
    return f"{task}={folder}" if task else str(folder)


def _news(event: TeachProgress | Look, bench: Bench, report: Report) -> Moved | Looked:
    if isinstance(event, Look):
        return Looked(bench.job, _view(event, report))
    named = {"loss": event.loss, "rate": event.rate, "gradient": event.gradient}
    figures = {name: value for name, value in named.items() if value is not None}
    stage = without_paths(event.stage)  # it says why a training waits, too
    return Moved(bench.job, event.step, event.num_steps, stage, event.seconds_left, figures=figures)


def _view(look: Look, report: Report) -> LookView:
    """Return a look with the verdict on the training so far, which the report has heard of."""
    verdict = judge(report.history.looks)
    sheet = jpeg_uri(look.sheet, SHEET_PX) if look.sheet is not None else None
    told = verdict.state, verdict.words, verdict.reasons
    return LookView(look.step, look.loss, dict(look.metrics), *told, sheet)


def _results(run: Run, report: Report, bench: Bench) -> list[StoredFile]:
    """Return the files of a training: the weights (where they are one file), the report, the last pictures."""
    report.write()
    files = [bench.write("report.html", "report", (run.folder / "report.html").read_bytes(), "text/html")]
    if run.file.is_file():
        files.insert(0, bench.copy(run.file, "weights", "application/octet-stream"))
    sheets = [look.sheet for look in report.history.looks if look.sheet is not None and look.sheet.is_file()]
    return [*files, *(bench.write("look.png", "sheet", sheet.read_bytes()) for sheet in sheets[-1:])]


def _show(home: Path, report: Report) -> None:
    """Put the last look's pictures beside a control that was taught, small, for the lists of files."""
    sheet = next((look.sheet for look in reversed(report.history.looks) if look.sheet and look.sheet.is_file()), None)
    if sheet is None or not home.is_file():
        return
    with Image.open(sheet) as opened:
        side = min(opened.size)
        left = opened.convert("RGB").crop((0, 0, side, side))
    left.thumbnail((PREVIEW_PX, PREVIEW_PX))
    left.save(home.with_name(f"{home.stem}.preview.png"))


def _facts(result: TeachResult, report: Report) -> dict[str, JsonValue]:
    verdict = judge(report.history.looks)
    looks = [{"step": look.step, "loss": look.loss, "metrics": dict(look.metrics)} for look in report.history.looks]
    facts: dict[str, Any] = {
        "step": result.step,
        "why": result.why,
        "metrics": dict(result.metrics),
        "verdict": verdict.state,
        "words": verdict.words,
        "looks": looks,
    }
    return _JSON.validate_python(facts)


# ---- evaluate


def evaluate(request: EvaluateRequest, bench: Bench) -> Schooling:
    """Measure how well pictures follow a control: evaluation.json, evaluation.html, pictures.png."""
    folder = find_data_set(bench.data_roots, request.data)
    found: Evaluation | None = None
    for event in measured(replace(request, data=str(folder)), bench.studio.settings):
        if isinstance(event, Evaluation):
            found = replace(event, request=replace(event.request, data=request.data))
        else:
            yield Progress(event.done, event.total, event.stage)
    assert found is not None, "the evaluation ended without a result"
    told = to_json(found)
    files = (
        bench.write("evaluation.json", "report", _JSON.dump_json(told, indent=2), "application/json"),
        bench.write("evaluation.html", "report", evaluation_page(found).encode(), "text/html"),
        bench.write("pictures.png", "sheet", png(evaluation_sheet(found))),
    )
    facts = {name: value for name, value in told.items() if name != "pairs"} | {"state": judged(found)[0]}
    notes = tuple(without_paths(note) for note in found.notes)
    return Outcome(files, notes, _JSON.validate_python(facts))


# ---- dataset


def dataset(request: DatasetRequest, bench: Bench) -> Schooling:
    """Make pairs from pictures, in the server's first data directory; problems.jsonl says what was left out."""
    size = (request.width, request.height) if request.width and request.height else None
    plan = building.Plan(
        pictures=str(find_data_set(bench.data_roots, request.pictures)),
        out=new_data_set(bench.data_roots, request.name),
        maker=Annotate.of(request.annotator, request.params, request.resolution),
        size=size,
        buckets=request.buckets,
        captions=request.captions,
        caption=request.caption,
    )
    result: building.BuildResult | None = None
    for event in building.build(plan):
        if isinstance(event, building.BuildResult):
            result = event
        else:
            yield Progress(event.done, event.num_pictures, "building", event.seconds_left)
    assert result is not None, "the builder ended without a result"
    listed = bench.write("problems.jsonl", "report", (plan.out / building.PROBLEMS).read_bytes(), "application/jsonl")
    kinds = dict(Counter(problem.kind for problem in result.problems))
    facts: dict[str, Any] = {"name": request.name, "pairs": result.num_pairs, "new": result.num_new, "problems": kinds}
    return Outcome((listed,), (), _JSON.validate_python(facts | {"card": asdict(building.card_of(plan))}))
