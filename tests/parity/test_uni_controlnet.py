"""Uni-ControlNet against outputs of the original program (ShihaoZhaoZSH/Uni-ControlNet @4da003c), and its files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from disegno.controls import uni_controlnet
from disegno.controls.base import Condition, Control
from disegno.controls.strength import Use, Used, apply, joined
from disegno.controls.uni_controlnet import UniController
from disegno.core.errors import KeyMismatch, RequestError, WrongFamily
from disegno.diffusion.call import Call
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.identify import identify
from disegno.weights.uni_controlnet_files import CONDITIONS, originals_of, read_uni

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
Reader = Callable[[str], dict[str, Tensor]]
# float32 sums in another order: a build of diffusers' classes differs by 8.6e-6 and 2.3e-6
RESIDUALS = {"atol": 2e-5, "rtol": 1e-5}
EPS = {"atol": 1e-5, "rtol": 0.0}
ABSENT = ("mlsd", "openpose")  # their channels are zero in the fixture


@pytest.fixture(scope="module")
def io(golden: Reader) -> dict[str, Tensor]:
    return golden("uni_controlnet__io")


@pytest.fixture(scope="module")
def path(golden: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as published: adapters and Stable Diffusion in one."""
    tensors = golden("uni_controlnet__unet") | golden("uni_controlnet__adapters")
    path = tmp_path_factory.mktemp("uni") / "uni.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def controller(path: Path, uni_host: Any) -> UniController:
    return uni_controlnet.open(path, uni_host, MEMORY)


def _locals(controller: UniController, io: dict[str, Tensor], row: int) -> list[Control]:
    """Return the row's conditions, each prepared by itself."""
    stack = io["local_conditions"][row : row + 1]
    shown = [(i, task) for i, task in enumerate(CONDITIONS) if task not in ABSENT]
    return [controller.prepare(Condition(stack[:, 3 * i : 3 * i + 3], f"{task}{row}", task=task)) for i, task in shown]


def _content(controller: UniController, io: dict[str, Tensor], row: int) -> Control:
    assert controller.content is not None
    return controller.content.control(io["global_condition"][row : row + 1], str(row))


def _after(
    io: dict[str, Tensor], host: Any, controls: Callable[[int], Sequence[Control]], positive: bool = True
) -> Any:
    """Return each row's call after its controls."""
    tokens = io["context" if positive else "context_uncond"]
    for row in range(2):
        one = slice(row, row + 1)
        call: Call = host.call(io["x_noisy"][one], io["timesteps"][one], tokens[one])
        call = replace(call, rows=tuple(replace(r, positive=positive) for r in call.rows))
        yield apply(joined(controls(row)), call)


def _eps(calls: Any) -> Tensor:
    return torch.cat([call.run() for call in calls])


def test_the_card_says_what_it_is(path: Path) -> None:
    card = identify(path)
    assert (card.kind, card.mechanism) == ("control", "uni-controlnet")
    assert card.tasks == (*CONDITIONS, "content")


def test_features_and_tokens(controller: UniController, io: dict[str, Tensor]) -> None:
    assert controller.local is not None and controller.content is not None
    for i, found in enumerate(controller.local.extractor(io["local_conditions"])):
        torch.testing.assert_close(found, io[f"out.local_features.{i}"], **RESIDUALS)
    for row in range(2):
        control = _content(controller, io, row)
        torch.testing.assert_close(control.positive.tokens, io["out.global_tokens"][row], **RESIDUALS)
        zero = io["out.global_tokens_zero_input"][row]
        torch.testing.assert_close(control.negative.tokens, zero, **RESIDUALS)


def test_local_conditions_at_once_are_one_evaluation(
    controller: UniController, io: dict[str, Tensor], uni_host: Any
) -> None:
    def shown(row: int) -> list[Control]:
        return [Used(control, Use()) for control in _locals(controller, io, row)]

    assert len(joined(shown(0))) == 1
    calls = list(_after(io, uni_host, shown))
    for i, key in enumerate(sorted(key for key in io if key.startswith("out.local.control."))):
        found = torch.cat([(*call.residuals.down, call.residuals.mid)[i] for call in calls])
        torch.testing.assert_close(found, io[key], **RESIDUALS)
    torch.testing.assert_close(_eps(calls), io["out.local.eps"], **EPS)
    half = _after(io, uni_host, lambda row: [Used(c, Use(0.5)) for c in _locals(controller, io, row)])
    torch.testing.assert_close(_eps(half), io["out.local.eps_scale0.5"], **EPS)


def test_content_alone(controller: UniController, io: dict[str, Tensor], uni_host: Any) -> None:
    calls = _after(io, uni_host, lambda row: [Used(_content(controller, io, row), Use())])
    torch.testing.assert_close(_eps(calls), io["out.global.eps"], **EPS)


@pytest.mark.parametrize(("strength", "name"), [(1.0, "out.uni.eps"), (0.6, "out.uni.eps_global0.6")])
def test_both_adapters(
    strength: float, name: str, controller: UniController, io: dict[str, Tensor], uni_host: Any
) -> None:
    """The local adapter reads the content's tokens, whichever of them the request names first."""

    def shown(row: int) -> list[Control]:
        local = [Used(control, Use()) for control in _locals(controller, io, row)]
        return [*local, Used(_content(controller, io, row), Use(strength))]

    torch.testing.assert_close(_eps(_after(io, uni_host, shown)), io[name], **EPS)


def test_the_negative_prompt_has_the_tokens_of_nothing_seen(
    controller: UniController, io: dict[str, Tensor], uni_host: Any
) -> None:
    def shown(row: int) -> list[Control]:
        content = [Used(_content(controller, io, row), Use())]
        return [*content, *(Used(control, Use()) for control in _locals(controller, io, row))]

    torch.testing.assert_close(_eps(_after(io, uni_host, shown, positive=False)), io["out.uni.eps_uncond"], **EPS)


def test_rows_with_and_without_content_share_a_call(
    controller: UniController, io: dict[str, Tensor], uni_host: Any
) -> None:
    call = uni_host.call(io["x_noisy"], io["timesteps"], io["context"])
    call = replace(call, rows=tuple(replace(row, positive=i == 0) for i, row in enumerate(call.rows)))
    content = Used(_content(controller, io, 0), Use(mode="control"))
    local = Used(_locals(controller, io, 0)[0], Use())
    both = apply(joined([local, content]), call).run()
    for row in range(2):
        one = call.take(torch.tensor([row]))
        torch.testing.assert_close(apply(joined([local, content]), one).run(), both[row : row + 1], **EPS)


def test_one_adapter_of_a_training_file(path: Path, tmp_path: Path, golden: Reader, uni_host: Any) -> None:
    for prefix, tasks in (("local_adapter.", tuple(CONDITIONS)), ("global_adapter.", ("content",))):
        own = {k: t.clone() for k, t in golden("uni_controlnet__adapters").items() if k.startswith(prefix)}
        save_file(own, tmp_path / "one.safetensors")
        assert identify(tmp_path / "one.safetensors").tasks == tasks
        assert tuple(uni_controlnet.open(tmp_path / "one.safetensors", uni_host, MEMORY).tasks) == tasks


def test_reading_and_writing_keeps_every_bit(path: Path, golden: Reader) -> None:
    local = read_uni(path).local
    assert local is not None
    own = {k: t for k, t in golden("uni_controlnet__adapters").items() if k.startswith("local_adapter.")}
    written = originals_of(local)
    assert written.keys() == own.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in own.items())


def test_what_does_not_fit_is_named(path: Path, tmp_path: Path, golden: Reader, uni_host: Any) -> None:
    controller = uni_controlnet.open(path, uni_host, MEMORY)
    with pytest.raises(RequestError, match="DISEGNO_CLIP"):
        controller.prepare(Condition(torch.zeros(1, 3, 64, 64), "a", task="content"))
    wide = {k: (torch.zeros(t.shape[0], 77) if "attn2.to_k" in k else t.clone())
            for k, t in golden("uni_controlnet__adapters").items()}  # fmt: skip
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(WrongFamily, match="the width of the text is 77"):
        uni_controlnet.open(tmp_path / "wide.safetensors", uni_host, MEMORY)
    for lost in ("global_adapter.norm1.weight", "local_adapter.feature_extractor.pre_extractor.2.weight"):
        kept = {k: t.clone() for k, t in golden("uni_controlnet__adapters").items() if k != lost}
        save_file(kept, tmp_path / "short.safetensors")
        with pytest.raises(KeyMismatch, match=lost.partition(".")[2].removeprefix("feature_extractor.")):
            uni_controlnet.open(tmp_path / "short.safetensors", uni_host, MEMORY)
