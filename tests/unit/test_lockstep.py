"""A UNet walked block by block is the UNet: the same bits, whatever the size, with residuals and without."""

import pytest
import torch
from torch import Tensor

from disegno.backbones._lockstep import evaluate
from disegno.backbones.miniature import SD1, Miniature, open_miniature
from disegno.diffusion.call import Call, Residuals, Row, Stream, Suffix

pytestmark = pytest.mark.unit

MADE = {"plain": SD1, "no attention below": Miniature(unet={"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")})}  # fmt: skip


def _residuals(x: Tensor, num: int, generator: torch.Generator) -> Residuals:
    """Return residuals of the miniature's shapes for x."""
    b, _, h, w = x.shape
    small = (b, 64, -(-h // 2), -(-w // 2))
    shapes = [(b, 32, h, w), (b, 32, h, w), (b, 32, *small[2:]), small]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return Residuals(tuple(drawn[:num]), torch.randn(small, generator=generator))


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
@pytest.mark.parametrize("with_residuals", [False, True])
def test_the_same_bits(made: Miniature, size: tuple[int, int], with_residuals: bool) -> None:
    net, generator = open_miniature(made=made).net, torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 4, *size, generator=generator), torch.tensor([900.0, 20.0])
    tokens = torch.randn(2, 7, 32, generator=generator)
    own = _residuals(x, 4, generator) if with_residuals else None
    with torch.inference_mode():
        there = net(
            x, t, tokens, return_dict=False,
            down_block_additional_residuals=own and own.down, mid_block_additional_residual=own and own.mid,
        )[0]  # fmt: skip
        assert torch.equal(evaluate(net, x, t, tokens, own), there)


def _call(num: int = 3) -> Call:
    rows = tuple(Row(i, True, str(i), 0.0) for i in range(num))
    tokens = torch.arange(float(num)).reshape(num, 1, 1).expand(num, 2, 1)
    return Call(torch.zeros(num, 1, 1, 1), torch.zeros(num), tokens, rows, net=_told)


def _told(call: Call) -> Tensor:
    """A net that gives the sum of a row's tokens, and what the streams add, for each row."""
    out = call.tokens.sum(dim=(1, 2)).reshape(-1, 1, 1, 1)
    for stream in call.streams:
        out = out.index_add(0, stream.rows, stream.weigh(0, torch.ones(len(stream.rows), 1, 1, 1)))
    return out


def test_suffixes_are_read_by_their_rows_only() -> None:
    suffix = Suffix(torch.full((1, 1), 10.0), "a")
    call = _call()
    own = Call(call.x, call.t, call.tokens, call.rows, call.net, suffixes=((suffix, suffix.scaled(0.5)), (), (suffix,)))
    assert own.num_suffixed == (2, 0, 1)
    assert own.run().flatten().tolist() == [15.0, 2.0, 14.0]


def test_streams_stay_with_their_rows_when_a_call_is_read_in_parts() -> None:
    suffix = Suffix(torch.full((1, 1), 10.0), "a")
    weights = torch.tensor([1.0, 100.0]).reshape(2, 1, 1, 1)
    stream = Stream(lambda *_: pytest.fail("not begun here"), torch.tensor([0, 2]), 1, lambda _, x: x * weights)
    call = _call()
    own = Call(call.x, call.t, call.tokens, call.rows, call.net, suffixes=((suffix,), (), ()), streams=(stream,))
    assert own.run().flatten().tolist() == [11.0, 2.0, 104.0]
