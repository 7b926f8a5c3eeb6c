"""Stable Diffusion XL's published sizes: the UNets' configurations, and whole files of the original layout on the meta
device.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from disegno.weights.layouts import Part, parts_of

_SHARED: dict[str, Any] = {
    "layers_per_block": 2,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "sample_size": 128,
}
BASE = _SHARED | {  # Turbo's, Lightning's and Hyper's, too
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = _SHARED | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
INPAINTING = BASE | {"in_channels": 9}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def meta(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Return a module's tensors, on the meta device."""
    with torch.device("meta"):
        return dict(make().state_dict())


def clip(width: int, layers: int, act: str) -> CLIPTextConfig:
    """Return the configuration of a text encoder with heads of 64 channels."""
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=act,
        projection_dim=width,
    )


CLIP_L, CLIP_G = clip(768, 12, "quick_gelu"), clip(1280, 32, "gelu")


def parts(unet: dict[str, Any], refines: bool = False) -> dict[str, Callable[[], nn.Module]]:
    """Return a model's networks, by their folders."""
    left = {} if refines else {"text_encoder": lambda: CLIPTextModel(CLIP_L)}
    return left | {
        "unet": lambda: UNet2DConditionModel(**unet),
        "vae": lambda: AutoencoderKL(**VAE),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(CLIP_G),
    }


def folders_names(part: Part, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names that a published folder has: transformers has an outer name less in memory."""
    if part.library != "transformers":
        return tensors
    return {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in tensors.items()}


def file(unet: dict[str, Any], refines: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a published file, also those that decide nothing."""
    made = parts(unet, refines)
    found: dict[str, Tensor] = {}
    for part in parts_of("sdxl", has_clip_l=not refines):
        original = part.to_ldm(folders_names(part, meta(made[part.folder])))
        found |= {part.prefix + name: tensor for name, tensor in original.items()}
    beside = torch.empty(1, 77, device="meta", dtype=torch.long)
    tower = f"conditioner.embedders.{0 if refines else 1}.model."
    found |= {} if refines else {"conditioner.embedders.0.transformer.text_model.embeddings.position_ids": beside}
    return found | {f"{tower}logit_scale": torch.empty((), device="meta")}
