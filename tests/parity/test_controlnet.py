"""ControlNet against outputs of the original program (lllyasviel/ControlNet @ed85cd1), and every form of its files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from torch import Tensor

from disegno.controls import controlnet
from disegno.controls.base import Condition
from disegno.controls.strength import layer_scales
from disegno.core.errors import CorruptFile, KeyMismatch, UnknownKind, WrongFamily
from disegno.diffusion.call import Residuals
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.keys.control import diffusers_names
from disegno.weights.keys.ldm import CONTROL_PREFIX, UNET_PREFIX

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parent.parent / "golden"
MEMORY = Memory(FULL_PRECISION)
Reader = Callable[[str], dict[str, Tensor]]

# float32 sums in another order; the original itself and diffusers' class differ by 5.7e-6 on residuals of up to 12
RESIDUALS = {"atol": 2e-5, "rtol": 1e-5}
EPS = {"atol": 1e-5, "rtol": 0.0}


def _v10(weights: dict[str, Tensor], unet: dict[str, Tensor]) -> dict[str, Tensor]:
    return unet | weights | {"first_stage_model.quant_conv.weight": torch.zeros(8, 8, 1, 1)}


def _stripped(weights: dict[str, Tensor], unet: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(CONTROL_PREFIX): tensor for key, tensor in weights.items()}


def _diffusers(weights: dict[str, Tensor], unet: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = _stripped(weights, unet)
    return {target: plain[name] for name, target in diffusers_names(plain).items()}


def _half(weights: dict[str, Tensor], unet: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.half() for key, tensor in _stripped(weights, unet).items()}


def _difference(weights: dict[str, Tensor], unet: dict[str, Tensor]) -> dict[str, Tensor]:
    minus = {
        key: tensor - unet.get(key.replace(CONTROL_PREFIX, UNET_PREFIX), torch.zeros(()))
        for key, tensor in weights.items()
    }
    return minus | {"difference": torch.tensor(1.0)}


# what a file holds; the fixture's weights are exact in float16, so that form has the same tolerance as the others
FORMS: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]] = {
    "v1.1": lambda weights, unet: weights,
    "v1.0": _v10,
    "without-prefix": _stripped,
    "diffusers-names": _diffusers,
    "fp16": _half,
    "difference": _difference,
}


@pytest.fixture(scope="module")
def io(golden: Reader) -> dict[str, Tensor]:
    return golden("controlnet__io")


@pytest.fixture(scope="module")
def weights(golden: Reader) -> dict[str, Tensor]:
    return golden("controlnet__control")


def _file(folder: Path, tensors: dict[str, Tensor], name: str = "control_v11p_sd15_canny.safetensors") -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / name)
    return folder / name


def _residuals(path: Path, host: Any, io: dict[str, Tensor]) -> Residuals:
    """Return the residuals of both rows, each with its own hint."""
    controller = controlnet.open(path, host, MEMORY)
    rows: list[Residuals] = []
    for i in range(2):
        control = controller.prepare(Condition(io["hint"][i : i + 1], str(i)))
        call = host.call(io["x_noisy"][i : i + 1], io["timesteps"][i : i + 1], io["context"][i : i + 1])
        found = control(call).residuals
        assert found is not None
        rows.append(found)
    down = tuple(torch.cat(pair) for pair in zip(*(r.down for r in rows), strict=True))
    return Residuals(down, torch.cat([r.mid for r in rows]))


def _expected(io: dict[str, Tensor]) -> list[Tensor]:
    return [io[key] for key in sorted(io) if key.startswith("out.control.")]


@pytest.mark.parametrize("form", FORMS)
def test_residuals_of_every_form_of_file(
    form: str, tmp_path: Path, io: dict[str, Tensor], weights: dict[str, Tensor], golden: Reader, controlnet_host: Any
) -> None:
    path = _file(tmp_path, FORMS[form](weights, golden("controlnet__unet")))
    found = _residuals(path, controlnet_host, io)
    for ours, theirs in zip((*found.down, found.mid), _expected(io), strict=True):
        torch.testing.assert_close(ours, theirs, **RESIDUALS)


def test_a_torch_file_and_diffusers_folders(
    tmp_path: Path, io: dict[str, Tensor], weights: dict[str, Tensor], controlnet_host: Any
) -> None:
    torch.save(weights, tmp_path / "control_v11p_sd15_canny.pth")
    config = json.loads((GOLDEN / "controlnet.json").read_text("utf-8"))["diffusers_controlnet_config"]
    net = ControlNetModel(**config)
    net.load_state_dict(_diffusers(weights, {}))
    net.save_pretrained(tmp_path / "folder")
    net.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for path in (tmp_path / "control_v11p_sd15_canny.pth", tmp_path / "folder", tmp_path / "shards"):
        found = _residuals(path, controlnet_host, io)
        for ours, theirs in zip((*found.down, found.mid), _expected(io), strict=True):
            torch.testing.assert_close(ours, theirs, **RESIDUALS)


def test_eps_at_every_strength(
    tmp_path: Path, io: dict[str, Tensor], weights: dict[str, Tensor], controlnet_host: Any
) -> None:
    found = _residuals(_file(tmp_path, weights), controlnet_host, io)
    call = controlnet_host.call(io["x_noisy"], io["timesteps"], io["context"])
    only_mid = (0.0,) * len(found.down) + (1.0,)
    cases = {
        "out.eps_nocontrol": None,
        "out.eps_scale1": found,
        "out.eps_scale0.6": found.scaled(layer_scales(0.6, "balanced", 5)),
        "out.eps_guess_cond": found.scaled(layer_scales(1.0, "prompt", 5)),
        "out.eps_only_mid": found.scaled(only_mid),
    }
    for name, residuals in cases.items():
        torch.testing.assert_close(controlnet_host.eps(call, residuals), io[name], **EPS)
    uncond = replace(call, tokens=io["context_uncond"])
    torch.testing.assert_close(controlnet_host.eps(uncond, None), io["out.eps_guess_uncond"], **EPS)


def test_the_hint_is_embedded_once(
    tmp_path: Path, io: dict[str, Tensor], weights: dict[str, Tensor], controlnet_host: Any
) -> None:
    control = controlnet.open(_file(tmp_path, weights), controlnet_host, MEMORY).prepare(Condition(io["hint"][:1], "0"))
    torch.testing.assert_close(control.hint, io["out.hint_embedding"][:1], **RESIDUALS)


def test_shuffle_models_average_and_act_on_the_positive_prompt(
    tmp_path: Path, io: dict[str, Tensor], weights: dict[str, Tensor], controlnet_host: Any
) -> None:
    path = _file(tmp_path, weights, "control_v11e_sd15_shuffle.safetensors")
    found = _residuals(path, controlnet_host, io)
    assert controlnet.open(path, controlnet_host, MEMORY).prepare(Condition(io["hint"][:1], "0")).positive_only
    for ours, theirs in zip((*found.down, found.mid), _expected(io), strict=True):
        torch.testing.assert_close(ours, theirs.mean((2, 3), keepdim=True).expand_as(theirs), **RESIDUALS)


@pytest.mark.parametrize(("field", "averages"), [({}, False), ({"global_pool_conditions": True}, True)])
def test_averaging_is_read_from_a_folders_config(
    field: dict[str, bool], averages: bool, tmp_path: Path, weights: dict[str, Tensor], controlnet_host: Any
) -> None:
    _file(tmp_path, _diffusers(weights, {}), "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"attention_head_dim": 4, **field}), "utf-8")
    assert controlnet.open(tmp_path, controlnet_host, MEMORY).averages is averages


def test_what_does_not_fit_is_named(
    tmp_path: Path, weights: dict[str, Tensor], controlnet_host: Any, golden: Reader
) -> None:
    short = {key: tensor for key, tensor in weights.items() if "zero_convs.1" not in key}
    with pytest.raises(KeyMismatch, match=r"controlnet_down_blocks\.1\.weight"):
        controlnet.open(_file(tmp_path, short, "short.safetensors"), controlnet_host, MEMORY)
    wide = weights | {key: torch.zeros(t.shape[0], 77) for key, t in weights.items() if "attn2.to_k" in key}
    with pytest.raises(WrongFamily, match="the width of the text is 77, the model's is 32"):
        controlnet.open(_file(tmp_path, wide, "wide.safetensors"), controlnet_host, MEMORY)
    with pytest.raises(UnknownKind, match="no hint block"):
        controlnet.open(_file(tmp_path, golden("ctrlora__basecn"), "base.safetensors"), controlnet_host, MEMORY)
    with pytest.raises(CorruptFile, match="has no weights"):
        controlnet.open(tmp_path, controlnet_host, MEMORY)
