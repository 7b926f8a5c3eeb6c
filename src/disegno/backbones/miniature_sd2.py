"""Tiny models of Stable Diffusion 2.x's classes, in memory and as files: see `miniature.py`, whose VAE they have.

UNet            as in `miniature.py`, but one head of 64 channels (of 32 in the first level), linear projections
text encoder    OpenCLIP's: 3 layers of width 64 that are used, and in the original's file the one that is not
depth           of the folder of a model that sees depth: DPT-hybrid, 4 layers of width 64 behind 3 stages of BiT
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import BitConfig, CLIPTextConfig, CLIPTextModel, DPTConfig, DPTForDepthEstimation

from disegno.backbones import miniature
from disegno.backbones._latent_diffusion import Nets
from disegno.backbones.miniature import draw, ldm_nets, write_json, write_part, write_pipeline
from disegno.core.files import write_atomically
from disegno.memory import build_empty
from disegno.text.clip import END_ID, START_ID
from disegno.weights.keys import midas, openclip
from disegno.weights.save import save_safetensors

WIDTH = 64
UNET: dict[str, Any] = miniature.UNET | {
    "cross_attention_dim": WIDTH,
    "attention_head_dim": (1, 1),
    "use_linear_projection": True,
    "upcast_attention": True,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "hidden_act": "gelu",
    "bos_token_id": START_ID,
    "eos_token_id": END_ID,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Sd2:
    """What is drawn. `in_channels`: 9 inpaints, 5 sees depth. `leaning`: what the output is moved by, so that a trial
    of what it means comes out as it does for a model of that kind. `estimates`: its depth estimator is with it.
    """

    seed: int = 0
    in_channels: int = 4
    leaning: float = 0.0
    estimates: bool = False


SD2 = Sd2()
DEPTH_SIDE = 64
DEPTH_PROCESSOR: dict[str, Any] = {
    "feature_extractor_type": "DPTFeatureExtractor",
    "do_resize": True,
    "size": DEPTH_SIDE,
    "resample": 2,
    "ensure_multiple_of": 1,
    "keep_aspect_ratio": False,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_STAGES: dict[str, Any] = {
    "embedding_size": 32,
    "hidden_sizes": [128, 128, 128],  # the inner ones are a quarter, in 32 groups
    "depths": [1, 1, 1],
    "layer_type": "bottleneck",
    "global_padding": "same",
    "out_features": ["stage1", "stage2", "stage3"],
    "embedding_dynamic_padding": True,
}
LEANING_V = -4.0  # of Sd2.leaning: far below x


def nets(made: Sd2 = SD2) -> Nets:
    """Return the UNet and the VAE, drawn."""
    config: dict[str, Any] = UNET | {"in_channels": made.in_channels}
    unet = draw(build_empty(lambda: UNet2DConditionModel(**config)), made.seed)
    unet["conv_out.bias"] = unet["conv_out.bias"] + made.leaning
    return Nets(unet, miniature.nets(miniature.Miniature(made.seed)).vae, config, miniature.VAE)


def text_tensors(made: Sd2 = SD2) -> dict[str, Tensor]:
    """Return the text encoder's weights, by CLIPTextModel's names."""
    return draw(build_empty(lambda: CLIPTextModel(CLIPTextConfig(**TEXT))), made.seed + 2)


def original_tensors(made: Sd2 = SD2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under the original names; the layer that is never used is another one."""
    tensors = ldm_nets(nets(made))
    text = openclip.to_openclip(text_tensors(made))
    unused = f"transformer.resblocks.{openclip.num_layers(text) - 1}."
    text = {name: tensor * (-1 if name.startswith(unused) else 1) for name, tensor in text.items()}
    text |= {"text_projection": torch.eye(WIDTH), "logit_scale": torch.tensor(4.6)}
    tensors |= {openclip.PREFIX + name: tensor for name, tensor in text.items()}
    if made.estimates:
        tensors |= {midas.PREFIX + name: tensor for name, tensor in midas.to_original(depth_tensors(made)).items()}
        tensors |= {f"{midas.PREFIX}pretrained.model.head.{end}": torch.zeros(3, 3) for end in ("weight", "bias")}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write_checkpoint(
    path: Path,
    made: Sd2 = SD2,
    dtype: torch.dtype = torch.float32,
    words: Mapping[str, str] | None = None,
    extra: tuple[str, ...] = (),
) -> Path:
    """Return `path`, now one file of the original layout. `extra`: marker keys (v_pred)."""
    tensors = original_tensors(made, dtype) | {name: torch.zeros(1) for name in extra}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_safetensors(path, tensors, words or {})
    else:
        write_atomically(path, lambda temporary: torch.save({"state_dict": tensors}, temporary))
    return path


def depth_config() -> DPTConfig:
    """Return the depth estimator's configuration: that of MiDaS's DPT-hybrid, but for its sizes."""
    backbone = BitConfig(**_STAGES)
    return DPTConfig(
        is_hybrid=True,
        backbone_config=backbone,
        backbone_featmap_shape=(1, 128, 4, 4),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=1,
        intermediate_size=64,
        image_size=DEPTH_SIDE,
        backbone_out_indices=(0, 1, 2, 3),
        neck_hidden_sizes=(128, 128, 32, 32),
        reassemble_factors=(1, 1, 1, 0.5),
        fusion_hidden_size=16,
    )


def depth_tensors(made: Sd2) -> dict[str, Tensor]:
    """Return the depth estimator's weights, by DPTForDepthEstimation's names."""
    config = depth_config()
    return draw(build_empty(lambda: DPTForDepthEstimation(config)), made.seed + 3)


def _write_depth_estimator(path: Path, made: Sd2) -> None:
    """Write the estimator into a diffusers folder, and how a picture is prepared for it."""
    config, tensors = depth_config(), depth_tensors(made)
    about = config.to_dict() | {"architectures": ["DPTForDepthEstimation"]}
    write_part(path / "depth_estimator", "model", (about, tensors))
    write_json(path / "feature_extractor" / "preprocessor_config.json", DEPTH_PROCESSOR)


def write_folder(path: Path, made: Sd2 = SD2, prediction: str | None = "v_prediction") -> Path:
    """Return `path`, now a diffusers folder.

    `prediction`: None leaves it out of the scheduler's configuration.
    """
    drawn = nets(made)
    text = {f"text_model.{name}": tensor for name, tensor in text_tensors(made).items()}
    config = CLIPTextConfig(**TEXT).to_dict() | {"architectures": ["CLIPTextModel"]}
    write_pipeline(path, drawn, {"text_encoder": (config, text)})
    if made.estimates:
        _write_depth_estimator(path, made)
    if prediction is not None:
        scheduler = miniature.SCHEDULER | {"prediction_type": prediction}
        write_json(path / "scheduler" / "scheduler_config.json", scheduler)
    else:
        silent = {name: value for name, value in miniature.SCHEDULER.items() if name != "prediction_type"}
        write_json(path / "scheduler" / "scheduler_config.json", silent)
    return path
