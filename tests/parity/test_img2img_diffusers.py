"""Changed, inpainted and edited pictures against diffusers' pipelines, on the miniature, with the same noise.

Euler over timesteps 999, 888, ... 0, which both sides reach exactly. diffusers counts int(n strength) steps, A1111
and this program int(n strength) + 1. Its posterior samples are left out: it is given the latents' modes.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from torch import Tensor

from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.backbones.miniature import Miniature, open_miniature
from disegno.core.request import Request
from disegno.diffusion.inpaint import inpainting_channels
from disegno.engine.batch import Batch, View
from disegno.engine.runs import Begin, Material, runs_of
from disegno.engine.texts import Texts

# diffusers turns tensors into arrays in a way that numpy 2 deprecates
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

STEPS, SEED = 10, 7
REQUEST = Request(
    prompt="a red car", negative="blur", steps=STEPS, sampler="Euler", schedule="uniform", cfg=4.0, seed=SEED
)
# float32 through 5 to 10 evaluations of the miniature's UNet at cfg 4; latents of size 4 to 64. Measured: 7e-6 to 9e-5
ATOL = 5e-4


def _picture(seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear") * 2 - 1


def _mask() -> Tensor:
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, 16:48, 24:56] = 1
    return mask


def _pipeline(cls: Callable[..., Any], backbone: LatentDiffusion) -> Any:
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace", steps_offset=1
    )
    extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = cls(
        vae=backbone.vae, unet=backbone.net, text_encoder=None, tokenizer=None, scheduler=scheduler, **extras
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _theirs(pipeline: Any, backbone: LatentDiffusion, **given: Any) -> Tensor:
    states = [backbone.encode_text([text]).tokens for text in (REQUEST.prompt, REQUEST.negative)]
    return pipeline(
        prompt_embeds=states[0], negative_prompt_embeds=states[1], num_inference_steps=STEPS,
        guidance_scale=REQUEST.cfg, generator=torch.Generator().manual_seed(SEED), output_type="latent", **given,
    ).images  # fmt: skip


def _ours(backbone: LatentDiffusion, begin: Begin, extra: Tensor | None = None, request: Request = REQUEST) -> Tensor:
    texts = Texts.plain(*(backbone.encode_text([text]) for text in (request.prompt, request.negative)))
    material = Material(texts, (8, 8), (View(),), begin, extra)
    (run,) = runs_of(request, backbone, material, [SEED], [SEED])
    batch = Batch(backbone)
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    return run.latents


def test_img2img() -> None:
    backbone = open_miniature()
    latents = backbone.encode_image(_picture())
    pipeline = _pipeline(StableDiffusionImg2ImgPipeline, backbone)
    theirs = _theirs(pipeline, backbone, image=latents, strength=0.5)
    ours = _ours(backbone, Begin(latents, 0.4))
    assert torch.allclose(ours, theirs, atol=ATOL)
    assert not torch.allclose(ours, latents, atol=0.1)


def test_inpainting_with_an_ordinary_model() -> None:
    backbone = open_miniature()
    latents, mask = backbone.encode_image(_picture()), _mask()
    pipeline = _pipeline(StableDiffusionInpaintPipeline, backbone)
    theirs = _theirs(
        pipeline,
        backbone,
        image=latents,
        mask_image=mask,
        masked_image_latents=latents,
        strength=0.5,
        height=64,
        width=64,
    )
    ours = _ours(backbone, Begin(latents, 0.4, mask=mask[:, :, ::8, ::8]))
    assert torch.allclose(ours, theirs, atol=ATOL)
    assert ours[:, :, :2].equal(latents[:, :, :2])


def test_inpainting_with_an_inpainting_model() -> None:
    backbone = open_miniature(made=Miniature(in_channels=9))
    picture, mask = _picture(), _mask()
    latents, masked = backbone.encode_image(picture), backbone.encode_image(picture * (1 - mask))
    cells = mask[:, :, ::8, ::8]
    pipeline = _pipeline(StableDiffusionInpaintPipeline, backbone)
    theirs = _theirs(
        pipeline,
        backbone,
        image=latents,
        mask_image=mask,
        masked_image_latents=masked,
        strength=0.8,
        height=64,
        width=64,
    )
    # diffusers holds the rest with such a model only by what the net draws there; so is it compared
    ours = _ours(backbone, Begin(latents, 0.7), inpainting_channels(cells, masked))
    assert torch.allclose(ours, theirs, atol=ATOL)


def test_editing_by_instruction() -> None:
    backbone = open_miniature(made=Miniature(in_channels=8))
    picture = _picture()
    pipeline = _pipeline(StableDiffusionInstructPix2PixPipeline, backbone)
    theirs = _theirs(pipeline, backbone, image=(picture + 1) / 2, image_guidance_scale=REQUEST.image_cfg)
    shown = backbone.encode_image(picture) / backbone.scaling_factor
    ours = _ours(backbone, Begin(torch.zeros(1, 4, 8, 8), 1.0), shown)
    assert torch.allclose(ours, theirs, atol=ATOL)
    assert not torch.allclose(ours, _ours(backbone, Begin(torch.zeros(1, 4, 8, 8), 1.0), shown * 0), atol=0.1)
