"""What a worker does before a training: it unpacks a data set, examines it, and says what the training will take."""

import json
import shutil
from collections.abc import Generator
from dataclasses import asdict, replace
from typing import Any

from pydantic import JsonValue, TypeAdapter

from disegno.core.errors import UnknownName
from disegno.core.result import Progress
from disegno.serving.data_sets import find_data_set, new_data_set
from disegno.serving.faults import without_paths
from disegno.serving.lessons import CheckRequest, EstimateRequest, UnpackRequest
from disegno.serving.runners import Bench, Running
from disegno.serving.schooling import found_data
from disegno.serving.words import Outcome
from disegno.training.base import Estimate, TeachProgress
from disegno.training.data.doctor import examine
from disegno.training.data.formats.listing import Options
from disegno.training.data.opening import open_rows, open_siblings
from disegno.training.data.problems import KINDS
from disegno.training.data.report import Report, as_json, line_of
from disegno.training.data.unpack import LEFT_OUT, Bounds, Unpacked
from disegno.training.data.unpack import unpack as unpacked
from disegno.training.estimating import estimate as estimated
from disegno.training.estimating import refusal, timed
from disegno.training.expected import expectation
from disegno.training.lesson import Lesson
from disegno.training.processes import ALONE
from disegno.training.teach import open_lesson, run_of

_SOME = 10  # names of a kind of problem that facts give; the report has all of them
_JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


def unpack(request: UnpackRequest, bench: Bench) -> Running:
    """Make a data set of an uploaded zip, in the server's first data directory."""
    archive = bench.uploads / request.upload
    if not archive.is_file():
        raise UnknownName(f"There is no upload {request.upload}, or not all of it has come. Send it again.")
    limits = bench.limits
    bounds = Bounds(limits.unpacked_files, limits.unpacked_bytes)
    result: Unpacked | None = None
    for event in unpacked(archive, new_data_set(bench.data_roots, request.name), bounds):
        if isinstance(event, Unpacked):
            result = event
        else:
            yield Progress(event.done, event.num_files, "unpacking")
    assert result is not None, "the archive was unpacked without a result"
    archive.unlink(missing_ok=True)
    warnings = tuple(f"Left out: {num} {LEFT_OUT[kind]}." for kind, num in result.left_out.items())
    facts: dict[str, Any] = {"name": request.name, "files": result.num_files, "bytes": result.num_bytes}
    return Outcome((), warnings, facts)


# ---- the doctor


def check(request: CheckRequest, bench: Bench) -> Running:
    """Examine a data set: facts say what is wrong, report.json names every file."""
    folder = str(find_data_set(bench.data_roots, request.data))
    rows = open_rows(folder, Options(caption=request.caption), urls=False)
    canvas = (request.width, request.height)
    report: Report | None = None
    for event in examine(rows, canvas, request.buckets, open_siblings(folder)):
        if isinstance(event, Report):
            report = replace(event, name=request.data)
        else:
            yield Progress(event.done, event.num_rows, "examining")
    assert report is not None, "the doctor ended without a report"
    text = as_json(report)
    file = bench.write("report.json", "report", text.encode(), "application/json")
    told = {name: value for name, value in json.loads(text).items() if name not in ("problems", "exit_code")}
    return Outcome((file,), (), _JSON.validate_python(told | {"kinds": _kinds(report)}))


def _kinds(report: Report) -> list[dict[str, Any]]:
    """Return the problems by kind: what each costs, what helps, and some of the names."""
    return [
        {
            "kind": kind,
            "cost": KINDS[kind].cost,
            "title": KINDS[kind].title,
            "advice": KINDS[kind].advice,
            "count": len(problems),
            "some": [without_paths(line_of(problem)) for problem in problems[:_SOME]],
        }
        for kind, problems in report.of_kind().items()
    ]


# ---- what a training will take


def estimate(request: EstimateRequest, bench: Bench) -> Running:
    """Say what a training will take: memory, counted without numbers; time, by one step of it."""
    asked, settings = request.training, bench.studio.settings
    asked = replace(asked, data=tuple(found_data(given, bench.data_roots) for given in asked.data))
    yield Progress(0, 0, "counting memory")
    found = estimated(asked, settings)
    if not found.fits:
        return Outcome((), (), _told(found, asked.steps, refusal(asked, settings, found)))
    warnings: tuple[str, ...] = ()
    if request.timed:
        lesson = yield from _opened(open_lesson(asked, run_of(asked, bench.folder / "run"), settings, ALONE))
        yield Progress(0, 0, "timing a step")
        found, warnings = replace(found, seconds=timed(lesson)), lesson.warnings
        shutil.rmtree(bench.folder / "run", ignore_errors=True)
    said = expectation(found, asked.steps)
    return Outcome((), tuple(without_paths(warning) for warning in warnings), _told(found, asked.steps, said))


def _opened(opening: Generator[TeachProgress, None, Lesson]) -> Generator[Progress, None, Lesson]:
    """Yield how far a training's opening is, and return the training."""
    while True:
        try:
            event = next(opening)
        except StopIteration as end:
            return end.value
        yield Progress(event.step, event.num_steps, without_paths(event.stage))


def _told(found: Estimate, num_steps: int, words: str) -> dict[str, JsonValue]:
    facts: dict[str, Any] = asdict(found) | {"total": found.total, "fits": found.fits, "words": words}
    whole = None if found.seconds is None else found.seconds * num_steps
    return _JSON.validate_python(facts | {"steps": num_steps, "seconds_in_all": whole})
