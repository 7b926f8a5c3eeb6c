"""What pictures are compared by: the condition drawn again, at the resolution at which the data's were drawn."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from skimage.data import astronaut, chelsea, coffee

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import annotate_at, make_params
from disegno.core.errors import BadImage, RequestError
from disegno.core.request import Request, Scalar
from disegno.training.base import Picture, Sample
from disegno.training.data.making import Annotate
from disegno.training.measures import MEASURES
from disegno.training.miniature import Discs
from disegno.training.pairs import params_of
from disegno.training.redraw import Row, agreement, criterion_for, criterion_of
from disegno.training.trial import controllability, request_for, rows_of, summary

pytestmark = pytest.mark.unit

SIZE = 96


def _shrunk(picture: Picture) -> Picture:
    return np.asarray(cv2.resize(picture[:300, :300], (SIZE, SIZE), interpolation=cv2.INTER_AREA))


def _rows(annotator: str, scale: int = 1, **params: int) -> list[Row]:
    module, rows = ANNOTATORS.load(annotator), []
    for n, photo in enumerate((astronaut(), chelsea(), coffee())):
        picture = _shrunk(photo)
        condition = annotate_at(module, picture, make_params(module, params), SIZE * scale)
        rows.append(Row(str(n), "", condition, picture, n))
    return rows


@pytest.mark.parametrize(("annotator", "params"), [("canny", {}), ("palette", {"cell": 16}), ("blur", {"kernel": 9})])
def test_data_of_an_annotator_agrees_with_it_wholly_and_not_when_exchanged(
    annotator: str, params: dict[str, int]
) -> None:
    rows = _rows(annotator, **params)
    criterion = criterion_of(annotator, params, rows)
    assert agreement(criterion, rows) == pytest.approx(1.0, abs=1e-3)  # data is annotated with its edges padded
    assert agreement(criterion, rows, swapped=True) < 0.9
    exchanged = [Row(row.key, "", row.real, row.condition, row.seed) for row in rows]
    assert agreement(criterion, exchanged, swapped=True) == pytest.approx(1.0, abs=1e-3)


def test_foreign_data_does_not_agree() -> None:
    rows = _rows("canny")
    others = [Row(row.key, "", rows[n - 1].condition, row.real, 0) for n, row in enumerate(rows)]
    assert agreement(criterion_of("canny", {}, rows), others) < 0.2


def test_the_resolution_of_the_data_is_found() -> None:
    """A palette's cells are in pixels: drawn at twice the canvas, they are half as large on it."""
    rows = _rows("palette", scale=2, cell=32)
    criterion = criterion_of("palette", {"cell": 32}, rows, resolutions=[2 * SIZE])
    assert agreement(criterion, rows) > agreement(criterion_of("palette", {"cell": 32}, rows), rows) + 0.1


@dataclass(frozen=True)
class Broken(Discs):
    """Discs of which the first is no picture at all."""

    def read(self, index: int) -> Sample:
        if not index:
            raise BadImage("0000 cannot be read")
        return super().read(index)

    def size(self, index: int) -> tuple[int, int]:
        if not index:
            raise BadImage("0000 cannot be read")
        return super().size(index)


def test_a_pair_that_cannot_be_read_is_left_out_and_its_size_is_not_asked_for() -> None:
    pairs = Broken(4, (128, 96), annotator="palette", params={"cell": 16})
    rows = rows_of(pairs, 2, (SIZE, SIZE), seed=0)
    assert [(row.key, row.short_side) for row in rows] == [("0001", 96), ("0002", 96)]
    assert isinstance(criterion_for(pairs, rows, None, {}).make, Annotate)


def test_a_caption_is_drawn_as_it_is_taught() -> None:
    blank = np.zeros((8, 8, 3), np.uint8)
    row = Row("0", "BLACK AND WHITE (old), 16:9 #1", blank, blank, seed=3)
    request = request_for(row, Request(prompt="x", negative="y"), None)
    assert (request.prompt, request.negative, request.seed) == (r"BLACK and WHITE \(old\), 16\:9 1", "y", 3)


@pytest.mark.parametrize(
    ("annotator", "given", "expected"),
    [
        (None, {}, {"cell": 16}),
        ("palette", {}, {"cell": 16}),
        ("palette", {"cell": 8}, {"cell": 8}),
        ("line-art", {}, {}),
        ("flat", {"levels": 3}, {"levels": 3}),
    ],
)
def test_the_data_set_s_parameters_are_those_of_its_own_annotator(
    annotator: str | None, given: dict[str, Scalar], expected: dict[str, Scalar]
) -> None:
    assert params_of(Discs(2, annotator="palette", params={"cell": 16}), annotator, given) == expected


def test_parameters_of_a_command_line_become_what_the_annotator_takes() -> None:
    discs = Discs(2, annotator="palette")
    assert params_of(discs, None, {"cell": "16"}) == {"cell": 16}
    assert params_of(discs, "one of my own", {"cell": "16"}) == {"cell": "16"}
    with pytest.raises(RequestError, match="no parameter 'size'"):
        params_of(discs, "palette", {"size": "16"})


def test_another_annotator_than_the_data_s_is_opened_with_its_own_parameters() -> None:
    pairs = Discs(2, annotator="palette", params={"cell": 16}, resolution=512)
    assert criterion_for(pairs, (), "line-art", {}).name == "line-art"


def test_the_resolution_that_the_data_set_names_is_tried() -> None:
    rows = _rows("palette", scale=2, cell=32)
    pairs = Discs(2, annotator="palette", params={"cell": 32}, resolution=2 * SIZE)
    criterion = criterion_for(pairs, rows, None, {})
    assert isinstance(criterion.make, Annotate) and criterion.make.resolution == 2 * SIZE
    assert agreement(criterion, rows) > 0.99
    other = criterion_for(replace(pairs, annotator="canny"), rows, "palette", {"cell": 32})
    assert isinstance(other.make, Annotate) and other.make.resolution is None


def test_a_script_is_compared_by_the_general_measure_or_by_the_one_that_is_named() -> None:
    class Negative:
        identity = "negative"

        def __call__(self, picture: Picture) -> Picture:
            return 255 - picture

    rows = [Row(row.key, "", 255 - row.real, row.real, 0) for row in _rows("canny")]
    criterion = criterion_of("mine", {}, rows, script=Negative())
    assert criterion.measure.name == "ssim" and criterion.value(rows[0], rows[0].real) == 1.0
    assert criterion_of("mine", {}, rows, script=Negative(), measure=MEASURES["rmse"]).figure == "rmse"


@pytest.mark.parametrize("annotator", [None, "boxes", "somebody's"])
def test_what_nothing_draws_again_is_compared_with_the_real_picture(annotator: str | None) -> None:
    rows = _rows("canny")
    criterion = criterion_of(annotator, {}, rows)
    assert criterion.make is None and criterion.figure == "ssim-to-real"
    assert criterion.value(rows[0], rows[0].real) == 1.0 > criterion.value(rows[0], rows[1].real)
    assert agreement(criterion, rows) == 1.0 and agreement(criterion, rows, swapped=True) == 0.0


def test_controllability_is_the_share_of_the_way_whichever_way_is_better() -> None:
    rows = _rows("canny")
    floor, ceiling = np.array([0.2, 0.4, 0.3, 0.3]), np.array([0.8, 0.8, 0.7, 0.9])
    values = floor + 0.25 * (ceiling - floor)
    f1, rmse = criterion_of("canny", {}, rows), criterion_of("blur", {}, rows)
    reached = controllability(f1, values, floor, ceiling)
    assert reached is not None and reached.mean == pytest.approx(0.25) and 0 < reached.error < 0.1
    down = controllability(rmse, 1 - values, 1 - floor, 1 - ceiling)
    assert down is not None and down.mean == pytest.approx(reached.mean) and down.error == pytest.approx(reached.error)
    assert controllability(f1, values, ceiling, floor) is None


def test_few_rows_have_a_wide_error() -> None:
    few, many = summary(np.array([0.0, 1.0] * 2)), summary(np.array([0.0, 1.0] * 50))
    assert few.error > 5 * many.error and summary(np.array([0.5])).error == float("inf")
