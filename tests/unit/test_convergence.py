"""The verdict on a training, from its looks alone."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disegno.training.base import Look
from disegno.training.convergence import (
    AGREEMENT,
    CEILING,
    CONTROLLABILITY,
    EFFECT,
    ERROR,
    FLOOR,
    LEAST,
    PATIENCE,
    SWAPPED,
    Verdict,
    judge,
    score,
)

pytestmark = pytest.mark.unit


def _look(step: int, value: float, *, error: float = 0.02, loss: float | None = 0.3, **others: float) -> Look:
    figures = {"edge-f1": 0.5 + 0.3 * value, "edge-f1" + FLOOR: 0.5, "edge-f1" + CEILING: 0.8}
    metrics = {CONTROLLABILITY: value, ERROR: error, EFFECT: 0.1, AGREEMENT: 1.3, SWAPPED: -0.4}
    return Look(step, loss, metrics | figures | others)


def _looks(*values: float, **others: float) -> list[Look]:
    return [_look(100 * (i + 1), value, **others) for i, value in enumerate(values)]


def test_a_rising_control_is_learning_and_says_its_figures() -> None:
    verdict = judge(_looks(0.01, 0.2, 0.4))
    assert verdict.state == "learning" and not verdict.converged and verdict.best == 300
    assert "It is learning: at step 300" in verdict.words and "40 % of the way" in verdict.words
    assert "edge-f1 0.62; without the control 0.5, the real pictures 0.8" in verdict.words
    assert "rising" in verdict.words and verdict.reasons == ()


def test_a_control_that_stands_still_has_converged_and_its_best_look_is_named() -> None:
    values = (0.1, 0.5, 0.55, 0.54, 0.56, 0.55, 0.53, 0.5)
    assert not judge(_looks(*values[:-1])).converged
    verdict = judge(_looks(*values))
    assert verdict.converged and verdict.best == 500
    assert "Its best was at step 500; 50 % now." in verdict.words


def test_a_slow_rise_is_still_a_rise() -> None:
    assert judge(_looks(*(0.1 + 0.01 * n for n in range(20)))).state == "learning"


def test_a_control_that_does_nothing_yet_never_converges() -> None:
    verdict = judge(_looks(*[0.0] * 50))
    assert verdict.state == "not-learning" and not verdict.converged and verdict.best is None


def test_sudden_convergence_is_seen_at_once() -> None:
    assert judge(_looks(*[0.0] * 30, 0.6)).state == "learning"


def test_chance_is_not_learning() -> None:
    assert judge(_looks(0.05, 0.04, error=0.04)).state == "early"
    assert judge(_looks(0.09, error=0.04)).state == "learning"
    assert judge(_looks(0.05, 0.09, error=0.04)).state == "early"  # the luckier of two
    assert judge(_looks(0.09, 0.09, error=0.04)).state == "learning"
    assert judge(_looks(0.05, 0.1, error=0.04)).state == "learning"


def test_one_lucky_look_of_many_is_no_convergence() -> None:
    """Of 30 looks at a control that does nothing one is beyond two standard errors in every second training."""
    chance = [0.03, -0.04] * 12
    verdict = judge(_looks(*chance, 0.1, *[0.02] * PATIENCE, error=0.04))
    assert verdict.state == "not-learning" and not verdict.converged
    assert judge(_looks(*chance, 0.2, *[0.02] * PATIENCE, error=0.04)).converged
    assert judge(_looks(*[0.1] * 30, error=0.04)).converged


@pytest.mark.parametrize(
    ("others", "word", "state"),
    [
        ({AGREEMENT: -0.2, SWAPPED: 1.0}, "exchanged", "not-learning"),
        ({AGREEMENT: 0.1}, "not what this annotator draws", "not-learning"),
        ({EFFECT: 0.001}, "does not change the pictures yet", "early"),
        ({}, "not towards the drawings", "early"),
    ],
)
def test_it_says_why_nothing_is_learned(others: dict[str, float], word: str, state: str) -> None:
    verdict = judge(_looks(0.0, 0.0, 0.0, **others))
    assert len(verdict.reasons) == 1 and word in verdict.reasons[0]
    assert verdict.state == state
    assert judge(_looks(*[0.0] * (PATIENCE + 1), **others)).state == "not-learning"


@pytest.mark.parametrize("loss", [0.5, math.inf, math.nan])
def test_a_rising_loss_is_named(loss: float) -> None:
    verdict = judge([_look(1, 0.0), _look(2, 0.0, loss=loss)])
    assert verdict.state == "not-learning" and "learning rate is too high" in verdict.reasons[0]


def test_without_figures_the_loss_decides() -> None:
    def by_loss(*losses: float) -> Verdict:
        return judge([Look(step, loss) for step, loss in enumerate(losses)])

    assert by_loss(0.4).state == "early"
    assert by_loss(0.4, 0.39).state == "learning"
    assert by_loss(0.4, 0.6).state == "not-learning"
    done = by_loss(0.4, 0.2, *[0.2001] * PATIENCE)
    assert done.converged and done.best == 1


def test_nothing_measured_is_no_verdict() -> None:
    assert judge([]).state == "early" and judge([Look(0, None)]).state == "early"


def test_scores_rank_both_kinds_and_leave_out_what_is_no_number() -> None:
    assert score(_look(1, 0.25)) == 0.25
    assert score(Look(1, 0.5)) == -0.5
    assert score(Look(1, math.nan)) is None and score(Look(1, None)) is None


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_it_converges_only_where_the_last_looks_gained_nothing(values: list[float]) -> None:
    verdict = judge(_looks(*values))
    gained = len(values) <= PATIENCE or max(values[-PATIENCE:]) > max(values[:-PATIENCE]) + LEAST
    num_certain = sum(value > 2 * 0.02 for value in values)
    lucky = NormalDist().inv_cdf(1 - NormalDist().cdf(-2) / len(values))
    acts = max(values) > lucky * 0.02 or num_certain >= 2 + len(values) // 20
    assert verdict.converged == (not gained and acts)
    if verdict.best is not None:
        assert values[verdict.best // 100 - 1] == max(values)


def test_what_cannot_be_measured_is_said_and_the_loss_decides_the_rest() -> None:
    def look(step: int, **others: float) -> Look:
        metrics = dict(_look(step, 0.5, **others).metrics)
        del metrics[CONTROLLABILITY]
        return Look(step, 0.5 - step / 1000, metrics)

    verdict = judge([look(100), look(200)])
    assert verdict.state == "not-learning" and "cannot be measured" in verdict.reasons[0] and verdict.best == 200
    swapped = judge([look(100, **{AGREEMENT: -0.2, SWAPPED: 1.0})])
    assert len(swapped.reasons) == 1 and "exchanged" in swapped.reasons[0]


def test_without_an_error_nothing_is_certain() -> None:
    metrics = {CONTROLLABILITY: 0.9, "edge-f1": 0.7, "edge-f1" + FLOOR: 0.5, "edge-f1" + CEILING: 0.8}
    assert judge([Look(100, 0.3, metrics)]).state == "early"
