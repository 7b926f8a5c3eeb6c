"""Stable Diffusion XL and its refiner as one file and as a diffusers folder: there and back bit by bit, opened by the
real classes.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file as safetensors_of
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from disegno.backbones import miniature_sdxl as mini
from disegno.backbones import sdxl
from disegno.backbones.miniature_sdxl import Sdxl
from disegno.core.errors import KeyMismatch
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.convert import convert
from disegno.weights.identify import identify
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors
from disegno.weights.verify import verified

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
BESIDE = ("logit_scale", "position_ids")  # decide nothing
MODELS = {"base": Sdxl(), "refiner": Sdxl(refines=True), "inpaints": Sdxl(in_channels=9)}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_goes_to_a_folder_and_back(tmp_path: Path, name: str) -> None:
    made = MODELS[name]
    source = mini.write_file(tmp_path / "a.safetensors", made, torch.float16)
    there = convert(source, tmp_path / "folder", "diffusers")
    assert (there.card.kind, there.card.family, there.card.prediction) == ("model", "sdxl", "epsilon")
    assert all(key.endswith(BESIDE) for key in there.left_out) and len(there.left_out) == (1 if made.refines else 2)
    parts = {"unet", "vae", "text_encoder_2"} | (set() if made.refines else {"text_encoder"})
    for part in parts:
        _, info = CLASSES[part].from_pretrained(tmp_path / "folder" / part, output_loading_info=True)
        assert not any(info.values()), (part, info)
    assert not any((tmp_path / "folder" / part).exists() for part in CLASSES.keys() - parts)
    assert len(list(verified(there.card))) == len(parts)
    back = convert(tmp_path / "folder", tmp_path / "back.safetensors", "ldm")
    assert back.left_out == () and "disegno.config" not in back.card.metadata
    kind = "refiner" if made.refines else "base"
    assert back.card.metadata["modelspec.architecture"] == f"stable-diffusion-xl-v1-{kind}"
    again = convert(back.card.path, tmp_path / "again.safetensors")
    assert again.card.metadata["modelspec.architecture"] == f"stable-diffusion-xl-v1-{kind}"
    own = {key: tensor for key, tensor in load_file(source).items() if key not in there.left_out}
    assert _same(own, load_file(back.card.path))
    opened = [sdxl.open(path, MEMORY) for path in (source, tmp_path / "folder", back.card.path)]
    assert len({model.fingerprint for model in opened}) == 1
    states = [model.encode_text(["a cat"]) for model in opened]
    assert all(torch.equal(states[0].tokens, state.tokens) for state in states)
    assert all(state.pooled is not None and torch.equal(state.pooled, states[0].pooled) for state in states)


@pytest.mark.parametrize("refines", [False, True])
def test_the_folder_says_what_the_published_one_does(tmp_path: Path, refines: bool) -> None:
    made = Sdxl(refines=refines)
    folder = convert(mini.write_file(tmp_path / "a.safetensors", made), tmp_path / "folder", "diffusers").card.path
    cls: Any = StableDiffusionXLImg2ImgPipeline if refines else StableDiffusionXLPipeline
    pipeline = cls.from_pretrained(folder, tokenizer=None, tokenizer_2=None)
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert pipeline.scheduler.config["timestep_spacing"] == "leading"
    assert (pipeline.text_encoder is None) == refines
    assert pipeline.config["force_zeros_for_empty_prompt"] == (not refines)
    assert not refines or pipeline.config["requires_aesthetics_score"]
    assert pipeline.vae.config["scaling_factor"] == 0.13025 and pipeline.vae.config["force_upcast"]
    assert pipeline.unet.config["addition_embed_type"] == "text_time"
    assert pipeline.text_encoder_2.config.hidden_act == "gelu"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == cls.__name__


def test_the_projection_is_turned(tmp_path: Path) -> None:
    source = mini.write_file(tmp_path / "a.safetensors")
    folder = convert(source, tmp_path / "folder", "diffusers").card.path
    turned = safetensors_of(folder / "text_encoder_2" / "model.safetensors")["text_projection.weight"]
    given = load_file(source)["conditioner.embedders.1.model.text_projection"]
    assert torch.equal(turned, given.T) and not torch.equal(turned, given)


def test_v_and_noise_alone_at_the_end_go_along(tmp_path: Path) -> None:
    source = mini.write_file(tmp_path / "a.safetensors", extra=("v_pred", "ztsnr"))
    there = convert(source, tmp_path / "folder", "diffusers")
    assert there.card.prediction == "v" and not {"v_pred", "ztsnr"} & set(there.left_out)
    back = convert(tmp_path / "folder", tmp_path / "back.safetensors", "ldm")
    assert {"v_pred", "ztsnr"} <= load_file(back.card.path).keys()
    opened = [sdxl.open(path, MEMORY) for path in (source, tmp_path / "folder", back.card.path)]
    assert all(model.prediction.name == "v" for model in opened)
    assert all(torch.equal(model.table.sigmas, opened[0].table.sigmas) for model in opened)
    assert float(opened[0].table.alphas_cumprod[-1]) < 1e-6


def test_another_scale_of_latents_goes_along(tmp_path: Path) -> None:
    folder = mini.write_folder(tmp_path / "folder")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    file = convert(folder, tmp_path / "one.safetensors", "ldm")
    assert json.loads(file.card.metadata["disegno.config"]) == {"vae": {"scaling_factor": 0.5}}
    again = convert(file.card.path, tmp_path / "again", "diffusers")
    assert all(sdxl.open(path, MEMORY).scaling_factor == 0.5 for path in (folder, file.card.path, again.card.path))


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_a_network_alone_is_renamed_and_named_back(tmp_path: Path, kind: str) -> None:
    prefix = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}[kind]
    original = {key: tensor for key, tensor in mini.original_tensors().items() if key.startswith(prefix)}
    save_safetensors(tmp_path / "a.safetensors", original, {})
    card = identify(tmp_path / "a.safetensors")
    assert (card.kind, card.family) == (kind, "sdxl" if kind == "unet" else "")
    there = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    assert (there.card.kind, there.card.layout, there.left_out) == (kind, "diffusers", ())
    nets = mini.nets()
    assert _same(load_file(tmp_path / "b.safetensors"), dict(nets.unet if kind == "unet" else nets.vae))
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "ldm")
    assert _same(load_file(tmp_path / "c.safetensors"), original)


def test_half_a_model_is_refused(tmp_path: Path) -> None:
    tensors = {key: t for key, t in mini.original_tensors().items() if not key.startswith("conditioner.embedders.1")}
    save_safetensors(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(KeyMismatch, match=r"no tensors under conditioner\.embedders\.1"):
        convert(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
