"""What is held of a picture while a part of it is drawn anew, and what that part starts from."""

from itertools import pairwise

import pytest
import torch

from disegno.diffusion.inpaint import FILLS, Inpaint, inpainting_channels

pytestmark = pytest.mark.unit

LATENTS = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
DRAWN = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
HALF = torch.cat([torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2)], dim=3)
GREY = torch.linspace(0, 1, 4).expand(1, 1, 4, 4)


def test_a_binary_mask_holds_one_side_and_frees_the_other_bit_for_bit() -> None:
    held = Inpaint(LATENTS, HALF).hold(DRAWN, 0.5)
    assert held[:, :, :, :2].equal(LATENTS[:, :, :, :2].expand(2, -1, -1, -1))
    assert held[:, :, :, 2:].equal(DRAWN[:, :, :, 2:])


def test_a_soft_mask_mixes() -> None:
    held = Inpaint(LATENTS, GREY, "soft").hold(DRAWN, 0.0)
    assert torch.allclose(held, LATENTS * (1 - GREY) + DRAWN * GREY)


def test_a_differential_mask_frees_the_lighter_earlier() -> None:
    inpaint = Inpaint(LATENTS, GREY, "differential")
    assert [inpaint.free(p)[0, 0, 0].tolist() for p in (0.0, 0.4, 0.9)] == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    for earlier, later in pairwise([inpaint.free(p / 10) for p in range(10)]):
        assert (later >= earlier).all()
    assert inpaint.finish(DRAWN)[:, :, :, 0].equal(LATENTS[:, :, :, 0].expand(2, -1, -1))
    assert inpaint.finish(DRAWN)[:, :, :, 1:].equal(DRAWN[:, :, :, 1:])


def test_fills_change_the_hole_only() -> None:
    noise = torch.full_like(DRAWN, 7.0)
    for name, fill in FILLS.items():
        found = fill(LATENTS, HALF, noise).expand(2, -1, -1, -1)
        assert found[:, :, :, :2].equal(LATENTS[:, :, :, :2].expand(2, -1, -1, -1))
        expected = {"noise": 7.0, "nothing": 0.0}.get(name)
        if expected is not None:
            assert found[:, :, :, 2:].eq(expected).all()


def test_an_inpainting_net_is_shown_the_mask_first() -> None:
    channels = inpainting_channels(HALF, LATENTS)
    assert channels[:, :1].equal(HALF) and channels[:, 1:].equal(LATENTS)
