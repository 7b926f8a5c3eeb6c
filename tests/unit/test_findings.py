"""What an evaluation's figures are called in words."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from disegno.core.evaluate import EvaluateRequest
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


def _found(levels: dict[str, Sequence[int]], request: EvaluateRequest = REQUEST) -> Evaluation:
    """Return an evaluation of grey pictures that should have been REAL_GREY; what is measured is RMSE."""
    rows = tuple(Row(str(n), "", _grey(100), _grey(REAL_GREY), n) for n in range(len(levels[CONTROL])))
    criterion = Criterion("grey", MEASURES["rmse"], None)
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
    assert found.scores[0].name == "psnr"
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


def test_of_two_pairs_no_error_is_known_and_nothing_is_claimed() -> None:
    found = _found({CONTROL: [180] * 2, AGAINST: [150] * 2, WITHOUT: [100] * 2, REAL: [200] * 2})
    assert judged(found)[0] == "not-learning"
    assert rows_of_table(found)[1][0][1] == "0.0784"
    said = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert said["scores"]["rmse-to-real"]["ways"][CONTROL] == {"mean": pytest.approx(20 / 255), "error": None}
