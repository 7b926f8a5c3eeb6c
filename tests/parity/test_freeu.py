"""FreeU against the authors' code as they describe it, wherever a UNet's decoder joins a skip connection."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets import unet_2d_blocks
from torch import Tensor

from disegno.backbones import miniature, miniature_sd3, sd1, sd3
from disegno.backbones._freeu import check_joins, joining, smoothed
from disegno.core.errors import RequestError
from disegno.core.freeu import FreeU
from disegno.core.request import Request, make_request
from disegno.diffusion.call import Joins, Row
from disegno.engine.guiding import check_guide, joins_of
from disegno.memory import FULL_PRECISION, Memory

pytestmark = pytest.mark.parity

ROW = Row(0, True, "a", 0.5)
NEW, OLD = Joins((1.3, 1.4), (0.9, 0.2)), Joins((1.1, 1.2), (0.8, 0.3), adapts=False)
SIZES: dict[str, dict[str, Any]] = {
    "as Stable Diffusion 1": {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 2},
    "as SDXL": {"block_out_channels": (32, 64, 128), "layers_per_block": 2},
    "of two levels": {"block_out_channels": (32, 64), "layers_per_block": 1},
}


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=SIZES)
def net(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return _net(**SIZES[request.param])


def _net(**sizes: Any) -> UNet2DConditionModel:
    num = len(sizes["block_out_channels"])
    down = ("CrossAttnDownBlock2D", *("DownBlock2D",) * (num - 1))
    up = (*("UpBlock2D",) * (num - 1), "CrossAttnUpBlock2D")
    known = {"norm_num_groups": 8, "cross_attention_dim": 16, "attention_head_dim": 4}
    net = UNet2DConditionModel(down_block_types=down, up_block_types=up, **known, **sizes)
    return net.eval().requires_grad_(False)


def _plain(x: Tensor, factor: float) -> Tensor:
    """The authors' filter: the middle four of the centred transform are multiplied."""
    seen = torch.fft.fftshift(torch.fft.fftn(x, dim=(-2, -1)), dim=(-2, -1))
    mask, row, column = torch.ones_like(seen), x.shape[-2] // 2, x.shape[-1] // 2
    mask[..., max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1] = factor
    return torch.fft.ifftn(torch.fft.ifftshift(seen * mask, dim=(-2, -1)), dim=(-2, -1)).real


@contextmanager
def _authors(narrowest: int, joins: Joins, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Within, diffusers' decoder joins as the authors' code does, which looks at the number of channels."""
    cat: Callable[..., Tensor] = torch.cat

    def joined(parts: Any, dim: int = 0) -> Tensor:
        if len(parts) != 2 or dim != 1 or parts[0].ndim != 4:
            return cat(parts, dim=dim)
        own, skip = parts[0].clone(), parts[1]
        for level, width in enumerate((4 * narrowest, 2 * narrowest)):
            if own.shape[1] == width:
                factor, half = joins.own[level], width // 2
                mean = own.mean(1).unsqueeze(1)
                most, least = mean.flatten(1).amax(-1), mean.flatten(1).amin(-1)
                mean = (mean - least[:, None, None, None]) / (most - least)[:, None, None, None]
                own[:, :half] = own[:, :half] * (((factor - 1) * mean + 1) if joins.adapts else factor)
                skip = _plain(skip, joins.skips[level])
        return cat([own, skip], dim=1)

    with monkeypatch.context() as patched:
        patched.setattr(unet_2d_blocks.torch, "cat", joined)
        yield


def _out(net: UNet2DConditionModel, x: Tensor) -> Tensor:
    text = _noise(len(x), 3, net.config["cross_attention_dim"], seed=2)
    return net(x, torch.tensor([300.0]).expand(len(x)), encoder_hidden_states=text).sample


@pytest.mark.parametrize("joins", [NEW, OLD], ids=["version 2", "version 1"])
def test_every_join_is_the_authors(net: UNet2DConditionModel, joins: Joins, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _noise(2, 4, 16, 24)
    with _authors(32, joins, monkeypatch):
        theirs = _out(net, x)
    with joining(net, (replace(ROW, joins=joins),) * 2):
        ours = _out(net, x)
    assert torch.allclose(ours, theirs, atol=2e-5)
    assert not torch.allclose(ours, _out(net, x), atol=1e-3), "and it changes something"


def test_each_row_joins_as_it_says_and_afterwards_none_does(net: UNet2DConditionModel) -> None:
    x, plain = _noise(3, 4, 16, 16), _out(net, _noise(3, 4, 16, 16))
    alone = []
    for joins in (NEW, OLD):
        with joining(net, (replace(ROW, joins=joins),) * 3):
            alone.append(_out(net, x))
    with joining(net, (replace(ROW, joins=NEW), ROW, replace(ROW, joins=OLD))):
        mixed = _out(net, x)
    torch.testing.assert_close(mixed, torch.stack([alone[0][0], plain[1], alone[1][2]]), atol=1e-6, rtol=0)
    assert torch.equal(_out(net, x), plain)


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (2, 3), (1, 1), (1, 4)])
def test_the_low_frequencies_are_those_of_the_transform(size: tuple[int, int]) -> None:
    x = _noise(2, 3, *size)
    torch.testing.assert_close(smoothed(x, 0.2), _plain(x, 0.2), atol=1e-6, rtol=0)
    torch.testing.assert_close(smoothed(x.bfloat16(), 0.2), _plain(x.bfloat16().float(), 0.2), atol=1e-6, rtol=0)


def test_it_acts_in_its_share_of_the_steps_and_by_its_strength() -> None:
    freeu = FreeU(start=0.2, end=0.8)
    assert [joins_of(freeu, progress) is None for progress in (0.0, 0.2, 0.5, 0.8)] == [True, True, False, True]
    assert joins_of(FreeU(), 0.0) == NEW and joins_of(FreeU(version=1), 0.9) == replace(NEW, adapts=False)
    half = joins_of(FreeU(strength=0.5), 0.0)
    assert half is not None
    assert half.own == pytest.approx((1.15, 1.2)) and half.skips == pytest.approx((0.95, 0.6))
    assert joins_of(None, 0.0) is None and joins_of(FreeU(strength=0), 0.0) is None
    with pytest.raises(RequestError, match=r"freeu.*start must lie before end"):
        make_request({"prompt": "a", "freeu": {"start": 0.5, "end": 0.5}})


def test_a_model_that_has_no_such_levels_says_so(tmp_path: Any) -> None:
    request = Request(prompt="a", freeu=FreeU())
    check_guide(request, sd1.open(miniature.write_sd1_folder(tmp_path / "one"), Memory(FULL_PRECISION)))
    with pytest.raises(RequestError, match="freeu is for models with a UNet"):
        check_guide(request, sd3.open(miniature_sd3.write_folder(tmp_path / "three"), Memory(FULL_PRECISION)))
    flat = _net(block_out_channels=(32, 32), layers_per_block=1)
    with pytest.raises(RequestError, match="flat has none"):
        check_joins(flat, "flat")
