"""Tiny models of the real classes with seeded random weights, in memory and as files: for tests and documents.

    UNet            levels of 32 and 64 channels, one residual block and attention (8 heads) each; 4 latent channels
    VAE             four levels of 32 channels: 8 pixels a latent cell, as in the real one
    text encoder    3 layers of width 32, one head; the real vocabulary of 49,408 tokens

They obey Stable Diffusion's conventions where a file leaves no trace (heads, groups): every kind of file opens alike.
Weights: norms 1 + N/10, biases N/10, matrices N/sqrt(fan in), so that signals keep their size and every tensor counts.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from disegno.backbones._fingerprint import fingerprint
from disegno.backbones._latent_diffusion import LatentDiffusion, Nets, open_nets
from disegno.backbones.base import Defaults
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import scaled_linear_table
from disegno.memory import FULL_PRECISION, Memory, build_empty
from disegno.text.clip import END_ID, START_ID, open_clip
from disegno.weights.keys import ldm
from disegno.weights.save import save_safetensors, write_atomically

DEFAULTS = Defaults(64, 64, steps=4, cfg=3.0, sampler="DPM++ 2M", schedule="automatic")
SCALING_FACTOR = 0.18215

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}
VAE: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (32, 32, 32, 32),
    "layers_per_block": 1,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": SCALING_FACTOR,
}
_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "hidden_act": "quick_gelu",
    "bos_token_id": START_ID,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_REAL_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
REAL_VAE: dict[str, Any] = VAE | {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}


@dataclass(frozen=True)
class Miniature:
    """What is drawn: `seed` decides the weights; `in_channels` 9 makes an inpainting UNet, 8 an editing one."""

    seed: int = 0
    in_channels: int = 4
    prediction: str = "epsilon"
    unet: Mapping[str, Any] | None = None  # fields of UNet2DConditionModel's configuration that differ

    @property
    def unet_config(self) -> dict[str, Any]:
        """Return the UNet's configuration."""
        return UNET | {"in_channels": self.in_channels} | dict(self.unet or {})


SD1 = Miniature()


def draw(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return random weights for every parameter of a module, float32; the module may be empty."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _drawn(name, tensor.shape, generator) for name, tensor in module.state_dict().items()}


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise / math.sqrt(math.prod(shape[1:]))
    return noise / 10 + (1 if name.endswith("weight") else 0)


def nets(made: Miniature = SD1) -> Nets:
    """Return the UNet and the VAE, drawn."""
    unet = build_empty(lambda: UNet2DConditionModel(**made.unet_config))
    vae = build_empty(lambda: AutoencoderKL(**VAE))
    return Nets(draw(unet, made.seed), draw(vae, made.seed + 1), made.unet_config, VAE)


def text_tensors(made: Miniature = SD1) -> dict[str, Tensor]:
    """Return the text encoder's weights, by CLIPTextModel's names."""
    return draw(build_empty(lambda: CLIPTextModel(CLIPTextConfig(**_TEXT))), made.seed + 2)


def open_miniature(memory: Memory | None = None, made: Miniature = SD1) -> LatentDiffusion:
    """Return an open miniature of Stable Diffusion 1.x. `memory`: unset, float32 on the CPU."""
    memory = memory or Memory(FULL_PRECISION)
    drawn, text = nets(made), text_tensors(made)
    unet, vae = open_nets(drawn, "miniature", memory)
    return LatentDiffusion(
        family="sd1",
        name="miniature",
        prediction=PREDICTIONS[made.prediction],
        table=scaled_linear_table(),
        defaults=DEFAULTS,
        net=unet,
        vae=vae,
        text=open_clip(text, CLIPTextConfig(**_TEXT), memory, "The text encoder of miniature"),
        memory=memory,
        fingerprint=fingerprint(drawn.unet, drawn.vae, text),
    )


# ---- as files


def write_sd1_folder(path: Path, made: Miniature = SD1) -> Path:
    """Return `path`, now a diffusers folder of the miniature."""
    text = {f"text_model.{name}": tensor for name, tensor in text_tensors(made).items()}
    write_pipeline(path, nets(made), {"text_encoder": (CLIPTextConfig(**_TEXT).to_dict(), text)})
    told = {"v": "v_prediction"}.get(made.prediction, made.prediction)
    write_json(path / "scheduler" / "scheduler_config.json", SCHEDULER | {"prediction_type": told})
    return path


Part = tuple[Mapping[str, Any], Mapping[str, Tensor]]  # a configuration, and the tensors


def write_pipeline(path: Path, drawn: Nets, texts: Mapping[str, Part]) -> None:
    """Write a UNet, a VAE and text encoders as a diffusers folder, without a scheduler."""
    stem = "diffusion_pytorch_model"
    write_part(path / "unet", stem, (drawn.unet_config, drawn.unet))
    write_part(path / "vae", stem, (drawn.vae_config, drawn.vae))
    for name, part in texts.items():
        write_part(path / name, "model", part)
    write_json(path / "model_index.json", _INDEX)


def write_part(folder: Path, stem: str, part: Part) -> None:
    """Write one network's configuration and tensors."""
    write_json(folder / "config.json", part[0])
    save_safetensors(folder / f"{stem}.safetensors", part[1], {"format": "pt"})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a configuration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, default=str), "utf-8")


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is laid out: what differs between the files in the field."""

    dtype: torch.dtype = torch.float32
    ema: bool = False
    lightning: bool = False
    text_prefix: str = ldm.TEXT_PREFIXES[0]
    extra: tuple[str, ...] = ()  # marker keys (v_pred, ztsnr)
    header: Mapping[str, str] | None = None  # safetensors only


WHOLE = Layout()


def original_tensors(made: Miniature = SD1, layout: Layout = WHOLE) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under the original names, the VAE's attention as 1x1 convolutions."""
    tensors = ldm_nets(nets(made))
    tensors |= {layout.text_prefix + name: tensor for name, tensor in text_tensors(made).items()}
    if layout.ema:
        tensors |= _ema(tensors)
    tensors = {name: tensor.to(layout.dtype) for name, tensor in tensors.items()}
    tensors |= {name: torch.zeros(1) for name in layout.extra}
    return tensors | {layout.text_prefix + "embeddings.position_ids": torch.arange(77)[None]}


def ldm_nets(drawn: Nets) -> dict[str, Tensor]:
    """Return a UNet's and a VAE's tensors under the original names."""
    originals = ldm.unet_originals(drawn.unet)
    return {ldm.UNET_PREFIX + originals[name]: t for name, t in drawn.unet.items()} | ldm_vae(drawn.vae)


def ldm_vae(vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a VAE's tensors under the original names: the attention's matrices are 1x1 convolutions there."""
    matrices = {name for name, tensor in vae.items() if ".attentions." in name and tensor.ndim == 2}
    names = ldm.vae_originals(vae).items()
    return {ldm.VAE_PREFIX + new: vae[name][..., None, None] if name in matrices else vae[name] for name, new in names}


def _ema(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return other weights under the names of LDM's EMA: it takes the dots out."""
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor * 0.5
        for name, tensor in tensors.items()
        if name.startswith(ldm.UNET_PREFIX)
    }
    return averaged | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def write_sd1_checkpoint(path: Path, made: Miniature = SD1, layout: Layout = WHOLE) -> Path:
    """Return `path`, now one file of the original layout: safetensors or, by its suffix .ckpt, a torch checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = original_tensors(made, layout)
    if path.suffix == ".safetensors":
        save_safetensors(path, tensors, layout.header or {})
        return path
    wrapped = {"state_dict": tensors, "epoch": 3, "global_step": 1000, "pytorch-lightning_version": "1.4.2"}
    write_atomically(path, lambda temporary: torch.save(wrapped if layout.lightning else tensors, temporary))
    return path


def sd15_unet() -> UNet2DConditionModel:
    """Return Stable Diffusion 1.5's net, on meta tensors: its shapes, without memory or values."""
    return build_empty(lambda: UNet2DConditionModel(**_REAL_UNET))


def sd15_shapes() -> dict[str, tuple[int, ...]]:
    """Return every tensor's name and shape in a real Stable Diffusion 1.5 file; no memory is taken."""
    unet = sd15_unet().state_dict()
    vae = build_empty(lambda: AutoencoderKL(**REAL_VAE)).state_dict()
    text = build_empty(lambda: CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072))).state_dict()
    shapes = {
        ldm.UNET_PREFIX + original: tuple(unet[name].shape) for name, original in ldm.unet_originals(unet).items()
    }
    for name, original in ldm.vae_originals(vae).items():
        matrix = ".attentions." in name and vae[name].ndim == 2
        shapes[ldm.VAE_PREFIX + original] = (*vae[name].shape, *((1, 1) if matrix else ()))
    shapes |= {ldm.TEXT_PREFIXES[0] + name: tuple(tensor.shape) for name, tensor in text.items()}
    return shapes | {ldm.TEXT_PREFIXES[0] + "embeddings.position_ids": (1, 77)}
