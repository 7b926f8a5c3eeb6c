"""The figures of an evaluation, each for every way in which pictures were made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from disegno.core.errors import NotInstalled
from disegno.core.evaluate import EvaluateRequest
from disegno.training.base import Picture
from disegno.training.clip_score import ClipScore, open_clip_score
from disegno.training.efficientnet import EfficientNetLite0, open_efficientnet
from disegno.training.features import MIN_PICTURES, frechet_distance, kernel_distance
from disegno.training.measures import MEASURES, Measure
from disegno.training.perceptual import Lpips, open_lpips
from disegno.training.redraw import Criterion, Row
from disegno.training.trial import Summary, Values, controllability, summary, values_of

Ways = Mapping[str, tuple[tuple[Picture, ...], ...]]  # each way's pictures, row by row

CONTROL, AGAINST, WITHOUT, REAL, GIVEN = "control", "against", "without", "real", "given"
"""The ways in which a row gets a picture: with the control, with the other one, without any; the real picture through
the model's VAE; and, where a damaged picture is mended, that picture as it was given."""


@dataclass(frozen=True)
class Score:
    """A figure. `of`: each way's mean and error (a set's distance has none). `rows`: each way's values, row by row."""

    name: str
    title: str
    better: Literal["higher", "lower"]
    of: Mapping[str, Summary]
    rows: Mapping[str, Values]


@dataclass(frozen=True)
class Measuring:
    """What measures, as far as it is here."""

    restore: bool
    lpips: Lpips | None
    features: EfficientNetLite0 | None
    clip: ClipScore | None

    @cached_property
    def likeness(self) -> tuple[Measure, ...]:
        """Return what compares a picture with the real one."""
        own = (MEASURES["psnr"], MEASURES["ssim"])
        return (*own, Measure("lpips", "LPIPS (AlexNet)", "lower", self.lpips.distance)) if self.lpips else own


def prepared(request: EvaluateRequest) -> tuple[Measuring, tuple[str, ...]]:
    """Return what measures, and notes about what cannot be measured here, each with what to do.

    Raises ModelFileError where the CLIP's folder is none.
    """
    notes: list[str] = []

    def optional(open_it: Callable[[], object]) -> object | None:
        try:
            return open_it()
        except NotInstalled as error:
            notes.append(f"Not measured: {error}")
            return None

    lpips, features = optional(lambda: open_lpips("alex")), optional(open_efficientnet)
    clip = open_clip_score(Path(request.clip)) if request.clip is not None else None
    if clip is None:
        notes.append(
            "Not measured: whether pictures show what their captions say. Name the folder of a CLIP with --clip."
        )
    assert isinstance(lpips, Lpips | None) and isinstance(features, EfficientNetLite0 | None)
    return Measuring(request.restore, lpips, features, clip), tuple(notes)


def scores_of(measuring: Measuring, criterion: Criterion, rows: Sequence[Row], ways: Ways) -> tuple[Score, ...]:
    """Return every figure that can be measured, the condition's own first; no two have one name.

    Where something is to be restored, the likeness to the real pictures comes before it.
    """
    scores = [*_condition_scores(measuring, criterion, rows, ways)]
    if measuring.restore:
        likeness = [_compared(measure, rows, ways) for measure in measuring.likeness]
        known = {score.name for score in likeness}  # a condition that nothing draws again is compared so by itself
        scores = likeness + [score for score in scores if score.name not in known]
    if measuring.features is not None and len(rows) >= MIN_PICTURES:
        scores += _distances(measuring.features, rows, ways)
    if measuring.clip is not None and any(row.caption for row in rows):
        scores.append(_caption_score(measuring.clip, rows, ways))
    return tuple(scores)


def _condition_scores(measuring: Measuring, criterion: Criterion, rows: Sequence[Row], ways: Ways) -> list[Score]:
    """Return the condition's own measure, controllability, and CtrLoRA's LPIPS of the two drawings."""
    own = _from_rows(
        criterion.figure,
        criterion.measure.title if criterion.make else f"{criterion.measure.title} with the real picture",
        criterion.measure.better,
        {way: values_of(criterion, rows, drawn) for way, drawn in ways.items()},
    )
    floor, ceiling = own.rows[WITHOUT], own.rows[REAL]
    reached = {way: controllability(criterion, values, floor, ceiling) for way, values in own.rows.items()}
    found = {way: share for way, share in reached.items() if share is not None and way not in (WITHOUT, REAL)}
    scores = [own, Score("controllability", "controllability", "higher", found, {})] if found else [own]
    if measuring.lpips is not None and criterion.make is not None:
        lpips = Criterion(criterion.name, Measure("lpips", "LPIPS", "lower", measuring.lpips.distance), criterion.make)
        values = {way: values_of(lpips, rows, drawn) for way, drawn in ways.items()}
        scores.append(_from_rows("lpips-condition", "LPIPS of the drawings", "lower", values))
    return scores


def _from_rows(name: str, title: str, better: Literal["higher", "lower"], values: Mapping[str, Values]) -> Score:
    return Score(name, title, better, {way: summary(each) for way, each in values.items()}, values)


def _compared(measure: Measure, rows: Sequence[Row], ways: Ways) -> Score:
    """Return how like the real pictures each way's are."""
    real = Criterion("", measure, None)
    values = {way: values_of(real, rows, drawn) for way, drawn in ways.items()}
    return _from_rows(real.figure, f"{measure.title} with the real picture", measure.better, values)


def _distances(net: EfficientNetLite0, rows: Sequence[Row], ways: Ways) -> list[Score]:
    """Return the distances of each way's set of pictures to the set of the real ones."""
    real = net.features([row.real for row in rows])
    found = {way: net.features([picture for pictures in drawn for picture in pictures]) for way, drawn in ways.items()}
    frechet = {way: Summary(frechet_distance(each, real), 0.0) for way, each in found.items()}
    kernel = {way: Summary(kernel_distance(each, real), 0.0) for way, each in found.items()}
    return [
        Score("FD-EffLite0", f"FD-EffLite0 of {len(rows)} pictures", "lower", frechet, {}),
        Score("KD-EffLite0", "KD-EffLite0", "lower", kernel, {}),
    ]


def _caption_score(clip: ClipScore, rows: Sequence[Row], ways: Ways) -> Score:
    """Return how well each way's pictures agree with their captions, by CLIP."""
    captions = [row.caption for row in rows]
    values = {
        way: np.array(clip.scores([pictures[0] for pictures in drawn], captions), np.float64)
        for way, drawn in ways.items()
    }
    return _from_rows("clip-score", f"agreement with the captions (CLIP score, {clip.name})", "higher", values)
