"""The order of the data: a pure function of seed and step, fair, of one task and shape a step."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disegno.core.errors import RequestError
from disegno.training.base import row_seed
from disegno.training.batches import Reader, held_out, parts
from disegno.training.order import Order, order_of
from disegno.training.processes import Processes
from kit.tiny_training import Rows

pytestmark = pytest.mark.unit

TASKS = ("canny", "depth", "pose")


def _order(*sizes: int, rows: int = 1, seed: int = 0) -> Order:
    ends = np.cumsum([0, *sizes])
    return Order(seed, rows, {"": tuple(np.arange(a, b) for a, b in pairwise(ends))})


def test_an_epoch_of_single_rows_takes_each_once() -> None:
    order = _order(10, 3, 7)
    for epoch in range(3):
        steps = range(20 * epoch, 20 * epoch + 20)
        assert sorted(row for step in steps for row in order.rows(step)) == list(range(20))
    assert [order.rows(step) for step in range(20)] != [order.rows(step) for step in range(20, 40)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 2**63 - 1))
def test_every_row_is_seen_equally_often(sizes: list[int], rows: int, seed: int) -> None:
    """Over the steps in which every shape's stream ends a permutation, no row has been seen more than another."""
    order = _order(*sizes, rows=rows, seed=seed)
    steps = sum(sizes)  # each shape takes `size` of them, which is `rows` of its permutations
    seen = Counter(row for step in range(steps) for row in order.rows(step))
    assert set(seen.values()) == {rows} and len(seen) == sum(sizes)


def test_a_step_has_one_task_and_one_shape_and_a_round_has_every_task() -> None:
    examples = Rows(count=60, tasks=TASKS)
    order = order_of(examples, seed=3, num_rows=4)
    rounds = [tuple(order.task(step) for step in range(3 * n, 3 * n + 3)) for n in range(40)]
    assert all(set(one) == set(TASKS) for one in rounds) and len(set(rounds)) == 6
    for step in range(60):
        rows = order.rows(step)
        assert {examples.task(row) for row in rows} == {order.task(step)}
        assert len({examples.shape(row) for row in rows}) == 1


def test_any_step_can_be_asked_for_first_and_a_seed_decides() -> None:
    forward = [_order(11, 4, rows=3).rows(step) for step in range(50)]
    assert [_order(11, 4, rows=3).rows(step) for step in reversed(range(50))] == forward[::-1]
    assert [_order(11, 4, rows=3, seed=1).rows(step) for step in range(50)] != forward


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(RequestError, match="no pair is left"):
        order_of(Rows(0), 0, 1)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_reading_ahead_and_sharing_out_change_nothing(workers: int) -> None:
    """However many threads and processes read, and wherever they begin, the rows and their seeds are the same."""
    order = order_of(Rows(), 7, 4)
    alone, halves = (
        [Reader(Rows(), order, Processes(rank, count), workers) for rank in range(count)] for count in (1, 2)
    )
    for step in (5, 6, 7, 2):
        whole, *_ = (reader.read(step, 8) for reader in alone)
        both = [reader.read(step, 8) for reader in halves]
        assert whole.seeds == both[0].seeds + both[1].seeds == tuple(row_seed(7, step, place) for place in range(4))
        assert whole.rows["x"].equal(torch.cat([half.rows["x"] for half in both]))
    for reader in (*alone, *halves):
        reader.close()


def test_a_batch_goes_through_in_parts() -> None:
    reader = Reader(Rows(), order_of(Rows(), 0, 5), workers=0)
    whole = reader.read(0, 1)
    cut = list(parts(whole, 2))
    assert [len(part.seeds) for part in cut] == [2, 2, 1]
    assert whole.rows["y"].equal(torch.cat([part.rows["y"] for part in cut]))


def test_held_out_rows_are_always_the_same() -> None:
    first, again = (list(held_out(Rows(9), range(9), 0, 4, torch.device("cpu"))) for _ in range(2))
    assert sorted(seed for batch in first for seed in batch.seeds) == sorted(row_seed(0, -1, i) for i in range(9))
    assert all(a.rows["x"].equal(b.rows["x"]) for a, b in zip(first, again, strict=True))
