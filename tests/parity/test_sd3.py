"""Stable Diffusion 3 and 3.5 against diffusers' pipeline and transformers' classes, and file against file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from tokenizers import processors
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel

from disegno.backbones import miniature_sd2, sd2, sd3
from disegno.backbones import miniature_sd3 as mini
from disegno.backbones._mmdit import Mmdit
from disegno.backbones.miniature_sd3 import Sd3
from disegno.core.errors import CorruptFile, KeyMismatch, RequestError, WrongFamily
from disegno.core.guide import Guide
from disegno.core.request import Request
from disegno.diffusion.call import Call, Residuals, Row
from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.schedules import Spacing, find_schedule, flow_table, plan_sigmas
from disegno.engine import concrete
from disegno.engine.batch import Batch, View
from disegno.engine.guiding import check_guide
from disegno.engine.runs import Begin, Material, runs_of
from disegno.engine.texts import Texts
from disegno.memory import FULL_PRECISION, Memory
from disegno.samplers.catalogue import SAMPLERS, find_sampler
from disegno.text.clip_tokens import LENGTH, tokenizer
from disegno.text.learnt import TextOptions
from disegno.text.t5 import open_tokenizer
from disegno.weights.identify import identify
from disegno.weights.keys import mmdit
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors
from kit.vocabulary import trained, write_spiece

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

MEMORY = Memory(FULL_PRECISION)
PROMPT, NEGATIVE = "a red car on a city street", "blur"
STEPS, SEED = 8, 3
ATOL = 1e-4  # float32 through 8 guided steps; measured 2e-5 to 4e-5, of latents up to 9
KINDS = ("3", "3.5-medium", "3.5-large")


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / request.param, Sd3(kind=request.param), trained())


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / "medium", tokenizer=trained())


def _clip_tokenizer(pad: str) -> CLIPTokenizer:
    merges = json.loads(tokenizer().to_str())["model"]["merges"]
    words = tokenizer().get_vocab()
    return CLIPTokenizer(vocab=words, merges=[tuple(m) for m in merges], model_max_length=LENGTH, pad_token=pad)


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    own = type(trained()).from_str(trained().to_str())
    own.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _components(folder: Path) -> dict[str, Any]:
    """Return diffusers' and transformers' own loading of a folder; parts that are not there are None."""
    classes = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
    }
    found = {
        name: made.from_pretrained(folder / name) if (folder / name).is_dir() else None
        for name, made in classes.items()
    }
    return found | {
        "tokenizer": _clip_tokenizer("<|endoftext|>"),
        "tokenizer_2": _clip_tokenizer("!"),
        "tokenizer_3": _t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=mini.SHIFT),
    }


def _drawn(backbone: Mmdit, request: Request, begin: Begin | None = None) -> Tensor:
    texts = Texts.plain(*(backbone.read_prompt(text, TextOptions()) for text in (request.prompt, request.negative)))
    runs = runs_of(request, backbone, Material(texts, (8, 8), (View(),), begin), [SEED], [SEED])
    batch = Batch(backbone)
    for run in runs:
        batch.add(run)
    while batch.runs:
        batch.step()
    assert runs[0].latents is not None
    return runs[0].latents


REQUEST = Request(prompt=PROMPT, negative=NEGATIVE, steps=STEPS, sampler="Euler", schedule="normal", cfg=5.0)


@torch.no_grad()
def test_the_same_latents_as_the_pipelines(folder: Path) -> None:
    pipeline, backbone = StableDiffusion3Pipeline(**_components(folder)), sd3.open(folder, MEMORY)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=REQUEST.cfg, height=64, width=64,
        latents=ImageNoise((16, 8, 8), [SEED]).start_noise(), max_sequence_length=LENGTH, output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(_drawn(backbone, REQUEST), theirs, atol=ATOL)


@torch.no_grad()
def test_layers_are_left_out_as_the_pipeline_leaves_them_out(folder: Path) -> None:
    pipeline, backbone = StableDiffusion3Pipeline(**_components(folder)), sd3.open(folder, MEMORY)
    pipeline.set_progress_bar_config(disable=True)
    layers = [0, len(backbone.net.transformer_blocks) - 1]
    theirs = pipeline(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=REQUEST.cfg, height=64, width=64,
        latents=ImageNoise((16, 8, 8), [SEED]).start_noise(), max_sequence_length=LENGTH, output_type="latent",
        skip_guidance_layers=layers, skip_layer_guidance_scale=2.8, skip_layer_guidance_start=0.01,
        skip_layer_guidance_stop=0.6,
    ).images  # fmt: skip
    guide = Guide(slg=2.8, slg_layers=tuple(layers), slg_end=0.6)
    assert torch.allclose(_drawn(backbone, replace(REQUEST, guide=guide)), theirs, atol=ATOL)
    assert not torch.allclose(_drawn(backbone, REQUEST), theirs, atol=0.1)
    with pytest.raises(RequestError, match=r"slg_layers: .* has \d+ blocks"):
        check_guide(replace(REQUEST, guide=Guide(slg=2.8, slg_layers=(99,))), backbone)
    with pytest.raises(RequestError, match="pag is for models with a UNet"):
        check_guide(replace(REQUEST, guide=Guide(pag=3.0)), backbone)


@torch.no_grad()
def test_the_first_steps_may_rest(medium: Path) -> None:
    backbone = sd3.open(medium, MEMORY)
    fits = _drawn(backbone, replace(REQUEST, guide=Guide(zero_star=True)))
    assert not torch.allclose(fits, _drawn(backbone, REQUEST), atol=0.1)
    rests = _drawn(backbone, replace(REQUEST, guide=Guide(zero_star=True, zero_steps=STEPS)))
    assert torch.allclose(rests, ImageNoise((16, 8, 8), [SEED]).start_noise(), atol=1e-5)  # nothing has moved


@torch.no_grad()
def test_a_part_drawn_anew_is_the_inpainting_pipelines(medium: Path) -> None:
    pipeline, backbone = StableDiffusion3InpaintPipeline(**_components(medium)), sd3.open(medium, MEMORY)
    pipeline.set_progress_bar_config(disable=True)
    latents = backbone.encode_image(_noise(1, 3, 64, 64, seed=1).tanh())
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, :, 32:] = 1
    theirs = pipeline(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=REQUEST.cfg, height=64, width=64,
        image=latents, mask_image=mask, masked_image_latents=latents, strength=0.5, max_sequence_length=LENGTH,
        generator=torch.Generator().manual_seed(SEED), output_type="latent",
    ).images  # fmt: skip
    # theirs counts int(8 * 0.5) steps, A1111 and this program int(8 * 0.4) + 1
    ours = _drawn(backbone, REQUEST, Begin(latents, 0.4, mask=mask[:, :, ::8, ::8]))
    assert torch.allclose(ours[..., 4:], theirs[..., 4:], atol=5e-4)
    assert torch.equal(ours[..., :4], latents[..., :4])


# ---- text


@torch.no_grad()
@pytest.mark.parametrize("missing", [(), ("text_encoder",), ("text_encoder_2",), ("text_encoder_3",)])
def test_text_states_are_the_pipelines(medium: Path, tmp_path: Path, missing: tuple[str, ...]) -> None:
    shutil.copytree(medium, tmp_path / "m")
    for name in missing:
        shutil.rmtree(tmp_path / "m" / name)
    backbone = sd3.open(tmp_path / "m", MEMORY)
    assert len(backbone.warnings) == len(missing)
    pipeline = StableDiffusion3Pipeline(**_components(medium))
    tokens, _, pooled, _ = pipeline.encode_prompt(PROMPT, None, None, max_sequence_length=LENGTH)
    left, right = slice(0, mini.WIDTHS["clip_l"]), slice(mini.WIDTHS["clip_l"], sum(mini.WIDTHS.values()))
    zeroed = {"text_encoder": (slice(0, LENGTH), left), "text_encoder_2": (slice(0, LENGTH), right)}
    for name in missing:  # the paper's: an encoder that is left out says 0
        rows, columns = zeroed.get(name, (slice(LENGTH, None), slice(None)))
        tokens[:, rows, columns] = 0
        if name in zeroed:
            pooled[:, columns] = 0
    ours = backbone.read_prompt(PROMPT, TextOptions())
    assert ours.pooled is not None
    assert torch.allclose(ours.tokens, tokens, atol=1e-5) and torch.allclose(ours.pooled, pooled, atol=1e-5)
    caption = backbone.encode_text([PROMPT])
    assert torch.allclose(caption.tokens, tokens, atol=1e-5)
    assert caption.keys[0] != backbone.encode_text([NEGATIVE]).keys[0]


@torch.no_grad()
def test_long_prompts_reach_t5_whole_and_clip_in_chunks(medium: Path) -> None:
    backbone = sd3.open(medium, MEMORY)
    long = ", ".join([PROMPT] * 12)
    count = len(trained().encode(long).ids) + 1
    assert LENGTH < count < 512
    states = backbone.read_prompt(long, TextOptions())
    assert states.tokens.shape == (1, 2 * LENGTH + count, mini.JOINT)
    real = T5EncoderModel.from_pretrained(medium / "text_encoder_3")
    ids = torch.tensor([[*trained().encode(long).ids, 1]])
    assert torch.allclose(states.tokens[:, 2 * LENGTH :], real(ids).last_hidden_state, atol=1e-5)
    assert states.warnings == ()
    cut = backbone.read_prompt(", ".join([PROMPT] * 60), TextOptions())
    assert "for T5, which reads 511" in cut.warnings[0] and cut.tokens.shape[1] % LENGTH == 512 % LENGTH
    assert "which reads 76" in " ".join(backbone.encode_text([long]).warnings)


@torch.no_grad()
def test_emphasis_reaches_all_three(medium: Path) -> None:
    backbone = sd3.open(medium, MEMORY)
    plain = backbone.read_prompt("a red car", TextOptions()).tokens
    weighed = backbone.read_prompt("a (red:1.5) car", TextOptions(emphasis="no-norm")).tokens
    changed = (weighed / plain).nan_to_num(1.0).sub(1).abs().amax(dim=2)[0] > 1e-3
    assert changed[:LENGTH].any() and changed[LENGTH:].any() and not changed[LENGTH + 20 :].any()


def test_a_sentencepiece_file_is_the_same_vocabulary(tmp_path: Path) -> None:
    theirs, ours = trained(), open_tokenizer(write_spiece(tmp_path / "spiece.model"))
    for text in (PROMPT, "zzz unknown ☃", "  two   spaces, and more ", ""):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids
    assert (ours.token_to_id("</s>"), ours.token_to_id("<extra_id_0>")) == (1, theirs.get_vocab_size() + 99)
    for name, spoilt in (("spiece.model", b"\x0a\xff"), ("tokenizer.json", b"{}"), ("spiece.model", b"")):
        (tmp_path / name).write_bytes(spoilt)
        with pytest.raises(CorruptFile, match=r"is no (SentencePiece model|tokenizer)"):
            open_tokenizer(tmp_path / name)


@torch.no_grad()
def test_t5_off_on_the_cpu_and_in_eight_bits(medium: Path) -> None:
    def opened(use: Any) -> Mmdit:
        return sd3.open(medium, Memory(replace(FULL_PRECISION, t5=use)))

    whole, off, cpu, eight = (opened(use) for use in ("on", "off", "cpu", "int8"))
    states = [model.read_prompt(PROMPT, TextOptions()).tokens[:, LENGTH:] for model in (whole, off, cpu, eight)]
    assert off.text.t5 is None and off.warnings == [] and not states[1].any()
    assert torch.equal(states[2], states[0])
    difference = (states[3] - states[0]).pow(2).mean().sqrt() / states[0].pow(2).mean().sqrt()
    assert 0 < difference < 0.05  # 8 bits a weight, two layers deep: measured 0.029
    assert len({model.fingerprint for model in (whole, off, eight)}) == 3
    assert eight.text.t5 is not None and whole.text.t5 is not None
    sizes = [
        sum(t.numel() * t.element_size() for t in m.text.t5.net.encoder.block.state_dict().values())
        for m in (eight, whole)
    ]
    assert sizes[0] < 0.3 * sizes[1]


# ---- files


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_one_file_is_the_folder_and_its_tensors_go_there_and_back(tmp_path: Path, kind: str) -> None:
    made = Sd3(kind=kind)
    path = mini.write_file(tmp_path / "model.safetensors", made)
    trained().save(str(tmp_path / "tokenizer.json"))
    card = identify(path)
    assert (card.kind, card.family, card.layout, card.prediction, card.in_channels) == (
        "model",
        "sd3",
        "ldm",
        "flow",
        16,
    )
    one, many = sd3.open(path, MEMORY), sd3.open(mini.write_folder(tmp_path / "folder", made, trained()), MEMORY)
    assert one.warnings == many.warnings == []
    a, b = (model.read_prompt(PROMPT, TextOptions()) for model in (one, many))
    # the same weights, at other places in memory; and CLIP-L's pooled state not projected against projected by 1
    assert torch.allclose(a.tokens, b.tokens, atol=1e-5) and a.pooled is not None and b.pooled is not None
    assert torch.allclose(a.pooled, b.pooled, atol=1e-5)
    assert torch.allclose(_evaluated(one), _evaluated(many), atol=1e-4)
    own = {key: t for key, t in load_file(path).items() if key.startswith(mmdit.PREFIX)}
    stripped = {key.removeprefix(mmdit.PREFIX): tensor for key, tensor in own.items()}
    back = mmdit.to_original(mmdit.from_original(stripped))
    assert back.keys() == stripped.keys() and all(torch.equal(back[key], stripped[key]) for key in back)


def _evaluated(model: Mmdit, size: tuple[int, int] = (8, 8), residuals: Residuals | None = None) -> Tensor:
    states = model.encode_text([PROMPT])
    row = (Row(0, positive=True, text="", progress=0.0),)
    call = Call(_noise(1, 16, *size), torch.tensor([500.0]), states.tokens, row, model.evaluate, states.pooled)
    return replace(call, residuals=residuals).run()


@torch.no_grad()
def test_encoders_beside_the_file_are_found(tmp_path: Path) -> None:
    path = mini.write_file(tmp_path / "checkpoints" / "sd3_medium.safetensors", encoders=())
    bare = sd3.open(path, MEMORY)
    assert [warning.split(",")[0][-10:].split()[-1] for warning in bare.warnings] == ["T5", "CLIP-L", "OpenCLIP-G"]
    assert not bare.read_prompt(PROMPT, TextOptions()).tokens.any()
    for stem, name in (("clip_l", "clip_l"), ("clip_g", "clip_g"), ("t5xxl_fp16", "t5")):
        mini.write_encoder(tmp_path / "text_encoders" / f"{stem}.safetensors", name)
    without = sd3.open(path, MEMORY)
    assert len(without.warnings) == 1 and "vocabulary was not found" in without.warnings[0]
    write_spiece(tmp_path / "text_encoders" / "spiece.model")
    whole = sd3.open(path, MEMORY)
    assert whole.warnings == []
    trained().save(str(tmp_path / "checkpoints" / "tokenizer.json"))
    within = sd3.open(mini.write_file(tmp_path / "checkpoints" / "incl.safetensors"), MEMORY)
    assert torch.allclose(*(m.read_prompt(PROMPT, TextOptions()).tokens for m in (whole, within)), atol=1e-5)


def test_files_of_others_and_spoilt_ones_are_refused(tmp_path: Path) -> None:
    tensors = mini.original_tensors(encoders=())
    with pytest.raises(WrongFamily, match="is for sd3, not for sd2"):
        sd2.open(mini.write_file(tmp_path / "a.safetensors", encoders=()), MEMORY)
    with pytest.raises(WrongFamily, match="is for sd2, not for sd3"):
        sd3.open(miniature_sd2.write_checkpoint(tmp_path / "b.safetensors"), MEMORY)
    with pytest.raises(RequestError, match="give a model file or folder"):
        sd3.open(None, MEMORY)
    name = mmdit.PREFIX + "joint_blocks.1.x_block.mlp.fc1.bias"
    for spoilt, words in (
        (
            {key: t for key, t in tensors.items() if key != name},
            r"1 missing: transformer_blocks\.1\.ff\.net\.0\.proj\.bias",
        ),
        (
            tensors | {mmdit.PREFIX + "joint_blocks.0.extra.weight": torch.zeros(1)},
            "tensors that Stable Diffusion 3 has not",
        ),
        ({key: t for key, t in tensors.items() if "context_embedder" not in key}, "has no context_embedder.weight"),
    ):
        save_safetensors(tmp_path / "c.safetensors", spoilt, {})
        with pytest.raises(KeyMismatch, match=words):
            sd3.open(tmp_path / "c.safetensors", MEMORY)


# ---- sizes, residuals, schedules, samplers


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (7, 8)])
def test_any_number_of_cells_is_drawn(medium: Path, size: tuple[int, int]) -> None:
    out = _evaluated(sd3.open(medium, MEMORY), size)
    assert out.shape == (1, 16, *size) and out.isfinite().all()


@torch.no_grad()
def test_residuals_enter_as_a_controlnets_do(medium: Path) -> None:
    backbone, real = sd3.open(medium, MEMORY), SD3Transformer2DModel.from_pretrained(medium / "transformer")
    maps = [_noise(1, mini.WIDTH, 4, 4, seed=n) for n in range(mini.NUM_BLOCKS - 1)]
    states = backbone.encode_text([PROMPT])
    blocks = [m.flatten(2).transpose(1, 2) for m in (*maps, maps[-1])]
    theirs = real(
        _noise(1, 16, 8, 8), states.tokens, states.pooled, torch.tensor([500.0]), block_controlnet_hidden_states=blocks
    ).sample
    ours = _evaluated(backbone, residuals=Residuals(tuple(maps[:-1]), maps[-1]))
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, _evaluated(backbone), atol=0.01)


def test_sizes_that_cannot_be_drawn_are_refused_with_one_that_can(medium: Path) -> None:
    backbone = sd3.open(medium, MEMORY)
    for width, height in ((60, 64), (64, 392), (8, 64)):
        with pytest.raises(RequestError, match=r"multiples of 8 from 16 to 384 pixels\. Try (64|384|16)"):
            backbone.check_size(width, height)
    with pytest.raises(RequestError, match="its output cannot mean v"):
        backbone.predicting("v")
    assert backbone.predicting("flow") is backbone


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_schedules_are_those_of_diffusers_and_comfyui(shift: float) -> None:
    table, scheduler = flow_table(shift), FlowMatchEulerDiscreteScheduler(shift=shift)
    assert torch.allclose(table.sigmas.flip(0), scheduler.sigmas, atol=1e-6)
    scheduler.set_timesteps(20)
    sigmas = find_schedule("normal").sigmas(20, table, Spacing())
    assert torch.allclose(sigmas, scheduler.sigmas, atol=1e-6)
    assert torch.allclose(table.net_t(sigmas[:-1]), scheduler.timesteps, atol=1e-3)
    assert torch.equal(plan_sigmas(find_sampler("DPM++ 2M"), None, 20, table), sigmas)

    def moved(level: Tensor) -> Tensor:  # ComfyUI's time_snr_shift
        return shift * level / (1 + (shift - 1) * level)

    low = float(table.sigma_min)
    even = find_schedule("sgm uniform").sigmas(20, table, Spacing())
    assert torch.allclose(even[:-1], moved(torch.linspace(1, low, 21)[:-1]), atol=1e-6)
    every = find_schedule("simple").sigmas(20, table, Spacing())
    assert torch.allclose(every[:-1], moved((1000 - torch.arange(20) * 50) / 1000), atol=1e-6)
    beta = find_schedule("beta").sigmas(20, table, Spacing())
    quantiles = torch.distributions.Beta(torch.tensor(0.6), torch.tensor(0.6))
    assert len(beta) == 21 and beta[0] == 1.0 and quantiles.mean == 0.5
    level = beta[10] / (shift - (shift - 1) * beta[10])  # half way: the middle level, unshifted
    assert level == pytest.approx(0.5, abs=0.01)


def test_a_sampler_without_meaning_for_a_flow_names_those_that_have_one(
    medium: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, euler = sd3.open(medium, MEMORY), find_sampler("Euler")
    monkeypatch.setattr(concrete, "find_sampler", lambda name: replace(euler, name="Old", predictions=("epsilon", "v")))
    with pytest.raises(RequestError, match=r"Old has no meaning for a flow model .* Choose one of: DPM\+\+ 2M, .*LCM"):
        concrete.sampler_of(REQUEST, backbone)


@torch.no_grad()
@pytest.mark.parametrize("name", [spec.name for spec in SAMPLERS])
def test_every_sampler_draws(medium: Path, name: str) -> None:
    latents = _drawn(sd3.open(medium, MEMORY), replace(REQUEST, sampler=name, schedule="automatic", steps=4))
    assert latents.isfinite().all() and latents.std() > 0.01
