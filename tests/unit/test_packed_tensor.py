"""Tensors whose numbers stay in ggml's blocks: to everybody they are the unpacked ones, bit for bit."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import disegno.memory
from disegno.core.settings import PackedUse
from disegno.memory import Memory, Policy
from disegno.packing import can_pack, pack
from disegno.weights.ggml_blocks import PACKED, Blocks
from disegno.weights.packed_tensor import PackedTensor, plain
from kit import gguf

pytestmark = pytest.mark.unit


def _drawn(kind: int, *shape: int) -> PackedTensor:
    stored = gguf.drawn(kind, shape, seed=1)
    return PackedTensor(torch.frombuffer(bytearray(stored.data), dtype=torch.uint8), PACKED[kind], shape)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", PACKED)
def test_it_is_multiplied_by_as_the_unpacked_one(kind: int, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    packed = _drawn(kind, 12, 256)
    numbers, x, bias = packed.unpacked(), torch.randn(3, 256), torch.randn(12)
    with mode():
        moved = packed.to(torch.float32)
        assert isinstance(moved, PackedTensor) and moved.dtype == torch.float32
        assert torch.equal(F.linear(x, moved, bias), F.linear(x, numbers.float(), bias))
        assert torch.equal(moved + 1, numbers.float() + 1) and type(moved + 1) is Tensor
        image, kernel = torch.randn(1, 64, 4, 4), _drawn(kind, 12, 64, 2, 2).to(torch.float32)
        assert torch.equal(F.conv2d(image, kernel), F.conv2d(image, plain(kernel)))
        rows = packed.chunk(2)
        assert all(isinstance(row, PackedTensor) for row in rows)
        assert torch.equal(plain(torch.cat(rows[::-1])), torch.cat(numbers.chunk(2)[::-1]))
        assert torch.equal(torch.cat([packed, packed.unpacked()]), torch.cat([numbers, numbers]))
        assert torch.equal(torch.cat([packed, packed], 1), torch.cat([numbers, numbers], 1))
        assert not isinstance(packed.to(torch.int32), PackedTensor) and plain(numbers) is numbers


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_its_parts_are_those_of_the_numbers(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    packed = _drawn(gguf.Q8_0, 4, 9, 32)
    numbers = packed.unpacked()
    with mode():
        for moved in (packed, packed.to(torch.bfloat16)):
            plainly = numbers.to(moved.dtype)
            assert torch.equal(moved[:, :4], plainly[:, :4]) and torch.equal(moved[None], plainly[None])
            assert torch.equal(moved.transpose(0, 1), plainly.transpose(0, 1))
            parts = (*moved.unbind(), *moved.chunk(3, 1)), (*plainly.unbind(), *plainly.chunk(3, 1))
            assert all(torch.equal(part, same) for part, same in zip(*parts, strict=True))


def test_rows_that_are_no_whole_blocks_are_unpacked() -> None:
    packed = _drawn(gguf.Q8_0, 4, 16)
    assert all(type(row) is Tensor for row in packed.chunk(2))
    assert torch.equal(torch.cat(packed.chunk(2)), packed.unpacked())


def test_it_is_a_layers_weight_through_everything_that_layers_do() -> None:
    layer, packed = nn.Linear(64, 8), _drawn(gguf.Q4_0, 8, 64)
    layer.weight = nn.Parameter(packed.to(torch.float32), requires_grad=False)
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad[0], packed.unpacked().float().sum(0))
    twin = copy.deepcopy(layer)
    assert isinstance(twin.weight, PackedTensor) and torch.equal(twin(x), layer(x))
    layer.to(torch.bfloat16)
    assert isinstance(layer.weight, PackedTensor) and layer.weight.dtype == torch.bfloat16
    with pytest.raises(AssertionError, match="packed weights are frozen"):
        layer.weight.mul_(2)


def test_its_blocks_move_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a GPU `nn.Module.to` goes as to another dtype here, where the moved blocks are told apart by their address."""
    layer, packed = nn.Linear(64, 8), _drawn(gguf.Q4_0, 8, 64)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    moved: list[Tensor] = []

    def like(self: PackedTensor, dtype: torch.dtype | None = None, **_: Any) -> PackedTensor:
        moved.append(self.blocks.clone())
        return PackedTensor(moved[-1], self.how, self.shape, dtype or self.dtype)

    monkeypatch.setattr(PackedTensor, "like", like)
    layer.to(torch.bfloat16)
    assert isinstance(layer.weight, PackedTensor) and layer.weight.dtype == torch.bfloat16
    assert layer.weight.blocks.data_ptr() != packed.blocks.data_ptr()


@pytest.mark.parametrize("how", PACKED.values(), ids=lambda how: how.name)
def test_unpacking_makes_nothing_on_another_device(how: Blocks) -> None:
    """A tensor made on the CPU and one on `meta` cannot be combined: what is written for one device fails here."""
    made = how.unpacked(torch.empty(3 * how.num_bytes, dtype=torch.uint8, device="meta"))
    assert made.device.type == "meta" and made.shape == (3 * how.num_values,)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv, self.words = nn.Linear(64, 8), nn.Conv2d(32, 4, 1), nn.Embedding(4, 32)


def _stored() -> dict[str, Tensor]:
    return {
        "linear.weight": _drawn(gguf.Q8_0, 8, 64), "linear.bias": torch.zeros(8),
        "conv.weight": _drawn(gguf.Q8_0, 4, 32, 1, 1), "conv.bias": torch.zeros(4),
        "words.weight": _drawn(gguf.Q8_0, 4, 32),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("use", "packs", "free", "stay"),
    [
        ("packed", True, None, True),
        ("unpacked", True, 0, False),
        ("packed", False, None, False),  # gradients pass through it
        ("auto", True, 10_000, False),
        ("auto", True, 5_000, True),  # 768 numbers of 4 bytes are more than half of it
        ("auto", True, None, False),
    ],
)
def test_what_is_multiplied_by_stays_packed_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, use: PackedUse, packs: bool, free: int | None, stay: bool
) -> None:
    monkeypatch.setattr(disegno.memory, "free_bytes", lambda _device: free)
    stored = _stored()
    memory = Memory(Policy(torch.device("cpu"), torch.float32, packs=packs, gguf=use))
    net = memory.build(_Net, stored, "The net")
    kinds = {name: isinstance(one, PackedTensor) for name, one in net.named_parameters() if name.endswith("weight")}
    assert kinds == {"linear.weight": stay, "conv.weight": stay, "words.weight": False}
    for name, parameter in net.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(plain(parameter), plain(stored[name]).float())


@pytest.mark.skipif(not can_pack(), reason="wants a processor that computes bfloat16")
def test_it_is_not_laid_out_for_onednn() -> None:
    memory = Memory(Policy(torch.device("cpu"), torch.bfloat16, torch.channels_last, gguf="packed"))
    net = memory.build(_Net, _stored(), "The net")
    assert pack(net) == 0 and isinstance(net.linear.weight, PackedTensor)
