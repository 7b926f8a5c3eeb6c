"""UniControl against outputs of the original program (salesforce/UniControl @472c6cd), both forwards, and its files."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from disegno.backbones.miniature import open_miniature
from disegno.controls import unicontrol
from disegno.controls._modulation import Version
from disegno.controls.base import Condition
from disegno.controls.strength import Use, Used, joined
from disegno.core.errors import KeyMismatch, UnknownKind, WrongFamily
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.weights.identify import identify
from disegno.weights.unicontrol_files import TASKS, originals_of, own_shapes, read_unicontrol

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
Reader = Callable[[str], dict[str, Tensor]]
# float32 sums in another order; residuals reach 10: a build of diffusers' classes differs by 1.3e-5 and 2.9e-6
RESIDUALS = {"atol": 2e-5, "rtol": 1e-5}
EPS = {"atol": 1e-5, "rtol": 0.0}


@dataclass(frozen=True)
class Reading:
    """The golden backbone, with a text encoder that gives the fixture's feature for every text."""

    host: Any
    feature: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.host, name)

    def encode_text(self, prompts: list[str]) -> Any:
        return type("States", (), {"tokens": self.feature.expand(len(prompts), 77, -1)})


@pytest.fixture(scope="module")
def io(golden: Reader) -> dict[str, Tensor]:
    return golden("unicontrol__io")


@pytest.fixture(scope="module")
def path(golden: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as published: control and Stable Diffusion in one."""
    tensors = golden("unicontrol__unet") | golden("unicontrol__control")
    path = tmp_path_factory.mktemp("unicontrol") / "unicontrol.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("feature", ["f1", "f2"])
@pytest.mark.parametrize("task", ["canny", "inpainting"])
@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_residuals_and_eps(
    version: Version, task: str, feature: str, path: Path, io: dict[str, Tensor], unicontrol_host: Any
) -> None:
    name = f"out.{version.replace('.', '').replace('v1', 'v1')}.control_{task}.{feature}"
    expected = [io[key] for key in sorted(io) if key.startswith(f"{name}.control.")]
    if not expected:
        assert (task, feature) == ("inpainting", "f2"), "the fixture has three of the four"
        return
    told = io["task_feature" if feature == "f1" else "task_feature_2"][0, 0]
    controller = unicontrol.fold("uni", read_unicontrol(path), told, version, Reading(unicontrol_host, told), MEMORY)
    for row in range(2):
        one = slice(row, row + 1)
        control = controller.prepare(Condition(io["hint"][one], str(row), task=task))
        call = control(unicontrol_host.call(io["x_noisy"][one], io["timesteps"][one], io["context"][one]))
        assert call.residuals is not None
        for found, theirs in zip((*call.residuals.down, call.residuals.mid), expected, strict=True):
            torch.testing.assert_close(found, theirs[one], **RESIDUALS)
        torch.testing.assert_close(call.run(), io[f"{name}.eps"][one], **EPS)


def test_a_mixture_is_one_control_of_the_stems_mean(path: Path, io: dict[str, Tensor], unicontrol_host: Any) -> None:
    """By hand: the stems' last activations are averaged, and all else happens once."""
    told = io["task_feature"][0, 0]
    file, host = read_unicontrol(path), Reading(unicontrol_host, told)
    controller = unicontrol.fold("uni", file, told, "v1.0", host, MEMORY)
    images = [io["hint"][:1], io["hint"][1:2].flip(-1)]
    a, b = (
        controller.prepare(Condition(image, str(n), task=task))
        for n, (image, task) in enumerate(zip(images, ("canny", "inpainting"), strict=True))
    )
    stems = [_stem(file.own, image, number) for image, number in zip(images, (1, 12), strict=True)]
    (mixture,) = joined([Used(a, Use(0.5, mix=True)), Used(b, Use(1.5, mix=True))])
    assert isinstance(mixture, Used) and mixture.use.strength == 1.5
    expected = replace(a, features=0.25 * stems[0] + 0.75 * stems[1])
    call = unicontrol_host.call(io["x_noisy"][:1], io["timesteps"][:1], io["context"][:1])
    found, wanted = mixture(call).residuals, Used(expected, Use(1.5))(call).residuals
    torch.testing.assert_close((*found.down, found.mid), (*wanted.down, wanted.mid), **RESIDUALS)
    assert len(joined([Used(a, Use(mix=True)), Used(b, Use(mix=False))])) == 2
    assert len(joined([Used(a, Use(mix=True)), Used(b, Use(end=0.5, mix=True))])) == 2
    assert len(joined([Used(a, Use(mix=True)), Used(b, Use(0.0, mix=True))])) == 2  # without strength: not there
    (same,) = joined([Used(a, Use(mix=True)), Used(a, Use(0.2, mix=True)), Used(a, Use(mix=True))])
    torch.testing.assert_close(same(call).residuals.mid, a(call).residuals.mid, **RESIDUALS)


def _stem(own: Mapping[str, Tensor], image: Tensor, number: int) -> Tensor:
    """The original's list of layers for a task, written out."""
    for layer, stride in ((0, 1), (2, 1), (4, 2)):
        name = f"input_hint_block_list_moe.{number}.{layer}"
        image = F.silu(F.conv2d(image, own[f"{name}.weight"], own[f"{name}.bias"], stride, 1))
    return image


def test_the_card_says_what_it_is(path: Path) -> None:
    card = identify(path)
    assert (card.kind, card.mechanism) == ("control", "unicontrol")
    assert card.tasks == tuple(TASKS) and len(card.tasks) == 13


def test_the_published_size() -> None:
    """377,414,640 parameters, counted in the original: the encoder's and what UniControl adds."""
    unet = build_empty(lambda: UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8))
    net = build_empty(lambda: ControlNetModel.from_unet(unet, load_weights_from_unet=False))
    encoder = {name: p for name, p in net.named_parameters() if "cond_embedding" not in name}
    zeros = [len(p) for name, p in encoder.items() if name.startswith("controlnet_down") and name.endswith("weight")]
    own = own_shapes(zeros, 320, feature=768, hidden=1280)
    assert sum(p.numel() for p in encoder.values()) + sum(math.prod(shape) for shape in own.values()) == 377_414_640


def test_the_file_chooses_the_forward(path: Path, tmp_path: Path, io: dict[str, Tensor], unicontrol_host: Any) -> None:
    host = Reading(unicontrol_host, io["task_feature"])
    assert unicontrol.open(path, host, MEMORY).version == "v1.0"
    own = originals_of(read_unicontrol(path).encoder, read_unicontrol(path).own)
    for told in ("v1.1", "v2"):
        save_file({k: t.clone() for k, t in own.items()}, tmp_path / f"{told}.safetensors", {"disegno.forward": told})
    assert unicontrol.open(tmp_path / "v1.1.safetensors", host, MEMORY).version == "v1.1"
    with pytest.raises(UnknownKind, match=r"known are v1\.0, v1\.1"):
        unicontrol.open(tmp_path / "v2.safetensors", host, MEMORY)


def test_reading_and_writing_keeps_every_bit(path: Path, golden: Reader) -> None:
    file, own = read_unicontrol(path), golden("unicontrol__control")
    written = originals_of(file.encoder, file.own)
    assert written.keys() == own.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in own.items())


def test_clips_first_state_is_the_same_for_every_text() -> None:
    """Why the modulation folds once: the first token sees itself only."""
    states = open_miniature().encode_text(["", "canny edge to image", "image inpainting"]).tokens
    assert torch.equal(states[0, 0], states[1, 0]) and torch.equal(states[0, 0], states[2, 0])
    assert not torch.equal(states[0, 5], states[1, 5])


def test_what_does_not_fit_is_named(path: Path, tmp_path: Path, golden: Reader, unicontrol_host: Any) -> None:
    short = {k: t.clone() for k, t in golden("unicontrol__control").items() if "task_id_layernet.2" not in k}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(KeyMismatch, match=r"task_id_layernet\.2\.bias"):
        read_unicontrol(tmp_path / "short.safetensors")
    narrow = replace(Reading(unicontrol_host, torch.zeros(1, 1, 32)))
    with pytest.raises(WrongFamily, match=r"text states of width 768, those of golden \(sd1\) are 32 wide"):
        unicontrol.open(path, narrow, MEMORY)
