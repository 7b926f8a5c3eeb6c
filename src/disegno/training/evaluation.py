"""An evaluation of a control: pairs drawn with it, without it and with another, and what each way reaches."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from disegno.core.errors import RequestError
from disegno.core.evaluate import EvaluateRequest
from disegno.core.request import ControlUnit, Request
from disegno.core.settings import Settings
from disegno.engine.generate import environment
from disegno.engine.studio import Studio
from disegno.engine.tasks import annotator_for, task_of
from disegno.training.base import Pairs, Picture
from disegno.training.data.dataset import Maker
from disegno.training.data.making import Script
from disegno.training.data.opening import open_pairs
from disegno.training.data.split import split, subset
from disegno.training.measures import find_measure
from disegno.training.redraw import Criterion, Row, agreement, criterion_for
from disegno.training.scores import AGAINST, CONTROL, GIVEN, REAL, WITHOUT, Score, Ways, prepared, scores_of
from disegno.training.trial import drawing, rows_of, through_vae

log = logging.getLogger(__name__)

AGREES = 0.9  # a data set's conditions are what the annotator draws; below, it is said


@dataclass(frozen=True)
class EvaluateProgress:
    """So many pairs have been drawn, and another step of the next; or something that takes time goes on."""

    done: int
    total: int
    stage: str = "drawing"


@dataclass(frozen=True)
class Evaluation:
    """What was found. `scores`: the condition's own first. `notes`: what was not measured, and what is doubtful."""

    request: EvaluateRequest
    criterion: Criterion
    rows: tuple[Row, ...]
    drawn: Ways
    scores: tuple[Score, ...]
    agreement: float
    notes: tuple[str, ...]
    environment: dict[str, str]
    seconds: float


def evaluate(request: EvaluateRequest, settings: Settings) -> Iterator[EvaluateProgress | Evaluation]:
    """Yield progress, then the Evaluation. Everything that can be wrong is found before the first picture.

    Raises DisegnoError. The same request, data and machine give the same figures.
    """
    began = time.perf_counter()
    yield EvaluateProgress(0, 0, "opening")
    studio, pairs = Studio(settings), _pairs(request)
    backbone = studio.backbone(request.model)
    template = _template(request, backbone.defaults.width, backbone.defaults.height)
    assert template.width and template.height
    units = _units(request)
    controllers = {way: studio.controller(unit, backbone) for way, unit in units.items() if unit is not None}
    measuring, notes = prepared(request)
    rows = rows_of(pairs, request.num, (template.width, template.height), request.seed)
    shown, own = units[CONTROL], controllers[CONTROL]
    assert shown is not None
    criterion = _criterion(request, pairs, rows, annotator_for(own, task_of(shown, own)))
    drawn: dict[str, list[tuple[Picture, ...]]] = {way: [] for way in units}
    total = len(rows) * len(units)
    for done, (row, way) in enumerate([(row, way) for row in rows for way in units]):
        pictures = yield from drawing(row, template, units[way], studio, EvaluateProgress(done, total))
        drawn[way].append(pictures)
    yield EvaluateProgress(total, total, "measuring")
    ways: dict[str, tuple[tuple[Picture, ...], ...]] = {way: tuple(pictures) for way, pictures in drawn.items()}
    ways[REAL] = tuple((through_vae(row.real, backbone),) for row in rows)
    if request.restore:
        ways[GIVEN] = tuple((row.condition,) for row in rows)
    agrees = agreement(criterion, rows)
    yield Evaluation(
        request=replace(request, width=template.width, height=template.height),
        criterion=criterion,
        rows=rows,
        drawn=ways,
        scores=scores_of(measuring, criterion, rows, ways),
        agreement=agrees,
        notes=(*notes, *_doubts(request, criterion, rows, agrees)),
        environment=environment(studio, backbone),
        seconds=time.perf_counter() - began,
    )


def _pairs(request: EvaluateRequest) -> Pairs:
    """Return the pairs in the order of their pictures' sha256, those first that a training keeps back first."""
    pairs: Pairs = open_pairs(request.data, annotator=request.annotator, params=request.params)
    if request.holdout:
        pairs = split(pairs, request.holdout)[1]
        if not len(pairs):
            raise RequestError(
                f"{request.data} has too few pairs for a training to keep any back (at most a tenth). Leave out"
                " --holdout, and give other pairs than it was taught with."
            )
    return subset(pairs, sorted(range(len(pairs)), key=pairs.target_digest))


def _template(request: EvaluateRequest, width: int, height: int) -> Request:
    return Request(
        model=request.model,
        width=request.width or width,
        height=request.height or height,
        steps=request.steps,
        cfg=request.cfg,
    )


def _units(request: EvaluateRequest) -> dict[str, ControlUnit | None]:
    def unit(name: str) -> ControlUnit:
        return ControlUnit(name=name, image="", base=request.base, task=request.task, strength=request.strength)

    against = {AGAINST: unit(request.against)} if request.against is not None else {}
    return {CONTROL: unit(request.control), **against, WITHOUT: None}


def _criterion(request: EvaluateRequest, pairs: Pairs, rows: Sequence[Row], own: str | None) -> Criterion:
    script: Maker | None = Script.of(Path(request.script)) if request.script is not None else None
    measure = find_measure(request.measure) if request.measure is not None else None
    annotator = request.annotator or pairs.annotator or own
    return criterion_for(pairs, rows, annotator, request.params, script=script, measure=measure)


def _doubts(request: EvaluateRequest, criterion: Criterion, rows: Sequence[Row], agrees: float) -> Iterator[str]:
    if len(rows) < request.num:
        yield f"Only {len(rows)} pairs could be read; {request.num} were asked for."
    if request.clip is not None and not any(row.caption for row in rows):
        yield "Not measured: whether pictures show what their captions say. None of the pairs has one."
    if criterion.make is None:
        yield (
            "Nothing here draws these conditions again from a picture: pictures are compared with the real ones"
            " instead. Name what made them (--annotator, or --script FILE)."
        )
    elif agrees < AGREES:
        yield (
            f"The real pictures' own drawings agree only {100 * agrees:.0f} % with the data's conditions: they were"
            " made with other parameters, or at another size. The figures are lower for it, the ceiling as well."
        )
