"""Stable Diffusion XL and its refiner against diffusers' pipelines and transformers' classes, and file against file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_open_clip_checkpoint
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from disegno.backbones import miniature, sd1, sdxl
from disegno.backbones import miniature_sdxl as mini
from disegno.backbones._lockstep import evaluate as lockstep
from disegno.backbones.miniature_sdxl import Sdxl
from disegno.core.errors import KeyMismatch, RequestError, UnknownKind, WrongFamily
from disegno.core.request import Request
from disegno.diffusion.call import Call, Row
from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.schedules import AYS_11_SDXL
from disegno.engine.batch import Batch, View
from disegno.engine.runs import Begin, Material, runs_of, walk_of
from disegno.engine.texts import Texts
from disegno.memory import FULL_PRECISION, Memory
from disegno.samplers.catalogue import find_sampler
from disegno.text.clip_tokens import LENGTH, tokenizer
from disegno.text.learnt import TextOptions
from disegno.weights.identify import identify
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

MEMORY = Memory(FULL_PRECISION)
PROMPT, NEGATIVE = "a red car on a city street", "blur"
PROMPTS = [PROMPT, "An OLD house (by the sea), " + "very " * 80]
STEPS, SEED = 8, 3
ATOL = 2e-4  # float32 through 8 guided steps


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tokenizer(pad: str) -> CLIPTokenizer:
    merges = json.loads(tokenizer().to_str())["model"]["merges"]
    words = tokenizer().get_vocab()
    return CLIPTokenizer(vocab=words, merges=[tuple(m) for m in merges], model_max_length=LENGTH, pad_token=pad)


def _pipeline(cls: Any, folder: Path, **more: Any) -> Any:
    """Return diffusers' pipeline of a folder, by its own loading; what is not there is None."""
    left = folder / "text_encoder"
    parts = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(left) if left.is_dir() else None,
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        "tokenizer": _tokenizer("<|endoftext|>") if left.is_dir() else None,
        "tokenizer_2": _tokenizer("!"),
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="linspace",
            steps_offset=1,
        ),
    }
    pipeline = cls(**parts, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / "refiner", Sdxl(refines=True))


def _drawn(backbone: sdxl.Sdxl, request: Request, begin: Begin | None = None) -> Tensor:
    silent = TextOptions(silent=not request.negative)
    texts = backbone.read_prompt(request.prompt, TextOptions()), backbone.read_prompt(request.negative, silent)
    texts = Texts.plain(*texts)
    (run,) = runs_of(request, backbone, Material(texts, (8, 10), (View(),), begin), [SEED], [SEED])
    batch = Batch(backbone)
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    return run.latents


REQUEST = Request(prompt=PROMPT, negative=NEGATIVE, steps=STEPS, sampler="Euler", schedule="uniform", cfg=5.0)


@torch.no_grad()
@pytest.mark.parametrize(("prompt", "negative"), [(PROMPT, NEGATIVE), (PROMPT, ""), ("", "")])
def test_the_same_latents_as_the_pipelines(base: Path, prompt: str, negative: str) -> None:
    pipeline, backbone = _pipeline(StableDiffusionXLPipeline, base), sdxl.open(base, MEMORY)
    theirs = pipeline(
        prompt, negative_prompt=negative or None, num_inference_steps=STEPS, guidance_scale=REQUEST.cfg,
        latents=ImageNoise((4, 8, 10), [SEED]).start_noise(), height=64, width=80, output_type="latent",
    ).images  # fmt: skip
    ours = _drawn(backbone, replace(REQUEST, prompt=prompt, negative=negative))
    assert torch.allclose(ours, theirs, atol=ATOL)


@torch.no_grad()
def test_the_refiner_draws_on_as_the_pipeline_does(refiner: Path) -> None:
    pipeline = _pipeline(StableDiffusionXLImg2ImgPipeline, refiner, requires_aesthetics_score=True)
    backbone = sdxl.open(refiner, MEMORY)
    latents = _noise(1, 4, 8, 10, seed=1)
    theirs = pipeline(
        PROMPT, negative_prompt=NEGATIVE, image=latents, strength=0.5, num_inference_steps=STEPS,
        guidance_scale=REQUEST.cfg, generator=torch.Generator().manual_seed(SEED), output_type="latent",
    ).images  # fmt: skip
    # theirs counts int(8 * 0.5) steps, A1111 and this program int(8 * 0.4) + 1
    assert torch.allclose(_drawn(backbone, REQUEST, Begin(latents, 0.4)), theirs, atol=ATOL)


@torch.no_grad()
def test_text_states_are_the_pipelines(base: Path) -> None:
    pipeline, backbone = _pipeline(StableDiffusionXLPipeline, base), sdxl.open(base, MEMORY)
    tokens, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device=torch.device("cpu"), num_images_per_prompt=1)
    ours = backbone.encode_text(PROMPTS)
    assert ours.pooled is not None and len(ours.warnings) == 1
    assert torch.allclose(ours.tokens, tokens, atol=1e-5) and torch.allclose(ours.pooled, pooled, atol=1e-5)
    one = backbone.read_prompt(PROMPT, TextOptions(clip_skip=2))
    assert one.pooled is not None and "clip_skip 2 was passed over" in one.warnings[0]
    assert torch.allclose(one.tokens, tokens[:1], atol=1e-5) and torch.allclose(one.pooled, pooled[:1], atol=1e-5)
    silent, empty = (backbone.read_prompt("", TextOptions(silent=silent)) for silent in (True, False))
    assert silent.pooled is not None and not silent.tokens.any() and not silent.pooled.any()
    tokens, _, pooled, _ = pipeline.encode_prompt("", device=torch.device("cpu"), num_images_per_prompt=1)
    assert empty.pooled is not None and torch.allclose(empty.tokens, tokens, atol=1e-5)
    assert torch.allclose(empty.pooled, pooled, atol=1e-5)
    assert torch.allclose(backbone.encode_text([""]).tokens, tokens, atol=1e-5)
    assert len({ours.keys[0], ours.keys[1], silent.keys[0], empty.keys[0]}) == 4


@torch.no_grad()
def test_emphasis_moves_the_tokens_of_both_and_not_the_pooled_state(base: Path) -> None:
    backbone = sdxl.open(base, MEMORY)
    plain = backbone.read_prompt("a red car", TextOptions())
    weighed = backbone.read_prompt("a (red:1.5) car", TextOptions(emphasis="no-norm"))
    ratio = (weighed.tokens / plain.tokens)[0, 2]  # behind the start and "a"
    assert torch.allclose(ratio, torch.full_like(ratio, 1.5), atol=1e-4)
    assert plain.pooled is not None and weighed.pooled is not None and torch.equal(plain.pooled, weighed.pooled)


@torch.no_grad()
def test_block_by_block_it_is_the_same(base: Path) -> None:
    backbone = sdxl.open(base, MEMORY)
    states, x, t = backbone.encode_text(PROMPTS), _noise(2, 4, 8, 10), torch.tensor([7.0, 981.0])
    rows = tuple(Row(i, positive=True, text=str(i), progress=0.0) for i in range(2))
    call = Call(x, t, states.tokens, rows, backbone.evaluate, states.pooled)
    ids = torch.tensor([[64.0, 80, 0, 0, 64, 80]] * 2)
    assert states.pooled is not None
    added = {"text_embeds": states.pooled, "time_ids": ids}
    whole = backbone.net(x, t, states.tokens, added_cond_kwargs=added).sample
    assert torch.equal(call.run(), whole)
    assert torch.equal(lockstep(backbone.net, x, t, states.tokens, added=added), whole)


def test_align_your_steps_are_those_of_sdxl(base: Path) -> None:
    backbone = sdxl.open(base, MEMORY)
    request = Request(prompt="", steps=11, sampler="Euler", schedule="align_your_steps")
    walk = walk_of(request, find_sampler("Euler"), backbone, None)
    assert torch.allclose(walk.planned[:-1], torch.tensor(AYS_11_SDXL), rtol=1e-4)


# ---- files


@torch.no_grad()
@pytest.mark.parametrize("made", [Sdxl(), Sdxl(refines=True), Sdxl(in_channels=9)], ids=["base", "refiner", "inpaints"])
def test_one_file_is_the_folder(tmp_path: Path, made: Sdxl) -> None:
    path, folder = mini.write_file(tmp_path / "a.safetensors", made), mini.write_folder(tmp_path / "folder", made)
    for card, layout in ((identify(path), "ldm"), (identify(folder), "diffusers")):
        assert (card.kind, card.family, card.layout, card.prediction) == ("model", "sdxl", layout, "epsilon")
        assert card.in_channels == made.in_channels
    one, many = sdxl.open(path, MEMORY), sdxl.open(folder, MEMORY)
    assert one.fingerprint == many.fingerprint and one.warnings == many.warnings == []
    assert set(one.lora_nets) == {"unet", "te2"} | (set() if made.refines else {"te"})
    a, b = (model.encode_text(PROMPTS) for model in (one, many))
    assert torch.equal(a.tokens, b.tokens) and a.pooled is not None and b.pooled is not None
    assert torch.equal(a.pooled, b.pooled)
    assert one.scaling_factor == many.scaling_factor == 0.13025
    for name in ("attention_head_dim", "transformer_layers_per_block", "projection_class_embeddings_input_dim"):
        assert tuple_of(one.net.config[name]) == tuple_of(many.net.config[name])


def tuple_of(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_names_are_those_that_diffusers_reads(base: Path, tmp_path: Path) -> None:
    tensors = load_file(mini.write_file(tmp_path / "a.safetensors"))
    config = UNet2DConditionModel.load_config(base / "unet")
    assert isinstance(config, dict)
    unet = convert_ldm_unet_checkpoint(dict(tensors), config)
    assert _same(unet, mini.nets().unet)
    text = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2")
    theirs = convert_open_clip_checkpoint(text, dict(tensors), prefix="conditioner.embedders.1.model.")
    assert _same({key: t for key, t in theirs.items() if "position_ids" not in key}, mini.text_tensors("clip_g"))


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("extra", "told"), [((), "epsilon"), (("v_pred", "ztsnr"), "v")])
def test_what_a_file_says_of_its_prediction(tmp_path: Path, extra: tuple[str, ...], told: str) -> None:
    path = mini.write_file(tmp_path / "m.safetensors", extra=extra)
    opened = sdxl.open(path, MEMORY)
    assert (opened.prediction.name, identify(path).prediction) == (told, told)
    assert (float(opened.table.alphas_cumprod[-1]) < 1e-6) == bool(extra)


def test_files_of_others_and_spoilt_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongFamily, match="is for sdxl, not for sd1"):
        sd1.open(mini.write_file(tmp_path / "a.safetensors"), MEMORY)
    with pytest.raises(WrongFamily, match="is for sd1, not for sdxl"):
        sdxl.open(miniature.write_sd1_checkpoint(tmp_path / "b.safetensors"), MEMORY)
    with pytest.raises(RequestError, match="give a model file or folder"):
        sdxl.open(None, MEMORY)
    tensors = mini.original_tensors()
    bare = {key: t for key, t in tensors.items() if not key.startswith("conditioner.")}
    save_safetensors(tmp_path / "bare.safetensors", bare, {})
    with pytest.raises(KeyMismatch, match="has no OpenCLIP"):
        sdxl.open(tmp_path / "bare.safetensors", MEMORY)
    name = "model.diffusion_model.label_emb.0.2.bias"
    save_safetensors(tmp_path / "c.safetensors", {key: t for key, t in tensors.items() if key != name}, {})
    with pytest.raises(KeyMismatch, match=r"add_embedding\.linear_2\.bias"):
        sdxl.open(tmp_path / "c.safetensors", MEMORY)


def _bare_middle(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a UNet as SSD-1B's and Vega's: one residual block is its middle."""
    gone = ("model.diffusion_model.middle_block.1.", "model.diffusion_model.middle_block.2.")
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(gone)}


def _told_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "model.diffusion_model.label_emb.0.0.weight"
    return tensors | {name: torch.zeros(len(tensors[name]), tensors[name].shape[1] + mini.SIZE_WIDTH)}


def _without(start: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.startswith(start)}


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (_bare_middle, UnknownKind, r"no attention in its middle: .*SSD-1B, Vega"),
        (lambda tensors: tensors | {"edm_mean": torch.zeros(4)}, UnknownKind, "EDM's noise levels"),
        (lambda tensors: tensors | {"edm_vpred.sigma_max": torch.ones(())}, UnknownKind, "Playground 2.5, CosXL"),
        (_told_more, UnknownKind, r"told 1856 numbers beside its tokens, not 1600: .* 6 sizes"),
        (_without("conditioner.embedders.1.model.text_projection"), KeyMismatch, "has no text_projection"),
        (_without("conditioner.embedders.0."), UnknownKind, r"told 1600 numbers beside its tokens, not 1344"),
    ],
    ids=["ssd-1b", "playground", "cosxl", "more numbers", "no projection", "no clip-l"],
)
def test_what_looks_like_it_and_is_not_is_refused_in_words(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], error: type[Exception], said: str
) -> None:
    save_safetensors(tmp_path / "a.safetensors", spoil(mini.original_tensors()), {})
    assert identify(tmp_path / "a.safetensors").family == "sdxl"
    with pytest.raises(error, match=said):
        sdxl.open(tmp_path / "a.safetensors", MEMORY)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("EDMDPMSolverMultistepScheduler", "was trained over EDM's noise levels"),
        ("FlowMatchEulerDiscreteScheduler", "is a FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_folder_of_other_noise_levels_is_refused(tmp_path: Path, scheduler: str, said: str) -> None:
    folder = mini.write_folder(tmp_path / "folder")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": scheduler}))
    with pytest.raises(UnknownKind, match=f"folder .*{said}"):
        sdxl.open(folder, MEMORY)


def test_a_projection_that_is_turned_already_is_read_as_it_is(tmp_path: Path) -> None:
    name = "conditioner.embedders.1.model.text_projection"
    tensors = mini.original_tensors()
    turned = {key: t for key, t in tensors.items() if key != name} | {f"{name}.weight": tensors[name].T.contiguous()}
    save_safetensors(tmp_path / "a.safetensors", turned, {})
    one, other = (
        sdxl.open(tmp_path / "a.safetensors", MEMORY),
        sdxl.open(mini.write_file(tmp_path / "b.safetensors"), MEMORY),
    )
    assert one.fingerprint == other.fingerprint


class Smaller(Sdxl):
    """SSD-1B's way: one residual block is the middle, and attentions have depths of their own."""

    @property
    def unet_config(self) -> dict[str, Any]:
        depths = {"transformer_layers_per_block": (1, (2, 1)), "reverse_transformer_layers_per_block": ((2, 1, 1), 1)}
        return super().unet_config | depths | {"mid_block_type": "UNetMidBlock2D"}


@torch.no_grad()
def test_a_folder_of_a_smaller_one_draws_as_the_pipeline(tmp_path: Path) -> None:
    folder = mini.write_folder(tmp_path / "folder", Smaller())
    pipeline, backbone = _pipeline(StableDiffusionXLPipeline, folder), sdxl.open(folder, MEMORY)
    theirs = pipeline(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=REQUEST.cfg,
        latents=ImageNoise((4, 8, 10), [SEED]).start_noise(), height=64, width=80, output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(_drawn(backbone, REQUEST), theirs, atol=ATOL)


@torch.no_grad()
def test_what_it_is_told_may_be_chosen_as_in_the_pipelines(base: Path, refiner: Path) -> None:
    pipeline, backbone = _pipeline(StableDiffusionXLPipeline, base), sdxl.open(base, MEMORY)
    latents = ImageNoise((4, 8, 10), [SEED]).start_noise()
    theirs = pipeline(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=REQUEST.cfg, latents=latents,
        height=64, width=80, output_type="latent", crops_coords_top_left=(256, 512),
        negative_crops_coords_top_left=(256, 512), negative_original_size=(64, 80), negative_target_size=(64, 80),
    ).images  # fmt: skip
    ours = _drawn(backbone, replace(REQUEST, crop_top=256, crop_left=512))
    assert torch.allclose(ours, theirs, atol=ATOL) and not torch.allclose(ours, _drawn(backbone, REQUEST), atol=ATOL)
    pipeline = _pipeline(StableDiffusionXLImg2ImgPipeline, refiner, requires_aesthetics_score=True)
    latents = _noise(1, 4, 8, 10, seed=1)
    theirs = pipeline(
        PROMPT, negative_prompt=NEGATIVE, image=latents, strength=0.5, num_inference_steps=STEPS,
        guidance_scale=REQUEST.cfg, generator=torch.Generator().manual_seed(SEED), output_type="latent",
        aesthetic_score=9.0, negative_aesthetic_score=1.0,
    ).images  # fmt: skip
    ours = _drawn(sdxl.open(refiner, MEMORY), replace(REQUEST, beauty=9.0, plainness=1.0), Begin(latents, 0.4))
    assert torch.allclose(ours, theirs, atol=ATOL)
