"""AdamW on 8-bit moments: as good as torch's own, at a quarter of the memory."""

import pytest
import torch
from torch import Tensor, nn

from disegno.training.adamw8bit import BLOCK, SMALLEST, AdamW8bit, codebook, pack, unpack

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("signed", [True, False])
def test_the_codes_rise_and_reach_from_almost_nothing_to_one(signed: bool) -> None:
    book = codebook(signed)
    assert len(book) == 256 and (book[1:] > book[:-1]).all() and book[-1] == 1
    assert (0 in book.tolist()) == signed and book[book > 0].min() < 1e-6


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(BLOCK * 3,), (7, 100), (1,), (3, 5, 2)])
def test_what_is_packed_comes_back_nearly(signed: bool, shape: tuple[int, ...]) -> None:
    """Each block by its own scale: a block of small numbers beside one of large ones loses nothing."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, shape[-1])
    values = values if signed else values.square()
    codes, scales = pack(values, signed)
    assert codes.dtype == torch.uint8 and codes.numel() == values.numel()
    error = (unpack(codes, scales, signed, values.shape) - values).abs().flatten()
    largest = scales.repeat_interleave(BLOCK)[: values.numel()]
    assert (error <= 0.013 * largest).all()  # half of the widest distance of two codes, and bfloat16's rounding


def test_zeros_stay_zeros() -> None:
    for signed in (True, False):
        assert not unpack(*pack(torch.zeros(1000), signed), signed, torch.Size([1000])).any()


def _learned(kind: type[torch.optim.Optimizer]) -> tuple[Tensor, float]:
    """Return the weights and the last losses after 300 steps; the first weight is large, the last one small."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(n, m, generator=generator) / 12) for n, m in ((64, 256), (256, 64), (8, 8))]
    truth = torch.randn(64, 64, generator=generator)
    optimiser, losses = kind(weights, lr=3e-3, weight_decay=0.01), []
    for _ in range(300):
        x = torch.randn(32, 64, generator=generator)  # b n
        made = torch.tanh(x @ weights[0]) @ weights[1]
        made = torch.cat([made[:, :8] @ weights[2], made[:, 8:]], 1)
        loss = (made - x @ truth).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return torch.cat([w.detach().flatten() for w in weights]), sum(losses[-50:]) / 50


def test_it_learns_as_torchs_own() -> None:
    """bitsandbytes 0.50's AdamW8bit ends in the same test at the same loss and as far from the 32-bit weights."""
    wanted, loss = _learned(torch.optim.AdamW)
    found, own_loss = _learned(AdamW8bit)
    assert abs(own_loss / loss - 1) < 0.02  # measured: 0.2 %
    assert (found - wanted).norm() < 0.05 * wanted.norm()  # measured: 0.02


def test_moments_take_two_bytes_a_weight() -> None:
    weights = [nn.Parameter(torch.ones(300, 200)), nn.Parameter(torch.ones(SMALLEST - 1))]
    optimiser = AdamW8bit(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    sizes = [
        sum(t.numel() * t.itemsize for t in optimiser.state[weight].values() if isinstance(t, Tensor))
        for weight in weights
    ]
    assert sizes[0] / weights[0].numel() < 2.05 and sizes[1] == 8 * weights[1].numel()
