"""Large canvases in parts: every cell is covered, and what is the same everywhere shows no seam."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from disegno.engine.tiles import Tiling, Window, averaged, in_parts, windows

pytestmark = pytest.mark.unit


@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 40), st.floats(0, 0.75))
def test_windows_cover_the_canvas_and_share_their_overlap(height: int, width: int, size: int, share: float) -> None:
    overlap = int(size * share)
    found = windows(height, width, size, overlap)
    covered = torch.zeros(height, width)
    for window in found:
        part = window.cut(covered)
        assert part.shape == (min(size, height), min(size, width)) == (window.height, window.width)
        part.add_(1)
    assert covered.min() >= 1
    for starts, length in ((sorted({w.top for w in found}), height), (sorted({w.left for w in found}), width)):
        assert all(b - a <= size - overlap for a, b in pairwise(starts))
        assert starts[0] == 0 and starts[-1] + min(size, length) == length


def test_parts_of_one_whole_are_averaged_to_it() -> None:
    x = torch.randn(2, 3, 30, 50, generator=torch.Generator().manual_seed(0))
    places = windows(30, 50, 16, 4)
    assert torch.allclose(averaged([w.cut(x) for w in places], places, x), x, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 2.0, 1 / 8])
def test_work_in_parts_is_the_work_at_once_where_it_looks_at_nothing_far(scale: float) -> None:
    seen: list[tuple[int, ...]] = []

    def work(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        if scale < 1:
            return F.avg_pool2d(x, round(1 / scale))
        return F.interpolate(x, scale_factor=scale, mode="nearest")

    x = torch.randn(1, 2, 72, 104, generator=torch.Generator().manual_seed(0))
    whole = work(x)
    seen.clear()
    parts = in_parts(work, x, Tiling(32, 8), scale)
    assert torch.allclose(parts, whole, atol=1e-6)
    assert len(seen) > 4 and max(max(size) for size in seen) == 32  # bounded: no part is larger


def test_two_parts_that_differ_meet_without_a_step() -> None:
    """Along the shared cells the result goes evenly from one part's value to the other's."""
    places = windows(8, 24, 16, 8)
    assert places == (Window(0, 0, 8, 16), Window(0, 8, 8, 16))
    line = averaged([torch.zeros(1, 1, 8, 16), torch.ones(1, 1, 8, 16)], places, torch.zeros(8, 24))[0, 0, 4]
    assert line[:8].eq(0).all() and line[16:].eq(1).all()
    steps = line[7:17].diff()
    assert steps.min() > 0 and steps.max() < 0.2


def test_a_small_canvas_is_worked_at_once() -> None:
    x = torch.ones(1, 1, 8, 8)
    assert in_parts(lambda part: part * 2, x, Tiling(8, 2), 1).equal(x * 2)
    assert in_parts(lambda part: part * 2, x, None, 1).equal(x * 2)
