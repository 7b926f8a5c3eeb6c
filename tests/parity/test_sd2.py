"""Stable Diffusion 2.x against diffusers' pipeline and transformers' classes, and file against file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from disegno.backbones import miniature, sd1, sd2
from disegno.backbones import miniature_sd2 as mini
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.controls import controlnet
from disegno.controls.base import Condition
from disegno.core.errors import KeyMismatch, RequestError, WrongFamily
from disegno.core.guide import Guide
from disegno.core.request import Request
from disegno.diffusion.call import Call, Row
from disegno.diffusion.noise import ImageNoise
from disegno.engine.batch import Batch, View
from disegno.engine.runs import Material, runs_of
from disegno.engine.texts import Texts
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.text.clip import OPENCLIP_PAD
from disegno.text.clip_tokens import LENGTH, tokenizer
from disegno.text.learnt import TextOptions
from disegno.weights.convert import convert
from disegno.weights.identify import identify
from disegno.weights.keys import openclip
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

# diffusers turns tensors into arrays in a way that numpy 2 deprecates
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

MEMORY = Memory(FULL_PRECISION)
PROMPTS = ["a photo of a cat", "An OLD house (by the sea), " + "very " * 80]
STEPS, SEED = 8, 3
ATOL = 2e-4  # float32 through 8 guided steps; measured 9e-5 of latents up to 59, v 8e-6 of 4


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _call(backbone: LatentDiffusion, x: Tensor, t: Tensor, tokens: Tensor) -> Call:
    rows = tuple(Row(i, positive=True, text=str(i), progress=0.0) for i in range(len(x)))
    return Call(x, t, tokens, rows, net=backbone.evaluate)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / request.param, prediction=request.param)


def _pipeline(folder: Path) -> StableDiffusionPipeline:
    """Return diffusers' pipeline of the folder, with transformers' tokenizer, padded as OpenCLIP's."""
    merges = json.loads(tokenizer().to_str())["model"]["merges"]
    words, merges = tokenizer().get_vocab(), [tuple(m) for m in merges]
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer(vocab=words, merges=merges, model_max_length=LENGTH, pad_token="!"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace",
            steps_offset=1, prediction_type=scheduler["prediction_type"],
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _ours(backbone: LatentDiffusion, request: Request) -> Tensor:
    texts = Texts.plain(*(backbone.encode_text([text]) for text in (request.prompt, request.negative)))
    (run,) = runs_of(request, backbone, Material(texts, (8, 8), (View(),)), [SEED], [SEED])
    batch = Batch(backbone)
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    return run.latents


@torch.no_grad()
def test_the_same_latents_as_the_pipelines(folder: Path) -> None:
    pipeline, backbone = _pipeline(folder), sd2.open(folder, MEMORY)
    pipeline.set_progress_bar_config(disable=True)
    request = Request(prompt=PROMPTS[0], negative="blur", steps=STEPS, sampler="Euler", schedule="uniform", cfg=5.0)
    theirs = pipeline(
        request.prompt, negative_prompt=request.negative, num_inference_steps=STEPS, guidance_scale=request.cfg,
        latents=ImageNoise((4, 8, 8), [SEED]).start_noise(), height=64, width=64, output_type="latent",
    ).images  # fmt: skip
    assert backbone.prediction.name == {"epsilon": "epsilon"}.get(folder.name, "v")
    assert torch.allclose(_ours(backbone, request), theirs, atol=ATOL)


@torch.no_grad()
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_perturbed_attention_is_the_pipelines(folder: Path, cfg: float) -> None:
    backbone = sd2.open(folder, MEMORY)
    pipeline = StableDiffusionPAGPipeline(**_pipeline(folder).components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    request = Request(
        prompt=PROMPTS[0], negative="blur", steps=STEPS, sampler="Euler", schedule="uniform", cfg=cfg,
        guide=Guide(pag=3.0),
    )  # fmt: skip
    theirs = pipeline(
        request.prompt, negative_prompt=request.negative, num_inference_steps=STEPS, guidance_scale=cfg, pag_scale=3.0,
        latents=ImageNoise((4, 8, 8), [SEED]).start_noise(), height=64, width=64, output_type="latent",
    ).images  # fmt: skip
    ours = _ours(backbone, request)
    assert torch.allclose(ours, theirs, atol=ATOL)
    assert not torch.allclose(_ours(backbone, replace(request, guide=None)), theirs, atol=0.1)


@torch.no_grad()
def test_every_part_says_what_the_pipelines_components_say(folder: Path) -> None:
    pipeline, ours = _pipeline(folder), sd2.open(folder, MEMORY)
    theirs, _ = pipeline.encode_prompt(PROMPTS, torch.device("cpu"), 1, False)
    tokens = ours.encode_text(PROMPTS).tokens
    assert torch.allclose(tokens, theirs, atol=1e-5)
    assert torch.allclose(ours.read_prompt(PROMPTS[0], TextOptions()).tokens, theirs[:1], atol=1e-5)
    x, t = _noise(2, 4, 8, 8), torch.tensor([7.25, 981.0])
    assert torch.allclose(_call(ours, x, t, tokens).run(), pipeline.unet(x, t, tokens).sample, atol=1e-5)
    assert torch.allclose(ours.decode(x), (pipeline.vae.decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1), atol=1e-5)


# ---- files


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@torch.no_grad()
def test_one_file_is_the_folder(tmp_path: Path, suffix: str) -> None:
    path = mini.write_checkpoint(tmp_path / f"model.{suffix}")
    card = identify(path)
    assert (card.kind, card.family, card.layout, card.prediction) == ("model", "sd2", "ldm", None)
    one, many = sd2.open(path, MEMORY), sd2.open(mini.write_folder(tmp_path / "folder"), MEMORY)
    assert identify(tmp_path / "folder").family == "sd2"
    assert one.fingerprint == many.fingerprint
    assert torch.equal(one.encode_text(PROMPTS).tokens, many.encode_text(PROMPTS).tokens)


def test_the_layer_that_is_not_attended_to_decides_nothing(tmp_path: Path) -> None:
    tensors = mini.original_tensors()
    text = {key: t for key, t in tensors.items() if key.startswith(openclip.PREFIX)}
    last = [key for key in text if ".resblocks.3." in key]
    assert last
    save_safetensors(tmp_path / "a.safetensors", tensors, {})
    save_safetensors(tmp_path / "b.safetensors", tensors | {key: tensors[key] + 1 for key in last}, {})
    assert sd2.open(tmp_path / "a.safetensors", MEMORY).fingerprint == (
        sd2.open(tmp_path / "b.safetensors", MEMORY).fingerprint
    )


@pytest.mark.parametrize("leaning", [0.0, mini.LEANING_V], ids=["epsilon", "v"])
def test_a_model_that_does_not_say_what_it_predicts_is_tried_and_doubted(tmp_path: Path, leaning: float) -> None:
    opened = sd2.open(mini.write_checkpoint(tmp_path / "m.safetensors", mini.Sd2(leaning=leaning)), MEMORY)
    found, other = ("v", "epsilon") if leaning else ("epsilon", "v")
    assert (opened.prediction.name, opened.defaults.width) == (found, sd2.SIZES[found])
    assert len(opened.warnings) == 1 and f"give --prediction {other}" in opened.warnings[0]
    told = opened.predicting(other)
    assert (told.prediction.name, told.warnings, told.net) == (other, [], opened.net)
    with pytest.raises(RequestError, match="levels of epsilon and v"):
        opened.predicting("flow")


@pytest.mark.parametrize(
    ("words", "extra", "told"),
    [
        ({"modelspec.prediction_type": "v"}, (), "v"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, (), "v"),
        ({"modelspec.predict_key": "epsilon"}, (), "epsilon"),
        ({}, ("v_pred",), "v"),
        ({sd1.CONFIG_KEY: '{"prediction_type": "v_prediction"}'}, (), "v"),
    ],
)
def test_what_a_file_says_of_its_prediction(
    tmp_path: Path, words: dict[str, str], extra: tuple[str, ...], told: str
) -> None:
    path = mini.write_checkpoint(tmp_path / "m.safetensors", words=words, extra=extra)
    opened = sd2.open(path, MEMORY)
    assert (opened.prediction.name, opened.warnings) == (told, [])


def test_a_yaml_beside_it_says_it(tmp_path: Path) -> None:
    path = mini.write_checkpoint(tmp_path / "m.ckpt")
    path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n', "utf-8")
    assert sd2.open(path, MEMORY).prediction.name == "v"
    path.with_suffix(".yaml").write_text("model:\n  params:\n    channels: 4\n", "utf-8")
    opened = sd2.open(path, MEMORY)
    assert (opened.prediction.name, opened.warnings) == ("epsilon", [])


@pytest.mark.parametrize("channels", [9, 5])
def test_variants_are_known_by_their_channels(tmp_path: Path, channels: int) -> None:
    path = mini.write_checkpoint(tmp_path / "m.safetensors", mini.Sd2(in_channels=channels, leaning=mini.LEANING_V))
    assert identify(path).in_channels == channels
    opened = sd2.open(path, MEMORY)
    assert (opened.in_channels, opened.prediction.name) == (channels, "epsilon")


def test_a_model_goes_to_a_folder_and_back(tmp_path: Path) -> None:
    source = mini.write_checkpoint(tmp_path / "a.safetensors", dtype=torch.float16, extra=("v_pred",))
    there = convert(source, tmp_path / "folder", "diffusers")
    assert (there.card.family, there.card.prediction) == ("sd2", "v")
    assert all("resblocks.3." in name or name.endswith(("projection", "scale", "v_pred")) for name in there.left_out)
    for made, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder")):
        _, info = made.from_pretrained(tmp_path / "folder" / part, output_loading_info=True)
        assert not any(info.values())
    back = convert(tmp_path / "folder", tmp_path / "back.safetensors", "ldm")
    old, new = load_file(source), load_file(tmp_path / "back.safetensors")
    kept = {key for key in old if key not in there.left_out}
    assert all(torch.equal(old[key], new[key]) and old[key].dtype == new[key].dtype for key in kept)
    assert {sd2.open(p, MEMORY).fingerprint for p in (source, there.card.path, back.card.path)} == (
        {sd2.open(source, MEMORY).fingerprint}
    )


def test_a_converted_model_says_what_the_yaml_beside_it_did(tmp_path: Path) -> None:
    """v2-1_768-ema-pruned.safetensors says nothing of its output: its yaml does, which other programs do not read."""
    source, scheduler = mini.write_checkpoint(tmp_path / "a.safetensors"), Path("scheduler", "scheduler_config.json")
    there = convert(source, tmp_path / "untold", "diffusers")
    assert "prediction_type" not in json.loads((tmp_path / "untold" / scheduler).read_text("utf-8"))
    assert len(there.doubts) == 1 and "a.safetensors does not say what its output means" in there.doubts[0]
    source.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n', "utf-8")
    there = convert(source, tmp_path / "told", "diffusers")
    assert (there.card.prediction, there.doubts) == ("v", ())
    assert json.loads((tmp_path / "told" / scheduler).read_text("utf-8"))["prediction_type"] == "v_prediction"
    assert convert(source, tmp_path / "b.safetensors").card.prediction == "v"


def test_turbos_file_has_its_text_encoder_elsewhere(tmp_path: Path) -> None:
    """SD-Turbo's, sd_turbo.safetensors, was written by the program that wrote SDXL's."""
    source = mini.write_checkpoint(tmp_path / "sd.safetensors")
    names = {key: key.replace(openclip.PREFIX, openclip.SGM_PREFIX) for key in load_file(source)}
    turbo = {names[key]: tensor for key, tensor in load_file(source).items()}
    save_safetensors(tmp_path / "turbo.safetensors", turbo, {"disegno.family": "sd2"})
    plain, opened = sd2.open(source, MEMORY), sd2.open(tmp_path / "turbo.safetensors", MEMORY)
    assert opened.fingerprint == plain.fingerprint
    assert torch.equal(opened.encode_text(PROMPTS).tokens, plain.encode_text(PROMPTS).tokens)
    folder = convert(tmp_path / "turbo.safetensors", tmp_path / "folder", "diffusers")
    assert sd2.open(folder.card.path, MEMORY).fingerprint == plain.fingerprint
    told = turbo | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1, 1)}
    save_safetensors(tmp_path / "xl.safetensors", told, {"disegno.family": "sd2"})
    with pytest.raises(WrongFamily, match="is for sdxl, not for sd2"):
        sd2.open(tmp_path / "xl.safetensors", MEMORY)


def test_files_of_others_and_spoilt_ones_are_refused(tmp_path: Path) -> None:
    old = miniature.write_sd1_checkpoint(tmp_path / "old.safetensors")
    with pytest.raises(WrongFamily, match="is for sd1, not for sd2"):
        sd2.open(old, MEMORY)
    with pytest.raises(WrongFamily, match="is for sd2, not for sd1"):
        sd1.open(mini.write_checkpoint(tmp_path / "new.safetensors"), MEMORY)
    with pytest.raises(RequestError, match="give a model file or folder"):
        sd2.open(None, MEMORY)
    bare = {key: t for key, t in mini.original_tensors().items() if not key.startswith(openclip.PREFIX)}
    save_safetensors(tmp_path / "bare.safetensors", bare, {})
    with pytest.raises(KeyMismatch, match="has no text encoder"):
        sd2.open(tmp_path / "bare.safetensors", MEMORY)


def test_float16_becomes_bfloat16() -> None:
    half = Memory(replace(FULL_PRECISION, dtype=torch.float16)).without_fp16()
    assert half.policy.dtype == torch.bfloat16 and MEMORY.without_fp16() is MEMORY
    assert OPENCLIP_PAD == 0


# ---- a ControlNet of its shape


@torch.no_grad()
def test_a_controlnet_for_it_is_diffusers(tmp_path: Path) -> None:
    unlike = ("sample_size", "out_channels", "up_block_types", "upcast_attention")
    config = {name: value for name, value in mini.UNET.items() if name not in unlike}
    tensors = miniature.draw(build_empty(lambda: ControlNetModel(**config)), 5)
    save_safetensors(tmp_path / "c.safetensors", tensors, {})
    host = sd2.open(mini.write_folder(tmp_path / "folder"), MEMORY)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    control = controlnet.open(tmp_path / "c.safetensors", host, MEMORY).prepare(Condition(image, "k"))
    x, t, tokens = _noise(1, 4, 8, 8), torch.tensor([500.0]), host.encode_text(PROMPTS[:1]).tokens
    residuals = control(_call(host, x, t, tokens)).residuals
    theirs = ControlNetModel(**config)
    theirs.load_state_dict(tensors)
    down, mid = theirs(x, t, tokens, image, return_dict=False)
    assert residuals is not None
    assert all(
        torch.allclose(a, b, atol=1e-4) for a, b in zip((*residuals.down, residuals.mid), (*down, mid), strict=True)
    )
