"""The range test of learning rates: it suggests one that learns, says so, and leaves the learner as it was."""

import json
from collections.abc import Generator
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from disegno.cli.main import main
from disegno.core.errors import ResourceError
from disegno.core.teach import TeachRequest
from disegno.training.base import Batch, TeachProgress
from disegno.training.batches import Reader
from disegno.training.lesson import Habits
from disegno.training.rates import Rates, Tried, find_rate, suggest, table, to_json
from kit import tiny_training as tiny
from kit.apple import Apple

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


def test_without_memory_for_a_step_it_says_so_in_place_of_zeros() -> None:
    class Hungry(tiny.TinyNet):
        def forward(self, batch: Batch, turn: str) -> Tensor:
            if self.training:
                torch.empty(1 << 60)  # more than any machine has
            return super().forward(batch, turn)

    with pytest.raises(ResourceError, match="no rate can be measured"):
        _found(tiny.lesson(tiny.request(rate=0.01), tiny.TinyLearner(Hungry())))


def test_it_needs_no_float64_on_the_device() -> None:
    class OnApple(tiny.TinyNet):
        def forward(self, batch: Batch, turn: str) -> Tensor:
            losses = super().forward(batch, turn)
            return losses if self.training else losses.as_subclass(Apple)

    asked = tiny.request(rate=0.01)
    on_apple = _found(tiny.lesson(asked, tiny.TinyLearner(OnApple())))
    assert on_apple.tried == _found(tiny.lesson(asked)).tried


def test_the_lowest_of_equals_is_suggested_and_chance_is_not() -> None:
    tried = [Tried(1e-5, 0.01, 0.02), Tried(1e-4, 0.19, 0.02), Tried(1e-3, 0.20, 0.02), Tried(1e-2, float("nan"), 0.1)]
    assert suggest(tried) == 1e-4
    assert suggest(tried[:1]) is None and suggest([]) is None
    assert "beyond chance" in table(Rates(1.0, tuple(tried[:1]), None), tiny.request())


def test_the_json_has_a_null_where_a_rate_ran_away() -> None:
    found = Rates(1.0, (Tried(1e-4, 0.19, 0.02), Tried(1e-2, float("nan"), float("inf"))), 1e-4)
    said = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert said["suggestion"] == 1e-4 and said["tried"][0] == {"rate": 1e-4, "fall": 0.19, "error": 0.02}
    assert said["tried"][1] == {"rate": 1e-2, "fall": None, "error": None}


def test_the_command_prints_json_reads_ahead_and_refuses_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Habits] = []
    workers: list[int] = []

    def open_fitting(asked: TeachRequest, *others: Any) -> Generator[TeachProgress, None, tuple[tiny.Lesson, None]]:
        heard.append(others[-1])
        yield TeachProgress(0, asked.steps, "opening")
        return tiny.lesson(asked), None

    def reader(*given: Any, **more: Any) -> Reader:
        workers.append(given[3])
        return Reader(*given, **more)

    monkeypatch.setattr("disegno.training.teach.open_fitting", open_fitting)
    monkeypatch.setattr("disegno.training.rates.Reader", reader)
    words = ["teach", "x", "--data", "rows", "--rate", "0.01", "--batch", "2", "--find-rate", "--json"]
    done = CliRunner().invoke(main, [*words, "--workers", "3", "--try-anyway"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["suggestion"] > 0
    assert (heard[0].workers, heard[0].refuses, set(workers)) == (3, False, {3})
