"""Stable Diffusion 2's depth model against diffusers' pipeline: its estimator, its maps, and pictures drawn by them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import EulerDiscreteScheduler, StableDiffusionDepth2ImgPipeline
from PIL import Image
from torch import Tensor
from transformers import BitConfig, DPTConfig, DPTForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature_sd2 as mini
from disegno.backbones import sd2
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.cli.main import main
from disegno.core.errors import KeyMismatch, RequestError
from disegno.core.request import Hires, InitImage
from disegno.engine.batch import Batch, View
from disegno.engine.depth import in_cells
from disegno.engine.record import png_bytes, read
from disegno.engine.runs import Begin, Material, runs_of
from disegno.engine.texts import Texts
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.convert import convert
from disegno.weights.keys import midas, openclip
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

pytestmark = [
    pytest.mark.parity,
    # diffusers turns tensors into arrays in a way that numpy 2 deprecates, and asks for autocast in float32
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
]

SEES_DEPTH = mini.Sd2(in_channels=5, estimates=True)
BARE = mini.Sd2(in_channels=5)
STEPS, SEED, SIDE = 10, 7, 64
REQUEST = Request(
    prompt="a red car", negative="blur", steps=STEPS, sampler="Euler", schedule="uniform", cfg=4.0, seed=SEED
)
ATOL = 5e-4  # as in test_img2img_diffusers.py: float32 through 5 guided steps. Measured: 6e-6
SMALL = Request(prompt="a cat", model="depth-folder", seed=3, steps=3, width=SIDE, height=SIDE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    mini.write_folder(folder / "depth-folder", SEES_DEPTH, prediction="epsilon")
    mini.write_checkpoint(folder / "depth-file.safetensors", BARE)
    mini.write_checkpoint(folder / "whole-file.safetensors", SEES_DEPTH)
    mini.write_checkpoint(folder / "plain.safetensors")
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "photo.png")
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (SIDE, 1))).save(folder / "map.png")
    Image.fromarray(np.tile(ramp[:, None], (1, SIDE))).save(folder / "other.png")
    Image.new("L", (SIDE, SIDE), 99).save(folder / "flat.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Studio]:
    yield Studio(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> LatentDiffusion:
    return sd2.open(folder / "depth-folder", Memory(FULL_PRECISION))


def _pipeline(backbone: LatentDiffusion, folder: Path) -> Any:
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace", steps_offset=1
    )
    pipeline = StableDiffusionDepth2ImgPipeline(
        vae=backbone.vae,
        unet=backbone.net,
        text_encoder=None,
        tokenizer=None,
        scheduler=scheduler,
        depth_estimator=DPTForDepthEstimation.from_pretrained(folder / "depth-folder" / "depth_estimator"),
        feature_extractor=DPTImageProcessorPil.from_pretrained(folder / "depth-folder" / "feature_extractor"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _photo(folder: Path) -> tuple[Image.Image, Tensor]:
    with Image.open(folder / "photo.png") as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        return picture.convert("RGB"), pixels


@torch.no_grad()
def test_the_estimate_and_its_cells_are_diffusers(backbone: LatentDiffusion, folder: Path) -> None:
    picture, pixels = _photo(folder)
    assert backbone.depth is not None
    theirs = _pipeline(backbone, folder).prepare_depth_map(
        [picture], None, 1, False, torch.float32, torch.device("cpu")
    )
    ours = in_cells(backbone.depth(pixels), 8, 8)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (ours.amin(), ours.amax()) == (-1, 1)


@torch.no_grad()
@pytest.mark.parametrize("gives", ["a map", "nothing"])
def test_a_picture_drawn_by_depth_is_the_pipelines(backbone: LatentDiffusion, folder: Path, gives: str) -> None:
    picture, pixels = _photo(folder)
    given = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) if gives == "a map" else None
    states = [backbone.encode_text([text]).tokens for text in (REQUEST.prompt, REQUEST.negative)]
    latents = backbone.encode_image(pixels * 2 - 1)
    pipeline = _pipeline(backbone, folder)
    pipeline.vae = _WithoutChance(backbone.vae)
    theirs = pipeline(
        image=picture, depth_map=given, strength=0.5, num_inference_steps=STEPS, guidance_scale=REQUEST.cfg,
        prompt_embeds=states[0], negative_prompt_embeds=states[1], output_type="latent",
        generator=torch.Generator().manual_seed(SEED),
    ).images  # fmt: skip
    assert backbone.depth is not None
    extra = in_cells(backbone.depth(pixels) if given is None else given[None], 8, 8)
    ours = _ours(backbone, Begin(latents, 0.4), extra)
    assert torch.allclose(ours, theirs, atol=ATOL), (ours - theirs).abs().max()
    assert not torch.allclose(ours, _ours(backbone, Begin(latents, 0.4), -extra), atol=0.05)


class _WithoutChance:
    """A VAE whose pipeline takes the mode: it draws from the posterior otherwise, with numbers of the noise's."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def encode(self, images: Tensor) -> Any:
        latents = self._vae.encode(images).latent_dist.mode()
        return type("Encoded", (), {"latents": latents})()


def _ours(backbone: LatentDiffusion, begin: Begin, extra: Tensor) -> Tensor:
    texts = Texts.plain(*(backbone.encode_text([text]) for text in (REQUEST.prompt, REQUEST.negative)))
    (run,) = runs_of(REQUEST, backbone, Material(texts, (8, 8), (View(),), begin, extra), [SEED], [SEED])
    batch = Batch(backbone)
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    return run.latents


# ---- through the engine


def _draw(studio: Studio, **fields: object) -> Result:
    last = list(generate(Request(**(vars(SMALL) | fields)), studio=studio))[-1]
    assert isinstance(last, Result)
    return last


def _bytes(result: Result) -> bytes:
    return result.images[0].tobytes()


def test_maps_annotators_and_the_estimator_each_draw_another_picture(studio: Studio, folder: Path) -> None:
    photo = InitImage(image=str(folder / "photo.png"), denoise=0.7)
    drawn = [
        _draw(studio, init=photo),
        _draw(studio, init=photo, depth=str(folder / "map.png")),
        _draw(studio, init=photo, depth=str(folder / "other.png")),
        _draw(studio, init=photo, depth_annotate="grayscale"),
        _draw(studio, init=photo, depth=str(folder / "map.png"), depth_annotate="invert"),
    ]
    assert len({_bytes(result) for result in drawn}) == len(drawn)
    assert all(result.warnings == () for result in drawn)
    folder_map, file_map = (
        _draw(studio, init=photo, depth=str(folder / "map.png"), model=name) for name in ("depth-folder", "depth-file")
    )
    assert _bytes(folder_map) == _bytes(file_map) == _bytes(drawn[1])


def test_a_files_estimator_is_the_folders(studio: Studio, folder: Path, tmp_path: Path) -> None:
    photo = InitImage(image=str(folder / "photo.png"), denoise=0.7)
    by_folder, by_file = (_draw(studio, init=photo, model=name) for name in ("depth-folder", "whole-file"))
    assert _bytes(by_folder) == _bytes(by_file)
    there = convert(folder / "whole-file.safetensors", tmp_path / "again", "diffusers")
    lost = {name for name in there.left_out if "resblocks.3." not in name}
    head = {f"{midas.PREFIX}pretrained.model.head.{end}" for end in ("weight", "bias")}
    assert lost == head | {openclip.PREFIX + name for name in ("text_projection", "logit_scale")}
    _, info = DPTForDepthEstimation.from_pretrained(tmp_path / "again" / "depth_estimator", output_loading_info=True)
    assert not any(info.values())
    back = convert(tmp_path / "again", tmp_path / "back.safetensors", "ldm")
    old, new = load_file(folder / "whole-file.safetensors"), load_file(back.card.path)
    assert back.left_out == () and all(torch.equal(old[name], new[name]) for name in old if name not in there.left_out)


def test_words_alone_draw_by_a_map_and_in_a_second_pass(studio: Studio, folder: Path) -> None:
    one, other = (_draw(studio, depth=str(folder / name)) for name in ("map.png", "other.png"))
    assert _bytes(one) != _bytes(other)
    hires = Hires(scale=1.5, denoise=0.5)
    large = _draw(studio, depth=str(folder / "map.png"), hires=hires)
    assert large.images[0].size == (96, 96)
    second = _draw(studio, model="plain", depth=str(folder / "map.png"), hires=Hires(scale=1.5, model="depth-file"))
    assert not any("depth map" in warning for warning in second.warnings)


def test_what_is_missing_or_does_nothing_is_said(studio: Studio, folder: Path) -> None:
    photo = InitImage(image=str(folder / "photo.png"))
    with pytest.raises(RequestError, match="draws by depth: give it a depth map"):
        _draw(studio)
    with pytest.raises(RequestError, match="came without what tells the depth"):
        _draw(studio, model="depth-file", init=photo)
    with pytest.raises(RequestError, match="draws by depth"):
        _draw(studio, model="plain", hires=Hires(model="depth-file"))
    with pytest.raises(RequestError, match="one grey everywhere"):
        _draw(studio, depth=str(folder / "flat.png"))
    warned = _draw(studio, model="plain", depth=str(folder / "map.png"))
    assert any("The depth map was passed over" in warning for warning in warned.warnings)


def test_a_picture_remembers_its_map(studio: Studio, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "map.png").write_bytes((folder / "map.png").read_bytes())
    first = _draw(studio, depth=str(tmp_path / "map.png"))
    (tmp_path / "out.png").write_bytes(png_bytes(first, 0))
    (tmp_path / "map.png").unlink()
    again = list(generate(read(tmp_path / "out.png").replay(), studio=studio))[-1]
    assert isinstance(again, Result) and _bytes(again) == _bytes(first)


def test_from_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(folder))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(tmp_path))
    words = ["generate", "a cat", "--model", "depth-folder", "--steps", "1", "--seed", "1", "--size", "64x64"]
    for i, more in enumerate((["--depth", str(folder / "map.png")], ["--from", str(folder / "photo.png")])):
        out = tmp_path / f"{i}.png"
        done = CliRunner().invoke(main, [*words, *more, "-o", str(out)])
        assert done.exit_code == 0 and out.is_file(), done.output


def test_a_spoilt_estimator_is_refused(folder: Path, tmp_path: Path) -> None:
    spoilt = mini.write_folder(tmp_path / "spoilt", SEES_DEPTH)
    file = spoilt / "depth_estimator" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("head.")}
    save_safetensors(file, tensors, {"format": "pt"})
    with pytest.raises(KeyMismatch, match="The depth estimator of spoilt"):
        sd2.open(spoilt, Memory(FULL_PRECISION))


# ---- the real estimator

REAL: dict[str, tuple[int, ...]] = {
    "pretrained.model.cls_token": (1, 1, 768),
    "pretrained.model.pos_embed": (1, 577, 768),
    "pretrained.model.patch_embed.backbone.stem.conv.weight": (64, 3, 7, 7),
    "pretrained.model.patch_embed.backbone.stem.norm.weight": (64,),
    "pretrained.model.patch_embed.backbone.stages.0.blocks.0.downsample.conv.weight": (256, 64, 1, 1),
    "pretrained.model.patch_embed.backbone.stages.2.blocks.8.conv3.weight": (1024, 256, 1, 1),
    "pretrained.model.patch_embed.backbone.stages.2.blocks.8.norm1.bias": (256,),
    "pretrained.model.patch_embed.proj.weight": (768, 1024, 1, 1),
    "pretrained.model.blocks.11.attn.qkv.weight": (2304, 768),
    "pretrained.model.blocks.11.mlp.fc1.weight": (3072, 768),
    "pretrained.model.norm.weight": (768,),
    "pretrained.act_postprocess3.0.project.0.weight": (768, 1536),
    "pretrained.act_postprocess4.3.weight": (768, 768, 1, 1),
    "pretrained.act_postprocess4.4.weight": (768, 768, 3, 3),
    "scratch.layer1_rn.weight": (256, 256, 3, 3),
    "scratch.layer4_rn.weight": (256, 768, 3, 3),
    "scratch.refinenet1.resConfUnit2.conv1.bias": (256,),
    "scratch.refinenet4.out_conv.weight": (256, 256, 1, 1),
    "scratch.output_conv.0.weight": (128, 256, 3, 3),
    "scratch.output_conv.4.bias": (1,),
}


def test_midas_real_names_and_shapes() -> None:
    stages = {
        "depths": [3, 4, 9],
        "hidden_sizes": [256, 512, 1024, 2048],
        "out_features": ["stage1", "stage2", "stage3"],
    }
    config = DPTConfig(
        is_hybrid=True,
        backbone_config=BitConfig(
            layer_type="bottleneck", global_padding="same", embedding_dynamic_padding=True, **stages
        ),
        neck_hidden_sizes=[256, 512, 768, 768],
        reassemble_factors=[1, 1, 1, 0.5],
    )
    with torch.device("meta"):
        real = DPTForDepthEstimation(config).state_dict()
    original = midas.to_original(real)
    assert {name: tuple(original[name].shape) for name in REAL} == REAL
    again = midas.from_original(original)
    shapes = {name: tuple(tensor.shape) for name, tensor in again.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in real.items()}
    with torch.device("meta"):
        made = DPTForDepthEstimation(DPTConfig.from_dict(midas.config_of(shapes))).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == shapes
