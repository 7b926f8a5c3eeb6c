"""What a studio keeps open, by what it holds of the device's memory: models, Base ControlNets, controls."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from disegno.core.settings import Settings
from disegno.engine import studio as studios
from disegno.engine.held import held_bytes
from disegno.engine.opened import MAX_VARIANTS, Opened
from disegno.engine.studio import Studio
from disegno.loras.apply import NO_LORAS
from disegno.packing import can_pack, pack
from disegno.weights.ggml_blocks import PACKED
from disegno.weights.packed_tensor import PackedTensor
from kit.gguf import Q8_0

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Body:
    """As much of a model as is kept by."""

    fingerprint: str
    net: nn.Module = field(default_factory=nn.Identity)


@dataclass(frozen=True, eq=False)
class Held:
    """As much of a control as is kept by."""

    backbone: Body
    net: nn.Module = field(default_factory=nn.Identity)
    base: object = None
    file: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _net(num_bytes: int) -> nn.Module:
    net = nn.Module()
    net.register_buffer("numbers", torch.zeros(num_bytes, dtype=torch.uint8))
    return net


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A studio on a machine of 100 bytes."""
    monkeypatch.setattr(studios, "total_bytes", lambda device: 100)
    return Studio(Settings(cache_dir=tmp_path, device="cpu"))


def _keys(kept: Any) -> list[object]:
    return [key[1] for key, _ in kept.items()]


def test_what_a_value_holds_is_counted_once_and_without_what_it_stands_on() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(2, affine=False))
    weight = cast(Tensor, net[0].weight)
    file = {"same": weight, "part": {"other": [torch.zeros(3)]}, "elsewhere": torch.zeros(9, device="meta")}
    value = Held(Body("large", _net(999)), net, base=Body("base", _net(999)), file=file)
    assert held_bytes(value, CPU) == 64 + (8 + 8 + 8) + 12


def test_what_is_packed_counts_as_it_lies_in_memory() -> None:
    packed = PackedTensor(torch.zeros(34 * 4, dtype=torch.uint8), PACKED[Q8_0], (4, 32))
    assert held_bytes(packed, CPU) == 34 * 4
    layers = nn.Sequential(nn.Linear(64, 64, bias=False)).to(torch.bfloat16).requires_grad_(False)
    if can_pack() and pack(layers):
        assert held_bytes(layers, CPU) == 64 * 64 * 2


def test_open_controls_have_a_share_of_the_memory_and_what_was_prepared_goes_with_them(studio: Any) -> None:
    body = Body("a")
    for n in range(4):
        one = studio._controllers.get(("a", n), lambda: Held(body, _net(10)))
        studio._controls.get(("a", n), lambda one=one: (one, None))
        del one
    assert _keys(studio._controllers) == _keys(studio._controls) == [1, 2, 3]  # of 30 bytes
    studio._controllers.get(("a", 4), lambda: Held(body, _net(40)))  # one may be larger
    assert _keys(studio._controllers) == [4] and not _keys(studio._controls)


def test_the_controls_of_a_base_go_with_it(studio: Any) -> None:
    for n in range(3):
        base = studio._bases.get(("a", n), lambda: Body("base", _net(12)))
        studio._controllers.get(("a", n), lambda base=base: Held(Body("a"), base=base))
    assert _keys(studio._bases) == _keys(studio._controllers) == [1, 2]


def test_a_model_goes_before_another_is_opened_that_would_not_fit_beside_it(studio: Any) -> None:
    there = list[int]()
    nets = list[Any]()

    def opened(name: str) -> Opened:
        there.append(sum(net() is not None for net in nets))
        net = _net(25)
        nets.append(ref(net))
        return Opened(cast(Any, Body(name, net)), None)

    for name in "abcd":
        studio._backbones.get((name, None), lambda name=name: opened(name))
    assert there == [0, 1, 1, 1]  # two of 25 are within 60 bytes, a third is not


def test_a_first_pass_a_refiner_and_a_hires_pass_of_three_models_open_each_once(studio: Any) -> None:
    opened = list[str]()

    def make(name: str) -> Opened:
        opened.append(name)
        return Opened(cast(Any, Body(name)), None)

    for name in "ACB" * 3:
        studio._backbones.get((name, None), lambda name=name: make(name))
    assert opened == list("ACB")


def test_nothing_holds_the_net_of_a_model_that_is_gone_whatever_vaes_it_had(studio: Any) -> None:
    def open_and_drop() -> Any:
        one = Opened(cast(Any, Body("own", _net(1))), None)
        studio._backbones.get(("p", None), lambda: one)
        for n in range(MAX_VARIANTS + 1):
            other = one.other(("vae", n), lambda n=n: cast(Any, Body(f"vae {n}", one.own.net)))
            studio._controllers.get((other.fingerprint, n), lambda other=other: Held(cast(Any, other)))
        studio._backbones.drop(lambda key, value: True)
        return ref(one.own.net)

    net = open_and_drop()
    gc.collect()
    assert net() is None and not _keys(studio._controllers)


def test_what_a_job_opened_for_a_model_that_went_meanwhile_goes_before_the_next_model_is_opened(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hires pass's model took its place, and the first pass opens its controls and LoRAs after that."""
    monkeypatch.setattr(studio, "open_model", lambda *_: Body("next"))
    kept = studio._backbones.get(("kept", None), lambda: Opened(cast(Any, Body("kept")), None))
    for body in (kept.own, Body("gone")):
        studio._controllers.get((body.fingerprint, 0), lambda body=body: Held(body))
        studio._loras.get(body.fingerprint, lambda body=body: (body, NO_LORAS))
    assert studio._opened(None, None).own.fingerprint == "next"
    assert [key for key, _ in studio._controllers.items()] == [("kept", 0)]
    assert [key for key, _ in studio._loras.items()] == ["kept"]
