"""How a condition is drawn again from a picture, so that what was asked for and what came of it can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from disegno.annotators import ANNOTATORS
from disegno.core.request import Scalar
from disegno.training.base import Pairs, Picture
from disegno.training.data.dataset import Maker
from disegno.training.data.making import Annotate
from disegno.training.measures import GENERAL, MEASURES, Measure, measure_of
from disegno.training.pairs import is_made_by, params_of

TO_REAL = "-to-real"  # after a measure's name: pictures are compared with the real ones
NOT_FROM_PICTURES = frozenset({"boxes"})  # drawn from a list: of a picture they only know the size


@dataclass(frozen=True)
class Row:
    """A held-out pair on its canvas, both pictures uint8 (h w 3), and the seed that it is drawn with.

    `short_side`: the picture's in the data, in pixels, where it is known.
    """

    key: str
    caption: str
    condition: Picture
    real: Picture
    seed: int
    short_side: int | None = None


@dataclass(frozen=True)
class Criterion:
    """What a drawn picture is compared by. `make`: draws the condition again; None: nothing can.

    Without `make` a picture is compared with the real one instead: a control that helps brings it nearer.
    """

    name: str
    measure: Measure
    make: Maker | None

    @property
    def figure(self) -> str:
        """Return what the figure is called."""
        return self.measure.name if self.make else self.measure.name + TO_REAL

    def wanted(self, row: Row) -> Picture:
        """Return what a picture drawn for the row should agree with."""
        return row.condition if self.make else row.real

    def found(self, picture: Picture) -> Picture:
        """Return the picture's own drawing; without `make`, the picture."""
        return self.make(picture) if self.make else picture

    def value(self, row: Row, picture: Picture) -> float:
        """Return how well the picture agrees with the row's drawing, by the measure."""
        return self.measure(self.wanted(row), self.found(picture))


def criterion_for(
    pairs: Pairs,
    rows: Sequence[Row],
    annotator: str | None,
    params: Mapping[str, Scalar],
    *,
    script: Maker | None = None,
    measure: Measure | None = None,
) -> Criterion:
    """Return the criterion for a data set's rows. `annotator`, `params`: as asked for. Raises RequestError.

    What the data set says of its conditions (parameters, resolution) counts where they are this annotator's; its
    pictures' own size, the middle one, may be where they were drawn, too.
    """
    said = pairs.resolution if annotator is None or is_made_by(pairs, annotator) else None
    sides = sorted(row.short_side for row in rows if row.short_side is not None)
    return criterion_of(
        annotator or pairs.annotator,
        params_of(pairs, annotator, params),
        rows,
        script=script,
        measure=measure,
        resolutions=[*([said] if said else []), *sides[len(sides) // 2 :][:1]],
    )


def criterion_of(
    annotator: str | None,
    params: Mapping[str, Scalar],
    rows: Sequence[Row],
    *,
    script: Maker | None = None,
    measure: Measure | None = None,
    resolutions: Sequence[int] = (),
) -> Criterion:
    """Return the criterion for a condition that this annotator, or script, makes. Raises RequestError.

    `resolutions`: short sides at which the data's conditions may have been drawn, beside the canvas's own: the one is
    taken at which the real pictures' drawings agree best with the given conditions.
    """
    if script is not None:
        return Criterion(annotator or "script", measure or MEASURES[GENERAL], script)
    if annotator is None or annotator not in ANNOTATORS or annotator in NOT_FROM_PICTURES:
        return Criterion(annotator or "", MEASURES[GENERAL], None)
    measure = measure or measure_of(annotator, ANNOTATORS.load(annotator))
    made = [Annotate.of(annotator, params, resolution) for resolution in (None, *dict.fromkeys(resolutions))]
    candidates = [Criterion(annotator, measure, make) for make in made]
    return max(candidates, key=lambda criterion: agreement(criterion, rows)) if rows else candidates[0]


def agreement(criterion: Criterion, rows: Sequence[Row], swapped: bool = False) -> float:
    """Return how well the real pictures' drawings agree with the conditions: 1 wholly, 0 no better than with others'.

    `swapped`: as if conditions and pictures were exchanged. 1 where nothing can be drawn again, or there is one row.
    """
    if criterion.make is None or len(rows) < 2:
        return 0.0 if swapped else 1.0
    drawings = [criterion.found(row.condition if swapped else row.real) for row in rows]
    wanted = [row.real if swapped else row.condition for row in rows]
    others = [*wanted[1:], wanted[0]]
    own, foreign = (
        fmean(criterion.measure(w, d) for w, d in zip(side, drawings, strict=True)) for side in (wanted, others)
    )
    best = fmean(criterion.measure(w, w) for w in wanted)
    room = criterion.measure.gain(best, foreign)
    return criterion.measure.gain(own, foreign) / room if room > 0 else 1.0
