"""Sharing evaluations: never at the price of a bit, unless that was asked for."""

import gc
from dataclasses import dataclass, field, replace
from weakref import ref

import pytest
import torch
from torch import Tensor

from disegno.diffusion.call import Call, Row
from disegno.engine.sharing import Mode, Sharing

pytestmark = pytest.mark.unit


@dataclass(eq=False)
class Net:
    """Counts its evaluations; with `sums`, the bits of a row depend on the number of rows, as matrix kernels' may."""

    sums: bool
    evaluations: list[int] = field(default_factory=list[int])

    def __call__(self, call: Call) -> Tensor:
        self.evaluations.append(len(call.rows))
        return call.x * 2 + (1e-6 * len(call.rows) if self.sums else 0.0)


def _call(net: Net, value: float, num: int) -> Call:
    rows = tuple(Row(i, True, "text", 0.0) for i in range(num))
    x = torch.full((num, 4, 2, 2), value)
    return Call(x=x, t=torch.zeros(num), tokens=torch.zeros(num, 3, 5), rows=rows, net=net)


def _run(net: Net, sharing: Sharing) -> list[Tensor]:
    return sharing.run([[_call(net, 1.0, 2)], [_call(net, 2.0, 1)], [_call(net, 3.0, 2), _call(net, 4.0, 1)]])


@pytest.mark.parametrize(
    "mode, sums, first, later",
    [
        ("exact", False, [2, 1, 3], [2, 1, 3]),
        ("always", True, [6], [6]),
        ("auto", False, [6, 2, 1, 3], [6]),
        ("auto", True, [6, 2, 1, 3], [2, 1, 3]),
    ],
)
def test_how_often_the_net_is_asked(mode: Mode, sums: bool, first: list[int], later: list[int]) -> None:
    net, sharing = Net(sums), Sharing(mode)
    outs = _run(net, sharing)
    assert net.evaluations == first
    net.evaluations.clear()
    again = _run(net, sharing)
    assert net.evaluations == later
    alone = _run(Net(sums), Sharing("exact"))
    same = [torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(alone, outs, again, strict=True)]
    assert all(same) == (mode != "always")
    assert [out[:, 0, 0, 0].round().tolist() for out in again] == [[2, 2], [4], [6, 6, 8]]


def test_another_shape_is_tried_out_anew() -> None:
    net, sharing = Net(False), Sharing()
    _run(net, sharing)
    net.evaluations.clear()
    large = replace(_call(net, 1.0, 1), x=torch.ones(1, 4, 3, 3))
    sharing.run([[large], [large]])
    assert net.evaluations == [2, 1, 1]


def test_a_model_that_is_gone_is_not_held() -> None:
    sharing = Sharing()
    net = Net(False)
    gone = ref(net)
    _run(net, sharing)
    del net
    gc.collect()
    assert gone() is None
    assert sharing.found(Net(False)) == {} and len(sharing._found) == 1
