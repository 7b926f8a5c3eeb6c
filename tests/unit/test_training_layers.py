"""A net's layers in training: the same numbers and gradients as PyTorch's and diffusers' own."""

from copy import deepcopy

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.backbones import miniature
from disegno.training import attention, layers
from disegno.training.layers import Attend, FastGroupNorm, install
from kit.apple import Apple

pytestmark = pytest.mark.unit

CONFIG = {
    k: v for k, v in miniature.SD1.unet_config.items() if k not in ("sample_size", "out_channels", "up_block_types")
}


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(ours: Tensor, exact: Tensor) -> float:
    return float(((ours.double() - exact.double()).norm() / exact.double().norm()).detach())


@pytest.mark.parametrize("shape", [(1, 32, 32, 40), (3, 64, 64, 16)])
def test_the_fast_group_norm_has_the_exact_gradients(shape: tuple[int, ...]) -> None:
    x, dy = some(*shape) * 2 + 1, some(*shape, seed=1)
    weight, bias = 1 + some(shape[1], seed=2) / 4, some(shape[1], seed=3)
    given = [t.bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, dy)]
    exact = [t.double().requires_grad_() for t in (given[0], weight.bfloat16(), bias.bfloat16())]
    F.group_norm(exact[0], 8, exact[1], exact[2], 1e-5).backward(given[1].double())
    ours = [given[0].requires_grad_(), *(t.bfloat16().requires_grad_() for t in (weight, bias))]
    y = FastGroupNorm.apply(*ours, 8, 1e-5)
    y.backward(given[1])
    for mine, true in zip(ours, exact, strict=True):
        assert relative(mine.grad, true.grad) < 0.01  # bfloat16 has 8 bits: each number is off by up to 0.4 %


def test_a_frozen_norm_passes_its_gradient_on() -> None:
    norm = nn.GroupNorm(8, 32).bfloat16().requires_grad_(False)
    x, dy = (some(1, 32, 32, 32, seed=i).bfloat16().contiguous(memory_format=torch.channels_last) for i in (0, 1))
    grads = []
    for installed in (False, True):
        if installed:
            install(norm)
        own = x.clone().requires_grad_()
        (norm(own) * dy).sum().backward()
        grads.append(own.grad)
    assert relative(grads[1], grads[0]) < 0.01 and norm.weight.grad is None


@pytest.mark.parametrize("num_keys", [None, 7])
@pytest.mark.parametrize("largest", [0, 10**9])
def test_attention_is_the_same_plain_and_fused(
    num_keys: int | None, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "MAX_PLAIN_SCORES", largest)
    net = Attention(32, None if num_keys is None else 16, heads=4, dim_head=8)
    states = None if num_keys is None else some(2, num_keys, 16, seed=1)
    grads = []
    for processor in (AttnProcessor2_0(), Attend()):
        net.set_processor(processor)  # pyright: ignore[reportArgumentType]
        x = some(2, 20, 32).requires_grad_()
        net(x, states).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_keys", [None, 70])
@pytest.mark.parametrize("block", [64, 3_000])
def test_attention_in_blocks_has_the_exact_gradients(
    num_keys: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query a block, and a last block that is not full; self attention and across."""
    monkeypatch.setattr(layers, "MAX_PLAIN_SCORES", 0)
    monkeypatch.setattr(attention, "BLOCK_SCORES", block)
    net = Attention(32, None if num_keys is None else 16, heads=4, dim_head=8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.bfloat16())
    exact = deepcopy(net).double()
    exact.set_processor(AttnProcessor2_0())  # pyright: ignore[reportArgumentType]
    net.bfloat16().set_processor(Attend())  # pyright: ignore[reportArgumentType]
    states = None if num_keys is None else some(2, num_keys, 16, seed=1).bfloat16()
    grads = []
    for own, dtype in ((net, torch.bfloat16), (exact, torch.float64)):
        x = (some(2, 100, 32) * 3).bfloat16().to(dtype).requires_grad_()
        own(x, None if states is None else states.to(dtype)).square().sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in own.parameters())])
    for mine, true in zip(*grads, strict=True):
        assert relative(mine, true) < 0.02
    drawn = net(some(2, 100, 32).bfloat16(), states)
    assert "BlockedAttentionBackward" in _names(drawn)  # and not another way to the same numbers


def test_blocks_are_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_PLAIN_SCORES", 0)
    net = Attention(32, None, heads=4, dim_head=8).bfloat16()
    net.set_processor(Attend())  # pyright: ignore[reportArgumentType]
    for kind, is_ours in ((Tensor, True), (Apple, False)):
        drawn = net(some(2, 100, 32).bfloat16().as_subclass(kind))
        assert ("BlockedAttentionBackward" in _names(drawn)) == is_ours


def _names(x: Tensor) -> set[str]:
    """Return the names of all functions that a tensor came from."""
    names, nodes = set[str](), [x.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.add(node.name())
            nodes += [each for each, _ in node.next_functions]
    return names


def test_a_whole_net_has_the_same_gradients_in_float32() -> None:
    net = ControlNetModel(**CONFIG)
    net.load_state_dict(miniature.draw(net, 3))
    other = deepcopy(net)
    install(other)
    for own in (net, other):
        down, mid = own(
            some(2, 4, 8, 8), torch.tensor([3.0, 700.0]), some(2, 9, 32), some(2, 3, 64, 64), return_dict=False
        )
        sum(r.square().mean() for r in (*down, mid)).backward()
    for (name, mine), theirs in zip(other.named_parameters(), net.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_masters_are_cast_where_they_are_used() -> None:
    """Weights in float32, products in bfloat16: as a bfloat16 net, but what is learned is kept in float32."""
    masters = ControlNetModel(**CONFIG)
    masters.load_state_dict(miniature.draw(masters, 3))
    plain = deepcopy(masters).bfloat16()
    install(masters)
    x, tokens, hint = (some(*shape).bfloat16() for shape in ((1, 4, 8, 8), (1, 9, 32), (1, 3, 64, 64)))
    given = x, torch.tensor([500.0]), tokens, hint
    outs = [own(*given, return_dict=False)[1] for own in (masters, plain)]
    assert outs[0].dtype == torch.bfloat16
    assert relative(outs[0], outs[1]) < 0.02
    outs[0].float().square().mean().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in masters.parameters())
    assert masters.conv_in.weight.grad.abs().max() > 0


def test_a_frozen_input_needs_no_fast_norm() -> None:
    norm = nn.GroupNorm(8, 32).bfloat16()
    install(norm)
    x = some(1, 32, 32, 32).bfloat16().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(norm(x), F.group_norm(x, 8, norm.weight, norm.bias))
