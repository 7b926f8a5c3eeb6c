"""What an evaluation's figures are called in words."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from disegno.core.evaluate import EvaluateRequest
from disegno.training.base import Picture
from disegno.training.data.dataset import Maker
from disegno.training.evaluation import Evaluation
from disegno.training.findings import judged, rows_of_table, to_json
from disegno.training.measures import MEASURES
from disegno.training.redraw import Criterion, Row
from disegno.training.scores import AGAINST, CONTROL, GIVEN, REAL, WITHOUT, Measuring, scores_of

pytestmark = pytest.mark.unit

REAL_GREY = 200
REQUEST = EvaluateRequest(control="mine/palette.safetensors", data="pairs", against="other")


def _grey(level: int) -> np.ndarray:
    return np.full((16, 16, 3), level, np.uint8)


class Negative:
    """Makes a condition from a picture."""

    identity = "negative"

    def prepare(self) -> None: ...

    def __call__(self, picture: Picture) -> Picture:
        return 255 - picture


RMSE = Criterion("grey", MEASURES["rmse"], None)


def _found(
    levels: dict[str, Sequence[int]], request: EvaluateRequest = REQUEST, criterion: Criterion = RMSE
) -> Evaluation:
    """Return an evaluation of grey pictures that should have been REAL_GREY; what is measured is RMSE."""
    rows = tuple(Row(str(n), "", _grey(100), _grey(REAL_GREY), n) for n in range(len(levels[CONTROL])))
    ways = {way: tuple((_grey(level),) for level in each) for way, each in levels.items()}
    scores = scores_of(Measuring(request.restore, None, None, None), criterion, rows, ways)
    return Evaluation(request, criterion, rows, ways, scores, 1.0, ("a note",), {}, 1.0)


WITHOUT_AND_REAL = {WITHOUT: [100, 110, 90, 100, 105, 95], REAL: [200, 199, 200, 200, 200, 198]}


def test_a_control_that_is_followed_and_beats_another() -> None:
    ways = {CONTROL: [180, 185, 175, 180, 185, 180], AGAINST: [150, 150, 145, 150, 155, 150]}
    state, words = judged(_found(ways | WITHOUT_AND_REAL))
    assert state == "learning"
    assert words.startswith("Pictures drawn with palette follow their drawings 81 % of the way")
    assert "It does so better than other, by 0.12" in words


def test_a_control_that_is_not_followed() -> None:
    ways = {CONTROL: [101, 108, 91, 100, 104, 96], AGAINST: [100, 109, 90, 102, 104, 95]}
    state, words = judged(_found(ways | WITHOUT_AND_REAL))
    assert state == "not-learning" and "no better than without it" in words
    assert "no difference can be told from 6 pairs" in words


def test_a_measure_that_cannot_tell() -> None:
    same = [150, 151, 149, 150, 150, 150]
    state, words = judged(_found({CONTROL: same, AGAINST: same, WITHOUT: same, REAL: same[::-1]}))
    assert state == "early" and "cannot be told by this measure" in words


@pytest.mark.parametrize(
    ("level", "state", "word"), [(198, "learning", "are nearer"), (120, "not-learning", "not nearer")]
)
def test_mended_pictures_are_compared_with_what_was_given(level: int, state: str, word: str) -> None:
    request = EvaluateRequest(control="mend", data="pairs", restore=True)
    ways = {CONTROL: [level, level + 1, level, level - 1, level, level], GIVEN: [160, 161, 159, 160, 160, 160]}
    found = _found(ways | WITHOUT_AND_REAL, request)
    assert found.scores[0].name == "psnr-to-real"
    assert judged(found)[0] == state and word in judged(found)[1]


def test_the_table_and_the_json_hold_every_way() -> None:
    ways = {CONTROL: [180, 185, 175, 180, 185, 180], AGAINST: [150, 150, 145, 150, 155, 150]}
    found = _found(ways | WITHOUT_AND_REAL)
    head, lines = rows_of_table(found)
    assert head == ["", "palette", "other", "without", "real, by the VAE"]
    assert lines[0][0] == "RMSE with the real picture ↓" and lines[1][1].startswith("81 % ±") and lines[1][3] == ""
    said = json.loads(json.dumps(to_json(found)))
    assert said["works"] and said["scores"]["rmse-to-real"]["ways"].keys() == {CONTROL, AGAINST, WITHOUT, REAL}
    assert said["pairs"][0]["values"]["rmse-to-real"][CONTROL] == pytest.approx(20 / 255) and said["notes"] == [
        "a note"
    ]


@pytest.mark.parametrize("measure", ["ssim", "psnr"])
def test_a_measure_that_the_restored_pictures_have_too_has_another_name(measure: str) -> None:
    """The condition's own measure compares two drawings; of what is restored, picture and truth are compared."""
    request = EvaluateRequest(control="mend", data="pairs", restore=True)
    ways = {CONTROL: [190] * 3, GIVEN: [160] * 3, WITHOUT: [100, 110, 90], REAL: [200] * 3}

    def names(make: Maker | None) -> list[str]:
        scores = _found(ways, request, Criterion("tile", MEASURES[measure], make)).scores
        return [score.name for score in scores if score.name != "controllability"]

    assert names(Negative()) == ["psnr-to-real", "ssim-to-real", measure]
    assert names(None) == ["psnr-to-real", "ssim-to-real"]


def test_two_restoring_controls_are_compared_by_the_score_of_the_verdict() -> None:
    """By PSNR the other one is better by far, by SSIM it is worse."""
    request = EvaluateRequest(control="mend", data="pairs", restore=True, against="other")
    ways = {CONTROL: [198] * 4, AGAINST: [199] * 4, GIVEN: [160] * 4, WITHOUT: [100] * 4, REAL: [200] * 4}
    found = _found(ways, request)
    psnr, ssim, *others = found.scores
    worse = {way: 1 - values for way, values in ssim.rows.items()}
    changed = replace(found, scores=(psnr, replace(ssim, rows=worse), *others))
    assert "It does so worse than other" in judged(found)[1]
    assert "It does so better than other" in judged(changed)[1]


@pytest.mark.parametrize("restore", [False, True])
def test_of_two_pairs_no_error_is_known_and_nothing_is_claimed(restore: bool) -> None:
    request = replace(REQUEST, restore=restore)
    ways = {CONTROL: [180] * 2, AGAINST: [150] * 2, WITHOUT: [100] * 2, REAL: [200] * 2, GIVEN: [150] * 2}
    state, words = judged(_found(ways, request))
    assert state == "early" and "2 pairs are too few to tell" in words and "no difference can be told" in words


def test_the_json_of_two_pairs_has_no_error() -> None:
    found = _found({CONTROL: [180] * 2, AGAINST: [150] * 2, WITHOUT: [100] * 2, REAL: [200] * 2})
    assert rows_of_table(found)[1][0][1] == "0.0784"
    said = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert said["scores"]["rmse-to-real"]["ways"][CONTROL] == {"mean": pytest.approx(20 / 255), "error": None}
