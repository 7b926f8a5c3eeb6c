"""The few steps of the built-in model: where one step should arrive."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from recipes.diorama.few import STEPS, SUBSTEPS, arrival, levels_of  # isort: skip

pytestmark = pytest.mark.unit
SIGMAS = torch.linspace(-3.5, 8.4, 1000, dtype=torch.float64).exp()
LEVELS = torch.tensor(levels_of(len(SIGMAS)))
X = torch.randn(STEPS, 4, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_the_levels_part_the_table() -> None:
    assert levels_of(1000) == [249, 499, 749, 999]


def test_one_step_arrives_where_the_teachers_do() -> None:
    seen: list[int] = []

    def guided(x: Tensor, sigma: Tensor, level: Tensor) -> Tensor:
        assert torch.equal(sigma, SIGMAS[level])
        seen.append(len(seen))
        return torch.tanh(x / (1 + sigma.view(-1, 1, 1, 1))) + 0.1 * len(seen)

    x0 = arrival(guided, X, LEVELS, SIGMAS)
    assert len(seen) == SUBSTEPS

    seen.clear()
    x = X
    path = [LEVELS - k * 250 // SUBSTEPS for k in range(SUBSTEPS + 1)]
    for here, there in pairwise(path):
        to = torch.where(there < 0, 0, SIGMAS[there.clamp(min=0)])
        estimate = guided(x, SIGMAS[here], here)
        x = estimate + (to / SIGMAS[here]).view(-1, 1, 1, 1) * (x - estimate)
    to = torch.where(path[-1] < 0, 0, SIGMAS[path[-1].clamp(min=0)])
    once = x0 + (to / SIGMAS[LEVELS]).view(-1, 1, 1, 1) * (X - x0)
    assert torch.allclose(once, x, atol=1e-10)
    assert path[-1].tolist() == [-1, 249, 499, 749]


def test_a_teacher_that_knows_the_picture_is_believed() -> None:
    picture = torch.full_like(X, 0.7)
    assert torch.allclose(arrival(lambda *_: picture, X, LEVELS, SIGMAS), picture, atol=1e-10)
