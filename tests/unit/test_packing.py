"""Packed layers: the same bits, the same weights on demand, gradients for what is before them."""

import pytest
import torch
from torch import nn

from disegno.backbones import miniature
from disegno.memory import Memory, Policy
from disegno.packing import PackedConv2d, PackedLinear, can_pack, pack

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not can_pack(), reason="oneDNN does not compute bfloat16 on this processor"),
]

LAYERS = {
    "3x3": (nn.Conv2d(32, 40, 3, padding=1), (2, 32, 9, 17)),
    "stride 2": (nn.Conv2d(32, 64, 3, padding=1, stride=2), (1, 32, 16, 16)),
    "few channels": (nn.Conv2d(4, 16, 3, padding=1), (3, 4, 8, 8)),
    "linear": (nn.Linear(77, 130), (3, 5, 77)),
    "no bias": (nn.Linear(64, 32, bias=False), (2, 64)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_layer_is_the_layer(name: str) -> None:
    layer, shape = LAYERS[name]
    layer = layer.bfloat16().to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(shape).bfloat16()
    net = nn.Sequential(layer)
    with torch.inference_mode():
        plain = net(x)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert pack(net) == 1 and isinstance(net[0], PackedConv2d | PackedLinear)
    with torch.inference_mode():
        assert torch.equal(net(x), plain)
    after = net.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_a_1x1_convolution_stays_as_it_is() -> None:
    assert pack(nn.Sequential(nn.Conv2d(4, 8, 1))) == 0


def test_widths_whose_blocks_meet_the_reference_kernel_stay_as_they_are() -> None:
    assert pack(nn.Sequential(nn.Conv2d(32, 384, 3), nn.Conv2d(384, 48, 3))) == 0


def test_gradients_reach_what_is_before_a_packed_layer() -> None:
    layer = nn.Linear(8, 4).bfloat16().requires_grad_(False)
    x = torch.randn(2, 8).bfloat16().requires_grad_()
    layer(x).sum().backward()
    wanted, x.grad = x.grad, None
    net = nn.Sequential(layer)
    pack(net)
    net(x).sum().backward()
    assert wanted is not None and x.grad is not None and torch.equal(x.grad, wanted)


def test_a_unet_is_packed_by_the_policy_and_reads_no_weight_back(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(torch.device("cpu"), torch.bfloat16, torch.channels_last, torch.bfloat16)
    backbone = miniature.open_miniature(Memory(policy))
    assert any(isinstance(module, PackedConv2d) for module in backbone.net.modules())

    def forbidden(self: nn.Module) -> torch.Tensor:
        raise AssertionError("a packed weight was copied back during a step")

    monkeypatch.setattr(PackedConv2d, "weight", property(forbidden))
    monkeypatch.setattr(PackedLinear, "weight", property(forbidden))
    x, t, tokens = torch.randn(2, 4, 8, 8).bfloat16(), torch.tensor([500.0, 20.0]), torch.randn(2, 77, 32).bfloat16()
    with torch.inference_mode():
        assert backbone.net(x, t, encoder_hidden_states=tokens).sample.isfinite().all()
