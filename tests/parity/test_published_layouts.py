"""Every family's published models, as one file and as a diffusers folder: names, shapes and configurations, without
their gigabytes. The folder's side is the real classes on the meta device, the file's side the published names below.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from corpus import headers
from disegno.weights import layouts
from disegno.weights.identify import identify
from disegno.weights.layouts import Part
from kit import xl

pytestmark = pytest.mark.parity

Shapes = dict[str, tuple[int, ...]]
Make = Callable[[], nn.Module]

LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2} | LEVELS
UNET1: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
UNET2: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
MMDIT: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
SIZES: dict[str, dict[str, Any]] = {
    "3": MEDIUM | {"pos_embed_max_size": 192},
    "3.5-medium": MEDIUM
    | {"pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
    "3.5-large": {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
}
T5 = T5Config(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)


def _clip(width: int, layers: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=act,
        projection_dim=width,
    )


@dataclass(frozen=True)
class Published:
    """A model. `parts`: its networks by their folders; `names`: some of its file's tensors; `numbers`: of each part."""

    family: str
    in_channels: int
    parts: dict[str, Make]
    names: Shapes
    numbers: dict[str, int] = field(default_factory=dict[str, int])


U, F, C = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
OLD_VAE: Shapes = {
    f"{F}encoder.down.3.block.1.conv2.weight": (512, 512, 3, 3),
    f"{F}decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    f"{F}decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    f"{F}quant_conv.weight": (8, 8, 1, 1),
    f"{F}post_quant_conv.bias": (4,),
}
NEW_VAE: Shapes = {
    f"{F}encoder.conv_out.weight": (32, 512, 3, 3),
    f"{F}decoder.conv_in.weight": (512, 16, 3, 3),
    f"{F}decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
}


def _old(channels: int, family: str) -> Published:
    """Return a model of Stable Diffusion 1.5's or 2's shape, with so many channels shown to it."""
    is_first = family == "sd1"
    unet = (UNET1 if is_first else UNET2) | {"in_channels": channels}
    width = 768 if is_first else 1024
    text = CLIPTextModel, _clip(width, 12, "quick_gelu") if is_first else _clip(width, 23, "gelu")
    projection = (320, 320, 1, 1) if is_first else (320, 320)
    names: Shapes = {
        f"{U}input_blocks.0.0.weight": (320, channels, 3, 3),
        f"{U}input_blocks.1.1.proj_in.weight": projection,
        f"{U}input_blocks.3.0.op.weight": (320, 320, 3, 3),
        f"{U}middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        f"{U}output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
        f"{U}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        f"{U}out.2.weight": (4, 320, 3, 3),
    }
    of_text: Shapes = (
        {
            f"{C}transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
            f"{C}transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        }
        if is_first
        else {
            f"{C}model.positional_embedding": (77, 1024),
            f"{C}model.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
            f"{C}model.transformer.resblocks.0.mlp.c_fc.bias": (4096,),
            f"{C}model.ln_final.weight": (1024,),
        }
    )
    parts: dict[str, Make] = {
        "unet": lambda: UNet2DConditionModel(**unet),
        "vae": lambda: AutoencoderKL(**VAE, latent_channels=4),
        "text_encoder": lambda: text[0](text[1]),
    }
    numbers = {"unet": 686, "vae": 248, "text_encoder": 196 if is_first else 24 * 12 + 4}
    return Published(family, channels, parts, names | OLD_VAE | of_text, numbers)


def _new(kind: str, encoders: tuple[str, ...]) -> Published:
    """Return a model of Stable Diffusion 3's family, with these text encoders in it."""
    width = SIZES[kind]["caption_projection_dim"]
    names: Shapes = {
        f"{U}pos_embed": (1, SIZES[kind]["pos_embed_max_size"] ** 2, width),
        f"{U}x_embedder.proj.weight": (width, 16, 2, 2),
        f"{U}y_embedder.mlp.0.weight": (width, 2048),
        f"{U}context_embedder.weight": (width, 4096),
        f"{U}joint_blocks.0.x_block.attn.qkv.weight": (3 * width, width),
        f"{U}final_layer.adaLN_modulation.1.weight": (2 * width, width),
    }
    of_text: dict[str, tuple[Make, Shapes, int]] = {
        "text_encoder": (
            lambda: CLIPTextModelWithProjection(_clip(768, 12, "quick_gelu")),
            {"text_encoders.clip_l.transformer.text_model.encoder.layers.11.self_attn.k_proj.weight": (768, 768)},
            196,  # the projection is none: left out
        ),
        "text_encoder_2": (
            lambda: CLIPTextModelWithProjection(_clip(1280, 32, "gelu")),
            {
                "text_encoders.clip_g.transformer.text_model.encoder.layers.31.mlp.fc2.weight": (1280, 5120),
                "text_encoders.clip_g.transformer.text_projection.weight": (1280, 1280),
            },
            32 * 16 + 4 + 1,
        ),
        "text_encoder_3": (
            lambda: T5EncoderModel(T5),
            {
                "text_encoders.t5xxl.transformer.shared.weight": (32128, 4096),
                "text_encoders.t5xxl.transformer.encoder.block.23.layer.1.DenseReluDense.wi_1.weight": (10240, 4096),
            },
            24 * 9 + 3,
        ),
    }
    parts: dict[str, Make] = {
        "transformer": lambda: SD3Transformer2DModel(**MMDIT, **SIZES[kind]),
        "vae": lambda: AutoencoderKL(**VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False),
    }
    for name in encoders:
        names |= of_text[name][1]
    numbers = {"vae": 244} | {name: of_text[name][2] for name in encoders}
    return Published("sd3", 16, parts | {name: of_text[name][0] for name in encoders}, names | NEW_VAE, numbers)


def _xl(channels: int, refines: bool = False) -> Published:
    """Return SDXL (so are SDXL Turbo, Lightning and Hyper), or its refiner."""
    unet = (xl.REFINER if refines else xl.BASE) | {"in_channels": channels}
    tower = f"conditioner.embedders.{0 if refines else 1}.model."
    names: Shapes = {
        f"{tower}positional_embedding": (77, 1280),
        f"{tower}text_projection": (1280, 1280),
        f"{tower}transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        f"{tower}transformer.resblocks.0.mlp.c_fc.bias": (5120,),
    }
    of_unet: Shapes = (
        {
            f"{U}input_blocks.0.0.weight": (384, channels, 3, 3),
            f"{U}label_emb.0.0.weight": (1536, 2560),
            f"{U}input_blocks.8.1.transformer_blocks.3.attn2.to_k.weight": (1536, 1280),
            f"{U}input_blocks.11.0.out_layers.3.weight": (1536, 1536, 3, 3),
            f"{U}middle_block.1.transformer_blocks.3.attn1.to_q.weight": (1536, 1536),
            f"{U}output_blocks.2.1.conv.weight": (1536, 1536, 3, 3),
            f"{U}output_blocks.5.2.conv.weight": (1536, 1536, 3, 3),
            f"{U}output_blocks.11.0.skip_connection.weight": (384, 768, 1, 1),
        }
        if refines
        else {
            f"{U}input_blocks.0.0.weight": (320, channels, 3, 3),
            f"{U}label_emb.0.0.weight": (1280, 2816),
            f"{U}label_emb.0.2.bias": (1280,),
            f"{U}input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
            f"{U}input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
            f"{U}middle_block.1.proj_in.weight": (1280, 1280),
            f"{U}output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
            f"{U}output_blocks.8.0.in_layers.2.weight": (320, 640, 3, 3),
        }
    )
    of_clip: Shapes = {
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    }
    numbers = {"unet": 1220 if refines else 1680, "vae": 248, "text_encoder_2": 32 * 12 + 4 + 1}
    if not refines:
        numbers["text_encoder"], names = 196, names | of_clip
    parts = xl.parts(unet, refines)
    return Published("sdxl", channels, parts, names | of_unet | OLD_VAE, numbers)


CLIPS = ("text_encoder", "text_encoder_2")
MODELS_PUBLISHED: dict[str, Callable[[], Published]] = {
    "1.5": lambda: _old(4, "sd1"),
    "1.5 inpainting": lambda: _old(9, "sd1"),
    "1.5 editing": lambda: _old(8, "sd1"),
    "2.1": lambda: _old(4, "sd2"),
    "2 inpainting": lambda: _old(9, "sd2"),
    "2 depth": lambda: _old(5, "sd2"),
    "XL": lambda: _xl(4),
    "XL inpainting": lambda: _xl(9),
    "XL refiner": lambda: _xl(4, refines=True),
    "3 medium with all encoders": lambda: _new("3", (*CLIPS, "text_encoder_3")),
    "3.5 medium with CLIPs": lambda: _new("3.5-medium", CLIPS),
    "3.5 large": lambda: _new("3.5-large", ()),
}


def _meta(make: Make) -> dict[str, Tensor]:
    with torch.device("meta"):
        tensors = dict(make().state_dict())
    tensors.pop("encoder.embed_tokens.weight", None)  # T5's embedding, which a folder has once
    return tensors


def _shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _folders_names(part: Part, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names that a published folder has."""
    return tensors if part in (layouts.T5, layouts.DEPTH) else xl.folders_names(part, tensors)


def _rebuilt(part: Part, config: dict[str, Any]) -> nn.Module:
    """Return the class with a configuration as it is written."""
    told = json.loads(json.dumps(config))
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    if part.cls in classes:
        return classes[part.cls](CLIPTextConfig.from_dict(told))
    if part.cls == "T5EncoderModel":
        return T5EncoderModel(T5Config.from_dict(told))
    real = {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}
    return (real | {"SD3Transformer2DModel": SD3Transformer2DModel})[part.cls].from_config(told)


@pytest.mark.parametrize("name", MODELS_PUBLISHED)
def test_a_published_model_goes_between_its_two_forms(name: str, tmp_path: Path) -> None:
    model = MODELS_PUBLISHED[name]()
    by_folder = {part.folder: part for part in layouts.parts_of(model.family, "text_encoder" in model.parts)}
    file: Shapes = {}
    for folder, make in model.parts.items():
        part, real = by_folder[folder], _meta(make)
        given = _folders_names(part, real)
        original = part.to_ldm(given)
        again = part.to_diffusers(original)
        assert _shapes(again) == _shapes(given), folder
        assert part.placed(original) == original.keys() or part is layouts.OPENCLIP
        if folder in model.numbers:
            assert len(original) == model.numbers[folder], folder
        config = part.config(again)
        assert _shapes(_meta(lambda part=part, config=config: _rebuilt(part, config))) == _shapes(real), folder
        file |= {part.prefix + key: tuple(tensor.shape) for key, tensor in original.items()}
        _write(tmp_path / "folder" / folder / "config.json", config | {"_class_name": part.cls})
    assert {key: file.get(key) for key in model.names} == model.names
    card = identify(headers.write_header(tmp_path / "model.safetensors", file))
    assert (card.kind, card.family, card.layout, card.in_channels) == ("model", model.family, "ldm", model.in_channels)
    _write(tmp_path / "folder" / "model_index.json", {"_class_name": layouts.pipeline_of(model.parts)})
    card = identify(tmp_path / "folder")
    assert (card.kind, card.family, card.in_channels) == ("model", model.family, model.in_channels)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
