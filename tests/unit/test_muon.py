"""Muon: matrices move as torch's own Muon moves them, all else as its AdamW."""

import pytest
import torch
from torch import Tensor, nn

from disegno.training.muon import Muon, is_matrix, orthogonalised

pytestmark = pytest.mark.unit

RATE, DECAY = 3e-3, 0.1


def _steps(parameter: nn.Parameter, optimiser: torch.optim.Optimizer, count: int = 12) -> Tensor:
    """Return the weight after some steps of gradients that lead to one target."""
    target = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        (parameter - target).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return parameter.detach()


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48)])
def test_a_matrix_moves_as_by_torchs_muon(shape: tuple[int, int]) -> None:
    ours, theirs = _drawn(*shape), _drawn(*shape)
    found = _steps(ours, Muon([ours], RATE, DECAY))
    wanted = _steps(theirs, torch.optim.Muon([theirs], RATE, DECAY, adjust_lr_fn="match_rms_adamw"))
    moved = (wanted - _drawn(*shape).detach()).norm()
    assert (found - wanted).norm() < 0.03 * moved  # both round to bfloat16, each in its own order


def test_a_convolution_moves_as_the_matrix_of_its_filters() -> None:
    filters, matrix = _drawn(32, 8, 3, 3), _drawn(32, 72)
    goal = torch.randn(32, 72, generator=torch.Generator().manual_seed(1))
    for parameter in (filters, matrix):
        optimiser = Muon([parameter], RATE, DECAY)
        for _ in range(5):
            (parameter.reshape(32, 72) - goal).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    assert torch.equal(filters.detach().reshape(32, 72), matrix.detach())


@pytest.mark.parametrize("shape", [(64,), (8, 100), (100, 8), (4, 64, 3, 3), ()])
def test_what_is_no_thick_matrix_moves_as_by_adamw(shape: tuple[int, ...]) -> None:
    assert not is_matrix(torch.zeros(shape))
    ours, theirs = _drawn(*shape), _drawn(*shape)
    found = _steps(ours, Muon([ours], RATE, DECAY))
    torch.testing.assert_close(found, _steps(theirs, torch.optim.AdamW([theirs], RATE, weight_decay=DECAY)))


@pytest.mark.parametrize("shape", [(3, 64, 32), (2, 16, 256)])
def test_all_directions_become_about_as_long(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 50  # one direction is much longer than the others
    lengths = torch.linalg.svdvals(orthogonalised(x).float())
    assert lengths.min() > 0.4 and lengths.max() < 1.3
    assert torch.linalg.svdvals(x)[0, 0] / torch.linalg.svdvals(x)[0, -1] > 50


def test_several_of_one_shape_move_as_each_alone_would() -> None:
    together = [_drawn(32, 40), nn.Parameter(_drawn(32, 40).detach() * 2), nn.Parameter(_drawn(32, 40).detach() + 1)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    _optimise(Muon(together, RATE, DECAY), together)
    for parameter in alone:
        _optimise(Muon([parameter], RATE, DECAY), [parameter])
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def _optimise(optimiser: Muon, parameters: list[nn.Parameter]) -> None:
    for _ in range(4):
        torch.stack([(p - 3).square().sum() + (p**4).sum() / 50 for p in parameters]).sum().backward()
        optimiser.step()
        optimiser.zero_grad()


def test_a_weight_without_a_gradient_stays() -> None:
    still, moved = _drawn(32, 32), _drawn(32, 32)
    moved.square().sum().backward()
    Muon([still, moved], RATE, DECAY).step()
    assert torch.equal(still, _drawn(32, 32)) and not torch.equal(moved, _drawn(32, 32))
