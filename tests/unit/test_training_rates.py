"""The range test of learning rates: it suggests one that learns, says so, and leaves the learner as it was."""

import pytest
import torch

from disegno.training.rates import Rates, Tried, find_rate, suggest, table
from kit import tiny_training as tiny

pytestmark = pytest.mark.unit


def _found(lesson: tiny.Lesson) -> Rates:
    measuring = find_rate(lesson)
    try:
        while True:
            next(measuring)
    except StopIteration as end:
        return end.value


def test_a_rate_is_found_that_learns_and_one_that_runs_away() -> None:
    lesson = tiny.lesson(tiny.request(rate=0.01))
    before = lesson.learner.module.first.detach().clone()
    found = _found(lesson)
    assert torch.equal(lesson.learner.module.first, before)
    assert found.suggestion is not None and 0.003 < found.suggestion < 0.2
    assert found.tried[0].fall < 0.1 < max(one.fall for one in found.tried)
    assert not found.tried[-1].fall > 0  # a hundred times as much is too much
    text = table(found, lesson.request)
    assert f"--rate {found.suggestion:.1e}" in text and len(text.splitlines()) == len(found.tried) + 2


def test_the_lowest_of_equals_is_suggested_and_chance_is_not() -> None:
    tried = [Tried(1e-5, 0.01, 0.02), Tried(1e-4, 0.19, 0.02), Tried(1e-3, 0.20, 0.02), Tried(1e-2, float("nan"), 0.1)]
    assert suggest(tried) == 1e-4
    assert suggest(tried[:1]) is None and suggest([]) is None
    assert "beyond chance" in table(Rates(1.0, tuple(tried[:1]), None), tiny.request())
