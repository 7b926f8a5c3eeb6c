"""Tiny models of Stable Diffusion 3's classes, in memory and as files: see `miniature.py` for their weights.

transformer     3 blocks of width 64, one head; the first with a second attention where it is 3.5 medium's kind
VAE             four levels of 32 channels, 16 latent channels, shift and scale, no quant convolutions
text            CLIP-L: 3 layers of width 32; OpenCLIP-G: 3 layers of width 64, projected; T5: 2 layers of width 128
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from disegno.backbones import miniature
from disegno.backbones.miniature import draw, ldm_vae, write_json, write_part
from disegno.memory import build_empty
from disegno.text.clip import END_ID, START_ID
from disegno.weights.keys import mmdit
from disegno.weights.save import save_safetensors

SHIFT = 3.0
WIDTH, JOINT, NUM_BLOCKS = 64, 128, 3
WIDTHS = {"clip_l": 32, "clip_g": 64}
VAE: dict[str, Any] = miniature.VAE | {
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
ENCODERS = ("clip_l", "clip_g", "t5")
_FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
_IN_FILE = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}


@dataclass(frozen=True)
class Sd3:
    """What is drawn. `kind`: 3 (as SD 3 medium), 3.5-medium (a second attention), or 3.5-large (norms of q and k)."""

    seed: int = 0
    kind: str = "3.5-medium"
    vocabulary: int = 300

    @property
    def net_config(self) -> dict[str, Any]:
        """Return the transformer's configuration."""
        return {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": NUM_BLOCKS,
            "attention_head_dim": mmdit.HEAD_WIDTH,
            "num_attention_heads": WIDTH // mmdit.HEAD_WIDTH,
            "joint_attention_dim": JOINT,
            "caption_projection_dim": WIDTH,
            "pooled_projection_dim": sum(WIDTHS.values()),
            "pos_embed_max_size": 24,
            "dual_attention_layers": (0,) if self.kind == "3.5-medium" else (),
            "qk_norm": None if self.kind == "3" else "rms_norm",
        }


SD3 = Sd3()


def clip_config(name: str) -> CLIPTextConfig:
    """Return the configuration of one of the two CLIPs."""
    width = WIDTHS[name]
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=1,
        hidden_act={"clip_l": "quick_gelu", "clip_g": "gelu"}[name],
        projection_dim=width,
        bos_token_id=START_ID,
        eos_token_id=END_ID,
        pad_token_id={"clip_l": END_ID, "clip_g": 0}[name],
    )


def t5_config(vocabulary: int) -> T5Config:
    """Return T5's configuration."""
    return T5Config(
        vocab_size=vocabulary,
        d_model=JOINT,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )


def net_tensors(made: Sd3 = SD3) -> dict[str, Tensor]:
    """Return the transformer's weights, by diffusers' names; positions as they are."""
    net = SD3Transformer2DModel(**made.net_config)
    drawn = draw(net, made.seed)
    return drawn | {"pos_embed.pos_embed": net.state_dict()["pos_embed.pos_embed"]}


def vae_tensors(made: Sd3 = SD3) -> dict[str, Tensor]:
    """Return the VAE's weights, by diffusers' names."""
    return draw(build_empty(lambda: AutoencoderKL(**VAE)), made.seed + 1)


def text_module(name: str, made: Sd3 = SD3) -> nn.Module:
    """Return an encoder of the real class, empty."""
    if name == "t5":
        return build_empty(lambda: T5EncoderModel(t5_config(made.vocabulary)))
    return build_empty(lambda: CLIPTextModelWithProjection(clip_config(name)))


def text_tensors(name: str, made: Sd3 = SD3) -> dict[str, Tensor]:
    """Return an encoder's weights, by its class's names, T5's embedding once. OpenCLIP-G's is drawn, CLIP-L's unit."""
    drawn = draw(text_module(name, made), made.seed + 2 + ENCODERS.index(name))
    drawn.pop("encoder.embed_tokens.weight", None)
    if name == "clip_l":  # in a file it is not used, so that file and folder are alike
        drawn["text_projection.weight"] = torch.eye(WIDTHS[name])
    return drawn


def write_folder(
    path: Path, made: Sd3 = SD3, tokenizer: Tokenizer | None = None, encoders: tuple[str, ...] = ENCODERS
) -> Path:
    """Return `path`, now a diffusers folder, with these text encoders and T5's tokenizer."""
    write_part(path / "transformer", "diffusion_pytorch_model", (made.net_config, net_tensors(made)))
    write_part(path / "vae", "diffusion_pytorch_model", (VAE, vae_tensors(made)))
    for name in encoders:
        config = t5_config(made.vocabulary) if name == "t5" else clip_config(name)
        classes = {"architectures": [type(text_module(name, made)).__name__]}
        write_part(path / _FOLDERS[name], "model", (config.to_dict() | classes, text_tensors(name, made)))
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": SHIFT}
    write_json(path / "scheduler" / "scheduler_config.json", scheduler)
    write_json(path / "model_index.json", {"_class_name": "StableDiffusion3Pipeline"})
    if tokenizer is not None:
        (path / "tokenizer_3").mkdir(exist_ok=True)
        tokenizer.save(str(path / "tokenizer_3" / "tokenizer.json"))
    return path


def original_tensors(made: Sd3 = SD3, encoders: tuple[str, ...] = ENCODERS) -> dict[str, Tensor]:
    """Return a file's tensors under the original names, with these text encoders in it."""
    tensors = {mmdit.PREFIX + name: tensor for name, tensor in mmdit.to_original(net_tensors(made)).items()}
    tensors |= ldm_vae(vae_tensors(made))
    for name in encoders:
        prefix = f"text_encoders.{_IN_FILE[name]}."
        tensors |= {f"{prefix}transformer.{key}": tensor for key, tensor in text_tensors(name, made).items()}
        tensors[f"{prefix}logit_scale"] = torch.tensor(4.6)
    return tensors


def write_file(
    path: Path,
    made: Sd3 = SD3,
    encoders: tuple[str, ...] = ENCODERS,
    dtype: torch.dtype = torch.float32,
    words: Mapping[str, str] | None = None,
) -> Path:
    """Return `path`, now one file of the original layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype) for name, tensor in original_tensors(made, encoders).items()}
    save_safetensors(path, tensors, words or {})
    return path


def write_encoder(path: Path, name: str, made: Sd3 = SD3) -> Path:
    """Return `path`, now the file of one text encoder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(path, text_tensors(name, made), {"format": "pt"})
    return path
