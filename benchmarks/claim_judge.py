"""What the controls of a condition reach on pairs that none of them was taught with."""

from collections.abc import Mapping
from pathlib import Path

from disegno.core.evaluate import EvaluateRequest
from disegno.core.request import ControlUnit, Request, Scalar
from disegno.core.settings import Settings
from disegno.engine.studio import Studio
from disegno.training.base import Picture
from disegno.training.data.opening import open_pairs
from disegno.training.redraw import Row, criterion_of
from disegno.training.scores import REAL, WITHOUT, prepared, scores_of
from disegno.training.trial import drawing, rows_of, through_vae

Found = dict[str, dict[str, tuple[float, float]]]  # figure -> way -> its mean and standard error


def judge(
    controls: Mapping[str, Path],
    data: Path,
    num: int,
    *,
    model: str = "diorama",
    annotator: str | None = None,
    params: Mapping[str, Scalar] | None = None,
    settings: Settings,
) -> Found:
    """Return what each control (name -> file) reaches, what is reached without one, and by the real pictures.

    `num` pairs of `data` are drawn, each with the same seed in every way. `annotator`: draws the condition again;
    None compares pictures with the real ones. The condition's own figure is the first.
    """
    studio = Studio(settings)
    backbone = studio.backbone(model)
    width, height = backbone.defaults.width, backbone.defaults.height
    rows = rows_of(open_pairs(str(data)), num, (width, height), seed=0)
    criterion = criterion_of(annotator, params or {}, rows)
    template = Request(model=model, width=width, height=height)
    ways: dict[str, tuple[tuple[Picture, ...], ...]] = {REAL: tuple((through_vae(row.real, backbone),) for row in rows)}
    for way, path in [(WITHOUT, None), *controls.items()]:
        unit = None if path is None else ControlUnit(name=str(path), image="")
        ways[way] = tuple(_drawn(row, template, unit, studio) for row in rows)
        studio.close_controls()
    measuring, _ = prepared(EvaluateRequest(control="", data=str(data), restore=True))
    scores = scores_of(measuring, criterion, rows, ways)
    scores = sorted(scores, key=lambda score: score.name not in (criterion.figure, "controllability"))
    return {score.name: {way: (s.mean, s.error) for way, s in score.of.items()} for score in scores}


def _drawn(row: Row, template: Request, unit: ControlUnit | None, studio: Studio) -> tuple[Picture, ...]:
    work = drawing(row, template, unit, studio, None)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
