"""The residual cache: bounded by bytes, and a shared control gives what it would give unshared, bit for bit."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from disegno.diffusion.call import Call, Residuals, Row
from disegno.diffusion.told import Told
from disegno.engine.residuals import ResidualCache, Shared

pytestmark = pytest.mark.unit


def _residuals(num_rows: int, value: float = 1.0) -> Residuals:
    return Residuals((torch.full((num_rows, 2, 4, 4), value),), torch.full((num_rows, 2, 2, 2), value))


@dataclass
class Counting:
    """A control whose residuals depend on t and the text, and which counts how many rows it was asked for."""

    key: str = "k"
    sees_x: bool = False
    positive_only: bool = False
    asked: list[int] = field(default_factory=list[int])

    def __call__(self, call: Call) -> Call:
        self.asked.append(len(call.rows))
        value = (call.t + call.tokens.sum((1, 2)))[:, None, None, None]
        return replace(
            call, residuals=Residuals((value.expand(-1, 2, 4, 4).clone(),), value.expand(-1, 2, 2, 2).clone())
        )


def _call(texts: str, t: list[float]) -> Call:
    rows = tuple(Row(i, text.isupper(), text, 0.0) for i, text in enumerate(texts))
    tokens = torch.tensor([float(ord(text)) for text in texts])[:, None, None].expand(-1, 3, 5)

    def net(call: Call) -> Tensor:
        return call.x

    return Call(torch.randn(len(texts), 4, 4, 4), torch.tensor(t), tokens, rows, net)


def test_rows_of_one_text_and_t_are_evaluated_once() -> None:
    control = Counting()
    call = _call("AAAbbb", [7.0] * 6)
    out = Shared(control, ResidualCache(1 << 20))(call)
    assert control.asked == [2]
    alone = control(call)
    assert out.residuals and alone.residuals
    assert torch.equal(out.residuals.mid, alone.residuals.mid)
    assert torch.equal(out.residuals.down[0], alone.residuals.down[0])


def test_rows_at_different_steps_are_kept_apart() -> None:
    control = Counting()
    out = Shared(control, ResidualCache(1 << 20))(_call("AA", [7.0, 9.0]))
    assert control.asked == [2] and out.residuals
    assert (out.residuals.mid[1] - out.residuals.mid[0]).unique().tolist() == [2.0]


def test_rows_of_which_sdxl_is_told_something_else_are_kept_apart() -> None:
    control = Counting()
    shared, call = Shared(control, ResidualCache(1 << 20)), _call("AA", [7.0, 7.0])
    shared(call)
    shared(replace(call, rows=(call.rows[0], replace(call.rows[1], told=Told(crop_top=8)))))
    assert control.asked == [1, 2]


def test_a_second_call_costs_nothing_and_off_means_off() -> None:
    control = Counting()
    shared = Shared(control, ResidualCache(1 << 20))
    shared(_call("Ab", [3.0, 3.0]))
    shared(_call("AAbb", [3.0] * 4))
    assert control.asked == [2]
    off = Shared(control, ResidualCache(0))
    off(_call("Ab", [3.0, 3.0]))
    off(_call("Ab", [3.0, 3.0]))
    assert control.asked == [2, 2, 2]


def test_residuals_of_several_controls_add_up() -> None:
    first, second = Shared(Counting("a"), ResidualCache(0)), Shared(Counting("b"), ResidualCache(0))
    call = _call("A", [1.0])
    one, two = first(call).residuals, second(first(call)).residuals
    assert one and two and torch.equal(two.mid, 2 * one.mid)


def test_the_least_recently_used_goes_first() -> None:
    size = _residuals(1).num_bytes()
    cache = ResidualCache(2 * size)
    cache.put("a", _residuals(1, 1.0))
    cache.put("b", _residuals(1, 2.0))
    assert cache.get("a") is not None
    cache.put("c", _residuals(1, 3.0))
    assert cache.get("b") is None and cache.get("a") is not None and cache.num_bytes == 2 * size


def test_what_is_too_large_is_not_kept() -> None:
    cache = ResidualCache(10)
    cache.put("a", _residuals(1))
    assert cache.get("a") is None and cache.num_bytes == 0
