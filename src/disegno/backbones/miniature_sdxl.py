"""Tiny models of Stable Diffusion XL's classes, in memory and as files: see `miniature.py`, whose VAE they have.

UNet    levels of 64 and 128 channels, heads of 64; no attention in the first, two transformer blocks in the second;
        with `THREE_LEVELS` 32, 64 and 128, and so as many skip connections as the real one has: 9
text    CLIP-L: 3 layers of width 32; OpenCLIP-G: 3 layers of width 64, projected; the refiner has the second alone
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from disegno.backbones import miniature
from disegno.backbones._latent_diffusion import Nets
from disegno.backbones.miniature import draw, ldm_nets, write_json, write_part, write_pipeline
from disegno.memory import build_empty
from disegno.text.clip import END_ID, START_ID
from disegno.weights.keys import openclip
from disegno.weights.save import save_safetensors

WIDTHS = {"clip_l": 32, "clip_g": 64}
SIZE_WIDTH = 256  # of each number that the net is told
VAE: dict[str, Any] = miniature.VAE | {"scaling_factor": 0.13025, "force_upcast": True}
SCHEDULER: dict[str, Any] = miniature.SCHEDULER | {
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "leading",
}
THREE_LEVELS: dict[str, Any] = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 1, 2),
}
_FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass(frozen=True)
class Sdxl:
    """What is drawn. `in_channels`: 9 inpaints. `refines`: it is the refiner. `prediction`: by diffusers' word.

    `unet`: what its configuration has other than the others'.
    """

    seed: int = 0
    in_channels: int = 4
    refines: bool = False
    prediction: str = "epsilon"
    unet: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def encoders(self) -> tuple[str, ...]:
        """Return the names of its text encoders."""
        return ("clip_g",) if self.refines else ("clip_l", "clip_g")

    @property
    def unet_config(self) -> dict[str, Any]:
        """Return the UNet's configuration."""
        return {
            "sample_size": 8,
            "in_channels": self.in_channels,
            "out_channels": 4,
            "block_out_channels": (64, 128),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (1, 2),
            "cross_attention_dim": sum(WIDTHS[name] for name in self.encoders),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_WIDTH,
            "projection_class_embeddings_input_dim": WIDTHS["clip_g"] + (5 if self.refines else 6) * SIZE_WIDTH,
            **self.unet,
        }


SDXL = Sdxl()
_REAL_UNET: dict[str, Any] = SDXL.unet_config | {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 1280 + 6 * SIZE_WIDTH,
}


def sdxl_unet() -> UNet2DConditionModel:
    """Return Stable Diffusion XL's net, on meta tensors: its shapes, without memory or values."""
    return build_empty(lambda: UNet2DConditionModel(**_REAL_UNET))


def nets(made: Sdxl = SDXL) -> Nets:
    """Return the UNet and the VAE, drawn."""
    unet = build_empty(lambda: UNet2DConditionModel(**made.unet_config))
    return Nets(draw(unet, made.seed), miniature.nets().vae, made.unet_config, VAE)


def text_config(name: str) -> CLIPTextConfig:
    """Return an encoder's configuration."""
    openclips = name == "clip_g"
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTHS[name],
        intermediate_size=2 * WIDTHS[name],
        projection_dim=WIDTHS[name],
        num_hidden_layers=3,
        num_attention_heads=1,
        hidden_act="gelu" if openclips else "quick_gelu",
        bos_token_id=START_ID,
        eos_token_id=END_ID,
        pad_token_id=0 if openclips else END_ID,
    )


def text_tensors(name: str, made: Sdxl = SDXL) -> dict[str, Tensor]:
    """Return an encoder's weights, by its class's names in a folder."""
    if name == "clip_g":
        return draw(build_empty(lambda: CLIPTextModelWithProjection(text_config(name))), made.seed + 3)
    drawn = draw(build_empty(lambda: CLIPTextModel(text_config(name))), made.seed + 2)
    return {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in drawn.items()}


def write_folder(path: Path, made: Sdxl = SDXL) -> Path:
    """Return `path`, now a diffusers folder of the miniature."""
    write_pipeline(path, nets(made), {})
    for name in made.encoders:
        write_part(path / _FOLDERS[name], "model", (text_config(name).to_dict(), text_tensors(name, made)))
    write_json(path / "scheduler" / "scheduler_config.json", SCHEDULER | {"prediction_type": made.prediction})
    kind = "StableDiffusionXLImg2ImgPipeline" if made.refines else "StableDiffusionXLPipeline"
    write_json(path / "model_index.json", {"_class_name": kind})
    return path


def original_tensors(made: Sdxl = SDXL) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under the original names."""
    tensors = ldm_nets(nets(made))
    right = {key.removeprefix("text_model."): tensor for key, tensor in text_tensors("clip_g", made).items()}
    place = 0 if made.refines else 1
    original = openclip.to_openclip(right, spare_layer=False) | {
        "text_projection": right["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    tensors |= {f"conditioner.embedders.{place}.model.{key}": tensor for key, tensor in original.items()}
    if not made.refines:
        left = text_tensors("clip_l", made)
        tensors |= {f"conditioner.embedders.0.transformer.{key}": tensor for key, tensor in left.items()}
        tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors


def write_file(
    path: Path,
    made: Sdxl = SDXL,
    dtype: torch.dtype = torch.float32,
    words: Mapping[str, str] | None = None,
    extra: tuple[str, ...] = (),
) -> Path:
    """Return `path`, now one file of the original layout. `extra`: marker keys (v_pred, ztsnr)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype) for name, tensor in original_tensors(made).items()}
    save_safetensors(path, tensors | {name: torch.zeros(1) for name in extra}, words or {})
    return path
