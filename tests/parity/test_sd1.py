"""Stable Diffusion 1.x against the real classes, against the original program's outputs, and file against file."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from disegno.backbones import sd1
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.backbones.miniature import (
    SD1,
    WHOLE,
    Layout,
    Miniature,
    open_miniature,
    original_tensors,
    text_tensors,
    write_sd1_checkpoint,
    write_sd1_folder,
)
from disegno.core.errors import KeyMismatch, RequestError, UnknownKind, WrongFamily
from disegno.diffusion.call import Call, Residuals, Row
from disegno.memory import FULL_PRECISION, Memory
from disegno.text.clip_tokens import LENGTH, tokenizer
from disegno.weights.keys import ldm
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.parity

PROMPTS = ["a photo of a cat", "An OLD house (by the sea), " + "very " * 80]
MEMORY = Memory(FULL_PRECISION)
Golden = Callable[[str], dict[str, Tensor]]


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _call(backbone: LatentDiffusion, x: Tensor, t: Tensor, tokens: Tensor, residuals: Residuals | None = None) -> Call:
    rows = tuple(Row(i, positive=True, text=str(i), progress=0.0) for i in range(len(x)))
    return Call(x, t, tokens, rows, net=backbone.evaluate, residuals=residuals)


@torch.no_grad()
def _outputs(backbone: LatentDiffusion) -> tuple[Tensor, ...]:
    """Return what every part of a backbone makes of the same input: text (two skips), latents, eps, pictures."""
    texts = [backbone.encode_text(PROMPTS, skip).tokens for skip in (1, 2)]
    x, t = _noise(2, backbone.in_channels, 8, 8), torch.tensor([7.25, 981.0])
    eps = _call(backbone, x, t, texts[0]).run()
    return *texts, backbone.encode_image(_noise(2, 3, 64, 64).tanh()), eps, backbone.decode(x[:, :4])


@pytest.fixture(scope="module")
def miniature() -> LatentDiffusion:
    return open_miniature(MEMORY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd1_folder(tmp_path_factory.mktemp("models") / "miniature")


# ---- against diffusers' and transformers' own loading and running


@torch.no_grad()
def test_every_part_says_what_the_pipelines_components_say(folder: Path) -> None:
    ours = sd1.open(folder, MEMORY)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    tokens, skipped, latents, eps, pictures = _outputs(ours)
    x, t = _noise(2, 4, 8, 8), torch.tensor([7.25, 981.0])
    images = _noise(2, 3, 64, 64).tanh()
    # 1e-5: float32 on the same machine; ours takes images one at a time
    assert torch.allclose(eps, unet(x, t, tokens).sample, atol=1e-5)
    assert torch.allclose(latents, vae.encode(images).latent_dist.mode() * 0.18215, atol=1e-5)
    assert torch.allclose(pictures, (vae.decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1), atol=1e-5)
    assert (pictures.min(), pictures.max()) == (0, 1)
    assert tokens.shape == skipped.shape == (2, LENGTH, 32)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionPipeline:
    """Return diffusers' pipeline of the folder, with transformers' tokenizer over CLIP's vocabulary."""
    merges = json.loads(tokenizer().to_str())["model"]["merges"]
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    # diffusers 0.42 looks for the final norm in a submodule that transformers 5 has done away with
    object.__setattr__(text_encoder, "text_model", text_encoder)
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(vocab=tokenizer().get_vocab(), merges=[tuple(m) for m in merges], model_max_length=77),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
@pytest.mark.parametrize("skip", [1, 2, 3])
def test_text_states_are_the_pipelines_for_every_clip_skip(
    pipeline: StableDiffusionPipeline, miniature: LatentDiffusion, skip: int
) -> None:
    # the pipeline counts the layers that are left out, A1111 and we the layer from the end
    theirs, _ = pipeline.encode_prompt(
        PROMPTS, torch.device("cpu"), 1, False, clip_skip=None if skip == 1 else skip - 1
    )
    assert torch.allclose(miniature.encode_text(PROMPTS, skip).tokens, theirs, atol=1e-5)


@torch.no_grad()
def test_residuals_enter_as_a_controlnets_do(folder: Path, miniature: LatentDiffusion) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    x, t, tokens = _noise(2, 4, 8, 8), torch.tensor([3.0, 500.0]), _noise(2, LENGTH, 32)
    shapes = [(32, 8), (32, 8), (32, 4), (64, 4)]
    down, mid = tuple(_noise(2, c, s, s, seed=c + s) for c, s in shapes), _noise(2, 64, 4, 4)
    theirs = unet(x, t, tokens, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    ours = _call(miniature, x, t, tokens, Residuals(down, mid)).run()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, _call(miniature, x, t, tokens).run(), atol=0.1)


# ---- against stored outputs of the original program


@pytest.fixture(scope="module")
def golden_model(tmp_path_factory: pytest.TempPathFactory, golden: Golden) -> LatentDiffusion:
    """Return the CtrLoRA fixture's model from one file: its UNet and VAE, a miniature's text encoder, 4 heads."""
    path = tmp_path_factory.mktemp("golden") / "model.safetensors"
    text = {ldm.TEXT_PREFIXES[0] + name: tensor for name, tensor in text_tensors().items()}
    header = {sd1.CONFIG_KEY: json.dumps({"unet": {"attention_head_dim": 4}})}
    save_safetensors(path, golden("ctrlora__sd") | text, header)
    return sd1.open(path, MEMORY)


@torch.no_grad()
def test_the_original_programs_eps(golden_model: LatentDiffusion, golden: Golden) -> None:
    io = golden("ctrlora__io")
    bare = _call(golden_model, io["x_noisy"], io["timesteps"].float(), io["context"])
    assert torch.allclose(bare.run(), io["out.eps_nocontrol"], atol=1e-5)
    for half in "AB":
        *down, mid = (io[f"out.control{half}.{n:02}"] for n in range(5))
        controlled = replace(bare, residuals=Residuals(tuple(down), mid))
        assert torch.allclose(controlled.run(), io[f"out.eps_{half}"], atol=1e-5)


def test_the_original_programs_latents(golden_model: LatentDiffusion, golden: Golden) -> None:
    io = golden("ctrlora__io")
    for n in (1, 2):  # the condition's image is in [0, 1] and stays so
        ours = golden_model.encode_image(io[f"hint_image_{n}"])
        assert torch.allclose(ours, io[f"out.hint_latent_mode_{n}"], atol=1e-5)


def test_the_original_programs_picture(golden_model: LatentDiffusion, golden: Golden) -> None:
    stored = golden("ctrlora__ddim")
    latents, picture = stored["out.single.x.5"], stored["out.single.image"]
    ours = golden_model.decode(latents)
    assert torch.allclose(ours, (picture / 2 + 0.5).clamp(0, 1), atol=1e-5)


# ---- file against file

VARIANTS: Mapping[str, Layout] = {
    "plain.safetensors": WHOLE,
    "plain.ckpt": WHOLE,
    "ema.safetensors": Layout(ema=True),
    "lightning.ckpt": Layout(lightning=True, ema=True),
    "without_text_model.safetensors": Layout(text_prefix=ldm.TEXT_PREFIXES[1]),
    "without_text_model.ckpt": Layout(text_prefix=ldm.TEXT_PREFIXES[1], lightning=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_file_is_the_same_model_as_the_folder(tmp_path: Path, folder: Path, name: str) -> None:
    from_folder = sd1.open(folder, MEMORY)
    from_file = sd1.open(write_sd1_checkpoint(tmp_path / name, layout=VARIANTS[name]), MEMORY)
    assert from_file.fingerprint == from_folder.fingerprint
    for ours, theirs in zip(_outputs(from_file), _outputs(from_folder), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_half_precision_files_open_as_their_rounded_weights(
    tmp_path: Path, miniature: LatentDiffusion, dtype: torch.dtype, suffix: str
) -> None:
    half = sd1.open(write_sd1_checkpoint(tmp_path / f"half.{suffix}", layout=Layout(dtype=dtype)), MEMORY)
    weights = half.net.state_dict()
    for name, whole in miniature.net.state_dict().items():
        assert torch.equal(weights[name], whole.to(dtype).float()), name


@pytest.mark.parametrize("in_channels", [8, 9])
def test_models_with_more_channels_open_and_say_what_they_want(tmp_path: Path, in_channels: int) -> None:
    made = Miniature(in_channels=in_channels)
    backbone = sd1.open(write_sd1_checkpoint(tmp_path / "inpainting.safetensors", made), MEMORY)
    assert (backbone.in_channels, backbone.latent_channels) == (in_channels, 4)
    tokens = backbone.encode_text(["a"]).tokens
    assert _call(backbone, _noise(1, in_channels, 8, 8), torch.tensor([5.0]), tokens).run().shape == (1, 4, 8, 8)
    with pytest.raises(RequestError, match=f"4 channels but wants {in_channels}"):
        _call(backbone, _noise(1, 4, 8, 8), torch.tensor([5.0]), tokens).run()


# ---- what the output means


def _write_yaml(path: Path) -> None:
    path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n', "utf-8")


@pytest.mark.parametrize(
    ("layout", "beside"),
    [
        (Layout(extra=("v_pred",)), None),
        (Layout(header={"modelspec.prediction_type": "v"}), None),
        (Layout(header={sd1.CONFIG_KEY: json.dumps({"prediction_type": "v_prediction"})}), None),
        (WHOLE, _write_yaml),
    ],
    ids=["marker", "modelspec", "own header", "yaml"],
)
def test_v_prediction_is_recognised(tmp_path: Path, layout: Layout, beside: Callable[[Path], None] | None) -> None:
    path = write_sd1_checkpoint(tmp_path / "v.safetensors", layout=layout)
    if beside:
        beside(path)
    assert sd1.open(path, MEMORY).prediction.name == "v"


def test_v_prediction_of_a_folder(tmp_path: Path, folder: Path) -> None:
    assert sd1.open(write_sd1_folder(tmp_path / "v", Miniature(prediction="v")), MEMORY).prediction.name == "v"
    assert sd1.open(folder, MEMORY).prediction.name == "epsilon"


def test_zero_terminal_snr_is_diffusers(tmp_path: Path) -> None:
    path = write_sd1_checkpoint(tmp_path / "z.safetensors", layout=Layout(extra=("v_pred", "ztsnr")))
    table = sd1.open(path, MEMORY).table
    real = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    ).alphas_cumprod
    # float32 betas, cumulated, against our float64
    assert torch.allclose(table.alphas_cumprod[:-1], real[:-1], rtol=2e-3, atol=1e-7)
    assert table.sigma_max == pytest.approx(4518.76, rel=1e-3)


def test_scaled_8_bit_numbers_open_as_what_they_stand_for(tmp_path: Path, miniature: LatentDiffusion) -> None:
    tensors = original_tensors()
    names = [name for name in tensors if name.startswith(ldm.UNET_PREFIX) and tensors[name].ndim == 2]
    for name in names:
        scale = tensors[name].abs().max() / 448
        tensors |= {name: (tensors[name] / scale).to(torch.float8_e4m3fn), f"{name[:-6]}scale_weight": scale}
    tensors[f"{ldm.UNET_PREFIX}scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save_safetensors(tmp_path / "scaled.safetensors", tensors, {})
    weights = sd1.open(tmp_path / "scaled.safetensors", MEMORY).net.state_dict()
    for name, whole in miniature.net.state_dict().items():  # three bits behind the point: a sixteenth at most
        assert torch.allclose(weights[name], whole, rtol=0.07, atol=2e-3), name


# ---- what is wrong with a file


def _without(part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in original_tensors().items() if not name.startswith(part)}


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        (lambda: _without("first_stage_model."), KeyMismatch, "has no VAE, no tensors under first_stage_model"),
        (lambda: _without("cond_stage_model."), KeyMismatch, "no text encoder"),
        (lambda: _without("model.diffusion_model.out.2."), KeyMismatch, "conv_out.weight"),
        (
            lambda: _without("model.diffusion_model.middle_block.0.in_layers.0."),
            KeyMismatch,
            "2 missing: mid_block.resnets.0",
        ),
        (
            lambda: original_tensors() | {"model.diffusion_model.motion_emb.0.weight": torch.zeros(1)},
            KeyMismatch,
            "motion_emb",
        ),
        (lambda: original_tensors() | {"conditioner.x": torch.zeros(1)}, WrongFamily, "is for sdxl, not for sd1"),
    ],
    ids=["no vae", "no text", "no output", "holes", "unexpected", "sdxl"],
)
def test_faulty_files_are_refused_with_the_reason(
    tmp_path: Path, tensors: Callable[[], dict[str, Tensor]], error: type[Exception], words: str
) -> None:
    path = tmp_path / "faulty.safetensors"
    save_safetensors(path, tensors(), {})
    with pytest.raises(error, match=words):
        sd1.open(path, MEMORY)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 64}, "unCLIP"),
        ({"num_class_embeds": 10}, "upscaler"),
        ({"time_cond_proj_dim": 32}, "latent consistency"),
    ],
)
def test_a_unet_that_wants_more_than_it_is_told_is_refused(
    tmp_path: Path, asked: dict[str, object], words: str
) -> None:
    folder = write_sd1_folder(tmp_path / "model", Miniature(unet=asked))
    with pytest.raises(UnknownKind, match=words):
        sd1.open(folder, MEMORY)


@pytest.mark.parametrize("end", ["fp16.bin", "non_ema.safetensors"])
def test_a_folder_of_one_variant_opens(tmp_path: Path, folder: Path, end: str) -> None:
    made = Path(shutil.copytree(folder, tmp_path / "model"))
    for file in list(made.rglob("*.safetensors")):
        stem = "pytorch_model" if end.endswith("bin") and file.stem == "model" else file.stem
        tensors = load_file(file)
        file.unlink()
        if end.endswith("bin"):
            torch.save({name: tensor.clone() for name, tensor in tensors.items()}, file.with_name(f"{stem}.{end}"))
        else:
            save_safetensors(file.with_name(f"{stem}.{end}"), tensors, {})
    assert sd1.open(made, MEMORY).fingerprint == sd1.open(folder, MEMORY).fingerprint


# ---- precision


def test_an_overflowing_vae_falls_back_to_float32_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    backbone = open_miniature(Memory(replace(FULL_PRECISION, vae_dtype=torch.float16)))
    backbone.vae.decoder.conv_in.weight.data.fill_(60000.0)  # near float16's largest number
    latents = _noise(1, 4, 8, 8)
    picture = backbone.decode(latents)
    assert picture.isfinite().all()
    assert backbone.vae.dtype == torch.float32
    assert len(backbone.warnings) == 1 and "float32" in backbone.warnings[0]
    assert "overflowed" in caplog.text
    backbone.decode(latents)
    assert len(backbone.warnings) == 1


def test_an_overflowing_encoder_falls_back_to_float32_too(caplog: pytest.LogCaptureFixture) -> None:
    """SDXL's VAE does so (`force_upcast` of its configuration): its latents would be NaN, and nobody would know."""
    backbone = open_miniature(Memory(replace(FULL_PRECISION, vae_dtype=torch.float16)))
    backbone.vae.encoder.conv_in.weight.data.fill_(60000.0)
    picture = torch.ones(2, 3, 64, 64)
    latents = backbone.encode_image(picture)
    assert latents.isfinite().all() and backbone.vae.dtype == torch.float32
    assert len(backbone.warnings) == 1 and "overflowed" in caplog.text
    exact = open_miniature(Memory(FULL_PRECISION))
    exact.vae.encoder.conv_in.weight.data.fill_(60000.0)
    assert torch.allclose(latents, exact.encode_image(picture), atol=1e-3)  # weights that float16 has rounded


@torch.no_grad()
def test_bfloat16_stays_near(miniature: LatentDiffusion) -> None:
    policy = replace(FULL_PRECISION, dtype=torch.bfloat16, memory_format=torch.channels_last, vae_dtype=torch.bfloat16)
    near = open_miniature(Memory(policy))
    x, t, tokens = _noise(2, 4, 8, 8), torch.tensor([7.0, 700.0]), miniature.encode_text(PROMPTS).tokens
    exact, rounded = _call(miniature, x, t, tokens).run(), _call(near, x, t, tokens).run()
    assert rounded.dtype == torch.float32
    # bfloat16 has 8 bits: 2^-8 a rounding, some hundred roundings deep
    assert (exact - rounded).pow(2).mean().sqrt() < 0.03 * exact.std()


def test_the_seed_decides_the_miniature() -> None:
    other = open_miniature(MEMORY, replace(SD1, seed=1))
    assert other.fingerprint != open_miniature(MEMORY).fingerprint
